"""Hugging Face's inference API: `/hf/{task}/{model}`, for `InferenceClient(model=URL)`.

Each request is one job, and its answer waits for the job's end.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from fastapi import APIRouter
from fastapi.responses import Response
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from pixelkiln.api.auth import CurrentCaller
from pixelkiln.api.body import json_body
from pixelkiln.api.facades import huggingface_answers as answers
from pixelkiln.api.facades.running import Run
from pixelkiln.api.jobs import IdempotencyKey
from pixelkiln.api.services import Parts
from pixelkiln.validation import escape, wrong
from pixelkiln_shared.errors import NotFound
from pixelkiln_shared.kinds import Kind
from pixelkiln_shared.ledger.contract import Record
from pixelkiln_shared.storage.contract import Storage

router = APIRouter(tags=["Hugging Face"], include_in_schema=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """What a task is here.

    Attributes:
        kind: of the job.
        takes: which of our input fields each parameter is; `options.NAME` is a setting of the model.
        ignores: parameters that change nothing here.
        reply: makes the answer of a job that has succeeded.
    """

    kind: Kind
    takes: Mapping[str, str]
    ignores: frozenset[str] = field(default_factory=frozenset)
    reply: Callable[[Record, Storage], Response]


_SAMPLING = {
    "negative_prompt": "negative_prompt",
    "num_inference_steps": "steps",
    "guidance_scale": "guidance",
    "seed": "seed",
    "scheduler": "options.scheduler",
}
_FINDING = {"threshold": "threshold"}
_TASKS = {
    "text-to-image": Task(
        kind=Kind.GENERATE,
        takes=_SAMPLING | {"width": "width", "height": "height"},
        reply=answers.picture,
    ),
    "image-to-image": Task(
        kind=Kind.EDIT,
        takes=_SAMPLING | {"prompt": "prompt", "strength": "strength"},
        reply=answers.picture,
    ),
    "image-segmentation": Task(
        kind=Kind.SEGMENT,
        takes=_FINDING | {"subtask": "options.task"},
        ignores=frozenset({"mask_threshold", "overlap_mask_area_threshold"}),
        reply=answers.segments,
    ),
    "object-detection": Task(kind=Kind.SEGMENT, takes=_FINDING, reply=answers.boxes),
    "image-classification": Task(
        kind=Kind.CLASSIFY,
        takes={"top_k": "top"},
        ignores=frozenset({"function_to_apply"}),
        reply=answers.classes,
    ),
}


@router.post("/hf/{task}")
@router.post("/hf/{task}/{model:path}")
async def infer(
    task: str,
    request: Request,
    parts: Parts,
    caller: CurrentCaller,
    model: str | None = None,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Run one task with one model and answer with what it makes."""
    known = _TASKS.get(task)
    if known is None:
        raise NotFound(f"there is no task {task[:40]!r}; there are {', '.join(_TASKS)}")
    inputs, parameters = await _read(request)
    job: dict[str, Any] = {"kind": known.kind.value, "model": model, "input": _input(known, parameters)}
    if known.kind is Kind.GENERATE:
        job["input"]["prompt"] = inputs
    else:
        data = inputs if isinstance(inputs, bytes) else await run_in_threadpool(_decoded, inputs)
        upload_id, _, _ = await run_in_threadpool(parts.producer.upload, data, tenant=caller.tenant)
        job["input"]["image"] = {"upload": upload_id}
    told = hashlib.sha256(inputs).hexdigest() if isinstance(inputs, bytes) else inputs
    run = await Run.begin(
        job, request, parts, caller, key=idempotency_key, fingerprint=[told, dict(parameters)]
    )
    record = await run.result()
    return await run_in_threadpool(known.reply, record, parts.producer.storage)


async def _read(request: Request) -> tuple[Any, Mapping[str, Any]]:
    """Return inputs and parameters; a body that says it is no JSON is the input itself."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        return await request.body(), {}
    body = await json_body(request)
    if not isinstance(body, dict) or not isinstance(body.get("inputs"), str):
        raise wrong("missing_field", "/inputs", "`inputs` is a text: the prompt, or a picture as base64")
    parameters = body.get("parameters") or {}
    if not isinstance(parameters, dict):
        raise wrong("invalid_type", "/parameters", "`parameters` is an object")
    return body["inputs"], parameters


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except ValueError as error:
        raise wrong("invalid_base64", "/inputs", "`inputs` is no base64") from error


def _input(task: Task, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return our input with the parameters that are given; null means left out."""
    made: dict[str, Any] = {}
    for name, value in parameters.items():
        if value is None or name in task.ignores:
            continue
        if name == "target_size" and task.kind is Kind.EDIT and isinstance(value, dict):
            made |= {side: value[side] for side in ("width", "height") if side in value}
        elif name not in task.takes:
            raise wrong("unknown_field", f"/parameters/{escape(name)}", "there is no such parameter")
        elif task.takes[name].startswith("options."):
            made.setdefault("options", {})[task.takes[name].removeprefix("options.")] = value
        else:
            made[task.takes[name]] = value
    return made
