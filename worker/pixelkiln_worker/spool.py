"""Finished results on their way to the store: one that is away holds up no device and fills no memory.

A result that is not stored at once stays here and is sent when the store is back: the first few megabytes in
memory, the rest as files in a folder of this process. A killed process leaves its folder behind; the next
one that starts removes it, because the leases of those results are gone as well.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import structlog

from pixelkiln_shared.errors import Misconfigured, Unavailable
from pixelkiln_shared.storage.contract import Storage, StoredObject
from pixelkiln_worker import delivery
from pixelkiln_worker.compute import Work
from pixelkiln_worker.delivery import Stored
from pixelkiln_worker.encode import EncodedFile
from pixelkiln_worker.families.contract import Outcome
from pixelkiln_worker.held import HeldJob
from pixelkiln_worker.locks import locked, remove_unheld
from pixelkiln_worker.patience import insist

log = structlog.get_logger(__name__)

SENDERS = 8  # transfers side by side: enough to hide a store's latency behind a batch of eight
AT_ONCE_S = 1.0  # what is stored within this time was never late
IN_MEMORY_BYTES = 32 << 20  # so much may wait without touching the disk
JOB_BYTES = 256 << 10  # taken of the bound beside a job's files: each has a lease to renew, and is told of
_FOLDER, _LOCK = ".spool", ".lock"  # endings that nothing else has: what has them may be swept

Late = Callable[[Work, Stored | Exception], None]
Place = Literal["memory", "disk"]


@dataclass(frozen=True, kw_only=True, slots=True)
class OwnFolder:
    """A folder that is this process's own for as long as `descriptor` locks the file `lock`."""

    path: Path
    lock: Path
    descriptor: int

    def remove(self) -> None:
        """Remove the folder with all that is in it, and give the lock up; once."""
        shutil.rmtree(self.path, ignore_errors=True)
        with suppress(OSError):
            self.lock.unlink()
        os.close(self.descriptor)


