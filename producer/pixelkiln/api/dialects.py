"""How errors are told on the addresses of the facades: in the shape that the clients there read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pixelkiln_shared.errors import PixelkilnError

# What openai calls its errors; the client itself goes by the status.
_OPENAI_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
# What the clients call our fields, where they call them otherwise.
_OPENAI_NAMES = {"count": "n", "width": "size", "height": "size", "format": "output_format"}
_HUGGING_FACE_NAMES = {
    "image": "inputs",
    "prompt": "inputs",
    "steps": "num_inference_steps",
    "guidance": "guidance_scale",
    "top": "top_k",
}

Dialect = Callable[[PixelkilnError, str], dict[str, Any]]


def dialect_of(path: str) -> Dialect | None:
    """Return how errors are told on this path; None: as problem documents."""
    return next((told for prefix, told in _DIALECTS.items() if path.startswith(prefix)), None)


def openai(error: PixelkilnError, message: str) -> dict[str, Any]:
    """Return an error as OpenAI's clients read it."""
    kind = "server_error" if error.status >= 500 else _OPENAI_TYPES.get(error.status, "invalid_request_error")
    param = _name(error.pointer, _OPENAI_NAMES)
    return {"error": {"message": message, "type": kind, "param": param, "code": error.code}}


def _hugging_face(error: PixelkilnError, message: str) -> dict[str, Any]:
    name = _name(error.pointer, _HUGGING_FACE_NAMES)
    return {"error": f"{name}: {message}" if name else message, "code": error.code}


def _name(pointer: str | None, names: Mapping[str, str]) -> str | None:
    """Return what clients call the field that a JSON pointer of ours leads to."""
    parts = [part for part in (pointer or "").split("/") if part not in {"", "input", "parameters"}]
    return names.get(parts[0], parts[0]) if parts else None


_DIALECTS: dict[str, Dialect] = {
    "/v1/images/": openai,
    "/v1/files": openai,
    "/v1/batches": openai,
    "/hf/": _hugging_face,
}
