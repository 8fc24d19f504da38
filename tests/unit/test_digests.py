"""Hashes that are remembered, and what makes this process look again."""

from __future__ import annotations

import hashlib
import os
import time
from io import BufferedReader
from pathlib import Path

import pytest

from pixelkiln_worker import digests


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digests, "_known", {})


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files whose bytes were hashed."""
    names: list[str] = []
    digest = hashlib.file_digest

    def noted(file: BufferedReader, algorithm: str) -> object:
        names.append(Path(file.name).name)
        return digest(file, algorithm)

    monkeypatch.setattr(hashlib, "file_digest", noted)
    return names


def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let what was written before this be old enough."""
    monkeypatch.setattr(digests, "SETTLED_S", 0.0)
    time.sleep(0.02)


def test_hashes_come_in_the_order_of_the_files(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in "cab"]
    for path in paths:
        path.write_bytes(path.name.encode())
    assert digests.sha256_of(paths) == [hashlib.sha256(p.name.encode()).hexdigest() for p in paths]
    assert digests.sha256_of([]) == []


def test_a_file_that_did_not_change_is_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: list[str]
) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"one")
    settled(monkeypatch)
    assert digests.sha256_of([path]) == digests.sha256_of([path])
    assert read == ["weights"]


@pytest.mark.parametrize("how", ["bytes", "replaced", "times put back"])
def test_a_file_that_changed_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"one")
    settled(monkeypatch)
    before = path.stat()
    digests.sha256_of([path])
    if how == "replaced":
        (tmp_path / "new").write_bytes(b"two")
        os.replace(tmp_path / "new", path)
    else:
        path.write_bytes(b"two")
    if how == "times put back":
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert digests.sha256_of([path]) == [hashlib.sha256(b"two").hexdigest()]


def test_a_file_written_just_now_is_not_trusted_to_stay(tmp_path: Path, read: list[str]) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"one")
    digests.sha256_of([path])
    digests.sha256_of([path])
    assert read == ["weights", "weights"]


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        digests.sha256_of([tmp_path / "a", tmp_path / "b"])
