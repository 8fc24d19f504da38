"""Where the API is, and which key goes to whom."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import httpx2

from pixelkiln.client.errors import ServerUnreachable

DEFAULT_URL = "http://127.0.0.1:8700"


def http_options(
    url: str | None, api_key: str | None, timeout_s: float
) -> tuple[str, str | None, dict[str, Any]]:
    """Return the base URL, the key, and the options of the HTTP client.

    Raises:
        ServerUnreachable: the address is not an http(s) URL.
    """
    base = (url or os.environ.get("PIXELKILN_URL") or DEFAULT_URL).rstrip("/")
    key = api_key or os.environ.get("PIXELKILN_API_KEY") or None
    try:
        parsed = httpx2.URL(base)
    except httpx2.InvalidURL as error:
        raise ServerUnreachable(f"PIXELKILN_URL is not a URL: {error}") from error
    if parsed.scheme not in {"http", "https"} or not parsed.host:
        raise ServerUnreachable(f"PIXELKILN_URL must begin with http:// or https://, not {base[:80]!r}")
    options = {
        "base_url": base,
        "timeout": httpx2.Timeout(timeout_s, connect=5.0),
        "headers": {"User-Agent": "pixelkiln-client"},
        # A proxy of the environment must not stand between a program and its own machine.
        "trust_env": parsed.host not in {"127.0.0.1", "localhost", "::1"},
    }
    return base, key, options


def headers_for(path: str, headers: Mapping[str, str], base: str, key: str | None) -> dict[str, str]:
    """Add the key where it belongs: to the API's own address and never to an object store's."""
    if key is None or not (path.startswith("/") or same_origin(path, base)):
        return dict(headers)
    return {**headers, "Authorization": f"Bearer {key}"}


def same_origin(url: str, base: str) -> bool:
    """Tell whether two URLs have the same scheme, host and port (RFC 6454)."""
    return _origin(url) == _origin(base)


def _origin(url: str) -> tuple[str, str, int | None]:
    parsed = httpx2.URL(url)
    return parsed.scheme, parsed.host, parsed.port


def absolute(base: str, url: str) -> str:
    """Return a link as it can be opened elsewhere: the folder store's links are relative to the API."""
    return base + url if url.startswith("/") else url
