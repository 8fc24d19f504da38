"""What nobody will ask for again, removed from the storage."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from itertools import groupby

from pixelkiln_shared import keys
from pixelkiln_shared.ledger.contract import Ledger, Record
from pixelkiln_shared.storage.contract import Storage, StoredObject

ROUND = 500  # objects a round looks at; what they take in memory, the process keeps (3 MB for 2,000)
DAYS = 8  # how far back: finished records live a week, and what has no record any more is left alone

_OF_A_JOB = re.compile(r"(?P<job>.*/(?P<id>job_[0-9a-z]{26})/)(?P<inside>.*)")
_ATTEMPT = re.compile(r"a\d+/")


def sweep_uploads(storage: Storage, tenant: str = "default", *, now: datetime | None = None) -> int:
    """Delete uploads older than `keys.UPLOAD_S` (jobs hold copies of theirs) and batches than `keys.BATCH_S`.

    Returns how many objects went.

    Raises:
        StorageUnavailable: the rest waits for the next time.
    """
    lifetimes = {
        keys.upload_key(tenant, "upl_"): keys.UPLOAD_S,
        keys.batch_input_key(tenant, "file_"): keys.UPLOAD_S,
        keys.batch_key(tenant, "batch_"): keys.BATCH_S,
    }
    moment = now or datetime.now(UTC)
    return sum(
        _sweep(storage, prefix, moment - timedelta(seconds=lifetime))
        for prefix, lifetime in lifetimes.items()
    )


def _sweep(storage: Storage, prefix: str, oldest_kept: datetime) -> int:
    removed = 0
    for stored in storage.list(prefix):
        identity = stored.key.rpartition("/")[2].partition(".")[0]
        if keys.id_time(identity) > oldest_kept:
            break  # ids sort by time
        storage.delete(stored.key)
        removed += 1
    return removed


class Orphans:
    """Removes what killed processes left: files of attempts that no record names, inputs of jobs never made.

    Each `sweep` looks at about `ROUND` objects, oldest day first, and goes on there the next time; at the end
    it begins anew. Only objects older than `keys.ORPHAN_S` are touched. Without a record it is unknown
    whether a job never was or ended long ago: of such jobs only inputs go, and only where no attempt left a
    manifest. Nothing goes of a day of which the ledger knows no job: it may be a wrong or an emptied ledger.
    """

    def __init__(
        self,
        storage: Storage,
        ledger: Ledger,
        *,
        tenant: str = "default",
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._storage = storage
        self._ledger = ledger
        self._tenant = tenant
        self._now = now
        self._day: datetime | None = None
        self._after = ""
        self._knows_day = False

    def sweep(self) -> int:
        """Do one round; returns how many objects went.

        Raises:
            StorageUnavailable: the rest waits for the next time.
            RedisUnavailable: as above.
        """
        found = list(self._round())
        for stored in found:
            self._storage.delete(stored.key)
        return len(found)

    def count(self, rounds: int) -> tuple[int, bool]:
        """Return how many objects would go, of what so many rounds look at, and whether that is all there is.

        Raises:
            StorageUnavailable, RedisUnavailable: they do not answer.
        """
        found = 0
        for _ in range(rounds):
            found += sum(1 for _ in self._round())
            if self._day is None:
                return found, True
        return found, False

    def _round(self) -> Iterator[StoredObject]:
        """Yield the orphans of one round."""
        day = self._day or self._now() - timedelta(days=DAYS)
        jobs = list(self._page(f"{self._tenant}/{day:%Y/%m/%d}/"))
        records = self._ledger.get_many([job_id for job_id, _ in jobs])
        self._knows_day = self._knows_day or any(record is not None for record in records)
        for (_, objects), record in zip(jobs, records, strict=True):
            yield from self._orphans(objects, record)
        self._go_on(day, jobs)

    def _page(self, prefix: str) -> Iterator[tuple[str, list[StoredObject]]]:
        """Yield (job id, its objects) from where the last round ended; whole jobs only."""
        seen = 0
        listed = self._storage.list(prefix, after=self._after)
        for name, objects in groupby(listed, key=lambda stored: _job_of(stored.key)):
            if name is not None:
                found = list(objects)
                yield name, found
                seen += len(found)
                if seen >= ROUND:
                    return

    def _orphans(self, objects: Sequence[StoredObject], record: Record | None) -> Iterator[StoredObject]:
        youngest = self._now() - timedelta(seconds=keys.ORPHAN_S)
        named = _named(record)
        made = any(stored.key.endswith("/manifest.json") for stored in objects)
        for stored in objects:
            attempt = _attempt_of(stored.key)
            if record is None:
                orphan = self._knows_day and attempt is None and not made
            else:
                orphan = record.status.terminal and attempt is not None and attempt not in named
            if orphan and stored.modified_at < youngest:
                yield stored

    def _go_on(self, day: datetime, jobs: Sequence[tuple[str, list[StoredObject]]]) -> None:
        if sum(len(objects) for _, objects in jobs) >= ROUND:
            self._day, self._after = day, jobs[-1][1][-1].key
            return
        following = day + timedelta(days=1)
        self._day, self._after = (following if following <= self._now() else None), ""
        self._knows_day = False


class AllOrphans:
    """The orphans of several tenants."""

    def __init__(self, storage: Storage, ledger: Ledger) -> None:
        self._storage = storage
        self._ledger = ledger
        self._by_tenant: dict[str, Orphans] = {}

    def sweep(self, tenants: Collection[str]) -> int:
        """Do one round of each tenant; returns how many objects went.

        Raises:
            StorageUnavailable, RedisUnavailable: the rest waits for the next time.
        """
        for tenant in tenants:
            if tenant not in self._by_tenant:
                self._by_tenant[tenant] = Orphans(self._storage, self._ledger, tenant=tenant)
        return sum(self._by_tenant[tenant].sweep() for tenant in tenants)


def _job_of(key: str) -> str | None:
    found = _OF_A_JOB.fullmatch(key)
    return found["id"] if found is not None else None


def _attempt_of(key: str) -> str | None:
    """Return the folder of the attempt that stored an object, None for an input."""
    found = _OF_A_JOB.fullmatch(key)
    attempt = _ATTEMPT.match(found["inside"]) if found is not None else None
    return f"{found['job']}{attempt[0]}" if found is not None and attempt is not None else None


def _named(record: Record | None) -> set[str | None]:
    """Return the folders of the attempts whose files a record shows."""
    if record is None or record.result is None:
        return set()
    return {_attempt_of(artifact["key"]) for artifact in json.loads(record.result)["artifacts"]}
