"""Every Redis key and every object key, named once, with its lifetime and the reason for it.

Redis keys begin with `pk:`. "With the record" means: until the job's record is forgotten (`retention_s` after
its end). User text never forms a key: tenants are slugs from the key table, ids are ours, lanes come from the
catalogue.
"""

from __future__ import annotations

import base64
import secrets
import time
from datetime import UTC, datetime
from enum import StrEnum
from functools import lru_cache

PREFIX = "pk:"

IDEMPOTENCY_S = 86_400  # clients that retry for a day still find their first answer
UPLOAD_S = 86_400  # an upload that no job used within a day is swept
BATCH_S = 30 * 86_400  # a batch of OpenAI's API is listed for a month; its jobs go when their records do
ORPHAN_S = 7_200  # files without a record are on their way to one for minutes, when the store is slow
EMBEDDING_S = 86_400  # a picture is clicked on for minutes, perhaps again tomorrow; anew it costs a second
STRAYS_S = 7 * 86_400  # whoever sends garbage into the queues is looked for within a week
STRAYS_KEPT = 100  # a flood of it says no more than its newest
PROBE_S = 60  # written again every few seconds; nobody reads it
WORKER_S = 30  # a worker that did not report for two leases is gone
DRAIN_S = 3_600  # an hour outlasts any outage a worker would sit out; ids of workers never come again
PREVIEW_S = 60  # a rough picture is worth looking at while its job runs, and a new one comes every second
DELIVERED_S = 86_400  # a day is enough to ask whether a receiver was told
UNDELIVERED_S = (
    7 * 86_400
)  # the owner of a receiver that was away notices within a week and asks for it again
GONE_S = 86_400  # a receiver that answered 410 is left alone; its owner may have meant another address
FAILING_S = 4 * 86_400  # outlasts the last retry; then whatever was owed to that receiver has been given up
EVENT_SHARDS = 16  # enough that one XREAD per shard stays small, few enough for one blocking call
EVENTS_KEPT = 10_000  # entries per shard (approximate): minutes of history for Last-Event-ID
CELERY_PREFIX = "pk:celery:"  # kombu's global_keyprefix: bells live beside the ledger, never among its keys

CANCELS = "pk:cancels"  # pub/sub channel, no lifetime: a hint, the truth is in the record
DRAINS = "pk:drains"  # pub/sub channel of worker ids, no lifetime: a hint, the truth is in `drain`


