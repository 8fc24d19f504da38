"""The history of finished jobs, from the manifests in the bucket into a ledger that lost it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, date, datetime
from itertools import groupby, islice
from typing import Protocol

from pixelkiln_shared import keys
from pixelkiln_shared.errors import NotFound, StorageUnavailable
from pixelkiln_shared.jobs import Status
from pixelkiln_shared.ledger.contract import Ledger, Record
from pixelkiln_shared.ledger.restoring import RESTORE_CHUNK, Restoring
from pixelkiln_shared.manifest import MANIFEST_NAME, Manifest, NoManifest, OtherVersion, read_manifest
from pixelkiln_shared.storage.contract import Storage, StoredObject

READERS = 16  # manifests under way at a time: a store far away answers in tens of milliseconds
MAX_MANIFEST_BYTES = 16_000_000  # what is larger, no worker of ours wrote

_DAY = re.compile(r"\d{4}/\d\d/\d\d", re.ASCII)
_OF_A_JOB = re.compile(r"\d{4}/\d\d/\d\d/(?P<id>job_[0-9a-z]{26})/.*", re.ASCII)
_MANIFEST = re.compile(rf"a(?P<attempt>[1-9]\d{{0,5}})/{re.escape(MANIFEST_NAME)}", re.ASCII)
_GROUP = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)


@dataclass(frozen=True, kw_only=True, slots=True)
class Scope:
    """Which jobs: of one tenant or (None) all, made on days between two (UTC, both included).

    Those whose records would have expired by now are left out, unless `expired` asks for them too.
    """

    tenant: str | None = None
    since: date | None = None
    until: date | None = None
    expired: bool = False


@dataclass(slots=True)
class Tally:
    """What became of what was found. All but `objects` and `foreign` count jobs."""

    objects: int = 0  # looked at
    restored: int = 0  # written, or in a dry run: would be
    known: int = 0  # the ledger has a record, which stays as it is
    expired: int = 0  # finished, but its record would have been forgotten by now
    unfinished: int = 0  # only inputs: canceled, failed, or never begun
    broken: int = 0  # a manifest that cannot be read or names another job
    other_version: int = 0  # written by a newer version
    incomplete: int = 0  # a manifest whose files are not all there
    foreign: int = 0  # objects that are none of ours

    @property
    def lost(self) -> int:
        """Jobs that had finished and could not be brought back."""
        return self.broken + self.other_version + self.incomplete


class RestoringLedger(Restoring, Ledger, Protocol):
    """What an import writes to."""


@dataclass(frozen=True, slots=True)
class _Found:
    """A job's objects."""

    id: str
    objects: list[StoredObject]


@dataclass(frozen=True, slots=True)
class Finished:
    """A job to be restored. `retention_s` is how long it asked to be kept after its end."""

    record: Record
    retention_s: int | None

    def expires_at(self, default_s: int) -> float:
        """Return when its record is forgotten, in Unix seconds, where `default_s` is the usual time."""
        kept_s = default_s if self.retention_s is None else self.retention_s
        return (self.record.completed_at or self.record.created_at) + kept_s


Verdict = Finished | str  # the job, or the name of the count that it goes to


def restore(
    storage: Storage,
    ledger: RestoringLedger,
    scope: Scope,
    *,
    retention_s: int,
    dry_run: bool = False,
    progress: Callable[[Tally, str], None] = lambda tally, day: None,
) -> Tally:
    """Write a record for each finished job of the scope that the ledger does not know.

    Tenant after tenant, in the order of time, a few hundred jobs in memory at once. May be stopped and begun
    again. A restored record is forgotten when it would have been, or, restored although it had expired, after
    a full retention from now.

    Args:
        retention_s: how long the records of jobs live that did not say.
        progress: called now and then with the counts so far and the day reached (`yyyy/mm/dd`).

    Raises:
        StorageUnavailable, RedisUnavailable: what was restored by then stays.
    """
    tally = Tally()
    with ThreadPoolExecutor(READERS) as readers:
        for tenant in [scope.tenant] if scope.tenant is not None else tenants_of(storage):
            found = _jobs(storage, tenant, scope, tally)
            while jobs := list(islice(found, RESTORE_CHUNK)):
                finished = _unknown(jobs, storage, ledger, tenant, tally, readers)
                _write(finished, ledger, scope, tally, retention_s, dry_run=dry_run)
                progress(tally, keys.id_time(jobs[-1].id).strftime("%Y/%m/%d"))
    return tally


def tenants_of(storage: Storage) -> Iterator[str]:
    """Yield the first parts of all keys, with one short listing each: a tenant's objects begin with its name.

    Some are no tenants: whatever else lies in the bucket has no days with jobs.
    """
    after = ""
    while (first := next(storage.list("", after=after), None)) is not None:
        name, slash, _ = first.key.partition("/")
        if slash:
            yield name
        after = f"{name}0" if slash else first.key  # behind all that begins with `name/`


def _unknown(
    jobs: Sequence[_Found],
    storage: Storage,
    ledger: RestoringLedger,
    tenant: str,
    tally: Tally,
    readers: Executor,
) -> list[Finished]:
    """Read what finished of the jobs that the ledger does not know."""
    known = ledger.get_many([job.id for job in jobs])
    unknown = [job for job, record in zip(jobs, known, strict=True) if record is None]
    tally.known += len(jobs) - len(unknown)
    finished = []
    for verdict in readers.map(lambda job: judge(storage, tenant, job.id, job.objects), unknown):
        if isinstance(verdict, Finished):
            finished.append(verdict)
        else:
            setattr(tally, verdict, getattr(tally, verdict) + 1)
    return finished


