"""What a user submits, typed: the envelope, the input of each kind, and references to pictures.

Everything from outside is validated here, strictly: no coercion, no unknown field, no NaN. What leaves the
producer is a `JobSpec`: resolved (model, seed, size, stored inputs), frozen, and the same for ever.
"""

from __future__ import annotations

import secrets
import unicodedata
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

SPEC_VERSION = 1
MAX_PROMPT_CHARACTERS = 4_000
MAX_IMAGES_PER_JOB = 16
MAX_SEED = 2**53 - 1 - MAX_IMAGES_PER_JOB  # JavaScript clients carry seed + i exactly, for every image
MAX_REGION_MARKS = 256
MAX_LABEL_CHARACTERS = 200


class Kind(StrEnum):
    """What to do with a job."""

    GENERATE = "generate"
    SEGMENT = "segment"


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


class Role(StrEnum):
    """What an artifact is to its result."""

    IMAGE = "image"
    MASK = "mask"
    OVERLAY = "overlay"
    CUTOUT = "cutout"
    ANNOTATIONS = "annotations"
    PREVIEW = "preview"
    MANIFEST = "manifest"


class Strict(BaseModel):
    """Base of every model that reads bytes from outside: no coercion, no unknown field, immutable."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


# ------------------------------------------------------------------------------------------------ references


class UploadRef(Strict):
    """A file sent to `POST /v1/uploads` before."""

    upload: str = Field(max_length=64)


class JobRef(Strict):
    """An artifact of another job; this job waits until that one has succeeded."""

    job: str = Field(max_length=64)
    role: Annotated[Role, Field(strict=False)] = Role.IMAGE
    index: int = Field(default=0, ge=0, lt=1_000)


class UrlRef(Strict):
    """A picture on the web, fetched by the producer; only from hosts the operator allows."""

    url: str = Field(max_length=2_048)


class InlineRef(Strict):
    """A small picture inside the request."""

    base64: str


class ObjectRef(Strict):
    """A picture in our own storage, checked when it was accepted. Made by the producer, never by a user.

    `width` and `height` are pixels after EXIF orientation; `sha256` is of the stored bytes.
    """

    object: str
    sha256: str
    width: int
    height: int


ImageRef = UploadRef | JobRef | UrlRef | InlineRef
StoredRef = ObjectRef | JobRef

# ------------------------------------------------------------------------------------------------ inputs


def _text(value: str, *, what: str) -> str:
    if not value.strip():
        raise PydanticCustomError("invalid_prompt", "the {what} is empty", {"what": what})
    return _clean(value, what=what)


def _clean(value: str, *, what: str) -> str:
    if len(value) > MAX_PROMPT_CHARACTERS:
        raise PydanticCustomError(
            "prompt_too_long",
            "the {what} has {length} characters; at most {limit} are accepted",
            {"what": what, "length": len(value), "limit": MAX_PROMPT_CHARACTERS},
        )
    if value.isprintable():
        return value  # the usual case, without looking at each character from Python
    bad = next((c for c in value if unicodedata.category(c) in {"Cc", "Cs"} and c not in "\n\t\r"), None)
    if bad is not None:
        raise PydanticCustomError(
            "invalid_prompt",
            "the {what} holds the control character U+{point}",
            {"what": what, "point": f"{ord(bad):04X}"},
        )
    return value


# What the validators below check, for the OpenAPI document.
_SIDE: dict[str, Any] = {"minimum": 8, "maximum": 8_192, "multipleOf": 8}


class GenerateInput(Strict):
    """Text to image. Sizes are pixels; what is left out comes from the model's defaults."""

    prompt: str = Field(json_schema_extra={"minLength": 1, "maxLength": MAX_PROMPT_CHARACTERS})
    negative_prompt: str = Field(default="", json_schema_extra={"maxLength": MAX_PROMPT_CHARACTERS})
    count: int = Field(default=1, ge=1, le=MAX_IMAGES_PER_JOB, description="Images to make in this job")
    seed: int | None = Field(
        default=None,
        description="Image i uses seed + i",
        json_schema_extra={"minimum": 0, "maximum": MAX_SEED},
    )
    width: int | None = Field(default=None, json_schema_extra=_SIDE)
    height: int | None = Field(default=None, json_schema_extra=_SIDE)
    steps: int | None = Field(default=None, ge=1, le=200)
    guidance: float | None = Field(default=None, ge=0, le=50, description="Classifier-free guidance scale")
    format: Literal["png", "webp", "jpeg"] = "png"
    options: dict[str, str | int | float | bool] = Field(
        default_factory=dict, max_length=16, description="Settings that the model's catalogue entry lists"
    )

    @field_validator("prompt")
    @classmethod
    def _prompt(cls, value: str) -> str:
        return _text(value, what="prompt")

    @field_validator("negative_prompt")
    @classmethod
    def _negative_prompt(cls, value: str) -> str:
        return _clean(value, what="negative prompt")

    @field_validator("seed")
    @classmethod
    def _seed(cls, value: int | None) -> int | None:
        if value is not None and not 0 <= value <= MAX_SEED:
            raise PydanticCustomError("invalid_seed", "a seed is 0 to {limit}", {"limit": MAX_SEED})
        return value

    @field_validator("width", "height")
    @classmethod
    def _side(cls, value: int | None) -> int | None:
        if value is not None and (value < 8 or value > 8_192 or value % 8):
            raise PydanticCustomError(
                "invalid_size", "width and height are multiples of 8 between 8 and 8192 pixels", {}
            )
        return value


