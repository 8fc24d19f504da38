"""Submit image generation and segmentation jobs, and read their results.

`Client` and `AsyncClient` speak HTTP to a Pixelkiln API; `Producer` puts jobs into Redis directly, for programs
that live beside it. Everything else is found through what these three return.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pixelkiln.client import AsyncClient, Client, Group, Job
    from pixelkiln.producer import Producer

__all__ = ["AsyncClient", "Client", "Group", "Job", "Producer"]


def __getattr__(name: str) -> Any:
    """Import lazily: `import pixelkiln` must stay cheap for the command line."""
    if name == "Producer":
        from pixelkiln.producer import Producer

        return Producer
    if name in __all__:
        from pixelkiln import client

        return getattr(client, name)
    raise AttributeError(f"module 'pixelkiln' has no attribute {name!r}")
