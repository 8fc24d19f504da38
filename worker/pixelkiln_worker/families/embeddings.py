"""Embeddings of pictures: packed for the storage, named, and the latest held in memory."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as read_tensors
from safetensors.torch import save as written_tensors

from pixelkiln_worker.families.contract import Pixels

HELD_BYTES = 128 * 1_048_576
"""Of the host's memory, a model: 64 pictures of SAM, 16 of SAM 2."""
_FORMAT = "1"

Levels = tuple[torch.Tensor, ...]
"""A picture's embedding, on the CPU: a tensor (channels, rows, columns) for each resolution, finest first."""


class Embeddings:
    """The latest embeddings a model made or was handed; safe to use from every thread.

    Args:
        identity: what manifests say of the model: other weights or another dtype give other keys.
        dtype: what embeddings are kept in. Fresh ones are rounded to it too, so that a kept one gives the
            same masks.
    """

    def __init__(self, identity: Mapping[str, Any], dtype: torch.dtype, held_bytes: int = HELD_BYTES) -> None:
        self.dtype = dtype
        self._held_bytes = held_bytes
        made_by = "\n".join((_FORMAT, str(identity["sha256"]), str(identity["dtype"]), str(dtype)))
        self._made_by = hashlib.sha256(made_by.encode()).hexdigest()[:32]
        self._held: OrderedDict[str, Levels] = OrderedDict()  # least recently used first
        self._lock = threading.Lock()

    def key(self, tenant: str, image: Pixels) -> str:
        """Return the name of the picture's embedding by this model: maker and picture, in hex digits."""
        shape = "x".join(map(str, image.shape))
        pictured = hashlib.sha256(f"{tenant}\n{shape}\n".encode())
        pictured.update(np.ascontiguousarray(image).data)
        return f"{self._made_by}-{pictured.hexdigest()}"

    def made(self, key: str) -> bool:
        """Whether a key is of this model, and not of one that was loaded in its place before."""
        return key.startswith(f"{self._made_by}-")

    def __contains__(self, key: str) -> bool:
        return key in self._held

    def get(self, key: str) -> Levels | None:
        """Return what is held under the key; it becomes the most recently used."""
        with self._lock:
            found = self._held.get(key)
            if found is not None:
                self._held.move_to_end(key)
            return found

    def hold(self, key: str, levels: Levels) -> None:
        """Hold an embedding; the least recently used make room."""
        with self._lock:
            self._held[key] = levels
            self._held.move_to_end(key)
            used_bytes = sum(size_bytes(held) for held in self._held.values())
            while used_bytes > self._held_bytes and len(self._held) > 1:
                used_bytes -= size_bytes(self._held.popitem(last=False)[1])

    def clear(self) -> None:
        """Let all go."""
        with self._lock:
            self._held.clear()

    def unpack(self, data: bytes, like: Sequence[tuple[int, ...]]) -> Levels | None:
        """Return a packed embedding; None when it is damaged or not of the shapes `like`."""
        try:
            tensors = read_tensors(data)
            levels = tuple(tensors[str(number)] for number in range(len(like)))
        except (SafetensorError, KeyError, ValueError):
            return None
        fits = [tuple(level.shape) for level in levels] == list(like)
        whole = (
            bool(levels)
            and fits
            and all(level.dtype == self.dtype and torch.isfinite(level).all() for level in levels)
        )
        return levels if whole else None


def pack(levels: Levels) -> bytes:
    """Return an embedding as safetensors: no pickle, nothing that could run."""
    data: bytes = written_tensors({str(number): level.contiguous() for number, level in enumerate(levels)})
    return data


def size_bytes(levels: Levels) -> int:
    """Return the memory an embedding takes."""
    return sum(level.numel() * level.element_size() for level in levels)