class Parcel:
    """The files of one job on their way. `ended` is set once they are stored, or never will be."""

    def __init__(self, work: Work, files: Sequence[EncodedFile], late: Late, until: float) -> None:
        self.work, self.late, self.until = work, late, until
        self.files = [replace(file, data=b"") for file in files]
        self.file_bytes = sum(len(file.data) for file in files)
        self.ended = threading.Event()
        self.outcome: Stored | Exception | None = None
        self.left_alone = False  # nobody stands by for the outcome: `late` hears it
        self.moving = threading.Lock()
        self._folder: Path | None = None
        self._full = list(files)

    @property
    def place(self) -> Place:
        """Where the bytes are."""
        return "memory" if self._folder is None else "disk"

    def content(self, index: int) -> bytes | Path:
        """Return the bytes of a file, or where they are."""
        file = self._full[index]
        folder = self._folder  # set before the bytes are let go
        return file.data if folder is None else folder / file.name

    def write(self, folder: Path) -> None:
        """Move the bytes to the disk.

        Raises:
            OSError: the disk is full or refuses; the bytes stay in memory.
        """
        try:
            folder.mkdir()
            for file in self._full:
                (folder / file.name).write_bytes(file.data)
        except OSError:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        self._folder, self._full = folder, self.files

    def remove(self) -> None:
        """Remove what is on the disk."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)


class Spool:
    """What waits for the store, and the threads that send it. Safe to use from every thread.

    Args:
        storage: where results go.
        folder: this process's own, from `own_folder`.
        bound_bytes: when so much waits, no more should be claimed; what is in hand by then still goes in.
        patience_s: how long one job's files may take, all tries together.
    """

    def __init__(self, storage: Storage, folder: OwnFolder, *, bound_bytes: int, patience_s: float) -> None:
        self.folder, self.patience_s = folder.path, patience_s
        self._own = folder
        self._storage = storage
        self._bound_bytes = bound_bytes
        self._senders = ThreadPoolExecutor(SENDERS, thread_name_prefix="senders")
        self._lock = threading.Lock()
        self._late: dict[str, Parcel] = {}
        self._waiting_bytes = 0
        self._closed = False
        self._why = ""

    # -------------------------------------------------------------------------------------------- what waits

    @property
    def waiting(self) -> int:
        """How many jobs' results wait for the store longer than they should."""
        return len(self._late)

    @property
    def waiting_bytes(self) -> int:
        """How much of the bound they take."""
        return self._waiting_bytes

    @property
    def full(self) -> bool:
        """Whether no more should be claimed."""
        return self._waiting_bytes >= max(self._bound_bytes, 1)

    @property
    def why(self) -> str:
        """What the store said last to those that wait; empty when nothing waits."""
        return self._why if self._late else ""

    def keeps(self, job: HeldJob) -> bool:
        """Whether this attempt's result waits here: nobody else need settle the job."""
        parcel = self._late.get(job.id)
        return parcel is not None and parcel.work.job is job

    # ----------------------------------------------------------------------------------------------- sending

    def send(self, work: Work, files: Sequence[EncodedFile], late: Late) -> Stored | None:
        """Store a job's files; None when that takes longer than a moment: then `late` hears how it ended.

        Raises:
            Unwanted: the job was canceled, lost or drained meanwhile.
            StorageUnavailable: patience ran out.
        """
        parcel = Parcel(work, files, late, time.monotonic() + self.patience_s)
        if not files:
            return delivery.store(work, files, partial(self._put, parcel))
        behind = bool(self._late)  # then a moment would be waited in vain
        self._senders.submit(self._go, parcel)
        if (behind or not parcel.ended.wait(AT_ONCE_S)) and self._leave_alone(parcel):
            self._keep(parcel)
            return None
        if isinstance(parcel.outcome, Exception):
            raise parcel.outcome
        return parcel.outcome

    def close(self) -> None:
        """Remove the folder; what still waits is lost, and its jobs must have been given back."""
        with self._lock:  # a second caller ends the process next: it waits for the first
            if not self._closed:
                self._closed = True
                self._senders.shutdown(wait=False, cancel_futures=True)
                self._own.remove()

    def _leave_alone(self, parcel: Parcel) -> bool:
        """Note that a parcel is late; False when it has ended just now."""
        work = parcel.work
        with self._lock:
            if parcel.ended.is_set():
                return False
            parcel.left_alone = True
            self._late[work.job.id] = parcel
            self._waiting_bytes += parcel.file_bytes + JOB_BYTES
        if isinstance(work.outcome, Outcome):
            work.outcome = replace(work.outcome, memory=None)  # large, and no loss
        return True

    def _go(self, parcel: Parcel) -> None:
        try:
            outcome: Stored | Exception = delivery.store(
                parcel.work, parcel.files, lambda index, key: self._put(parcel, index, key)
            )
        except Exception as error:  # noqa: BLE001 - whoever stands by raises it
            if self._closed:
                return  # the process ends, and has seen to the job
            outcome = error
        with self._lock:
            parcel.outcome = outcome
            parcel.ended.set()
        if parcel.left_alone:
            try:
                parcel.late(parcel.work, outcome)
            except Exception:
                log.exception("a late result was not settled", job=parcel.work.job.id)
            finally:
                self._forget(parcel)

    def _put(self, parcel: Parcel, index: int, key: str) -> StoredObject:
        media_type = parcel.files[index].media_type
        return insist(
            lambda: self._storage.put(key, parcel.content(index), media_type=media_type),
            lambda: parcel.work.job.wanted and not self._closed,
            until=parcel.until,
            on_outage=self._hear,
        )

    def _hear(self, error: Unavailable) -> None:
        self._why = error.message

    def _keep(self, parcel: Parcel) -> None:
        """Let the memory go that a late parcel takes, unless there is plenty."""
        with self._lock:
            taken = sum(one.file_bytes for one in self._late.values() if one.place == "memory")
        if taken <= IN_MEMORY_BYTES:
            return
        with parcel.moving:
            if parcel.ended.is_set():
                return
            try:
                parcel.write(self.folder / f"{parcel.work.job.id}-{parcel.work.job.attempt}")
            except OSError as error:  # no more is claimed then: what is in memory stays little
                log.warning("a result that waits cannot go to the disk", error=str(error))

    def _forget(self, parcel: Parcel) -> None:
        with self._lock:
            if self._late.get(parcel.work.job.id) is parcel:
                del self._late[parcel.work.job.id]
            self._waiting_bytes -= parcel.file_bytes + JOB_BYTES
        with parcel.moving:
            parcel.remove()


def own_folder(base: Path, *, name: str) -> OwnFolder:
    """Make a folder for this process below `base`, and remove those of processes that are dead.

    Args:
        base: from `presence.base_folder`.
        name: tells this process from every other; what has it is this process's own until it ends.

    Raises:
        Misconfigured: nothing can be written there.
    """
    folder = base / f"{name}{_FOLDER}"
    try:
        lock = base / f"{folder.name}{_LOCK}"
        own = OwnFolder(path=folder, lock=lock, descriptor=locked(lock))
        folder.mkdir(mode=0o700)
        _sweep(base)
    except OSError as error:
        raise Misconfigured(f"PIXELKILN_SPOOL_DIR: {base}: {error.strerror}") from error
    return own


def _sweep(base: Path) -> None:
    """Remove the folders whose lock nobody holds."""
    for lock in base.glob(f"*{_FOLDER}{_LOCK}"):
        if remove_unheld(lock, partial(shutil.rmtree, lock.with_suffix(""), ignore_errors=True)):
            log.info("what a dead process had spooled is removed", folder=lock.stem)
