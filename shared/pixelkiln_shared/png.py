"""PNG files made fast: the Up filter on every row, zlib level 1, run-length strategy.

About ten times faster than Pillow's defaults at nearly the same size (docs/decisions/0003-fast-png.md). The
filter is the caller's: numpy where it is installed, Pillow elsewhere. Format: W3C PNG, 3rd edition.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Sequence

SIGNATURE = b"\x89PNG\r\n\x1a\n"
UP = 2  # the filter type byte that each row begins with

GREY, RGB, PALETTE, RGBA = 0, 2, 3, 6  # colour types
CHANNELS = {GREY: 1, RGB: 3, PALETTE: 1, 4: 2, RGBA: 4}

Chunk = tuple[bytes, bytes]


def png_file(
    width: int,
    height: int,
    colour_type: int,
    rows: Iterable[bytes | memoryview],
    *,
    depth: int = 8,
    chunks: Sequence[Chunk] = (),
    flat: bool = False,
) -> bytes:
    """Return a whole PNG file.

    Args:
        width: pixels.
        height: pixels.
        colour_type: `GREY`, `RGB`, `PALETTE` or `RGBA`.
        rows: filtered rows in any portions, each row its filter type byte and then the filtered samples.
        depth: bits a sample.
        chunks: further chunks as (type, data), put before the picture: palette, text.
        flat: whether the picture is a drawing or a mask: smaller then by a general search for repeats.
    """
    level, strategy = (4, zlib.Z_DEFAULT_STRATEGY) if flat else (1, zlib.Z_RLE)
    packer = zlib.compressobj(level, zlib.DEFLATED, 15, 9, strategy)
    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    before = [packed_chunk(kind, data) for kind, data in [(b"IHDR", header), *chunks]]
    packed = [packer.compress(portion) for portion in rows]
    packed.append(packer.flush())
    crc = zlib.crc32(b"IDAT")
    for piece in packed:
        crc = zlib.crc32(piece, crc)
    length = struct.pack(">I", sum(map(len, packed)))
    # One join, so that a big picture is not copied chunk by chunk.
    pixels = [length, b"IDAT", *packed, struct.pack(">I", crc)]
    return b"".join([SIGNATURE, *before, *pixels, packed_chunk(b"IEND", b"")])


def packed_chunk(kind: bytes, data: bytes) -> bytes:
    """Return a chunk as it stands in the file: length, type, data, CRC-32 of type and data."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(data, zlib.crc32(kind)))


def text_chunk(keyword: str, text: str) -> Chunk:
    """Return `tEXt` where Latin-1 holds the text (every reader knows it), `iTXt` in UTF-8 otherwise."""
    name = keyword.encode("latin-1")
    try:
        if text.replace("\n", "").isprintable():
            return b"tEXt", name + b"\0" + text.encode("latin-1")
    except UnicodeEncodeError:
        pass
    return b"iTXt", name + b"\0\0\0\0\0" + text.replace("\0", "").encode("utf-8", "replace")
