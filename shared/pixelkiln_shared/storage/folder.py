"""Objects as files below one folder: the store of the embedded stack.

`root/KEY` is the object, `root/DIR/.NAME.json` its side-car with media type and hash. Replacing the file
is the moment a put happens. The side-car is written before and names both the old and the new object, so who
reads at any moment, or after a crash at any moment, finds the facts of the bytes that are there.

A key may not be a folder of another key (`a` and `a/b`), which S3 would allow; ours never are.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import hmac
import itertools
import json
import os
import secrets
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from pixelkiln_shared.errors import NotFound, StorageUnavailable
from pixelkiln_shared.storage.contract import StoredObject
from pixelkiln_shared.storage.naming import checked_key, checked_prefix, is_key, media_type_of
from pixelkiln_shared.storage.probe import round_trip

LINK_PATH = "/v1/objects/"
_READ_TRIES = 20  # a reader loses a race against a put at most a few times; after that the file is damaged
_READ_PAUSE_S = 0.005
_TRIES = 100  # far more deletes than ever meet one put
_PART = ".part"  # the ending of a file that is being written
_ABANDONED_S = 3_600  # nobody takes an hour to write a file


class FolderStorage:
    """A folder of files with side-cars. Several processes may share it; writers of one folder take turns.

    Args:
        root: made when missing; object paths never leave it.
        secret: signs links. Only the process that answers `/v1/objects/` needs to know it.
    """

    def __init__(self, root: Path, *, secret: bytes) -> None:
        self.root = root.absolute()
        self._secret = secret

    def put(self, key: str, data: bytes | Path, *, media_type: str) -> StoredObject:
        """Store bytes or a copy of a file. The bytes are on disk (fsync) when it returns; the name of a new
        file survives a crash of this process at once, and a power cut as soon as the file system commits it.

        Raises:
            StorageUnavailable: the disk is full or refuses.
        """
        target = self.path(key)
        with _disk_errors():
            fresh, digest = _write_temporary(target, data)
            try:
                stat = fresh.stat()
                facts = {
                    "sha256": digest,
                    "media_type": media_type,
                    "size": stat.st_size,
                    "mtime_ns": stat.st_mtime_ns,
                }
                with _locked(target.parent):
                    present = _present_facts(target)
                    _write_sidecar(target, [facts, present] if present else [facts])
                    os.replace(fresh, target)
            except BaseException:
                fresh.unlink(missing_ok=True)
                raise
        return _stored(key, facts)

    def get(self, key: str) -> bytes:
        """Return the object; its SHA-256 is checked against the side-car.

        Raises:
            NotFound: no such key.
            StorageUnavailable: the file was altered behind our back.
        """
        target = self.path(key)
        for _ in range(_READ_TRIES):
            with _disk_errors():
                try:
                    facts, data = _facts(target), target.read_bytes()
                except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
                    raise NotFound("no such file") from error
            digest = hashlib.sha256(data).hexdigest()
            if not facts or any(known["sha256"] == digest for known in facts):
                return data
            time.sleep(_READ_PAUSE_S)
        raise StorageUnavailable(f"{key} is damaged: its bytes are not the ones that were stored")

    def head(self, key: str) -> StoredObject | None:
        """Return the object's facts, or None."""
        target = self.path(key)
        with _disk_errors():
            return _head(key, target)

    def delete(self, key: str) -> None:
        """Remove object and side-car, and folders that became empty."""
        target = self.path(key)
        with _disk_errors():
            if not target.parent.is_dir():
                return
            with _locked(target.parent):
                target.unlink(missing_ok=True)
                _sidecar(target).unlink(missing_ok=True)
            for folder in target.parents:
                if folder == self.root or not _remove_empty(folder):
                    break

    def list(self, prefix: str, *, after: str = "") -> Iterator[StoredObject]:
        """Yield objects in key order (bytes), as S3 does; media types are guessed from the key's ending."""
        folder = checked_prefix(prefix).rpartition("/")[0]
        start = self.root / folder if folder else self.root
        for key, entry in _walk(start, f"{folder}/" if folder else "", prefix, after):
            with _disk_errors():
                try:
                    stat = entry.stat()
                except FileNotFoundError:
                    continue
            yield StoredObject(
                key=key,
                size_bytes=stat.st_size,
                media_type=media_type_of(key),
                modified_at=datetime.fromtimestamp(stat.st_mtime, UTC),
            )

    def link(self, key: str, *, expires_s: int, filename: str | None = None) -> str:
        """Return `/v1/objects/KEY?expires=UNIX&signature=HEX[&filename=NAME]`, relative to the API's base."""
        expires = int(time.time()) + expires_s
        query: dict[str, str | int] = {"expires": expires}
        query["signature"] = self._sign(checked_key(key), expires, filename)
        if filename is not None:
            query["filename"] = filename
        return f"{LINK_PATH}{key}?{urlencode(query)}"

    def verify(self, key: str, expires: int, signature: str, filename: str | None = None) -> bool:
        """Whether a link's parts are the ones we signed, and its time (Unix seconds) has not come."""
        if not is_key(key):
            return False
        good = self._sign(key, expires, filename)
        return (
            hmac.compare_digest(good.encode(), signature.encode("utf-8", "replace")) and time.time() < expires
        )

    def path(self, key: str) -> Path:
        """Return where the key's file is (or would be): below the root for any key that passes.

        Raises:
            InvalidInput: not a key of ours.
        """
        return self.root / checked_key(key)

    def check(self) -> None:
        """Write, read and remove a small object.

        Raises:
            StorageUnavailable: with the reason.
        """
        round_trip(self)

    def _sign(self, key: str, expires: int, filename: str | None) -> str:
        message = json.dumps(["file-link", key, expires, filename]).encode()
        return hmac.new(self._secret, message, hashlib.sha256).hexdigest()