class LedgerKey(StrEnum):
    """What the ledger keeps in Redis; names that end in `:` go on as described. The scripts read this table.

    "While it waits" and the like: the move that ends the state removes the entry in the same script, and
    Redis drops a set or hash with its last entry, so these need no expiry time.
    """

    SEQUENCE = "pk:sequence"  # for ever: one counter that orders all jobs
    JOB = "pk:job:"  # + id, hash, with the record: small fields only, so that Redis stores it packed
    SPEC = "pk:spec:"  # + id, string, with the record: what the worker runs
    OUTCOME = "pk:outcome:"  # + id, string, with the record: the result, or the error of a failed job
    INDEX = "pk:index:"  # + t:tenant or g:group + :kind:status, zset by sequence, with the records
    GROUP = "pk:group:"  # + group, hash, until its last record goes: owner and size
    EXPIRING = "pk:expiring"  # zset by time, with the records: when the sweep forgets them
    DEAD = "pk:dead"  # zset by sequence, with the records: jobs that killed three workers
    IDEMPOTENCY = "pk:idempotency:"  # + hash of scope and key, string, IDEMPOTENCY_S: the first answer

    WAITING = "pk:waiting"  # hash lane:class -> count, while they wait: depth without counting
    WORK = "pk:work"  # hash lane:class and lane:running -> sum of `work`, while they wait or run: as WAITING
    QUEUE = "pk:queue:"  # + lane:class:tenant, zset by sequence, while they wait: a tenant's own order
    TENANTS = "pk:tenants:"  # + lane:class, zset by virtual service time, while one waits: whose turn it is
    HEADS = "pk:heads:"  # + lane:class, zset tenant -> first sequence, while one waits: the oldest job
    DEBTS = "pk:debts:"  # + lane:class, zset, until the others caught up: who left early pays first
    BATCH = "pk:batch:"  # + lane:hash, zset by sequence, while they wait: riders of one batch key
    SUSPECTS = "pk:suspects:"  # + lane, zset by sequence, while they wait: jobs that must run alone
    LANE = "pk:lane:"  # + lane, hash, while one waits: virtual clock, turns passed over, last service
    DEADLINES = "pk:deadlines"  # zset by time, while they wait: jobs that expire when not started
    BLOCKED = "pk:blocked"  # counter, for ever: blocked jobs count towards the queue's limit
    CHILDREN = "pk:children:"  # + id, set, until the parent ends: who waits for it
    SETTLING = "pk:settling"  # list, for moments: ended parents whose children are still being told

    LEASES = "pk:leases"  # zset by expiry, while they run
    HELD = "pk:held:"  # + worker, hash id -> claim token, or that it has run: blame, lost answers
    RUNNING = "pk:running"  # hash lane -> count, while they run
    SWEPT = "pk:swept"  # time of the last sweep, for ever: a late sweep means that Redis was away

    WEBHOOK = "pk:webhook:"  # + id, string, with the record: the URL to tell; long, so not in the packed hash
    DELIVERY = (
        "pk:delivery:"  # + id, hash, DELIVERED_S or UNDELIVERED_S after its end: one message to a receiver
    )
    DELIVERIES = "pk:deliveries:"  # + tenant:status, zset by `POSTED`, with them: the listings
    POSTED = "pk:posted"  # for ever: one counter that orders all deliveries
    OUTDATED = "pk:outdated"  # zset by time, with them: when the couriers forget deliveries that ended
    MAILBOX = "pk:mailbox:"  # + receiver, zset by due time, while they wait: what is owed to one receiver
    RECEIVERS = "pk:receivers"  # zset by the due time of its first, while one waits: whom to call on next
    ALOFT = "pk:aloft"  # zset by expiry, while they are tried: a killed courier's deliveries come back
    ALOFT_TO = (
        "pk:aloft_to"  # hash receiver -> count, while they are tried: a slow receiver holds few couriers
    )
    FAILING = (
        "pk:failing"  # zset receiver by since when, FAILING_S or until it takes one: who does not answer
    )
    GONE = "pk:gone"  # zset hash of tenant and URL by its end, GONE_S: what answered 410

    EVENTS = "pk:events:"  # + shard, stream of about EVENTS_KEPT entries: history for Last-Event-ID


API_KEYS = "pk:keys"  # hash id -> key, for ever: one that was revoked still names a tenant with files
WORKERS = "pk:workers"  # set of worker ids, no lifetime: whoever reads it drops the silent ones
COSTS = "pk:costs"  # hash lane -> learned cost, for ever: a fleet at zero still knows; few lanes
STRAYS = "pk:strays"  # list of the newest STRAYS_KEPT, STRAYS_S: messages in the queues that are no bells
PROBE = "pk:probe"  # string, PROBE_S: whether writes are taken is found out by one
REAP_LOCK = (
    "pk:reap"  # one sweep at a time in the whole fleet; lives a few seconds, so a killed sweeper blocks none
)


