"""From records to resources: what users see, with fresh links at every read."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from starlette.requests import Request

from pixelkiln.api.services import Services
from pixelkiln.records import result_of, spec_of
from pixelkiln.resources import ArtifactResource, GroupResource, JobFailure, JobResource, Progress
from pixelkiln_shared.fleet import WorkerInfo, served_lanes, serves, unavailable
from pixelkiln_shared.jobs import Artifact, Result, Status, model_of
from pixelkiln_shared.kinds import PICTURE_FIELDS
from pixelkiln_shared.ledger.contract import Group, Record

_FAR_S = 10 * 365 * 86_400  # further is no date that anybody waits for


@dataclass(frozen=True, slots=True)
class Views:
    """Makes resources for one request. `base` is the address users reach us at, without a final slash."""

    services: Services
    base: str

    @classmethod
    def of(cls, request: Request, services: Services) -> Views:
        """Return the views for a request; its own address is the base unless `public_url` is set."""
        return cls(services, (services.settings.public_url or str(request.base_url)).rstrip("/"))

    def job(self, record: Record, *, live: bool = False) -> JobResource:
        """Return a job.

        Args:
            live: also ask for what changes by itself: the place in the queue, when it will have ended,
                whether a worker serves it.
        """
        spec, result = spec_of(record), result_of(record)
        position, eta = self._forecast(record) if live else (None, None)
        waits = live and record.status in (Status.QUEUED, Status.BLOCKED)
        return JobResource(
            id=record.id,
            kind=record.kind,
            model=spec.model,
            status=record.status,
            priority=record.priority,
            created_at=_moment(record.created_at),
            started_at=_moment(record.started_at) if record.started_at else None,
            completed_at=_moment(record.completed_at) if record.completed_at else None,
            queue_position=position,
            eta=eta,
            progress=_progress(record),
            attempts=record.attempt,
            seed=result.seed if result.seed is not None else spec.input.get("seed"),
            group=record.group,
            labels=spec.labels,
            input=self._input(spec.input),
            artifacts=[self._artifact(artifact) for artifact in result.artifacts],
            error=JobFailure.model_validate_json(record.error) if record.error else None,
            warnings=_once(
                [*spec.warnings, *result.warnings, *(self.unserved([record.lane]) if waits else [])]
            ),
            metrics=_metrics(record, result),
            detail=result.detail,
            urls=self._urls(record.id),
        )

    def group(self, group: Group) -> GroupResource:
        """Return a group."""
        at = f"{self.base}/v1/groups/{group.id}"
        return GroupResource(
            id=group.id,
            total=group.total,
            counts={status: group.counts.get(status, 0) for status in Status},
            done=all(status.terminal or not count for status, count in group.counts.items()),
            created_at=_moment(group.created_at),
            urls={
                "self": at,
                "cancel": f"{at}/cancel",
                "jobs": f"{self.base}/v1/jobs?group={group.id}",
                "webhooks": f"{at}/webhooks",
            },
        )

    def _urls(self, job_id: str) -> dict[str, str]:
        at = f"{self.base}/v1/jobs/{job_id}"
        return {
            "self": at,
            "events": f"{at}/events",
            "cancel": f"{at}/cancel",
            "retry": f"{at}/retry",
            "webhooks": f"{at}/webhooks",
            "page": f"{self.base}/jobs/{job_id}",
        }

    def _artifact(self, artifact: Artifact) -> ArtifactResource:
        facts = artifact.model_dump(exclude={"key"})
        return ArtifactResource(**facts, url=self._link(artifact.key), url_expires_at=self._expiry())

    def _input(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return a job's input as users may see it: a stored picture by a link, not by its key."""
        shown = dict(given)
        for field in PICTURE_FIELDS & given.keys():
            image = given[field]
            if isinstance(image, Mapping) and "object" in image:
                shown[field] = {name: value for name, value in image.items() if name != "object"}
                shown[field] |= {
                    "url": self._link(image["object"]),
                    "url_expires_at": self._expiry().isoformat(),
                }
        return shown

    def _link(self, key: str) -> str:
        link = self.services.producer.storage.link(key, expires_s=self.services.settings.url_ttl_s)
        return self.base + link if link.startswith("/") else link

    def _expiry(self) -> datetime:
        return datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=self.services.settings.url_ttl_s)

    def unserved(self, lanes: Sequence[str]) -> list[dict[str, str]]:
        """Return a warning for each model that no live worker serves; `lanes` has one for each job."""
        workers = self.services.fleet.workers()
        return [
            {"code": "no_worker_for_model", "message": _why_unserved(workers, lane, count, len(lanes))}
            for lane, count in Counter(lanes).items()
            if not any(serves(info, lane) for info in workers)
        ]

    def _forecast(self, record: Record) -> tuple[int | None, datetime | None]:
        """Return a job's place in the queue, and when it will have ended; None for what cannot be said."""
        if record.status is Status.QUEUED:
            ahead = self.services.producer.ledger.ahead(record.id)
            if ahead is None:
                return None, None
            outlook = self.services.outlooks.recent()
            return ahead.jobs, _soon(
                outlook.waiting_ends_in_s(record.lane, ahead=ahead.work, own=record.work)
            )
        if record.status is not Status.RUNNING or record.started_at is None:
            return None, None
        elapsed_s = max(0.0, time.time() - record.started_at)
        ends_in_s = self.services.outlooks.recent().running_ends_in_s(
            record.lane, own=record.work, elapsed_s=elapsed_s, step=record.step, steps=record.steps
        )
        return None, _soon(ends_in_s)


def _why_unserved(workers: Sequence[WorkerInfo], lane: str, jobs: int, of: int) -> str:
    model, (_, later, version) = model_of(lane), lane.partition("@")
    whose = "the job" if of == 1 else f"{jobs} of {of} jobs"
    waits = f"{whose} waits" if of == 1 else f"{whose} wait"
    if lane not in served_lanes(workers):
        what = f"reads jobs of version {version} for" if later else "serves"
        return f"no live worker {what} {model}; {waits}"
    refusing = [info.reason for info in workers if info.state == "refusing" and lane in info.lanes]
    if refusing:
        return f"no worker takes jobs of {model} for now ({refusing[0]}); {waits}"
    reason = unavailable(workers, model) or "it did not load"
    return f"no live worker could load {model}: {reason}; {whose} may fail"


def _soon(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.now(UTC) + timedelta(seconds=min(seconds, _FAR_S))


def _moment(at_s: float) -> datetime:
    return datetime.fromtimestamp(at_s, UTC)


def _progress(record: Record) -> Progress:
    if record.status is Status.SUCCEEDED:
        return Progress(value=1.0, step=record.steps, steps=record.steps)
    value = min(1.0, record.step / record.steps) if record.steps else 0.0
    return Progress(value=value, step=record.step, steps=record.steps)


def _once(warnings: list[dict[str, str]]) -> list[dict[str, str]]:
    """A result repeats the warnings of its job."""
    return [warning for index, warning in enumerate(warnings) if warning not in warnings[:index]]


def _metrics(record: Record, result: Result) -> dict[str, float]:
    metrics = dict(result.metrics)
    if record.started_at:
        metrics.setdefault("queue_ms", round((record.started_at - record.created_at) * 1_000, 1))
    return metrics
