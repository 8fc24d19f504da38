"""What one may ask the ledger: records, listings, counters, positions. Nothing here changes anything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import redis

from pixelkiln_shared.errors import NotFound
from pixelkiln_shared.jobs import Priority, Status
from pixelkiln_shared.keys import LedgerKey
from pixelkiln_shared.kinds import Kind
from pixelkiln_shared.ledger.connection import redis_errors
from pixelkiln_shared.ledger.contract import Ahead, Group, LaneStats, Page, Record
from pixelkiln_shared.ledger.scripts import Scripts

MOST_PER_PAGE = 1_000
_KINDS = frozenset(map(str, Kind))


class LedgerReader:
    """The reading half of `RedisLedger`."""

    def __init__(self, client: redis.Redis, scripts: Scripts) -> None:
        self._client = client
        self._scripts = scripts

    def get(self, job_id: str) -> Record:
        """Return the record.

        Raises:
            NotFound: no such job.
        """
        record = self.get_many([job_id])[0]
        if record is None:
            raise missing(job_id)
        return record

    def get_many(self, ids: Sequence[str]) -> list[Record | None]:
        """Return the records in the order asked for, None for unknown ids; one round trip."""
        if not ids:
            return []
        with redis_errors():
            found = self._scripts.run("get", *ids)
        return [_record(job_id, *parts) for job_id, parts in zip(ids, found, strict=True)]

    def jobs(
        self,
        tenant: str,
        *,
        status: Status | None = None,
        kind: Kind | None = None,
        group: str | None = None,
        limit: int = 50,
        after: int | None = None,
    ) -> Page:
        """List a tenant's jobs, newest first; reads at most `limit` entries of each index, however long."""
        limit = max(1, min(limit, MOST_PER_PAGE))
        scope = f"t:{tenant}" if group is None else f"g:{group}"
        newest = "+inf" if after is None else f"({after}"
        names = _index_names(scope, kind, status)
        with redis_errors():
            found = self._scripts.run("list", tenant, group or "", newest, limit, *names)
        records = [_record(job_id, *parts) for job_id, _, parts in found[:limit]]
        return Page(
            records=tuple(record for record in records if record is not None),
            after=int(found[limit - 1][1]) if len(found) > limit else None,
        )

    def group(self, group_id: str) -> Group:
        """Return a group's counters.

        Raises:
            NotFound: no such group.
        """
        fields, counts = self._counted(f"g:{group_id}", group_id)
        if not fields:
            raise NotFound(f"no group {group_id}")
        return Group(
            id=group_id,
            tenant=fields["tenant"],
            total=sum(counts.values()),
            counts=counts,
            created_at=int(fields["created_at"]) / 1_000,
        )

    def counts(self, tenant: str) -> Mapping[Status, int]:
        """Return how many jobs a tenant has in each state."""
        return self._counted(f"t:{tenant}", "")[1]

    def position(self, job_id: str) -> int | None:
        """Return how many jobs are served before this one in its lane, about; None when it does not wait.

        Raises:
            NotFound: no such job.
        """
        found = self.ahead(job_id)
        return None if found is None else found.jobs

    def ahead(self, job_id: str) -> Ahead | None:
        """Return what is served before this job in its lane, about; None when it does not wait.

        Raises:
            NotFound: no such job.
        """
        with redis_errors():
            place, *work = map(int, self._scripts.run("position", job_id))
        if place == -2:
            raise missing(job_id)
        return None if place == -1 else Ahead(jobs=place, work=work[0])

    def lanes(self) -> list[LaneStats]:
        """Return every lane that has waiting or running jobs, by name."""
        with redis_errors():
            flat = self._scripts.run("lanes")
        stats = [
            LaneStats(
                lane=lane,
                waiting=int(waiting),
                running=int(running),
                oldest_s=int(oldest_ms) / 1_000,
                work=int(work),
                running_work=int(running_work),
            )
            for lane, waiting, running, oldest_ms, work, running_work in zip(*[iter(flat)] * 6, strict=True)
        ]
        return sorted(stats, key=lambda one: one.lane)

    def dead_letters(self, *, limit: int = 100) -> list[Record]:
        """Return the newest jobs that ended because three worker processes died while running them alone."""
        with redis_errors():
            ids = cast(list[str], self._client.zrevrange(LedgerKey.DEAD, 0, limit - 1))
        return [record for record in self.get_many(ids) if record is not None]

    def waiting(self) -> dict[str, int]:
        """Return the number of waiting jobs by lane, for the bells."""
        with redis_errors():
            fields = cast(dict[str, str], self._client.hgetall(LedgerKey.WAITING))
        lanes: dict[str, int] = {}
        for name, count in fields.items():
            lane = name.rpartition(":")[0]
            lanes[lane] = lanes.get(lane, 0) + int(count)
        return lanes

    def held_by(self, worker: str) -> list[tuple[str, int]]:
        """Return what a worker holds: job ids with the attempts that are its own."""
        with redis_errors():
            ids = cast(list[str], self._client.hkeys(LedgerKey.HELD + worker))
        records = [record for record in self.get_many(ids) if record is not None]
        return [(record.id, record.attempt) for record in records if record.worker == worker]

    def _counted(self, scope: str, group_id: str) -> tuple[dict[str, str], dict[Status, int]]:
        names = {(status, kind): _index_names(scope, kind, status)[0] for status in Status for kind in Kind}
        with redis_errors():
            flat, sizes = self._scripts.run("count", group_id, *names.values())
        counts = dict.fromkeys(Status, 0)
        for (status, _), size in zip(names, sizes, strict=True):
            counts[status] += int(size)
        return _paired(flat), counts


def missing(job_id: str) -> NotFound:
    """Return the error for an id nobody knows."""
    return NotFound(f"no job {job_id[:64]}")


def _index_names(scope: str, kind: Kind | None, status: Status | None) -> list[str]:
    kinds = list(Kind) if kind is None else [kind]
    statuses = list(Status) if status is None else [status]
    return [f"{LedgerKey.INDEX}{scope}:{a_kind}:{a_status}" for a_kind in kinds for a_status in statuses]


def _paired(flat: Sequence[str]) -> dict[str, str]:
    return dict(zip(flat[0::2], flat[1::2], strict=True))


def _seconds(value: str | None) -> float | None:
    return None if value is None else int(value) / 1_000


def _record(job_id: str, flat: Sequence[str], spec: str | None, outcome: str | None) -> Record | None:
    fields = _paired(flat)
    if not fields or spec is None or fields["kind"] not in _KINDS:  # a kind of a later version
        return None
    status = Status(fields["status"])
    return Record(
        id=job_id,
        kind=Kind(fields["kind"]),
        lane=fields["lane"],
        tenant=fields["tenant"],
        priority=Priority(fields["priority"]),
        batch_key=fields["batch_key"],
        rows=int(fields["rows"]),
        work=int(fields.get("work", 0)),
        spec=spec,
        status=status,
        sequence=int(fields["sequence"]),
        attempt=int(fields.get("attempt", 0)),
        strikes=int(fields.get("strikes", 0)),
        suspect="suspect" in fields,
        group=fields.get("group"),
        waits_for=tuple(fields.get("waits_for", "").split()),
        worker=fields.get("worker"),
        created_at=int(fields["created_at"]) / 1_000,
        started_at=_seconds(fields.get("started_at")),
        completed_at=_seconds(fields.get("completed_at")),
        step=int(fields.get("step", 0)),
        steps=int(fields.get("steps", 0)),
        result=outcome if status is Status.SUCCEEDED else None,
        error=outcome if status is Status.FAILED else None,
    )