_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's base 32, lower case
_FIRST_ID_MS = 1_577_836_800_000  # 2020: no id is older
_CROCKFORD = bytes.maketrans(b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567", _ALPHABET.encode())


def worker(worker_id: str) -> str:
    """Return the key of a worker's last report; lives `WORKER_S`."""
    return f"pk:worker:{worker_id}"


def drain(worker_id: str) -> str:
    """Return the key that asks a worker to drain; lives `DRAIN_S`, in case the worker misses the hint."""
    return f"pk:drain:{worker_id}"


def preview(job_id: str) -> str:
    """Return the key of a running job's newest rough picture, a WebP of a few kB; lives `PREVIEW_S`.

    The one picture that goes through Redis: it is small, gone in a minute, and no loss when it is lost.
    """
    return f"pk:preview:{job_id}"


def new_id(prefix: str) -> str:
    """Return `{prefix}_` + 26 characters: 48 bits of milliseconds (ids sort by time) and 80 random bits."""
    return f"{prefix}_{_moment(time.time_ns() // 1_000_000)}{random_text(10)}"


def random_text(size: int) -> str:
    """Return so many random bytes, a multiple of five, in the alphabet of ids."""
    return base64.b32encode(secrets.token_bytes(size)).translate(_CROCKFORD).decode()


@lru_cache(maxsize=1)  # hundreds of ids are made within one millisecond of a bulk submit
def _moment(milliseconds: int) -> str:
    return "".join(_ALPHABET[milliseconds >> shift & 31] for shift in range(45, -1, -5))


def id_time(identity: str) -> datetime:
    """Return the moment an id was made, to the millisecond.

    Raises:
        ValueError: not an id of ours.
    """
    return datetime.fromtimestamp((_number(identity) >> 80) / 1_000, UTC)


def id_order(identity: str) -> int:
    """Return a whole number of 53 bits that grows with the time of an id; of two alike in time it may be one.

    Raises:
        ValueError: not an id of ours, or none that this century makes.
    """
    milliseconds, chance = divmod(_number(identity) >> 68, 4_096)
    since = milliseconds - _FIRST_ID_MS
    if not 0 <= since < 2**41:
        raise ValueError("not an id of this time")
    return since << 12 | chance


def _number(identity: str) -> int:
    digits = identity.rpartition("_")[2]
    if len(digits) != 26 or not set(digits) <= set(_ALPHABET):
        raise ValueError("not an id")
    number = 0
    for digit in digits:
        number = number << 5 | _ALPHABET.index(digit)
    return number


def job_prefix(tenant: str, job_id: str) -> str:
    """Return `{tenant}/{yyyy}/{mm}/{dd}/{job_id}/`, the folder of a job's objects; the day is the id's."""
    return f"{tenant}/{id_time(job_id):%Y/%m/%d}/{job_id}/"


def attempt_prefix(tenant: str, job_id: str, attempt: int) -> str:
    """Return the folder of one attempt: a late attempt can never overwrite a newer one's objects."""
    return f"{job_prefix(tenant, job_id)}a{attempt}/"


def upload_key(tenant: str, upload_id: str) -> str:
    """Return the key of an upload's checked picture; swept `UPLOAD_S` after its creation when unused."""
    return f"{tenant}/uploads/{upload_id}"


def batch_input_key(tenant: str, file_id: str) -> str:
    """Return the key of a file that lists the requests of a batch; swept `UPLOAD_S` after it came."""
    return f"{tenant}/uploads/{file_id}"


def batch_key(tenant: str, batch_id: str) -> str:
    """Return the key of what is known of a batch beside its jobs; swept `BATCH_S` after it was made."""
    return f"{tenant}/batches/{batch_id}"


def input_key(tenant: str, job_id: str, field: str = "image") -> str:
    """Return the key of a job's own copy of an input picture; it lives and goes with the job."""
    return f"{job_prefix(tenant, job_id)}input.{field}"


def embeddings_prefix(tenant: str) -> str:
    """Return the folder of what models worked out about a tenant's pictures; never shared with another's."""
    return f"{tenant}/embeddings/"


def embedding_key(tenant: str, name: str) -> str:
    """Return the key of one such embedding; swept `EMBEDDING_S` after it was written."""
    return embeddings_prefix(tenant) + name
