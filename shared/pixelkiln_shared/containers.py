"""PNG, JPEG and WebP files as sequences of chunks: the encoded picture stays, all else goes.

Nothing here decodes a picture. What comes out holds only what a decoder needs: no EXIF, XMP, comments,
thumbnails or colour profiles, and nothing behind the picture's end.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator

from pixelkiln_shared import png

_PNG_KEPT = {b"IHDR", b"PLTE", b"tRNS", b"IDAT"}
_INFLATE_STEP = 1 << 20
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))

_MARKER = re.compile(rb"\xff++[^\x00\xff\xd0-\xd7]", re.DOTALL)  # neither a stuffed byte nor a restart
# Without the fill bytes before it: to look for a run of them at every place would take quadratic time.
_SCAN_END = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]", re.DOTALL)
_SOI, _EOI, _SOS, _APP0, _APP14, _COM = 0xD8, 0xD9, 0xDA, 0xE0, 0xEE, 0xFE
_JFIF_BYTES = 14  # of APP0; what follows is a thumbnail


class Broken(ValueError):
    """The file ends early, or a checksum or length in it is wrong."""


def stripped_png(data: bytes) -> bytes:
    """Return the file with header, palette and picture only.

    Raises:
        Broken: cut short, or a wrong CRC in a chunk that matters.
    """
    kept = [(kind, body) for kind, body in _png_chunks(data) if kind in _PNG_KEPT]
    return png.SIGNATURE + b"".join(png.packed_chunk(*chunk) for chunk in [*kept, (b"IEND", b"")])


def _png_chunks(data: bytes) -> Iterator[png.Chunk]:
    at = len(png.SIGNATURE)
    while True:
        if at + 12 > len(data):
            raise Broken("the file ends before its end mark")
        (length,) = struct.unpack_from(">I", data, at)
        kind, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        if at + 12 + length > len(data):
            raise Broken("the file ends within a chunk")
        (crc,) = struct.unpack_from(">I", data, at + 8 + length)
        if kind in _PNG_KEPT and zlib.crc32(body, zlib.crc32(kind)) != crc:
            raise Broken("a checksum is wrong")
        if kind == b"IEND":
            return
        yield kind, body
        at += 12 + length


def png_exif(data: bytes) -> bytes:
    """Return a PNG's EXIF block, empty without one; Pillow decodes the whole picture to look for it.

    Raises:
        Broken: as `stripped_png`.
    """
    return next((body for kind, body in _png_chunks(data) if kind == b"eXIf"), b"")


def png_depth(data: bytes) -> int:
    """Return the bits a sample that a PNG's header states."""
    return data[24]


def png_interlaced(data: bytes) -> bool:
    """Whether a PNG's rows come in seven passes."""
    return data[28] == 1


def png_is_short(data: bytes) -> bool:
    """Whether a PNG's compressed stream ends before its last row; decoders then leave zeros, silently."""
    width, height, depth, colour_type = struct.unpack_from(">IIBB", data, 16)
    bits = depth * png.CHANNELS.get(colour_type, 1)
    passes = _ADAM7 if png_interlaced(data) else ((0, 0, 1, 1),)
    expected = 0
    packed = b"".join(body for kind, body in _png_chunks(data) if kind == b"IDAT")
    for x, y, step_x, step_y in passes:
        columns, rows = -(-(width - x) // step_x), -(-(height - y) // step_y)
        if columns > 0 and rows > 0:
            expected += rows * (1 + (columns * bits + 7) // 8)
    return _inflated_bytes(packed, expected) < expected


def _inflated_bytes(packed: bytes, enough: int) -> int:
    stream, count = zlib.decompressobj(), 0
    try:
        while count < enough and not stream.eof:
            piece = stream.decompress(packed, _INFLATE_STEP)
            packed = stream.unconsumed_tail
            count += len(piece)
            if not piece:
                break
    except zlib.error:
        pass
    return count


def stripped_jpeg(data: bytes) -> bytes:
    """Return the file with tables, frame and scans; the JFIF and Adobe marks stay, they tell the colours.

    A file without an end mark stays without one, so that a decoder notices.

    Raises:
        Broken: not a sequence of markers.
    """
    kept, at = [data[:2]], 2
    while at < len(data):
        match = _MARKER.match(data, at)
        if match is None:
            raise Broken("no marker where one must be")
        marker, at = data[match.end() - 1], match.end()
        if marker == _EOI:
            kept.append(b"\xff\xd9")
            break
        length = struct.unpack_from(">H", data, at)[0] if at + 2 <= len(data) else 0
        if length < 2 or at + length > len(data):
            raise Broken("the file ends within its header")
        segment, at = data[at : at + length], at + length
        if marker == _SOS:
            found = _SCAN_END.search(data, at)
            end = found.start() if found else len(data)
            segment, at = segment + data[at:end], end
        if (wanted := _kept_segment(marker, segment)) is not None:
            kept.append(bytes((0xFF, marker)) + wanted)
    return b"".join(kept)


def _kept_segment(marker: int, segment: bytes) -> bytes | None:
    if marker == _APP0 and segment[2:7] == b"JFIF\0" and len(segment) >= 2 + _JFIF_BYTES:
        return struct.pack(">H", 2 + _JFIF_BYTES) + segment[2:14] + b"\0\0"
    if marker == _APP14 and segment[2:7] == b"Adobe":
        return segment
    return None if 0xE0 <= marker <= 0xEF or marker == _COM else segment


def stripped_webp(data: bytes) -> bytes:
    """Return the still picture alone, as a simple file.

    Raises:
        Broken: cut short, or it holds no still picture.
    """
    at = 12
    while at + 8 <= len(data):
        kind = data[at : at + 4]
        length: int = struct.unpack_from("<I", data, at + 4)[0]
        if at + 8 + length > len(data):
            raise Broken("the file ends within a chunk")
        if kind in (b"VP8 ", b"VP8L"):
            body = data[at : at + 8 + length] + b"\0" * (length % 2)
            return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body
        at += 8 + length + length % 2
    raise Broken("the file holds no picture")
