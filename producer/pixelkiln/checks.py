"""What may be asked of a model: each check raises the error a caller can mend, or returns warnings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pixelkiln.inputs import Source
from pixelkiln.validation import escape, wrong
from pixelkiln_shared.catalogue import ModelEntry
from pixelkiln_shared.kinds import ClassifyInput, KindInput, SampledInput, SegmentInput, UpscaleInput

MAX_LABEL_KEY = 64
MAX_LABEL_VALUE = 256
MAX_SHOWN = 20  # names in a message; a problem's `allowed` and `known` have all

Warnings = list[dict[str, str]]


def check_tags(tags: Mapping[str, str], at: str) -> None:
    """Check the envelope's `labels`, by which users find their jobs again."""
    for name, value in tags.items():
        fits = 0 < len(name) <= MAX_LABEL_KEY and len(value) <= MAX_LABEL_VALUE
        if not (fits and name.isprintable() and value.isprintable()):
            raise wrong(
                "invalid_label",
                f"{at}/labels/{escape(name)}",
                f"a label is printable text: a name of 1 to {MAX_LABEL_KEY} characters, "
                f"a value of at most {MAX_LABEL_VALUE}",
            )


def check_wishes(entry: ModelEntry, wanted: KindInput, at: str) -> None:
    """Check what can be told without the pictures."""
    _check_options(entry, wanted.options, at)
    if isinstance(wanted, SampledInput) and wanted.prompt is None and entry.prompt == "needed":
        raise wrong("missing_field", f"{at}/prompt", f"{entry.id} draws from a prompt")
    if isinstance(wanted, SegmentInput):
        _check_marks(entry, wanted, at)
    if isinstance(wanted, SegmentInput | ClassifyInput):
        _check_labels(entry, wanted.labels, at)


def samples(entry: ModelEntry, wanted: KindInput) -> bool:
    """Whether the model draws from noise for this job, so that seed, steps and guidance mean something."""
    resampled = isinstance(wanted, UpscaleInput) and entry.prompt == "ignored"
    return isinstance(wanted, SampledInput) and not resampled


def check_steps(entry: ModelEntry, steps: int, at: str) -> None:
    """Check the number of sampling steps."""
    most = entry.limits.max_steps
    if steps > most:
        raise wrong("out_of_range", f"{at}/steps", f"{entry.id} takes 1 to {most} steps", min=1, max=most)


def check_size(entry: ModelEntry, width: int, height: int, at: str) -> None:
    """Check the size of the pictures to make, in pixels."""
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
            raise wrong("unknown_option", pointer, _no_such_option(entry), known=list(entry.options))
        if not any(type(value) is type(one) and value == one for one in allowed):
            shown = ", ".join(str(one) for one in allowed[:MAX_SHOWN]) + (
                ", ..." if allowed[MAX_SHOWN:] else ""
            )
            raise wrong(
                "unknown_option", pointer, f"{name} of {entry.id} is one of {shown}", allowed=list(allowed)
            )


def _no_such_option(entry: ModelEntry) -> str:
    names = ", ".join(sorted(entry.options)[:MAX_SHOWN])
    return f"{entry.id} has no such option" + (f"; it has {names}" if names else "")


def _check_marks(entry: ModelEntry, wanted: SegmentInput, at: str) -> None:
    shown = wanted.boxes or any(point.positive for point in wanted.points)
    if entry.marks == "needed" and not shown:
        raise wrong(
            "invalid_region", f"{at}/boxes", f"{entry.id} needs at least one box or point on the object"
        )


def _check_labels(entry: ModelEntry, labels: list[str], at: str) -> None:
    if entry.phrases and not labels:
        raise wrong("missing_field", f"{at}/labels", f"{entry.id} finds what `labels` name")
    known = {name.casefold() for name in entry.classes}
    for index, label in enumerate(labels):
        if known and not entry.phrases and label.strip().casefold() not in known:
            raise wrong(
                "unknown_label",
                f"{at}/labels/{index}",
                f"{entry.id} has no such class",
                known=list(entry.classes),
            )


def check_picture(entry: ModelEntry, source: Source, at: str) -> None:
    """Check the size of a picture to work on, as far as it is known."""
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


def check_regions(wanted: SegmentInput, source: Source, at: str) -> None:
    """Check that points and boxes lie inside the picture."""
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


def check_mask(sources: Mapping[str, Source], at: str) -> None:
    """Check that a mask has the size of its picture, as far as both are known."""
    image, mask = sources["image"], sources.get("mask")
    if mask is None or None in (image.width, mask.width):
        return
    if (image.width, image.height) != (mask.width, mask.height):
        raise wrong(
            "mask_mismatch",
            f"{at}/mask",
            "a mask has the size of its picture",
            width=image.width,
            height=image.height,
        )


def warnings_of(entry: ModelEntry, wanted: KindInput, *, world: str, chosen: bool) -> Warnings:
    """Return what a user should know of his choice, or of ours.

    Args:
        entry: the model that will do it.
        wanted: what was asked.
        world: the closed world the input picture comes from.
        chosen: whether the model was chosen for a job that named none.
    """
    found = [
        {"code": "ignored_field", "message": f"{entry.id} does not use {name}"}
        for name in _unused(entry, wanted)
    ]
    if chosen and isinstance(wanted, SegmentInput) and entry.family == "classical":
        marked = "what is marked but cannot name it"
        what = marked if entry.marks == "needed" else "regions in any picture but cannot name them"
        message = f"no model was named: {entry.id} finds {what}"
        found.insert(0, {"code": "classical_default", "message": message})
    if chosen and type(wanted).pictures and entry.world not in ("", world):
        message = f"no model was named: {entry.id} knows only pictures of its own world, {entry.world}"
        found.insert(0, {"code": "closed_world_default", "message": message})
    return found


def _unused(entry: ModelEntry, wanted: KindInput) -> list[str]:
    """Return what was asked in so many words and means nothing to the model."""
    given = {name for name in wanted.model_fields_set if getattr(wanted, name) is not None}
    unused: list[str] = []
    if isinstance(wanted, SampledInput):
        if entry.prompt == "ignored":
            unused += [name for name in ("prompt", "negative_prompt") if name in given]
        if not samples(entry, wanted):
            unused += [name for name in ("seed", "steps", "guidance") if name in given]
    if entry.marks == "ignored" and ("points" in given or "boxes" in given):
        unused.append("points and boxes")
    if "regions" in given and entry.family != "classical":
        unused.append("regions")
    if "threshold" in given and entry.family == "classical":
        unused.append("threshold")
    return unused
