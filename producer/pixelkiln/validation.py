"""From pydantic's errors to ours: stable codes, JSON pointers, and the limits that were broken."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from pixelkiln_shared.errors import InvalidInput, NotFound

MAX_ERRORS = 20  # enough to mend a request, too few to make an answer of megabytes

_OURS = frozenset({"invalid_prompt", "prompt_too_long", "invalid_seed", "invalid_size", "invalid_region"})
_CODES = {
    "extra_forbidden": "unknown_field",
    "missing": "missing_field",
    "finite_number": "invalid_number",
    "greater_than": "out_of_range",
    "greater_than_equal": "out_of_range",
    "less_than": "out_of_range",
    "less_than_equal": "out_of_range",
    "enum": "unknown_option",
    "literal_error": "unknown_option",
    "int_from_float": "invalid_type",
    "string_unicode": "invalid_prompt",
    "string_too_long": "too_long",
    "too_long": "too_long",
    "too_short": "too_short",
}
_TOLD = {
    "model_type": "Input should be an object",
    "dict_type": "Input should be an object",
}  # not Python's words
_LIMITS = {"ge": "min", "gt": "min", "le": "max", "lt": "max", "max_length": "max", "min_length": "min"}

Model = TypeVar("Model", bound=BaseModel)


def validate(model: type[Model], raw: object, *, at: str = "") -> Model:
    """Return `raw` as a `model`.

    Args:
        at: JSON pointer of `raw` within the request.

    Raises:
        InvalidInput: named after the first fault; `detail["errors"]` lists up to `MAX_ERRORS`.
    """
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        raise invalid(faults(error, raw, at)) from error


def invalid(found: Sequence[dict[str, Any]]) -> InvalidInput:
    """Return the error of one or more faults, named after the first."""
    first = found[0]
    return InvalidInput(
        first["detail"],
        code=first["code"],
        pointer=first["pointer"],
        detail={"errors": list(found[:MAX_ERRORS])},
    )


def fault(code: str, pointer: str, detail: str, **facts: Any) -> dict[str, Any]:
    """Return one entry of a problem's `errors`."""
    return {"code": code, "pointer": pointer, "detail": detail, **facts}


def wrong(code: str, pointer: str, detail: str, **facts: Any) -> InvalidInput:
    """Return the error of a single fault; `facts` are limits and known names."""
    return invalid([fault(code, pointer, detail, **facts)])


def faults(error: ValidationError, raw: object, at: str) -> list[dict[str, Any]]:
    """Return the faults of a pydantic error, at most one a place."""
    found: dict[str, dict[str, Any]] = {}
    for entry in error.errors(include_url=False, include_input=False):
        pointer = at + _pointer(entry["loc"], raw)
        context = entry.get("ctx", {})
        limits = {_LIMITS[name]: value for name, value in context.items() if name in _LIMITS}
        told = _TOLD.get(entry["type"], entry["msg"])
        found.setdefault(pointer, fault(_code(entry["type"], pointer), pointer, told, **limits))
    return list(found.values())


def escape(part: object) -> str:
    """Return one reference token of a JSON pointer (RFC 6901), cut to a readable length."""
    return str(part)[:100].replace("~", "~0").replace("/", "~1")


def is_id(text: str, prefix: str) -> bool:
    """Whether a text from outside has the form of our ids (`keys.new_id`); nothing else becomes a key."""
    return re.fullmatch(rf"{prefix}_[0-9a-hjkmnp-tv-z]{{26}}", text) is not None


def check_group(group: str | None) -> None:
    """Check that a group id is one: a new one, or one whose owner the ledger compares.

    Raises:
        NotFound: not an id of a group.
    """
    if group is not None and not is_id(group, "grp"):
        raise NotFound("no such group", pointer="/group")


def _code(kind: str, pointer: str) -> str:
    if kind in _OURS:
        return kind
    if pointer.endswith("/kind") and kind == "enum":
        return "unknown_kind"
    if pointer.endswith("/model") and kind == "string_too_long":
        return "unknown_model"
    return _CODES.get(kind, "invalid_type" if kind.endswith(("_type", "_parsing")) else "invalid_input")


def _pointer(location: Sequence[str | int], raw: object) -> str:
    """Follow a pydantic location through the data, leaving out the names of union members."""
    path = ""
    node: Any = raw
    for index, part in enumerate(location):
        last = index == len(location) - 1
        if _has(node, part):
            node = node[part]
        elif not (last and isinstance(node, Mapping)):  # a missing field is named, a union's member is not
            continue
        path += f"/{escape(part)}"
    return path


def _has(node: object, part: str | int) -> bool:
    if isinstance(node, Mapping):
        return part in node
    return isinstance(node, list) and isinstance(part, int) and part < len(node)
