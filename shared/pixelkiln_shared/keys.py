"""Every Redis key and every object key, named once, with its lifetime and the reason for it.

Redis keys begin with `pk:`. "With the record" means: until the job's record expires (`retention_s` after its end).
User text never forms a key: tenants are slugs from the key table, ids are ours, lanes come from the catalogue.
"""

from __future__ import annotations

import secrets
import time
from datetime import UTC, datetime

PREFIX = "pk:"

IDEMPOTENCY_S = 86_400  # clients that retry for a day still find their first answer
UPLOAD_S = 86_400  # an upload that no job used within a day is swept
WORKER_S = 30  # a worker that did not report for two leases is gone
EVENT_SHARDS = 16  # enough that one XREAD per shard stays small, few enough for one blocking call
EVENTS_KEPT = 10_000  # entries per shard (approximate): minutes of history for Last-Event-ID
CELERY_PREFIX = "pk:celery:"  # kombu's global_keyprefix: bells live beside the ledger, never among its keys

CANCELS = "pk:cancels"  # pub/sub channel, no lifetime: a hint, the truth is in the record
WORKERS = "pk:workers"  # set of worker ids, no lifetime: whoever reads it drops the silent ones
REAP_LOCK = "pk:reap"  # one sweep at a time in the whole fleet; lives a few seconds, so a killed sweeper blocks none



_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's base 32, lower case


def worker(worker_id: str) -> str:
    """Return the key of a worker's last report; lives `WORKER_S`."""
    return f"pk:worker:{worker_id}"


def new_id(prefix: str) -> str:
    """Return `{prefix}_` + 26 characters: 48 bits of milliseconds (so ids sort by time) and 80 random bits."""
    number = (time.time_ns() // 1_000_000) << 80 | secrets.randbits(80)
    return f"{prefix}_" + "".join(_ALPHABET[number >> shift & 31] for shift in range(125, -1, -5))


def id_time(identity: str) -> datetime:
    """Return the moment an id was made, to the millisecond.

    Raises:
        ValueError: not an id of ours.
    """
    digits = identity.rpartition("_")[2]
    if len(digits) != 26 or not set(digits) <= set(_ALPHABET):
        raise ValueError("not an id")
    number = 0
    for digit in digits:
        number = number << 5 | _ALPHABET.index(digit)
    return datetime.fromtimestamp((number >> 80) / 1_000, UTC)


def job_prefix(tenant: str, job_id: str) -> str:
    """Return `{tenant}/{yyyy}/{mm}/{dd}/{job_id}/`, the folder of a job's objects; the day is the id's own."""
    return f"{tenant}/{id_time(job_id):%Y/%m/%d}/{job_id}/"


def attempt_prefix(tenant: str, job_id: str, attempt: int) -> str:
    """Return the folder of one attempt: a late attempt can never overwrite a newer one's objects."""
    return f"{job_prefix(tenant, job_id)}a{attempt}/"


def upload_key(tenant: str, upload_id: str) -> str:
    """Return the key of an upload's checked picture; swept `UPLOAD_S` after its creation when unused."""
    return f"{tenant}/uploads/{upload_id}"


def input_key(tenant: str, job_id: str) -> str:
    """Return the key of a job's own copy of its input picture; it lives and goes with the job."""
    return f"{job_prefix(tenant, job_id)}input"