class Point(Strict):
    """A click, in pixels of the upright picture; `positive` marks the object, else the background."""

    x: float
    y: float
    positive: bool = True


class Box(Strict):
    """A rectangle in pixel coordinates of the upright picture, XYXY, right and bottom exclusive."""

    x0: float
    y0: float
    x1: float
    y1: float

    @model_validator(mode="after")
    def _ordered(self) -> Box:
        if not (0 <= self.x0 < self.x1 and 0 <= self.y0 < self.y1):
            raise PydanticCustomError("invalid_region", "a box needs 0 <= x0 < x1 and 0 <= y0 < y1", {})
        return self


class SegmentInput(Strict):
    """Picture to masks: the parts of the image, or the thing inside a box or under points."""

    image: ImageRef
    labels: list[Annotated[str, Field(min_length=1, max_length=MAX_LABEL_CHARACTERS)]] = Field(
        default_factory=list, max_length=64, description="Keep only these classes"
    )
    points: list[Point] = Field(default_factory=list)
    boxes: list[Box] = Field(default_factory=list)
    regions: int | None = Field(
        default=None, ge=2, le=512, description="Regions or colours a classical method aims at"
    )
    options: dict[str, str | int | float | bool] = Field(default_factory=dict, max_length=16)

    @model_validator(mode="after")
    def _marks(self) -> SegmentInput:
        if len(self.points) > MAX_REGION_MARKS or len(self.boxes) > MAX_REGION_MARKS:
            raise PydanticCustomError(
                "invalid_region", "at most {limit} points and boxes", {"limit": MAX_REGION_MARKS}
            )
        if any(point.x < 0 or point.y < 0 for point in self.points):
            raise PydanticCustomError("invalid_region", "a point lies inside the picture", {})
        return self


INPUTS: dict[Kind, type[GenerateInput] | type[SegmentInput]] = {
    Kind.GENERATE: GenerateInput,
    Kind.SEGMENT: SegmentInput,
}

# ------------------------------------------------------------------------------------------------ envelope


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
        default=None, ge=60, le=365 * 86_400, description="How long the finished record lives"
    )


class JobSpec(BaseModel):
    """A job as accepted: model, seed and size resolved, inputs stored. Written once, read by workers.

    For `generate`, `input` is a `GenerateInput` with every None filled in; for `segment`, a `SegmentInput`
    whose `image` is a `StoredRef`.
    """

    model_config = ConfigDict(frozen=True)

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
    warnings: list[dict[str, str]] = []

    @property
    def lane(self) -> str:
        """The queue this job waits in: the jobs that one model serves."""
        return f"{self.kind}.{self.model}"

    @property
    def rows(self) -> int:
        """How many places of a batch the job takes."""
        return int(self.input.get("count", 1))

    @property
    def batch_key(self) -> str:
        """All that must be equal for two jobs to share a forward pass, readable."""
        if self.deterministic:
            return f"alone:{self.id}"
        if self.kind is Kind.GENERATE:
            shape = [self.input[name] for name in ("width", "height", "steps", "guidance")]
            options = sorted(self.input.get("options", {}).items())
            return ":".join(map(str, [self.model, *shape, *(f"{k}={v}" for k, v in options)]))
        return self.model


class Artifact(BaseModel):
    """One stored file of a result. Sizes are bytes and pixels; `sha256` is of the stored bytes."""

    model_config = ConfigDict(frozen=True)

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


class Result(BaseModel):
    """What a successful attempt publishes. Times are milliseconds."""

    model_config = ConfigDict(frozen=True)

    artifacts: list[Artifact]
    seed: int | None = None
    metrics: dict[str, float] = {}
    warnings: list[dict[str, str]] = []
    detail: dict[str, Any] = Field(default={}, description="Facts of the kind: classes found, method used")


def new_seed() -> int:
    """Return a random seed small enough to be read aloud and typed again."""
    return secrets.randbelow(2**32)