# ------------------------------------------------------------------------------------------------ files


@contextlib.contextmanager
def _disk_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        reason = "the disk is full" if full else (error.strerror or "the disk does not answer")
        raise StorageUnavailable(
            f"storage folder: {reason}",
            code="storage_full" if full else None,
            detail={"reason": "disk_full"} if full else {},
        ) from error


def _make(folder: Path) -> None:
    """Make a folder where deletes sweep: `mkdir` stumbles over what goes while it looks."""
    for left in reversed(range(_TRIES)):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            break
        except (FileNotFoundError, FileExistsError):
            if not left:
                raise


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Let one writer at a time into a folder, across processes; made again when a delete swept it."""
    while True:
        _make(folder)
        try:
            descriptor = os.open(folder, os.O_RDONLY)
        except FileNotFoundError:  # a delete swept it in between
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if not _same_folder(descriptor, folder):
                continue
            yield
            return
        finally:
            os.close(descriptor)


def _same_folder(descriptor: int, folder: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), folder.stat())
    except FileNotFoundError:
        return False


def _remove_empty(folder: Path) -> bool:
    """Remove a folder that holds no more than what writers that died left in it; returns whether it went."""
    with contextlib.suppress(OSError):  # not empty, or somebody else was first
        with os.scandir(folder) as entries:
            left = list(itertools.takewhile(_is_abandoned, entries))
        for entry in left:
            os.unlink(entry)
        folder.rmdir()
        return True
    return False


def _is_abandoned(entry: os.DirEntry[str]) -> bool:
    return entry.name.endswith(_PART) and time.time() - entry.stat().st_mtime > _ABANDONED_S


def _write_temporary(target: Path, data: bytes | Path) -> tuple[Path, str]:
    """Write the bytes beside the target, through to the disk; returns where, and their SHA-256."""
    while True:
        _make(target.parent)
        fresh = target.with_name(f".{secrets.token_hex(8)}{_PART}")
        try:
            file = fresh.open("xb")
        except FileNotFoundError:  # a delete swept the folder in between
            continue
        break
    try:
        with file:
            hashed = hashlib.sha256()
            for chunk in _chunks(data):
                hashed.update(chunk)
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise
    return fresh, hashed.hexdigest()


def _chunks(data: bytes | Path) -> Iterator[bytes]:
    if isinstance(data, bytes):
        yield data
        return
    with data.open("rb") as source:
        while chunk := source.read(1 << 20):
            yield chunk


def _sidecar(target: Path) -> Path:
    return target.with_name(f".{target.name}.json")


def _write_sidecar(target: Path, facts: list[dict[str, Any]]) -> None:
    sidecar = _sidecar(target)
    fresh = sidecar.with_name(f".{secrets.token_hex(8)}{_PART}")
    try:
        fresh.write_text(json.dumps(facts), "utf-8")
        os.replace(fresh, sidecar)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise


def _facts(target: Path) -> list[dict[str, Any]]:
    """Read the side-car, newest first; empty when there is none, or a power cut left half of one."""
    try:
        facts = json.loads(_sidecar(target).read_text("utf-8"))
    except (OSError, ValueError):
        return []
    return facts if isinstance(facts, list) else []


def _present_facts(target: Path) -> dict[str, Any] | None:
    """Return the side-car's entry for the bytes that are there now; None without a file or a fitting entry.

    Size and time tell which entry it is. Where they do not (a copy without its times, two puts within one
    tick of the clock) the hash does.
    """
    facts = _facts(target)
    if not facts or not target.is_file():
        return None
    stat = target.stat()
    fitting = [f for f in facts if (f["size"], f["mtime_ns"]) == (stat.st_size, stat.st_mtime_ns)]
    if len(fitting) == 1:
        return fitting[0]
    with target.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return next((f for f in facts if f["sha256"] == digest), None)


def _head(key: str, target: Path) -> StoredObject | None:
    try:
        facts, stat = _present_facts(target), target.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    if not target.is_file():
        return None
    unknown = {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns, "media_type": media_type_of(key)}
    return _stored(key, facts or unknown)


def _stored(key: str, facts: dict[str, Any]) -> StoredObject:
    return StoredObject(
        key=key,
        size_bytes=facts["size"],
        media_type=facts["media_type"],
        modified_at=datetime.fromtimestamp(facts["mtime_ns"] / 1e9, UTC),
        sha256=facts.get("sha256"),
    )


def _walk(folder: Path, base: str, prefix: str, after: str) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Go through a folder in the byte order of whole keys: a folder sorts as its name with the slash."""
    with _disk_errors():
        try:
            with os.scandir(folder) as found:
                entries = [(e.name + "/" * e.is_dir(follow_symlinks=False), e) for e in found]
        except (FileNotFoundError, NotADirectoryError):
            return
    for name, entry in sorted(entries, key=lambda pair: pair[0]):
        key = base + name
        if name.startswith(".") or entry.is_symlink():
            continue
        if name.endswith("/"):
            beyond = key > after or after.startswith(key)
            if beyond and (key.startswith(prefix) or prefix.startswith(key)):
                yield from _walk(folder / entry.name, key, prefix, after)
        elif key.startswith(prefix) and key > after:
            yield key, entry
