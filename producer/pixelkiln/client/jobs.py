"""The read-only side of jobs and groups, which both clients share, and the state of an event stream."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import httpx2

from pixelkiln.client.errors import PixelkilnError
from pixelkiln.client.wire import Call, Retry, below, problem_of, unreachable
from pixelkiln.resources import GroupResource, JobFailure, JobResource, Progress
from pixelkiln_shared.jobs import TERMINAL, Status
from pixelkiln_shared.kinds import Kind


@dataclass(frozen=True, slots=True)
class JobEvent:
    """Something that happened to a job: `status`, `progress`, `preview`, `artifact` or `error`.

    `id` is the place in the stream from which a later reader can go on.
    """

    id: str
    type: str
    data: dict[str, Any]


class JobFacts:
    """What the client last heard of a job. `refresh` asks again."""

    def __init__(self, resource: JobResource) -> None:
        self.resource = resource

    @property
    def id(self) -> str:
        """The job's id, valid as long as its record lives."""
        return self.resource.id

    @property
    def kind(self) -> Kind:
        """What the job does."""
        return self.resource.kind

    @property
    def model(self) -> str:
        """The catalogue id of the model that runs it."""
        return self.resource.model

    @property
    def status(self) -> Status:
        """The state last heard of."""
        return self.resource.status

    @property
    def progress(self) -> Progress:
        """How far the job was, last heard: `value` between 0 and 1."""
        return self.resource.progress

    @property
    def seed(self) -> int | None:
        """The seed as resolved: the same one gives the same picture again."""
        return self.resource.seed

    @property
    def error(self) -> JobFailure | None:
        """Why the job failed."""
        return self.resource.error

    @property
    def warnings(self) -> list[dict[str, str]]:
        """What the server wants known about an accepted job."""
        return self.resource.warnings

    def as_reference(self) -> dict[str, Any]:
        """Return the image reference by which another job takes this job's first picture as its input."""
        return {"job": self.id}

    def again(self, seed: int | None) -> dict[str, Any]:
        """Return the request of the same job, with another seed where one is given."""
        job = self.resource
        fields = job.input_again
        if seed is not None:
            fields["seed"] = seed
        return {
            "kind": str(job.kind),
            "model": job.model,
            "input": fields,
            "priority": str(job.priority),
            "labels": dict(job.labels),
        }

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id} {self.kind} {self.status}>"


class GroupFacts:
    """What the client last heard of a group. `ids` are its jobs in the order of their rows, where known."""

    def __init__(self, resource: GroupResource, ids: list[str]) -> None:
        self.resource = resource
        self.ids = ids

    @property
    def id(self) -> str:
        """The group's id."""
        return self.resource.id

    @property
    def total(self) -> int:
        """How many jobs it has."""
        return self.resource.total

    @property
    def counts(self) -> dict[Status, int]:
        """How many jobs were in each state, last heard; sums to `total`."""
        return self.resource.counts

    @property
    def done(self) -> bool:
        """Whether every job has ended, last heard."""
        return self.resource.done

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id} of {self.total}>"


@dataclass(slots=True)
class Tail:
    """Where a reader of a job's events stands, so that a broken stream goes on where it broke."""

    job_id: str
    retry: Retry
    last_id: str = ""
    ended: bool = False
    failures: int = 0
    seen: set[str] = field(default_factory=set)

    @property
    def path(self) -> str:
        """Return the stream's path."""
        return below("/v1/jobs", self.job_id, "events")

    @property
    def headers(self) -> dict[str, str]:
        """Return the headers of the next connection."""
        resume = {"Last-Event-ID": self.last_id} if self.last_id else {}
        return {"Accept": "text/event-stream", **resume}

    def take(self, sse: httpx2.ServerSentEvent) -> JobEvent:
        """Note an event and return it in our form."""
        self.failures = 0
        self.last_id = sse.id or self.last_id
        data = json.loads(sse.data) if sse.data else {}
        self.ended = sse.event == "status" and data.get("status") in TERMINAL
        return JobEvent(id=sse.id, type=sse.event, data=data)

    def refused(self, response: httpx2.Response) -> PixelkilnError:
        """Return the error of an answer that is no stream; its body has been read."""
        return problem_of(response)

    def broke(self, error: httpx2.TransportError | None) -> float:
        """Return how many seconds to wait before connecting again.

        Raises:
            ServerUnreachable: the stream broke too often without a single event.
        """
        self.failures += 1
        if self.failures > 8:
            raise unreachable_stream(self, error)
        return self.retry.delay_s(self.failures - 1, None)


def unreachable_stream(tail: Tail, error: httpx2.TransportError | None) -> PixelkilnError:
    """Return the error for a stream that gives no events."""
    cause = error or httpx2.RemoteProtocolError("the event stream ends without an event")
    return unreachable(Call(method="GET", path=tail.path), cause)
