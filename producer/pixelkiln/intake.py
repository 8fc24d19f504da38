"""From what a user sent to a job that can run: everything checked, chosen and stored before it is accepted.

What leaves here needs no second look: the model exists and does this, sizes and steps are within its limits,
the input picture is in our storage (or is an artifact of a job of the same tenant), the seed is a number.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pixelkiln.inputs import Inputs, Order, Source
from pixelkiln.validation import escape, validate, wrong
from pixelkiln.vocabulary import unknown_words, vocabulary_of
from pixelkiln_shared import keys
from pixelkiln_shared.catalogue import Catalogue, ModelEntry
from pixelkiln_shared.errors import UnknownModel
from pixelkiln_shared.jobs import JobRequest, JobSpec, new_seed
from pixelkiln_shared.kinds import GenerateInput, Kind, ObjectRef, SegmentInput
from pixelkiln_shared.ledger.contract import NewJob

MAX_LABEL_KEY = 64
MAX_LABEL_VALUE = 256

# What a generator gets when neither the request nor its catalogue entry says; bounded by the entry's limits.
_FALLBACKS: dict[str, Any] = {"width": 512, "height": 512, "steps": 20, "guidance": 5.0}


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """A job ready to be written. `stored` are the objects put for it, to be removed if it is not."""

    spec: JobSpec
    job: NewJob
    stored: tuple[str, ...] = ()


class Intake:
    """Checks requests against one catalogue. Thread-safe; holds no state of its own."""

    def __init__(self, catalogue: Catalogue, inputs: Inputs) -> None:
        self.catalogue = catalogue
        self._inputs = inputs
        self._vocabularies = {entry.id: vocabulary_of(entry) for entry in catalogue}

    def prepare(self, request: JobRequest | Mapping[str, Any], order: Order) -> Prepared:
        """Settle one request.

        Raises:
            InvalidInput: a field is wrong; `pointer` and `detail["errors"]` say which.
            InvalidImage: the picture is not one we open.
            UnknownModel: no such model, or not for this kind.
            NotFound: an upload or job that is referred to does not exist (or is somebody else's).
            StorageUnavailable, RedisUnavailable: what we need does not answer.
        """
        if not isinstance(request, JobRequest):
            request = validate(JobRequest, request, at=order.at)
        _check_labels(request.labels, order.at)
        job_id = keys.new_id("job")
        try:
            entry = self.catalogue.get(request.model, request.kind) if request.model is not None else None
            if request.kind is Kind.GENERATE:
                entry = entry or self.catalogue.default(Kind.GENERATE)
                return self._generate(request, entry, order, job_id)
            return self._segment(request, entry, order, job_id)
        except UnknownModel as error:
            error.pointer = f"{order.at}/model"
            raise

    # -------------------------------------------------------------------------------------------- generate

    def _generate(self, request: JobRequest, entry: ModelEntry, order: Order, job_id: str) -> Prepared:
        at = f"{order.at}/input"
        wanted = validate(GenerateInput, request.input, at=at)
        if wanted.prompt is None and entry.prompt == "needed":
            raise wrong("missing_field", f"{at}/prompt", f"{entry.id} draws from a prompt")
        settled = dict(wanted)
        for name, fallback in _FALLBACKS.items():
            if settled[name] is None:
                settled[name] = entry.defaults.get(name, _bounded(name, fallback, entry))
        _check_size(entry, settled["width"], settled["height"], at)
        if settled["steps"] > entry.limits.max_steps:
            raise wrong(
                "out_of_range",
                f"{at}/steps",
                f"{entry.id} takes 1 to {entry.limits.max_steps} steps",
                min=1,
                max=entry.limits.max_steps,
            )
        _check_options(entry, wanted.options, at)
        if settled["seed"] is None:
            settled["seed"] = new_seed()
        warnings = unknown_words(entry, self._vocabularies[entry.id], wanted.prompt or "")
        return _prepared(request, order, job_id, entry, settled, warnings)

    # -------------------------------------------------------------------------------------------- segment

    def _segment(self, request: JobRequest, entry: ModelEntry | None, order: Order, job_id: str) -> Prepared:
        at = f"{order.at}/input"
        wanted = self._inputs.read(request.input, at)
        marks = bool(wanted.points or wanted.boxes)
        if entry is not None:
            _check_wishes(entry, wanted, at)  # before the picture is fetched and opened
        source = self._inputs.look(wanted.image, order, f"{at}/image")
        if entry is None:
            entry = self.catalogue.default(Kind.SEGMENT, world=source.world, marks=marks)
            _check_wishes(entry, wanted, at)
        _check_picture(entry, source, f"{at}/image")
        _check_regions(wanted, source, at)
        reference, stored = self._inputs.keep(source, keys.input_key(order.tenant, job_id))
        settled = dict(wanted) | {
            "image": reference.model_dump(mode="json"),
            "points": [point.model_dump() for point in wanted.points],
            "boxes": [box.model_dump() for box in wanted.boxes],
        }
        warnings = _segment_warnings(entry, wanted, marks, chosen=request.model is None)
        waits = () if isinstance(reference, ObjectRef) else (reference.job,)
        return _prepared(request, order, job_id, entry, settled, warnings, waits=waits, stored=stored)


def _prepared(
    request: JobRequest,
    order: Order,
    job_id: str,
    entry: ModelEntry,
    settled: dict[str, Any],
    warnings: list[dict[str, str]],
    *,
    waits: tuple[str, ...] = (),
    stored: tuple[str, ...] = (),
) -> Prepared:
    group = order.group or request.group
    spec = JobSpec(
        id=job_id,
        kind=request.kind,
        model=entry.id,
        tenant=order.tenant,
        input=settled,
        priority=request.priority,
        labels=request.labels,
        group=group,
        deterministic=request.deterministic,
        run_timeout_s=request.run_timeout_s,
        warnings=warnings,
    )
    job = NewJob(
        id=job_id,
        kind=spec.kind,
        lane=spec.lane,
        tenant=spec.tenant,
        spec=spec.model_dump_json(),
        batch_key=spec.batch_key,
        priority=spec.priority,
        rows=spec.rows,
        group=group,
        waits_for=waits,
        start_deadline_s=request.start_deadline_s,
        retention_s=request.retention_s,
    )
    return Prepared(spec=spec, job=job, stored=stored)


# ------------------------------------------------------------------------------------------------ checks


def _check_labels(labels: Mapping[str, str], at: str) -> None:
    for name, value in labels.items():
        fits = 0 < len(name) <= MAX_LABEL_KEY and len(value) <= MAX_LABEL_VALUE
        if not (fits and name.isprintable() and value.isprintable()):
            raise wrong(
                "invalid_label",
                f"{at}/labels/{escape(name)}",
                f"a label is printable text: a name of 1 to {MAX_LABEL_KEY} characters, "
                f"a value of at most {MAX_LABEL_VALUE}",
            )


def _bounded(name: str, fallback: Any, entry: ModelEntry) -> Any:
    ceilings = {
        "width": entry.limits.max_side,
        "height": entry.limits.max_side,
        "steps": entry.limits.max_steps,
    }
    return min(fallback, ceilings.get(name, fallback))


def _check_size(entry: ModelEntry, width: int, height: int, at: str) -> None:
    limits = entry.limits
    for name, side in (("width", width), ("height", height)):
        if not limits.min_side <= side <= limits.max_side:
            raise wrong(
                "invalid_size",
                f"{at}/{name}",
                f"{entry.id} makes pictures with sides of {limits.min_side} to {limits.max_side} pixels",
                min=limits.min_side,
                max=limits.max_side,
            )
    if width * height > limits.max_pixels:
        raise wrong(
            "invalid_size",
            f"{at}/width",
            f"{entry.id} makes pictures of at most {limits.max_pixels} pixels, not {width} x {height}",
            max_pixels=limits.max_pixels,
        )


def _check_options(entry: ModelEntry, options: Mapping[str, Any], at: str) -> None:
    if entry.test_only:
        return  # the stub's delays and faults are free numbers
    for name, value in options.items():
        pointer = f"{at}/options/{escape(name)}"
        allowed = entry.options.get(name)
        if allowed is None:
            raise wrong(
                "unknown_option", pointer, f"{entry.id} has no such option", known=list(entry.options)
            )
        if not any(type(value) is type(one) and value == one for one in allowed):
            raise wrong("unknown_option", pointer, "not one of the allowed values", allowed=list(allowed))


def _check_wishes(entry: ModelEntry, wanted: SegmentInput, at: str) -> None:
    """Check what can be told without the picture."""
    _check_marks(entry, wanted, at)
    _check_options(entry, wanted.options, at)
    _check_classes(entry, wanted, at)


def _check_marks(entry: ModelEntry, wanted: SegmentInput, at: str) -> None:
    shown = wanted.boxes or any(point.positive for point in wanted.points)
    if entry.marks == "needed" and not shown:
        raise wrong(
            "invalid_region", f"{at}/boxes", f"{entry.id} needs at least one box or point on the object"
        )


def _check_classes(entry: ModelEntry, wanted: SegmentInput, at: str) -> None:
    known = {name.casefold() for name in entry.classes}
    for index, label in enumerate(wanted.labels):
        if known and label.strip().casefold() not in known:
            raise wrong(
                "unknown_label",
                f"{at}/labels/{index}",
                f"{entry.id} has no such class",
                known=list(entry.classes),
            )


def _check_picture(entry: ModelEntry, source: Source, at: str) -> None:
    if source.width is None or source.height is None:
        return
    limits = entry.limits
    sides = (source.width, source.height)
    if min(sides) < limits.min_side:
        raise wrong(
            "image_too_small",
            at,
            f"{entry.id} takes sides of {limits.min_side} pixels or more",
            min=limits.min_side,
        )
    if max(sides) > limits.max_side or sides[0] * sides[1] > limits.max_pixels:
        raise wrong(
            "image_too_large",
            at,
            f"{entry.id} takes sides of at most {limits.max_side} and {limits.max_pixels} pixels in all",
            max=limits.max_side,
            max_pixels=limits.max_pixels,
        )


def _check_regions(wanted: SegmentInput, source: Source, at: str) -> None:
    if source.width is None or source.height is None:
        return
    size = {"width": source.width, "height": source.height}
    for index, point in enumerate(wanted.points):
        if point.x >= source.width or point.y >= source.height:
            raise wrong(
                "invalid_region", f"{at}/points/{index}", "the point lies outside the picture", **size
            )
    for index, box in enumerate(wanted.boxes):
        if box.x1 > source.width or box.y1 > source.height:
            raise wrong(
                "invalid_region", f"{at}/boxes/{index}", "the box reaches outside the picture", **size
            )


def _segment_warnings(
    entry: ModelEntry, wanted: SegmentInput, marks: bool, *, chosen: bool
) -> list[dict[str, str]]:
    warnings = []
    if chosen and entry.family == "classical":
        what = "what is marked but cannot name it" if marks else "regions in any picture but cannot name them"
        warnings.append(
            {
                "code": "classical_default",
                "message": f"no model was named: {entry.id} finds {what}",
            }
        )
    ignored = {
        "points and boxes": marks and entry.marks != "needed",
        "regions": wanted.regions is not None and entry.family != "classical",
    }
    warnings += [
        {"code": "ignored_field", "message": f"{entry.id} does not use {name}"}
        for name, unused in ignored.items()
        if unused
    ]
    return warnings
