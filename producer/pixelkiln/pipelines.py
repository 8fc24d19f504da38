"""Pipelines: steps whose inputs are pictures of earlier steps, written `$step.role` or `$step.role.index`."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from pixelkiln.inputs import Order
from pixelkiln.intake import Intake, Prepared
from pixelkiln.validation import wrong
from pixelkiln_shared.jobs import JobSpec
from pixelkiln_shared.kinds import PICTURE_FIELDS, Role

MAX_STEPS = 32

_STEP_ID = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,31}")
_REFERENCE = re.compile(r"\$([A-Za-z][A-Za-z0-9_-]{0,31})\.([a-z]+)(?:\.([0-9]{1,3}))?")


def prepare_steps(
    intake: Intake, steps: Sequence[Mapping[str, Any]], order: Order, *, into: list[Prepared]
) -> dict[str, str]:
    """Prepare each step for the group of `order`, appending to `into`; returns the job id of each step id.

    Args:
        into: grows step by step, so that the caller can clean up after a fault in the middle.

    Raises:
        InvalidInput: `invalid_step`, or what is wrong with a step's own fields.
    """
    made: dict[str, str] = {}
    siblings: dict[str, JobSpec] = {}
    for index, step in enumerate(steps):
        at = f"{order.at}/{index}"
        name = _step_id(step, made, at)
        request = {key: value for key, value in step.items() if key != "id"}
        if isinstance(request.get("input"), Mapping):
            request["input"] = _resolved(request["input"], made, f"{at}/input")
        prepared = intake.prepare(request, dataclasses.replace(order, at=at, siblings=siblings))
        into.append(prepared)
        made[name] = prepared.spec.id
        siblings[prepared.spec.id] = prepared.spec
    return made


def _step_id(step: Mapping[str, Any], made: Mapping[str, str], at: str) -> str:
    name = step.get("id")
    if not isinstance(name, str) or not _STEP_ID.fullmatch(name):
        raise wrong(
            "invalid_step", f"{at}/id", "a step's id is a letter and up to 31 letters, digits, - or _"
        )
    if name in made:
        raise wrong("invalid_step", f"{at}/id", "another step has this id")
    return name


def _resolved(fields: Mapping[str, Any], made: Mapping[str, str], at: str) -> dict[str, Any]:
    resolved = dict(fields)
    # only these fields hold references: a prompt may begin with a dollar
    for field in sorted(PICTURE_FIELDS & fields.keys()):
        text = fields[field]
        if not isinstance(text, str):
            continue
        match = _REFERENCE.fullmatch(text)
        if match is None:
            raise wrong("invalid_step", f"{at}/{field}", "a reference reads $step.role or $step.role.index")
        step, role, index = match.groups()
        if step not in made:
            raise wrong("invalid_step", f"{at}/{field}", "no earlier step has this id", known=list(made))
        if role not in set(Role):
            raise wrong("invalid_step", f"{at}/{field}", "no such role", known=[role.value for role in Role])
        resolved[field] = {"job": made[step], "role": role, "index": int(index or 0)}
    return resolved
