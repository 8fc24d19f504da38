"""The HTTP resources, as the API answers them and the client reads them. No I/O here."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from pixelkiln_shared.jobs import Priority, Status
from pixelkiln_shared.kinds import PICTURE_FIELDS, Kind, Role


class Resource(BaseModel):
    """Base: tolerant of fields a newer server adds."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class Problem(Resource):
    """RFC 9457 problem details; `code` is stable, `errors` carry JSON pointers."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str = ""
    instance: str | None = None
    code: str
    errors: list[dict[str, Any]] = []
    request_id: str | None = None


class Progress(Resource):
    """`value` is between 0 and 1."""

    value: float = 0.0
    step: int = 0
    steps: int = 0


class ArtifactResource(Resource):
    """One stored file. `url` is signed afresh at every read and expires at `url_expires_at`."""

    role: Role
    index: int
    media_type: str
    size_bytes: int
    sha256: str
    width: int | None = None
    height: int | None = None
    label: str | None = None
    score: float | None = None
    url: str
    url_expires_at: datetime


class JobFailure(Resource):
    """Why a job failed; `code` shares the vocabulary of HTTP errors."""

    code: str
    message: str


class JobResource(Resource):
    """A job. `urls` holds `self`, `events` and `cancel`; follow them, do not build them.

    `eta` is when it will have ended, as far as can be said of a job that waits or runs; None: unknown.
    """

    id: str
    kind: Kind
    model: str
    status: Status
    priority: Priority
    created_at: datetime
    started_at: datetime | None = None
    completed_at: datetime | None = None
    queue_position: int | None = None
    eta: datetime | None = None
    progress: Progress = Progress()
    attempts: int = 0
    seed: int | None = None
    group: str | None = None
    labels: dict[str, str] = {}
    input: dict[str, Any] = {}
    artifacts: list[ArtifactResource] = []
    error: JobFailure | None = None
    warnings: list[dict[str, str]] = []
    metrics: dict[str, float] = {}
    detail: dict[str, Any] = {}
    urls: dict[str, str] = {}

    @property
    def input_again(self) -> dict[str, Any]:
        """The input as a new request can send it: pictures stored for this job are named by it."""
        stored = (name for name in PICTURE_FIELDS & self.input.keys() if "sha256" in (self.input[name] or {}))
        return self.input | {name: {"job": self.id, "input": name} for name in stored}


class JobPage(Resource):
    """A page of jobs, newest first; `next_cursor` is None on the last."""

    jobs: list[JobResource]
    next_cursor: str | None = None


class GroupResource(Resource):
    """Jobs submitted together; `counts` by status sums to `total`."""

    id: str
    total: int
    counts: dict[Status, int]
    done: bool
    created_at: datetime
    urls: dict[str, str] = {}


class BulkResource(Resource):
    """The answer to `POST /v1/groups`: the group and the ids, in the order of the request.

    `warnings` are of the whole: each names a model that no worker serves, and how many jobs wait for it.
    """

    group: str
    ids: list[str]
    warnings: list[dict[str, str]] = []


class PipelineResource(Resource):
    """The answer to `POST /v1/pipelines`: `steps` maps each step's id to its job's; `jobs` in their order."""

    group: str
    steps: dict[str, str]
    jobs: list[JobResource]


class DeliveryResource(Resource):
    """One message to one receiver; `id` is its `webhook-id`. `urls` holds `self`, `redeliver` and `subject`.

    `subject` is the job or group it is about, `response_status` what the receiver answered last, `error` a
    word for what went wrong then, and `next_attempt_at` None while it is tried and after its end.
    """

    id: str
    event: str
    subject: str
    url: str
    status: str
    attempts: int
    created_at: datetime
    last_attempt_at: datetime | None = None
    next_attempt_at: datetime | None = None
    response_status: int | None = None
    error: str | None = None
    urls: dict[str, str] = {}


class DeliveryPage(Resource):
    """A page of deliveries, newest first; `next_cursor` is None on the last."""

    deliveries: list[DeliveryResource]
    next_cursor: str | None = None


class UploadResource(Resource):
    """A picture stored for later jobs. Width and height are pixels after EXIF orientation."""

    id: str
    sha256: str
    media_type: str
    width: int
    height: int
    expires_at: datetime


class ModelResource(Resource):
    """A catalogue entry as users see it.

    `ready_workers` counts live workers that serve it and did not fail to load it; `unavailable` says why,
    where none can. `sha256` are the hashes that the catalogue names, by file.
    """

    id: str
    object: str = "model"
    created: int = 0
    owned_by: str = "pixelkiln"
    title: str
    description: str
    kinds: list[Kind]
    default_for: list[Kind]
    licence: str
    family: str = ""
    world: str = Field("", description="The closed world the model knows; empty: any picture")
    sha256: dict[str, str] = {}
    defaults: dict[str, Any]
    options: dict[str, list[Any]] = {}
    limits: dict[str, Any]
    classes: list[str] = []
    things: list[str] = []
    vocabulary: list[str] = []
    example_prompts: list[str] = []
    ready_workers: int = 0
    unavailable: str | None = None


class ModelList(Resource):
    """`GET /v1/models`; the shape OpenAI clients read, with our fields beside theirs."""

    object: str = "list"
    data: list[ModelResource]


class LoadedResource(Resource):
    """A model in a worker's memory: what it takes of the device, how long loading was, its weights' hash."""

    id: str
    footprint_bytes: int
    load_s: float
    sha256: str = ""


class DeviceTimeResource(Resource):
    """How a worker's device spent its time since it was ready, in seconds; the four are all of it.

    `idle_waiting_s` it stood still although the worker held jobs for it, `idle_no_work_s` without any.
    """

    busy_s: float = 0.0
    load_s: float = 0.0
    idle_waiting_s: float = 0.0
    idle_no_work_s: float = 0.0


class TallyResource(Resource):
    """What a worker did with one model since it started; `switches` are loads that made another one leave.

    `batch_fill` is how full its batches were on average, between 0 and 1; None where the worker does not say.
    """

    loads: int = 0
    switches: int = 0
    batches: int = 0
    rows: int = 0
    batch_fill: float | None = None
    max_batch: int = 0
    succeeded: int = 0
    failed: int = 0
    pictures: int = 0
    run_s: float = 0.0


class WorkerResource(Resource):
    """A live worker process. `unavailable` names the models that it could not load, with the reason.

    In the state `refusing` it is well but takes no jobs for now, and `reason` says why. In other states
    `reason` tells what may lead to that; it is mostly empty.

    `busy_share` is the part of its time that the device ran models, between 0 and 1; `tallies` are by model.
    """

    id: str
    host: str
    device: str
    state: str = Field(description="`starting`, `ready`, `refusing` or `draining`")
    reason: str = ""
    models: list[str]
    resident: list[str] = []
    loaded: list[LoadedResource] = []
    unavailable: dict[str, str] = {}
    memory_bytes: int = Field(0, description="Budget of loaded models")
    longest_lane_wait_s: float = Field(
        0.0,
        description="For how long it may pass over a lane with waiting jobs, by the loads and runs it knows",
    )
    running: list[str] = []
    started_at: datetime
    jobs_done: int = 0
    busy_share: float = 0.0
    device_time: DeviceTimeResource = DeviceTimeResource()
    tallies: dict[str, TallyResource] = {}


class WorkerList(Resource):
    """`GET /v1/workers`, in the shape of `ModelList`."""

    object: str = "list"
    data: list[WorkerResource]


class LaneResource(Resource):
    """A lane right now; `servable` is whether any ready worker serves it and can load its model.

    `work_s` is how long one worker would run what waits; None while nothing is learned of the lane yet.
    """

    lane: str
    waiting: int
    running: int
    oldest_s: float
    work_s: float | None = None
    servable: bool


class StatsResource(Resource):
    """`GET /v1/stats`."""

    lanes: list[LaneResource]
    counts: dict[Status, int]
    workers: int = Field(description="Live worker processes")
    desired_workers: int = Field(
        0, description="Processes that finish what waits in time, no fewer than are at work"
    )
    safe_to_stop: list[str] = Field([], description="Workers that hold no job and are not needed")
