"""The same job again, as a command to paste: curl, the CLI, Python."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from typing import Any

from pixelkiln.resources import JobResource
from pixelkiln_shared.catalogue import Catalogue
from pixelkiln_shared.kinds import INPUTS, Kind

_FLAGS = {
    "count": "-n",
    "seed": "--seed",
    "steps": "--steps",
    "guidance": "--guidance",
    "negative_prompt": "--negative",
    "format": "--format",
    "regions": "--regions",
    "threshold": "--threshold",
    "strength": "--strength",
    "scale": "--scale",
    "disparity": "--disparity",
    "top": "--top",
}


def request_of(job: JobResource) -> dict[str, Any]:
    """Return the request that makes this job once more."""
    given = job.input_again
    fields = {name: value for name, value in given.items() if not _is_default(job.kind, name, value)}
    request: dict[str, Any] = {"kind": job.kind.value, "model": job.model, "input": fields}
    if job.labels:
        request["labels"] = job.labels
    return request


def snippets(job: JobResource, base: str, catalogue: Catalogue, *, closed: bool) -> dict[str, str]:
    """Return the job as text for each tool.

    Args:
        base: where this server is reached.
        closed: whether it asks for a key.
    """
    request = request_of(job)
    return {
        "curl": _curl(request, base, closed=closed),
        "cli": _cli(job, request["input"]),
        "python": _python(job, request["input"], base),
    }


def _is_default(kind: Kind, name: str, value: Any) -> bool:
    field = INPUTS[kind].model_fields[name]
    return not field.is_required() and bool(value == field.get_default(call_default_factory=True))


def _curl(request: Mapping[str, Any], base: str, *, closed: bool) -> str:
    key = ['-H "Authorization: Bearer $PIXELKILN_API_KEY"'] if closed else []
    body = shlex.quote(json.dumps(request, ensure_ascii=False))
    parts = [
        f"curl -s {shlex.quote(base + '/v1/jobs')}",
        "-H 'Content-Type: application/json'",
        *key,
        f"-d {body}",
    ]
    return " \\\n  ".join(parts)


def _cli(job: JobResource, fields: Mapping[str, Any]) -> str:
    words = ["pixelkiln", job.kind.value]
    if "image" in fields:
        words.append(_picture(fields["image"]))
    if "mask" in fields:
        words += ["--mask", _picture(fields["mask"])]
    if fields.get("prompt"):
        words += ["--prompt"] * (job.kind is Kind.UPSCALE) + [str(fields["prompt"])]
    words += ["--model", job.model]
    if "width" in fields and "height" in fields:
        words += ["--size", f"{fields['width']}x{fields['height']}"]
    for name, flag in _FLAGS.items():
        if name in fields:
            words += [flag, str(fields[name])]
    for box in fields.get("boxes", ()):
        words += ["--box", ",".join(f"{box[side]:g}" for side in ("x0", "y0", "x1", "y1"))]
    for point in fields.get("points", ()):
        words += ["--point" if point["positive"] else "--background", f"{point['x']:g},{point['y']:g}"]
    if fields.get("labels"):
        words += ["--labels", ",".join(fields["labels"])]
    for name, value in fields.get("options", {}).items():
        words += ["--option", f"{name}={value}"]
    return shlex.join([*words, "-o", "out"])


def _picture(reference: Mapping[str, Any]) -> str:
    """Return what stands for a picture on the command line: a job's id and which of its pictures."""
    if reference.get("input"):
        return f"{reference['job']}.input.{reference['input']}"
    return f"{reference['job']}.{reference['role']}.{reference['index']}"


def _python(job: JobResource, fields: Mapping[str, Any], base: str) -> str:
    first = next((name for name in ("image", "prompt") if name in fields), None)
    named = {name: value for name, value in fields.items() if name != first}
    arguments = [
        *([repr(fields[first])] if first else []),
        f"model={job.model!r}",
        *(f"{name}={value!r}" for name, value in named.items()),
    ]
    call = ",\n    ".join(arguments)
    return (
        "from pixelkiln import Client\n\n"
        f"client = Client({base!r})\n"
        f"job = client.{job.kind.value}(\n    {call},\n)\n"
        "result = job.result(timeout_s=120)\n"
        "for artifact in result.artifacts:\n"
        "    artifact.save(artifact.filename())\n"
    )
