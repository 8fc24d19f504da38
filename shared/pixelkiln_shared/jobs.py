"""A job as it travels: the envelope a user submits, the spec workers read, the result they publish.

What each kind is asked is in `kinds`. What leaves the producer is a `JobSpec`: resolved (model, seed, size,
stored inputs), frozen, and the same for ever.
"""

from __future__ import annotations

import secrets
from enum import StrEnum
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

from pixelkiln_shared.kinds import INPUTS, Kind, Role, Strict

SPEC_VERSION = 1
MAX_RETENTION_S = 365 * 86_400
MAX_URL = 2_000  # characters of a webhook's address
WORK_OF_A_ROW = 1_000  # so that work is a whole number: the ledger adds it up without rounding


class Priority(StrEnum):
    """The three classes of service, first to last."""

    INTERACTIVE = "interactive"
    STANDARD = "standard"
    BULK = "bulk"


class Status(StrEnum):
    """The states of a job (docs/state-machine.md)."""

    BLOCKED = "blocked"
    QUEUED = "queued"
    RUNNING = "running"
    CANCELING = "canceling"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELED = "canceled"
    EXPIRED = "expired"

    @property
    def terminal(self) -> bool:
        """Whether a job in this state never moves again (except by an explicit retry)."""
        return self in TERMINAL


TERMINAL = frozenset({Status.SUCCEEDED, Status.FAILED, Status.CANCELED, Status.EXPIRED})


# ------------------------------------------------------------------------------------------------ envelope


JobEvent = Literal["job.succeeded", "job.failed", "job.canceled", "job.expired"]
GroupEvent = Literal["job.succeeded", "job.failed", "job.canceled", "job.expired", "group.completed"]


class JobWebhook(Strict):
    """Whom to tell when a job has ended, and of which ends."""

    url: str = Field(max_length=MAX_URL, description="http or https; told by a signed POST")
    events: list[JobEvent] = Field(default=list(get_args(JobEvent)), min_length=1, max_length=8)

    @property
    def statuses(self) -> tuple[Status, ...]:
        """The ends that are told of, each once."""
        return tuple(status for status in Status if f"job.{status}" in self.events)


class GroupWebhook(Strict):
    """Whom to tell when the last job of a group has ended, and, with `job.*`, of each job without its own."""

    url: str = Field(max_length=MAX_URL, description="http or https; told by a signed POST")
    events: list[GroupEvent] = Field(default=["group.completed"], min_length=1, max_length=8)

    @property
    def for_jobs(self) -> JobWebhook | None:
        """What it asks of each job; None when only the group matters."""
        events = [event for event in get_args(JobEvent) if event in self.events]
        return JobWebhook(url=self.url, events=events) if events else None

    @property
    def for_group(self) -> str | None:
        """The URL when it asks for the group's completion, else None."""
        return self.url if "group.completed" in self.events else None


class JobRequest(Strict):
    """The envelope of `POST /v1/jobs`; `input` is validated by the model of its `kind` (`INPUTS`)."""

    kind: Annotated[Kind, Field(strict=False)]
    model: str | None = Field(
        default=None, max_length=256, description="A catalogue id; left out: the default for the kind"
    )
    input: dict[str, Any]
    priority: Annotated[Priority, Field(strict=False)] = Priority.STANDARD
    labels: dict[str, str] = Field(default_factory=dict, max_length=16)
    group: str | None = Field(default=None, max_length=64)
    deterministic: bool = Field(default=False, description="Run alone, so that the same bytes come out again")
    start_deadline_s: float | None = Field(
        default=None, gt=0, le=30 * 86_400, description="Expire when not started by then"
    )
    run_timeout_s: float = Field(default=600, gt=0, le=86_400)
    retention_s: int | None = Field(
        default=None, ge=60, le=MAX_RETENTION_S, description="How long the finished record lives"
    )
    webhook: JobWebhook | None = Field(default=None, description="Whom to tell when it has ended")


class _Stored(BaseModel):
    """Base of what is read for each job: else pydantic keeps 16,384 texts, of which none comes again."""

    model_config = ConfigDict(frozen=True, cache_strings="keys")


class JobSpec(_Stored):
    """A job as accepted: model, seed and size resolved, inputs stored. Written once, read by workers.

    `input` is the kind's input (`kinds.INPUTS`) with sizes, steps and seed filled in, and with a `StoredRef`
    for each picture.
    """

    v: int = SPEC_VERSION
    id: str
    kind: Kind
    model: str
    tenant: str
    input: dict[str, Any]
    priority: Priority = Priority.STANDARD
    labels: dict[str, str] = {}
    group: str | None = None
    deterministic: bool = False
    run_timeout_s: float = 600
    retention_s: int | None = Field(default=None, ge=0, le=MAX_RETENTION_S)
    warnings: list[dict[str, str]] = []

    def compact(self) -> str:
        """Return the spec as JSON without its defaults, and without the group, which the record has.

        A waiting job keeps it in Redis, so each byte counts. A default that changes needs another version.
        """
        return f'{{"v":{self.v},' + self.model_dump_json(exclude_defaults=True, exclude={"v", "group"})[1:]

    @property
    def lane(self) -> str:
        """The queue this job waits in: the jobs that one model serves, of one version (`lane_suffix`)."""
        return f"{self.kind}.{self.model}{lane_suffix(self.v)}"

    @property
    def rows(self) -> int:
        """How many places of a batch the job takes."""
        return int(self.input.get("count", 1))

    @property
    def work(self) -> int:
        """The job's device work beside others of its model, at least 1: 1000 a row, x steps x megapixels.

        Without a unit: a model's seconds per unit are learned (`costs`).
        """
        return max(1, round(WORK_OF_A_ROW * self.rows * INPUTS[self.kind].effort(self.input)))

    @property
    def batch_key(self) -> str:
        """All that must be equal for two jobs to share a forward pass, readable."""
        if self.deterministic:
            return f"alone:{self.id}"
        parts = [self.model, *(str(self.input.get(name)) for name in INPUTS[self.kind].alike)]
        if options := self.input.get("options"):
            parts += (f"{name}={value}" for name, value in sorted(options.items()))
        return ":".join(parts)


class Artifact(_Stored):
    """One stored file of a result. Sizes are bytes and pixels; `sha256` is of the stored bytes."""

    role: Role
    index: int
    key: str
    media_type: str
    size_bytes: int
    sha256: str
    width: int | None = None
    height: int | None = None
    label: str | None = None
    score: float | None = None


class Result(_Stored):
    """What a successful attempt publishes. Times are milliseconds."""

    artifacts: list[Artifact]
    seed: int | None = None
    metrics: dict[str, float] = {}
    warnings: list[dict[str, str]] = []
    detail: dict[str, Any] = Field(default={}, description="Facts of the kind: classes found, method used")


def lane_suffix(version: int) -> str:
    """Return what the name of a lane ends in: jobs of a later version wait apart from those of the first.

    So a worker that cannot read them is never handed one, and serves what it can.
    """
    return "" if version <= 1 else f"@{version}"


def model_of(lane: str) -> str:
    """Return the model that a lane's jobs ask for."""
    return lane.partition(".")[2].partition("@")[0]


def new_seed() -> int:
    """Return a random seed small enough to be read aloud and typed again."""
    return secrets.randbelow(2**32)
