"""What `doctor` finds out by itself where Redis and the storage are this machine's business."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast

if TYPE_CHECKING:
    import redis

    from pixelkiln_shared.ledger import RedisLedger
    from pixelkiln_shared.settings import Settings
    from pixelkiln_shared.storage.contract import Storage

State = Literal["ok", "warn", "fail"]

CLOCK_WARN_S = 2.0  # times of manifests and links are off by so much
CLOCK_FAIL_S = 300.0  # S3 refuses signatures a quarter of an hour old: not far from that
FULL_WARN = 0.9  # of `maxmemory`
BELL_S = 15.0  # three sweeps: a lane with old work and no bell
LATE_S = 60.0  # couriers look twice a second: a message due for so long has none
STRAY_CHARACTERS = 40  # as a rule it can be told by them whose it is
ORPHAN_ROUNDS = 53  # nine days and 22,000 objects at least, a few seconds of an S3 server


class Finding(NamedTuple):
    """What one check found. `code` is that of the error, where one was met."""

    check: str
    state: State
    detail: str
    code: str = ""


def guarded(name: str, check: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """Yield what a check finds; an error of ours ends it and is a finding."""
    from pixelkiln_shared.errors import PixelkilnError

    try:
        yield from check()
    except PixelkilnError as error:
        yield Finding(name, "fail", error.message, error.code)


def backstage_findings() -> Iterator[Finding]:
    """Yield the findings about settings, Redis, storage and ledger."""
    from pixelkiln_shared.errors import Misconfigured
    from pixelkiln_shared.ledger import open_ledger, redis_client
    from pixelkiln_shared.settings import load

    try:
        settings = load()
    except Misconfigured as error:
        yield Finding("settings", "fail", error.message, error.code)
        return
    yield Finding("settings", "ok", "every PIXELKILN_* variable is known and well-formed")
    client = redis_client(settings)
    ledger = open_ledger(settings, client=client)
    try:
        answers = yield from _noting(guarded("redis", lambda: _redis(settings, client)))
        stored = yield from _noting(guarded("storage", lambda: _storage(settings)))
        if answers:
            yield from guarded("ledger", lambda: _ledger(client, ledger))
            yield from guarded("webhooks", lambda: _webhooks(client, _tenants(client)))
            yield from guarded("bells", lambda: _strays(client))
        if answers and stored:
            yield from guarded("storage", lambda: _orphans(settings, ledger, _tenants(client)))
    finally:
        client.close()


def _noting(findings: Iterator[Finding]) -> Generator[Finding, None, bool]:
    """Pass findings on; returns whether what they are about answers."""
    answers = True
    for finding in findings:
        answers = answers and not finding.code.endswith("_unavailable")
        yield finding
    return answers


# --------------------------------------------------------------------------------------------------- Redis


def _redis(settings: Settings, client: redis.Redis) -> Iterator[Finding]:
    from pixelkiln.local.redis_server import without_password
    from pixelkiln_shared.ledger import redis_errors

    with redis_errors():
        facts: dict[str, Any] = client.info()
        began = time.monotonic()
        seconds, micros = client.time()
        trip_s = time.monotonic() - began
        here_s = time.time() - trip_s / 2
        sync, snapshots = _setting(client, "appendfsync"), _setting(client, "save")
    yield Finding(
        "redis",
        "ok",
        f"{facts['redis_version']} at {without_password(settings.redis_url)}, answers in "
        f"{trip_s * 1_000:.1f} ms, {facts['used_memory_human']} used, policy {facts['maxmemory_policy']}",
    )
    yield from guarded("redis", lambda: _policy(client))
    yield from _writes(facts)
    yield from _memory(facts)
    yield _persistence(facts, sync, snapshots)
    yield _clock(here_s - (seconds + micros / 1_000_000))


def _setting(client: redis.Redis, name: str) -> str:
    """Return a setting of the server, empty where it refuses to say: managed servers do."""
    from redis.exceptions import ResponseError

    try:
        return str(cast(dict[str, str], client.config_get(name)).get(name, ""))
    except ResponseError:
        return ""


def _policy(client: redis.Redis) -> Iterator[Finding]:
    """Ask what every process asks at its start: too old, or may it evict jobs?"""
    from pixelkiln_shared.ledger import check_redis

    check_redis(client)
    yield from ()


def _writes(facts: dict[str, Any]) -> Iterator[Finding]:
    """Why this Redis would refuse to write, if it would."""
    if facts["role"] != "master":
        yield Finding("redis", "fail", f"it is a {facts['role']} and takes no writes: name the primary")
    if facts.get("rdb_last_bgsave_status") == "err":
        why = "its last snapshot failed; as a rule it takes no writes until one works: look at its disk"
        yield Finding("redis", "fail", why)
    if facts.get("aof_last_write_status") == "err":
        yield Finding("redis", "fail", "it cannot write its append-only file: look at its disk")


def _memory(facts: dict[str, Any]) -> Iterator[Finding]:
    limit, used = int(facts.get("maxmemory", 0)), int(facts["used_memory"])
    if not limit or used < FULL_WARN * limit:
        return
    full = used >= limit
    what = "no job can be accepted" if full else "soon no job can be accepted"
    detail = f"{used / limit:.0%} of maxmemory ({limit / 1e6:.0f} MB) used: {what}; raise it, or cancel jobs"
    yield Finding("redis", "fail" if full else "warn", detail)


def _persistence(facts: dict[str, Any], sync: str, snapshots: str) -> Finding:
    """Say what a crash of Redis and a power cut would cost."""
    if not facts["aof_enabled"]:
        lost = "what came since its last snapshot" if snapshots else "every job"
        return Finding(
            "redis",
            "warn",
            f"it keeps no append-only file: a restart or crash loses {lost}; set `appendonly yes`",
        )
    if sync == "always":
        return Finding("redis", "ok", "appendfsync always: neither a crash nor a power cut loses a job")
    if sync == "no":
        detail = "appendfsync no: a crash of Redis loses nothing, a power cut up to half a minute of jobs"
        return Finding("redis", "warn", detail)
    detail = "a crash of Redis loses nothing, a power cut at most the last second of accepted jobs"
    return Finding("redis", "ok", f"appendfsync {sync or 'unknown, everysec as a rule'}: {detail}")


def _clock(ahead_s: float) -> Finding:
    off_s = abs(ahead_s)
    state: State = "ok" if off_s < CLOCK_WARN_S else "warn" if off_s < CLOCK_FAIL_S else "fail"
    which = "ahead of" if ahead_s > 0 else "behind"
    mend = "" if state == "ok" else "; leases go by Redis's, links and S3 signatures do not: set the clock"
    return Finding("clock", state, f"this machine is {off_s:.2f} s {which} Redis{mend}")


# -------------------------------------------------------------------------------------------------- ledger


def _ledger(client: redis.Redis, ledger: RedisLedger) -> Iterator[Finding]:
    from pixelkiln_shared.bells import CAP, queue_key
    from pixelkiln_shared.keys import LedgerKey
    from pixelkiln_shared.ledger import redis_errors
    from pixelkiln_shared.ledger.leases import count_leases

    lanes, leases = ledger.lanes(), count_leases(client)
    with redis_errors():
        bells = {lane.lane: client.llen(queue_key(lane.lane)) for lane in lanes}
        dead = client.zcard(LedgerKey.DEAD)
    if leases.overdue:
        detail = f"{leases.overdue} of {leases.held} leases are over and nobody took the jobs back"
        yield Finding("leases", "fail", f"{detail}: run an API or a worker")
    else:
        yield Finding("leases", "ok", f"{leases.held} jobs run, none overdue")
    for lane in lanes:
        missing = min(lane.waiting, CAP) - bells[lane.lane]
        if lane.waiting and not bells[lane.lane] and not lane.running and lane.oldest_s > BELL_S:
            detail = f"{lane.waiting} jobs wait in {lane.lane}, the oldest for {lane.oldest_s:.0f} s, and no "
            yield Finding("bells", "warn", f"{detail}bell hangs: a sweep of any API or worker rings again")
        elif lane.waiting:
            more = f", {missing} fewer than there will be" if missing > 0 else ""
            yield Finding("bells", "ok", f"{lane.lane}: {lane.waiting} wait, {bells[lane.lane]} bells{more}")
    if dead:
        yield Finding("jobs", "warn", f"{dead} killed three workers each; `pixelkiln ls --status failed`")


def _tenants(client: redis.Redis) -> frozenset[str]:
    from pixelkiln.api_keys import KeyRing

    ring = KeyRing(client)
    ring.refresh()
    return ring.tenants


def _webhooks(client: redis.Redis, tenants: frozenset[str]) -> Iterator[Finding]:
    from pixelkiln_shared.ledger.outbox import DeliveryStatus, RedisOutbox

    outbox = RedisOutbox(client)
    counts, state = Counter[DeliveryStatus](), outbox.state()
    for tenant in tenants:
        counts.update(outbox.counts(tenant))
    if not any(counts.values()) and not state.failing and not state.gone:
        return
    waiting, failed = counts[DeliveryStatus.PENDING], counts[DeliveryStatus.FAILED]
    yield Finding(
        "webhooks", "ok", f"{waiting} messages wait, {counts[DeliveryStatus.DELIVERED]} were delivered"
    )
    if state.late_s > LATE_S:
        late = f"a message has been due for {state.late_s:.0f} s and nobody sends it"
        yield Finding("webhooks", "warn", f"{late}: run an API with PIXELKILN_WEBHOOK_SECRETS")
    if state.failing:
        yield Finding(
            "webhooks", "warn", f"{state.failing} receivers took nothing the last time they were called"
        )
    if state.gone:
        yield Finding(
            "webhooks", "warn", f"{state.gone} URLs want no more (410) and are left alone for a day"
        )
    if failed:
        look = "`pixelkiln webhooks ls --status failed`, and `redeliver` once they can be taken"
        yield Finding("webhooks", "warn", f"{failed} messages were given up: {look}")


def _strays(client: redis.Redis) -> Iterator[Finding]:
    """What hung in the queues and was no bell: somebody else writes there."""
    from pixelkiln_shared.keys import STRAYS, STRAYS_KEPT
    from pixelkiln_shared.strays import Strays

    kept = Strays(client).newest_first()
    if not kept:
        return
    newest = kept[0]
    count = f"{len(kept)}{' or more' if len(kept) == STRAYS_KEPT else ''}"
    which = f"the newest of {newest.at:%Y-%m-%d %H:%M:%S} UTC in {newest.queue}, {newest.size_bytes} bytes"
    detail = f"{newest.text[:STRAY_CHARACTERS]!r} ({newest.why}); somebody else writes there"
    yield Finding(
        "bells",
        "warn",
        f"{count} messages that are no jobs in the queues, {which}: {detail}. All: LRANGE {STRAYS} 0 -1",
    )


# ------------------------------------------------------------------------------------------------- storage


def _storage(settings: Settings) -> Iterator[Finding]:
    from pixelkiln_shared.storage import open_storage

    storage = open_storage(settings)
    if not _exists(storage):
        yield Finding("storage", "warn", f"{settings.storage_url}: no such folder yet")
        return
    began = time.monotonic()
    storage.check()
    trip_ms = (time.monotonic() - began) * 1_000
    mode = ""
    if settings.storage_url.startswith("s3:"):
        from pixelkiln_shared.storage.s3 import checksum_mode

        mode = f", checksums {checksum_mode(settings.s3_checksums, settings.s3_endpoint_url)}"
    detail = f"{settings.storage_url}: written, read and removed in {trip_ms:.0f} ms{mode}"
    yield Finding("storage", "ok", detail)


def _exists(storage: Storage) -> bool:
    """Whether a folder that nobody named is there: looking must not make one."""
    from pixelkiln_shared.storage import FolderStorage

    named = "PIXELKILN_STORAGE_URL" in os.environ
    return named or not isinstance(storage, FolderStorage) or storage.root.exists()


def _orphans(settings: Settings, ledger: RedisLedger, tenants: frozenset[str]) -> Iterator[Finding]:
    from pixelkiln.leftovers import DAYS, Orphans
    from pixelkiln_shared.storage import open_storage

    storage = open_storage(settings)
    if not _exists(storage):
        return
    found = [Orphans(storage, ledger, tenant=tenant).count(ORPHAN_ROUNDS) for tenant in tenants]
    count, complete = sum(count for count, _ in found), all(whole for _, whole in found)
    among = f"of the last {DAYS} days" if complete else "among the first that were looked at"
    yield Finding("storage", "ok", f"{count} orphaned objects {among}; each API process removes them")
