"""The kinds of job: what each is asked, which pictures it takes, and which it makes.

Everything from outside is validated here, strictly: no coercion, no unknown field, no NaN. A kind is one
class below; what the rest of the system must know of it stands there as class variables, so that no second
list has to be kept in step.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

MAX_PROMPT_CHARACTERS = 4_000
MAX_IMAGES_PER_JOB = 16
MAX_SEED = 2**53 - 1 - MAX_IMAGES_PER_JOB  # JavaScript clients carry seed + i exactly, for every image
MAX_REGION_MARKS = 256
MAX_LABEL_CHARACTERS = 200
USUAL_SIDE_PX = 512  # of a picture whose size is not known before its job has run


class Kind(StrEnum):
    """What to do with a job."""

    GENERATE = "generate"
    EDIT = "edit"
    UPSCALE = "upscale"
    SEGMENT = "segment"
    CUTOUT = "cutout"
    DEPTH = "depth"
    STEREO = "stereo"
    CLASSIFY = "classify"


class Role(StrEnum):
    """What an artifact is to its result."""

    IMAGE = "image"
    MASK = "mask"
    OVERLAY = "overlay"
    CUTOUT = "cutout"
    DEPTH = "depth"
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
    """An artifact of another job, for which this job waits; or, by `input`, a picture that job was given."""

    job: str = Field(max_length=64)
    role: Annotated[Role, Field(strict=False)] = Role.IMAGE
    index: int = Field(default=0, ge=0, lt=1_000)
    input: str | None = Field(
        default=None, max_length=16, description="The input field of that job whose picture is meant"
    )


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


def _optional_prompt(value: str | None) -> str | None:
    return None if value is None else _text(value, what="prompt")


def _label(value: str) -> str:
    return _text(value, what="label")


Label = Annotated[
    str, Field(max_length=MAX_LABEL_CHARACTERS, json_schema_extra={"minLength": 1}), AfterValidator(_label)
]

# What the validators below check, for the OpenAPI document.
_PROMPT: dict[str, Any] = {"minLength": 1, "maxLength": MAX_PROMPT_CHARACTERS}
_SEED: dict[str, Any] = {"minimum": 0, "maximum": MAX_SEED}
_SIDE: dict[str, Any] = {"minimum": 8, "maximum": 8_192, "multipleOf": 8}


def _megapixels(sides: Mapping[str, Any]) -> float:
    width, height = (sides.get(name) or USUAL_SIDE_PX for name in ("width", "height"))
    return float(width * height) / 1e6


Options = dict[str, str | int | float | bool]
Format = Literal["png", "webp", "jpeg"]


class KindInput(Strict):
    """Base of the inputs of all kinds.

    Attributes:
        pictures: fields that hold a reference to a picture.
        alike: fields that must be equal for two jobs to share a forward pass, besides model and options.
        makes: the roles of its artifacts that are pictures.
        face: the artifact that stands for the job in a list; None when it makes no picture.
    """

    pictures: ClassVar[tuple[str, ...]] = ("image",)
    alike: ClassVar[tuple[str, ...]] = ()
    makes: ClassVar[tuple[Role, ...]] = (Role.IMAGE,)
    face: ClassVar[Role | None] = Role.IMAGE

    options: Options = Field(
        default_factory=dict, max_length=16, description="Settings that the model's catalogue entry lists"
    )

    @classmethod
    def effort(cls, settled: Mapping[str, Any]) -> float:
        """Return the device work of one row of a settled input, beside others of its model.

        Models of such a kind bring every picture to their own size, so one row is like another.
        """
        return 1.0


class SampledInput(KindInput):
    """What every picture drawn from noise is asked. What is left out comes from the model's defaults."""

    prompt: str | None = Field(default=None, description="Left out: from noise", json_schema_extra=_PROMPT)
    negative_prompt: str = Field(default="", json_schema_extra={"maxLength": MAX_PROMPT_CHARACTERS})
    seed: int | None = Field(default=None, description="Image i uses seed + i", json_schema_extra=_SEED)
    steps: int | None = Field(default=None, ge=1, le=200)
    guidance: float | None = Field(default=None, ge=0, le=50, description="Classifier-free guidance scale")
    format: Format = "png"

    @field_validator("prompt")
    @classmethod
    def _prompt(cls, value: str | None) -> str | None:
        return _optional_prompt(value)

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

    @classmethod
    def effort(cls, settled: Mapping[str, Any]) -> float:
        """Return steps x megapixels; guidance above 1 takes a second pass a step."""
        passes = 2 if (settled.get("guidance") or 0) > 1 else 1
        return (settled.get("steps") or 1) * passes * cls.megapixels(settled)

    @classmethod
    def megapixels(cls, settled: Mapping[str, Any]) -> float:
        """Return the size of the picture that is made."""
        return _megapixels(settled)


class SizedInput(SampledInput):
    """A picture whose size can be chosen, in pixels, and of which there can be several."""

    count: int = Field(default=1, ge=1, le=MAX_IMAGES_PER_JOB, description="Images to make in this job")
    width: int | None = Field(default=None, json_schema_extra=_SIDE)
    height: int | None = Field(default=None, json_schema_extra=_SIDE)

    @field_validator("width", "height")
    @classmethod
    def _side(cls, value: int | None) -> int | None:
        if value is not None and (value < 8 or value > 8_192 or value % 8):
            raise PydanticCustomError(
                "invalid_size", "width and height are multiples of 8 between 8 and 8192 pixels", {}
            )
        return value


