"""From records to resources: what users see, with fresh links at every read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from starlette.requests import Request

from pixelkiln.api.services import Services
from pixelkiln.resources import ArtifactResource, GroupResource, JobFailure, JobResource, Progress
from pixelkiln_shared.jobs import Artifact, JobSpec, Result, Status
from pixelkiln_shared.kinds import PICTURE_FIELDS
from pixelkiln_shared.ledger.contract import Group, Record

_EMPTY = Result(artifacts=[])


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
            live: also ask for what changes by itself: the place in the queue, whether a worker serves it.
        """
        spec = JobSpec.model_validate_json(record.spec)
        result = Result.model_validate_json(record.result) if record.result else _EMPTY
        waiting = live and record.status is Status.QUEUED
        return JobResource(
            id=record.id,
            kind=record.kind,
            model=spec.model,
            status=record.status,
            priority=record.priority,
            created_at=_moment(record.created_at),
            started_at=_moment(record.started_at) if record.started_at else None,
            completed_at=_moment(record.completed_at) if record.completed_at else None,
            queue_position=self.services.producer.ledger.position(record.id) if waiting else None,
            progress=_progress(record),
            attempts=record.attempt,
            seed=result.seed if result.seed is not None else spec.input.get("seed"),
            group=record.group,
            labels=spec.labels,
            input=self._input(spec.input),
            artifacts=[self._artifact(artifact) for artifact in result.artifacts],
            error=JobFailure.model_validate_json(record.error) if record.error else None,
            warnings=_once(
                [*spec.warnings, *result.warnings, *(self._unserved(record, spec) if waiting else [])]
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
            urls={"self": at, "cancel": f"{at}/cancel", "jobs": f"{self.base}/v1/jobs?group={group.id}"},
        )

    def _urls(self, job_id: str) -> dict[str, str]:
        at = f"{self.base}/v1/jobs/{job_id}"
        return {
            "self": at,
            "events": f"{at}/events",
            "cancel": f"{at}/cancel",
            "retry": f"{at}/retry",
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

    def _unserved(self, record: Record, spec: JobSpec) -> list[dict[str, str]]:
        if self.services.producer.served(record.lane):
            return []
        return [
            {"code": "no_worker_for_model", "message": f"no live worker serves {spec.model}; the job waits"}
        ]


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
