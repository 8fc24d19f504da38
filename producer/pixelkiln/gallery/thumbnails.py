"""Small pictures for the grid, made when first looked at and kept in memory."""

from __future__ import annotations

import io
import threading
from functools import lru_cache

from PIL import Image

from pixelkiln_shared.storage.contract import Storage

SIDE_PX = 360  # a card's width on a dense screen
KEPT = 512  # about ten megabytes
AT_ONCE = 2  # decoding takes memory: a page of a hundred new pictures must not take a hundredfold

_FORMATS = ("PNG", "JPEG", "WEBP")


class Thumbnails:
    """Makes WebP files of at most `SIDE_PX` pixels a side. Thread-safe."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._places = threading.BoundedSemaphore(AT_ONCE)
        self.of = lru_cache(maxsize=KEPT)(self._made)

    def _made(self, key: str) -> bytes:
        """Return the thumbnail of a stored picture of ours.

        Raises:
            NotFound: it is gone.
        """
        data = self._storage.get(key)
        with self._places, Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            image.draft("RGB", (SIDE_PX, SIDE_PX))
            image.thumbnail((SIDE_PX, SIDE_PX))
            mode = "RGBA" if image.has_transparency_data else "RGB"
            file = io.BytesIO()
            image.convert(mode).save(file, "WEBP", quality=82, method=2)
        return file.getvalue()