class GenerateInput(SizedInput):
    """Text to image, or a picture from noise where the model needs no prompt."""

    pictures: ClassVar[tuple[str, ...]] = ()
    alike: ClassVar[tuple[str, ...]] = ("width", "height", "steps", "guidance")


class EditInput(SizedInput):
    """A picture drawn anew by a prompt: all of it, or only what the mask marks (inpainting).

    The mask is a picture of the same size; what is not black in it is drawn anew, the rest stays as it is.
    """

    pictures: ClassVar[tuple[str, ...]] = ("image", "mask")
    alike: ClassVar[tuple[str, ...]] = ("width", "height", "steps", "guidance", "strength")

    image: ImageRef
    mask: ImageRef | None = None
    strength: float | None = Field(
        default=None, gt=0, le=1, description="How far from the picture: 1 keeps nothing of what is redrawn"
    )

    @classmethod
    def effort(cls, settled: Mapping[str, Any]) -> float:
        """As for any sampler, but only the last `strength` of the steps are taken."""
        return super().effort(settled) * (settled.get("strength") or 1.0)


class UpscaleInput(SampledInput):
    """A picture made larger, by `scale` in each direction."""

    alike: ClassVar[tuple[str, ...]] = ("scale", "steps", "guidance")

    image: ImageRef
    scale: Literal[2, 3, 4] | None = Field(default=None, description="Left out: what the model does")

    @classmethod
    def megapixels(cls, settled: Mapping[str, Any]) -> float:
        """Return the size of the larger picture."""
        return _megapixels(settled.get("image") or {}) * (settled.get("scale") or 1) ** 2


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


class SegmentInput(KindInput):
    """Picture to masks: the parts of the image, what phrases name, or what is in boxes or under points."""

    makes: ClassVar[tuple[Role, ...]] = (Role.MASK, Role.OVERLAY, Role.CUTOUT)
    face: ClassVar[Role | None] = Role.OVERLAY

    image: ImageRef
    labels: list[Label] = Field(
        default_factory=list,
        max_length=64,
        description="Keep only these classes; or find these phrases, where the model reads text",
    )
    points: list[Point] = Field(default_factory=list)
    boxes: list[Box] = Field(default_factory=list)
    regions: int | None = Field(
        default=None, ge=2, le=512, description="Regions or colours a classical method aims at"
    )
    threshold: float | None = Field(
        default=None, ge=0, le=1, description="Lowest score of what is kept; left out: the model's own"
    )

    @model_validator(mode="after")
    def _marks(self) -> SegmentInput:
        if len(self.points) > MAX_REGION_MARKS or len(self.boxes) > MAX_REGION_MARKS:
            raise PydanticCustomError(
                "invalid_region", "at most {limit} points and boxes", {"limit": MAX_REGION_MARKS}
            )
        if any(point.x < 0 or point.y < 0 for point in self.points):
            raise PydanticCustomError("invalid_region", "a point lies inside the picture", {})
        return self


class CutoutInput(KindInput):
    """The foreground of a picture on transparent ground."""

    makes: ClassVar[tuple[Role, ...]] = (Role.CUTOUT, Role.MASK)
    face: ClassVar[Role | None] = Role.CUTOUT

    image: ImageRef
    format: Literal["png", "webp"] = "png"


class DepthInput(KindInput):
    """How near each pixel is: a 16-bit depth map, and the same in colours for the eye."""

    makes: ClassVar[tuple[Role, ...]] = (Role.DEPTH, Role.PREVIEW)
    face: ClassVar[Role | None] = Role.PREVIEW

    image: ImageRef


class StereoInput(KindInput):
    """A picture for two eyes: side by side, and as a red-cyan anaglyph."""

    makes: ClassVar[tuple[Role, ...]] = (Role.IMAGE, Role.DEPTH, Role.PREVIEW)

    image: ImageRef
    disparity: float = Field(
        default=0.03, gt=0, le=0.2, description="Of the nearest pixels, as a share of the picture's width"
    )
    format: Format = "png"


class ClassifyInput(KindInput):
    """What a picture shows: the best of the model's classes, or of the labels given to a zero-shot model."""

    makes: ClassVar[tuple[Role, ...]] = ()
    face: ClassVar[Role | None] = None

    image: ImageRef
    labels: list[Label] = Field(
        default_factory=list, max_length=256, description="Choose among these, where the model reads text"
    )
    top: int = Field(default=5, ge=1, le=100, description="Classes to name, best first")


INPUTS: dict[Kind, type[KindInput]] = {
    Kind.GENERATE: GenerateInput,
    Kind.EDIT: EditInput,
    Kind.UPSCALE: UpscaleInput,
    Kind.SEGMENT: SegmentInput,
    Kind.CUTOUT: CutoutInput,
    Kind.DEPTH: DepthInput,
    Kind.STEREO: StereoInput,
    Kind.CLASSIFY: ClassifyInput,
}

PICTURE_FIELDS = frozenset(name for form in INPUTS.values() for name in form.pictures)
"""Every input field, of any kind, that holds a reference to a picture."""
