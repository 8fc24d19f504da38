"""Succeeded jobs brought back: their place in the order of all jobs, and what `restore.lua` reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Protocol

from pixelkiln_shared.keys import id_order
from pixelkiln_shared.ledger.contract import Record

RESTORE_CHUNK = 200  # records in one script call: a few milliseconds of Redis
NO_TIMES: Mapping[str, float] = MappingProxyType({})
_FIRST = -(2**53)  # the least whole number that Redis keeps exactly as a score


class Restoring(Protocol):
    """What an import needs of a ledger."""

    def restore(self, records: Sequence[Record], expires_at: Mapping[str, float] = NO_TIMES) -> list[bool]:
        """Write records of succeeded jobs that the ledger does not know; True for each that was written.

        Never changes a record that is there, so the same call may be made again. Restored jobs stand before
        all that were submitted to this ledger, by the times of their ids (`sequence` is not read). No events,
        no work: nothing but the history.

        `expires_at` says when records are forgotten, by id, in Unix seconds; those it does not name live as
        long from now as a job that ends now.

        Raises:
            RedisUnavailable: some may have been written; ask again.
        """
        ...


def restored_sequence(job_id: str) -> int:
    """Return the place of a restored job: below those of submitted jobs (1, 2, ...), in the order of ids.

    Raises:
        ValueError: not an id of ours.
    """
    return _FIRST + id_order(job_id)


def flat_records(records: Sequence[Record], expires_at: Mapping[str, float]) -> list[str | int]:
    """Return the records as `restore.lua` reads them."""
    values: list[str | int] = []
    for record in records:
        values += (
            record.id,
            record.kind,
            record.lane,
            record.tenant,
            record.priority,
            record.batch_key,
            record.rows,
            record.work,
            restored_sequence(record.id),
            record.attempt,
            record.group or "",
            record.worker or "",
            _ms(record.created_at),
            "" if record.started_at is None else _ms(record.started_at),
            _ms(record.completed_at or record.created_at),
            record.spec,
            record.result or "{}",
            _ms(expires_at[record.id]) if record.id in expires_at else "",
        )
    return values


def _ms(at_s: float) -> int:
    return round(at_s * 1_000)
