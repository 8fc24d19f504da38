"""What a key may look like, what its ending says, and what a download is called. The same for every store."""

from __future__ import annotations

import re
import unicodedata
from urllib.parse import quote

from pixelkiln_shared.errors import InvalidInput

# No segment begins with a dot: `.` and `..` are out, and dot files in a folder store are ours (side-cars).
_SEGMENT = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,199}", re.ASCII)
_PART = re.compile(r"(?:[A-Za-z0-9_-][A-Za-z0-9._-]{0,199})?", re.ASCII)
_MAX_KEY = 900  # S3 allows 1,024 bytes; the bucket prefix takes its share
_MAX_FILENAME = 120

_MEDIA_TYPES = {
    "png": "image/png",
    "webp": "image/webp",
    "jpg": "image/jpeg",
    "jpeg": "image/jpeg",
    "json": "application/json",
    "jsonl": "application/jsonl",
    "zip": "application/zip",
}


def checked_key(key: str) -> str:
    """Return the key when it is one we could have made: ASCII words joined by single slashes.

    Raises:
        InvalidInput: `invalid_prefix`; nothing that passes can leave a folder or surprise an S3 server.
    """
    if len(key) > _MAX_KEY or not all(_SEGMENT.fullmatch(part) for part in key.split("/")):
        raise InvalidInput("not an object key", code="invalid_prefix")
    return key


def checked_prefix(prefix: str) -> str:
    """Return the prefix when some valid key could begin with it; the empty prefix is all keys.

    Raises:
        InvalidInput: `invalid_prefix`.
    """
    folders, _, last = prefix.rpartition("/")
    if not _PART.fullmatch(last):
        raise InvalidInput("not the beginning of an object key", code="invalid_prefix")
    if folders or prefix.startswith("/"):
        checked_key(folders)
    return prefix


def is_key(key: str) -> bool:
    """Whether `checked_key` lets it pass."""
    try:
        checked_key(key)
    except InvalidInput:
        return False
    return True


def media_type_of(key: str) -> str:
    """Return the media type that the key's ending promises; a listing says no more."""
    return _MEDIA_TYPES.get(key.rpartition(".")[2], "application/octet-stream")


def content_disposition(filename: str) -> str:
    """Return the header that makes a browser save under `filename` (RFC 6266, RFC 8187).

    Path separators, control and formatting characters (bidi overrides among them) are dropped.
    """
    name = "".join(c for c in filename if unicodedata.category(c)[0] != "C" and c not in '/\\:"')
    name = name.strip(" .")[:_MAX_FILENAME] or "download"
    plain = name.encode("ascii", "replace").decode("ascii").replace("?", "_")
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(name, safe='')}"
