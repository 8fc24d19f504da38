"""What the fields of OpenAI's image requests mean here."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pixelkiln.validation import escape, wrong
from pixelkiln_shared.jobs import JobRequest
from pixelkiln_shared.kinds import Kind

MAX_PARTIAL_IMAGES = 3

_SIZE = re.compile(r"(\d{1,5})x(\d{1,5})")
_FORMATS = ("png", "webp", "jpeg")
_RENAMED = {"n": "count", "output_format": "format"}
_INPUT = frozenset({"prompt", "negative_prompt", "seed", "steps", "guidance", "strength", "options"})
_ENVELOPE = frozenset(JobRequest.model_fields) - {"kind", "input"}
_OF_THE_ANSWER = frozenset({"response_format", "stream", "partial_images", "background"})
# Wishes of that service which change no picture of ours; whoever sends them is served.
_WITHOUT_MEANING = frozenset(
    {
        *("quality", "style", "complexity", "input_fidelity", "output_compression"),
        *("user", "safety_identifier", "moderation"),
    }
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """How the result is wanted: links or base64; a stream, with up to so many rough pictures first."""

    links: bool = False
    stream: bool = False
    partial_images: int = 0


def answer_of(fields: Mapping[str, Any]) -> Answer:
    """Return how the result is wanted.

    Raises:
        InvalidInput: a field about it is wrong.
    """
    wanted = _one_of(fields, "response_format", ("b64_json", "url"))
    stream, partial = fields.get("stream"), fields.get("partial_images") or 0
    if stream is not None and not isinstance(stream, bool):
        raise wrong("invalid_type", "/stream", "stream is true or false")
    if type(partial) is not int or not 0 <= partial <= MAX_PARTIAL_IMAGES:
        raise wrong(
            "out_of_range", "/partial_images", f"0 to {MAX_PARTIAL_IMAGES}", min=0, max=MAX_PARTIAL_IMAGES
        )
    return Answer(links=wanted == "url", stream=bool(stream), partial_images=partial)


def job_of(kind: Kind, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the body of `POST /v1/jobs` that asks for the same; null means left out.

    Raises:
        InvalidInput: `unknown_field`, `invalid_size`, `unknown_option`; the rest is checked with the job.
    """
    job: dict[str, Any] = {"kind": kind.value, "input": {}}
    given = {name: value for name, value in fields.items() if value is not None}
    _one_of(given, "output_format", _FORMATS)
    if _one_of(given, "background", ("auto", "opaque", "transparent")) == "transparent":
        raise wrong(
            "unknown_option", "/background", "pictures are opaque; a `cutout` job makes the other kind"
        )
    for name, value in given.items():
        if name in _ENVELOPE:
            job[name] = value
        elif name in _INPUT or name in _RENAMED:
            job["input"][_RENAMED.get(name, name)] = value
        elif name == "size":
            job["input"] |= _sides(value)
        elif name not in _WITHOUT_MEANING and name not in _OF_THE_ANSWER:
            raise wrong("unknown_field", f"/{escape(name)}", "there is no such field")
    return job


def _sides(size: Any) -> dict[str, int]:
    if size == "auto":
        return {}
    match = _SIZE.fullmatch(size) if isinstance(size, str) else None
    if match is None:
        raise wrong("invalid_size", "/size", "a size is `WIDTHxHEIGHT` in pixels, or `auto`")
    return {"width": int(match[1]), "height": int(match[2])}


def _one_of(fields: Mapping[str, Any], name: str, known: tuple[str, ...]) -> Any:
    value = fields.get(name)
    if value is not None and value not in known:
        raise wrong("unknown_option", f"/{name}", f"one of {', '.join(known)}", known=list(known))
    return value


def parsed(form: Mapping[str, str]) -> dict[str, Any]:
    """Return the fields of a form, whose values are texts, as JSON would have them.

    Raises:
        InvalidInput: a number or a truth value is none.
    """
    return {name: _parsed(name, text) for name, text in form.items()}


_NUMBERS: dict[str, type[int] | type[float]] = {
    "n": int,
    "seed": int,
    "steps": int,
    "partial_images": int,
    "output_compression": int,
    "guidance": float,
    "strength": float,
}
_TRUTHS = {"true": True, "false": False}


def _parsed(name: str, text: str) -> Any:
    try:
        if name in _NUMBERS:
            return _NUMBERS[name](text[:40])
        return _TRUTHS[text.lower()] if name in {"stream", "deterministic"} else text
    except (ValueError, KeyError) as error:
        raise wrong("invalid_type", f"/{escape(name)}", "no such value") from error
