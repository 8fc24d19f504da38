"""From what a user sent to a job that can run: everything checked, chosen and stored before it is accepted.

What leaves here needs no second look: the model exists and does this, sizes and steps are within its limits,
the input picture is in our storage (or is an artifact of a job of the same tenant), the seed is a number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pixelkiln.checks import (
    check_mask,
    check_picture,
    check_regions,
    check_size,
    check_steps,
    check_tags,
    check_wishes,
    samples,
    warnings_of,
)
from pixelkiln.inputs import Inputs, Kept, Order, Source
from pixelkiln.validation import MAX_ERRORS, fault, invalid, validate
from pixelkiln.vocabulary import unknown_words, vocabulary_of
from pixelkiln.webhooks.destinations import Destinations
from pixelkiln_shared import keys
from pixelkiln_shared.catalogue import Catalogue, Limits, ModelEntry
from pixelkiln_shared.errors import InvalidRequest, NotFound, UnknownModel
from pixelkiln_shared.jobs import JobRequest, JobSpec, new_seed
from pixelkiln_shared.kinds import (
    INPUTS,
    EditInput,
    Kind,
    KindInput,
    SampledInput,
    SegmentInput,
    SizedInput,
    UpscaleInput,
)
from pixelkiln_shared.ledger.contract import NewJob, Record

# What a sampler gets when neither the request nor its catalogue entry says; bounded by the entry's limits.
_FALLBACKS: dict[str, Any] = {"width": 512, "height": 512, "steps": 20, "guidance": 5.0}
_STRENGTH, _MASK_STRENGTH = 0.6, 1.0
_SIDES = ("width", "height")
_CELL_PX = 8  # sides are multiples of this


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """A job ready to be written. `stored` are the objects put for it, to be removed if it is not."""

    spec: JobSpec
    job: NewJob
    stored: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Accepted:
    """What a submit came to: ids and lanes in order; `replayed` when an earlier one with that key made them.

    `lanes` lacks those of jobs that have been deleted since. `record` is that of a job accepted alone, where
    it is known without asking again.
    """

    ids: tuple[str, ...]
    lanes: tuple[str, ...] = ()
    group: str | None = None
    replayed: bool = False
    record: Record | None = None


class Intake:
    """Checks requests against one catalogue. Thread-safe; holds no state of its own."""

    def __init__(self, catalogue: Catalogue, inputs: Inputs, destinations: Destinations) -> None:
        self.catalogue = catalogue
        self._inputs = inputs
        self._destinations = destinations
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
        check_tags(request.labels, order.at)
        if request.webhook is not None:
            self._destinations.check(request.webhook.url, f"{order.at}/webhook/url")
        job_id = keys.new_id("job")
        try:
            return self._prepare(request, order, job_id)
        except UnknownModel as error:
            error.pointer = f"{order.at}/model"
            raise

    def prepare_all(
        self, requests: Sequence[JobRequest | Mapping[str, Any]], order: Order, *, into: list[Prepared]
    ) -> None:
        """Settle a list of requests, appending to `into` so that a caller can undo what was stored.

        Raises:
            InvalidInput: some are wrong; `detail["errors"]` names up to `MAX_ERRORS` faults by pointer.
            StorageUnavailable, RedisUnavailable: as `prepare`.
        """
        found: list[dict[str, Any]] = []
        for index, request in enumerate(requests):
            here = f"{order.at}/{index}"
            try:
                into.append(self.prepare(request, replace(order, at=here)))
            except (InvalidRequest, NotFound) as error:
                found += error.detail.get("errors") or [
                    fault(error.code, error.pointer or here, error.message, **error.detail)
                ]
            if len(found) >= MAX_ERRORS:
                break
        if found:
            raise invalid(found)

    def _prepare(self, request: JobRequest, order: Order, job_id: str) -> Prepared:
        at = f"{order.at}/input"
        named = self.catalogue.get(request.model, request.kind) if request.model is not None else None
        wanted = self._inputs.read(INPUTS[request.kind], request.input, at)
        if named is not None:
            check_wishes(named, wanted, at)  # before a picture is fetched and opened
        sources = self._inputs.look_all(wanted, order, at)
        world = sources["image"].world if "image" in sources else ""
        entry = named or self._default(request.kind, wanted, world)
        if named is None:
            check_wishes(entry, wanted, at)
        settled = wanted.model_dump(exclude=set(sources))
        _settle(settled, wanted, entry, sources, at)
        warnings = warnings_of(entry, wanted, world=world, chosen=named is None)
        if isinstance(wanted, SampledInput) and entry.prompt != "ignored":
            warnings += unknown_words(entry, self._vocabularies[entry.id], wanted.prompt or "")
        kept = self._inputs.keep_all(sources, order.tenant, job_id)
        settled |= {
            name: reference.model_dump(mode="json", exclude_none=True)
            for name, reference in kept.references.items()
        }
        return _prepared(request, order, job_id, entry, settled, warnings, kept)

    def _default(self, kind: Kind, wanted: KindInput, world: str) -> ModelEntry:
        marks = isinstance(wanted, SegmentInput) and bool(wanted.points or wanted.boxes)
        labels = wanted.labels if isinstance(wanted, SegmentInput) else ()
        return self.catalogue.default(kind, world=world, marks=marks, labels=labels)


def _settle(
    settled: dict[str, Any],
    wanted: KindInput,
    entry: ModelEntry,
    sources: Mapping[str, Source],
    at: str,
) -> None:
    """Fill in what the request left out, and hold the rest to the model's limits."""
    if samples(entry, wanted):
        _settle_sampling(settled, entry, at)
    if isinstance(wanted, SizedInput):
        _settle_size(settled, entry, sources.get("image"), at)
    elif sources:
        check_picture(entry, sources["image"], f"{at}/image")
    if isinstance(wanted, EditInput):
        check_mask(sources, at)
        if wanted.strength is None:
            name, fallback = ("mask_strength", _MASK_STRENGTH) if wanted.mask else ("strength", _STRENGTH)
            settled["strength"] = entry.defaults.get(name, fallback)
    if isinstance(wanted, SegmentInput):
        check_regions(wanted, sources["image"], at)
    if isinstance(wanted, UpscaleInput) and wanted.scale is None:
        settled["scale"] = entry.defaults.get("scale")


