"""Submit image generation and segmentation jobs, and read their results.

`Client` and `AsyncClient` speak HTTP to a Pixelkiln API; `Producer` puts jobs into Redis directly, for
programs that live beside it. The rest is found through what these three return; all errors are here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pixelkiln.client import (
        ApiError,
        AsyncClient,
        AuthError,
        Client,
        Group,
        Job,
        JobCanceled,
        JobFailed,
        NotFoundError,
        PixelkilnError,
        QueueFullError,
        Result,
        ServerUnreachable,
        ValidationError,
        WaitTimeout,
    )
    from pixelkiln.producer import Producer

__all__ = [
    "ApiError",
    "AsyncClient",
    "AuthError",
    "Client",
    "Group",
    "Job",
    "JobCanceled",
    "JobFailed",
    "NotFoundError",
    "PixelkilnError",
    "Producer",
    "QueueFullError",
    "Result",
    "ServerUnreachable",
    "ValidationError",
    "WaitTimeout",
]


def __getattr__(name: str) -> Any:
    """Import lazily: `import pixelkiln` must stay cheap for the command line."""
    if name == "Producer":
        from pixelkiln.producer import Producer

        return Producer
    if name in __all__:
        from pixelkiln import client

        return getattr(client, name)
    raise AttributeError(f"module 'pixelkiln' has no attribute {name!r}")
