"""From pixels to a published result: encode, store under the attempt's own keys, tell the ledger."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from queue import Empty, SimpleQueue
from typing import Any

import structlog

from pixelkiln_shared import keys
from pixelkiln_shared.errors import StorageUnavailable
from pixelkiln_shared.jobs import Artifact, Result
from pixelkiln_shared.kinds import Role
from pixelkiln_shared.storage.contract import Storage, StoredObject
from pixelkiln_worker.compute import Work
from pixelkiln_worker.encode import EncodedFile, encode
from pixelkiln_worker.families.contract import Outcome
from pixelkiln_worker.held import Gone, Held, HeldJob
from pixelkiln_worker.patience import insist

log = structlog.get_logger(__name__)

Put = Callable[[int, str], StoredObject]  # stores the file of this index under this key
PICTURES = frozenset({Role.IMAGE, Role.CUTOUT, Role.DEPTH})  # the files that count as pictures made


@dataclass(frozen=True, kw_only=True, slots=True)
class Stored:
    """A work whose files are stored: its result as the ledger takes it, and how many pictures it made."""

    work: Work
    result: str
    pictures: int


class Arrivals:
    """Where a batch's works arrive from several threads once they are stored, each once; None: not stored."""

    def __init__(self, expected: int) -> None:
        self._left = expected
        self._come: SimpleQueue[Stored | None] = SimpleQueue()
        self.put = self._come.put

    def __iter__(self) -> Iterator[list[Stored]]:
        """Give all that has come, again and again until everyone has; waits only when nothing has."""
        while self._left > 0:
            come = [self._come.get()]
            with suppress(Empty):
                while len(come) < self._left:
                    come.append(self._come.get_nowait())
            self._left -= len(come)
            if stored := [one for one in come if one is not None]:
                yield stored


def times(work: Work) -> dict[str, Any]:
    """Return when the attempt began and was done, by this machine's clock, and what took how long."""
    now, held = datetime.now(UTC), timedelta(milliseconds=_ms_since(work.job.claimed_at))
    return {
        "started_at": (now - held).isoformat(timespec="milliseconds"),
        "completed_at": now.isoformat(timespec="milliseconds"),
        "timings_ms": {name: round(value, 3) for name, value in work.metrics.items() if name.endswith("_ms")},
    }


def prepare(work: Work, facts: dict[str, Any]) -> list[EncodedFile]:
    """Encode what a job came to; CPU work on the calling thread. The pixels are let go."""
    assert isinstance(work.outcome, Outcome)  # noqa: S101
    began = time.monotonic()
    files = encode(work.job.spec, work.outcome, image=work.task.image, facts=facts)
    work.metrics["encode_ms"] = _ms_since(began)
    work.outcome = replace(work.outcome, pictures=(), segmentation=None, depth=None)
    work.task = replace(work.task, images={})
    return files


def store(work: Work, files: Sequence[EncodedFile], put: Put) -> Stored:
    """Store the files; `put` stores one of them under a key, and waits outages out.

    Raises:
        Unwanted: the job was canceled, lost or drained meanwhile.
        StorageUnavailable: the store was away for longer than patience lasts.
    """
    job, began = work.job, time.monotonic()
    prefix = keys.attempt_prefix(job.spec.tenant, job.id, job.attempt)
    artifacts = [_artifact(file, put(index, prefix + file.name)) for index, file in enumerate(files)]
    work.metrics["upload_ms"] = _ms_since(began)
    result = _result(work, artifacts).model_dump_json()
    return Stored(work=work, result=result, pictures=sum(file.role in PICTURES for file in files))


def publish(stored: Sequence[Stored], storage: Storage, held: Held) -> list[Stored]:
    """Publish what is stored in one call, waiting outages out; return those whose attempt counted.

    Raises:
        Unwanted: meanwhile all of them were lost.
        RedisUnavailable: Redis was away for longer than patience lasts.
    """
    results = [(one.work.job, one.result) for one in stored]
    counted = insist(
        lambda: held.publish(results), lambda: any(job.gone is not Gone.LOST for job, _ in results)
    )
    for (job, _), published in zip(results, counted, strict=True):
        if not published and job.gone is not Gone.LOST:  # canceled at the last moment: nobody sees them
            discard(job, storage)
    return [one for one, published in zip(stored, counted, strict=True) if published]


def discard(job: HeldJob, storage: Storage) -> None:
    """Delete what a canceled attempt stored; a store that is away keeps it."""
    prefix = keys.attempt_prefix(job.spec.tenant, job.id, job.attempt)
    try:
        for stored in list(storage.list(prefix)):
            storage.delete(stored.key)
    except StorageUnavailable:
        log.info("files of a canceled job stay behind", prefix=prefix)


def _artifact(file: EncodedFile, stored: StoredObject) -> Artifact:
    return Artifact(
        role=file.role,
        index=file.index,
        key=stored.key,
        media_type=file.media_type,
        size_bytes=stored.size_bytes,
        sha256=stored.sha256 or "",
        width=file.width,
        height=file.height,
        label=file.label,
        score=file.score,
    )


def _result(work: Work, artifacts: list[Artifact]) -> Result:
    assert isinstance(work.outcome, Outcome)  # noqa: S101
    spec = work.job.spec
    return Result(
        artifacts=artifacts,
        seed=spec.input.get("seed"),
        metrics={name: round(value, 3) for name, value in work.metrics.items()},
        warnings=[*spec.warnings, *work.outcome.warnings],
        detail=work.outcome.detail,
    )


def _ms_since(began: float) -> float:
    return (time.monotonic() - began) * 1_000