def _settle_sampling(settled: dict[str, Any], entry: ModelEntry, at: str) -> None:
    for name in ("steps", "guidance"):
        if settled[name] is None:
            settled[name] = _default_of(name, entry)
    check_steps(entry, settled["steps"], at)
    if settled["seed"] is None:
        settled["seed"] = new_seed()


def _settle_size(settled: dict[str, Any], entry: ModelEntry, source: Source | None, at: str) -> None:
    known: dict[str, int] = {}
    if source is not None and source.width is not None and source.height is not None:
        known = dict(zip(_SIDES, fitted(source.width, source.height, entry.limits), strict=True))
    for name in _SIDES:
        if settled[name] is None:
            settled[name] = known[name] if known else _default_of(name, entry)
    check_size(entry, settled["width"], settled["height"], at)


def fitted(width: int, height: int, limits: Limits) -> tuple[int, int]:
    """Return the size nearest to a picture's own that a model draws: within its limits, in whole cells.

    The proportions stay, but for rounding and for pictures so narrow that both limits cannot be kept.
    """
    largest = min(limits.max_side / max(width, height), (limits.max_pixels / (width * height)) ** 0.5, 1.0)
    scale = max(largest, min(limits.min_side / min(width, height), limits.max_side / max(width, height)))
    low, high = -(-limits.min_side // _CELL_PX), limits.max_side // _CELL_PX
    cells = [min(max(round(side * scale / _CELL_PX), low), high) for side in (width, height)]
    while cells[0] * cells[1] * _CELL_PX**2 > limits.max_pixels:
        longer = 0 if cells[0] >= cells[1] else 1
        if cells[longer] <= low:
            break
        cells[longer] -= 1
    return cells[0] * _CELL_PX, cells[1] * _CELL_PX


def _default_of(name: str, entry: ModelEntry) -> Any:
    if name in entry.defaults:
        return entry.defaults[name]
    limits = entry.limits
    ceilings = {"width": limits.max_side, "height": limits.max_side, "steps": limits.max_steps}
    return min(_FALLBACKS[name], ceilings.get(name, _FALLBACKS[name]))


def _prepared(
    request: JobRequest,
    order: Order,
    job_id: str,
    entry: ModelEntry,
    settled: dict[str, Any],
    warnings: list[dict[str, str]],
    kept: Kept,
) -> Prepared:
    group = order.group or request.group
    told = request.webhook or (order.webhook.for_jobs if order.webhook else None)
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
        retention_s=request.retention_s,
        warnings=warnings,
    )
    job = NewJob(
        id=job_id,
        kind=spec.kind,
        lane=spec.lane,
        tenant=spec.tenant,
        spec=spec.compact(),
        batch_key=spec.batch_key,
        priority=spec.priority,
        rows=spec.rows,
        work=spec.work,
        group=group,
        waits_for=kept.waits_for,
        start_deadline_s=request.start_deadline_s,
        retention_s=request.retention_s,
        notify=told.statuses if told else (),
        webhook=told.url if told else None,
        group_webhook=order.webhook.for_group if order.webhook else None,
    )
    return Prepared(spec=spec, job=job, stored=kept.stored)