def _write(
    finished: Sequence[Finished],
    ledger: RestoringLedger,
    scope: Scope,
    tally: Tally,
    retention_s: int,
    *,
    dry_run: bool,
) -> None:
    now = datetime.now(UTC).timestamp()
    ends = {one.record.id: one.expires_at(retention_s) for one in finished}
    alive = {job_id: at for job_id, at in ends.items() if at > now}
    records = [one.record for one in finished if scope.expired or one.record.id in alive]
    tally.expired += len(finished) - len(records)
    written = sum(ledger.restore(records, alive)) if records and not dry_run else len(records)
    tally.restored += written
    tally.known += len(records) - written


# ------------------------------------------------------------------------------------------------- listing


def _jobs(storage: Storage, tenant: str, scope: Scope, tally: Tally) -> Iterator[_Found]:
    """Yield a tenant's jobs of the scope with their objects, oldest first."""
    listed = _listed(storage, tenant, scope, tally)
    for job_id, objects in groupby(listed, key=lambda stored: _job_of(stored.key, tenant)):
        if job_id is None:
            tally.foreign += sum(1 for _ in objects)
        else:
            yield _Found(job_id, list(objects))


def _listed(storage: Storage, tenant: str, scope: Scope, tally: Tally) -> Iterator[StoredObject]:
    """Yield the objects in the folders of days: keys sort by day, and uploads and embeddings behind them."""
    root = f"{tenant}/"
    after = f"{root}{scope.since:%Y/%m/%d}" if scope.since else ""
    for stored in storage.list(root, after=after):
        inside = stored.key.removeprefix(root)
        if not inside[:1].isdigit() and inside[:1] > "9":
            return
        day = inside[:10]
        if scope.until and _DAY.fullmatch(day) and day > f"{scope.until:%Y/%m/%d}":
            return
        tally.objects += 1
        yield stored


def _job_of(key: str, tenant: str) -> str | None:
    """Return the job whose folder a key is in; None when no job of ours has such a folder."""
    found = _OF_A_JOB.fullmatch(key.removeprefix(f"{tenant}/"))
    if found is None:
        return None
    try:
        keys.id_order(found["id"])
        ours = key.startswith(keys.job_prefix(tenant, found["id"]))
    except ValueError:
        return None
    return found["id"] if ours else None


# ------------------------------------------------------------------------------------------------- reading


def judge(storage: Storage, tenant: str, job_id: str, objects: Sequence[StoredObject]) -> Verdict:
    """Return the job by the newest attempt that is whole, or why there is none (a count of `Tally`).

    Raises:
        StorageUnavailable: the store does not answer.
    """
    prefix = keys.job_prefix(tenant, job_id)
    sizes = {stored.key: stored.size_bytes for stored in objects}
    manifests = {
        int(found["attempt"]): stored
        for stored in objects
        if (found := _MANIFEST.fullmatch(stored.key.removeprefix(prefix)))
    }
    reasons = []
    for _, stored in sorted(manifests.items(), reverse=True):
        verdict = _judge_attempt(storage, stored, sizes)
        if isinstance(verdict, Finished):
            return verdict
        reasons.append(verdict)
    return reasons[0] if reasons else "unfinished"


def _judge_attempt(storage: Storage, stored: StoredObject, sizes: dict[str, int]) -> Verdict:
    if stored.size_bytes > MAX_MANIFEST_BYTES:
        return "broken"
    try:
        data = storage.get(stored.key)
        manifest = read_manifest(data)
        if stored.key != manifest.prefix + MANIFEST_NAME:
            return "broken"
        if any(sizes.get(manifest.prefix + file.name) != file.size_bytes for file in manifest.files):
            return "incomplete"
        return Finished(_record(manifest, data, stored.modified_at), manifest.job.retention_s)
    except OtherVersion:
        return "other_version"
    except NotFound:
        return "incomplete"
    except StorageUnavailable:
        storage.head(stored.key)  # raises when it is the store that is away, not just this object damaged
        return "broken"
    except (NoManifest, ValueError, KeyError, TypeError):  # the last: a job's input is free-form here
        return "broken"


def _record(manifest: Manifest, data: bytes, stored_at: datetime) -> Record:
    job, run = manifest.job, manifest.run
    if job.group is not None and not _GROUP.fullmatch(job.group):
        raise NoManifest("no group of ours")
    created_at = keys.id_time(job.id)
    completed_at = max(created_at, run.completed_at or min(stored_at, datetime.now(UTC)))
    started_at = run.started_at and min(max(created_at, run.started_at), completed_at)
    return Record(
        id=job.id,
        kind=job.kind,
        lane=job.lane,
        tenant=job.tenant,
        priority=job.priority,
        batch_key=job.batch_key,
        rows=job.rows,
        work=job.work,
        spec=job.compact(),
        status=Status.SUCCEEDED,
        sequence=0,
        attempt=run.attempt,
        group=job.group,
        worker=run.worker,
        created_at=created_at.timestamp(),
        started_at=started_at.timestamp() if started_at else None,
        completed_at=completed_at.timestamp(),
        result=manifest.result(data).model_dump_json(),
    )
