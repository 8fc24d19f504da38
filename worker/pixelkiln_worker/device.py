"""The device and the one thread that may touch it.

One process owns one device. Everything that runs on it goes through `DeviceThread`: one CUDA user, one OpenMP
pool, and a plain answer to "how busy is the device". Importing this module never imports torch.
"""

from __future__ import annotations

import os
import queue
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pixelkiln_shared.errors import Misconfigured, PixelkilnError
from pixelkiln_shared.settings import Settings

T = TypeVar("T")

# What torch, Python and numpy call it; by name, since torch may not be installed or not be imported yet.
_OUT_OF_MEMORY = frozenset({"OutOfMemoryError", "MemoryError", "_ArrayMemoryError"})
# How the others say it: torch's CPU allocator (a plain RuntimeError), mmap, OpenCV, cuBLAS and cuDNN.
_MEMORY_SIGNS = (
    "out of memory",
    "can't allocate memory",
    "cannot allocate memory",
    "not enough memory",
    "insufficient memory",
    "status_alloc_failed",
)
_QUOTING = (PixelkilnError, ValueError, TypeError, LookupError)  # their texts may repeat a user's words

_DEVICE_SIGNS = (
    "cuda error",
    "hip error",
    "status_execution_failed",
    "status_internal_error",
    "status_mapping_error",
)
# Refusals of one call, after which the context is as good as before.
_HARMLESS_SIGNS = (
    "invalid argument",
    "invalid configuration",
    "invalid device ordinal",
    "no kernel image",
    "not supported",
    "not_supported",
    "status_invalid_value",
    "status_arch_mismatch",
)

_ACCELERATORS = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg", "/dev/nvmap")  # CUDA, ROCm, CUDA in WSL, Jetson

_MIB = 1_048_576
_CPU_SHARE = 0.5  # of the host's memory: the API, Redis and the page cache live there too
_GPU_SHARE = 0.8  # of the card's memory: activations and the allocator's slack need the rest


class Poisoned(Exception):
    """The device's context is broken: whatever runs next fails too, and only a new process has a sane one."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the device's memory, or the host's, did not suffice."""
    if type(error).__name__ in _OUT_OF_MEMORY:
        return True
    return not isinstance(error, _QUOTING) and _says(error, _MEMORY_SIGNS)


def is_poisoned(error: BaseException) -> bool:
    """Whether an error leaves the device's context broken, so that the process must end.

    An illegal access, a failed assertion in a kernel, an ECC error and their like are "sticky": every later
    call returns them again (CUDA Runtime API, section "Error handling", `cudaError`). What is not known to
    be harmless counts as one of them: a restart costs seconds, a broken worker fails everybody's jobs.
    """
    if isinstance(error, Poisoned):
        return True
    if isinstance(error, _QUOTING) or is_out_of_memory(error):
        return False
    named = type(error).__name__ == "AcceleratorError" or _says(error, _DEVICE_SIGNS)
    return named and not _says(error, _HARMLESS_SIGNS)


def _says(error: BaseException, signs: tuple[str, ...]) -> bool:
    text = str(error).lower()
    return any(sign in text for sign in signs)


@dataclass(frozen=True, kw_only=True, slots=True)
class Device:
    """Where models run.

    Attributes:
        name: as torch spells it: `cpu`, `cuda:0`, `mps`.
        kind: `cpu`, `cuda` or `mps`.
        memory_bytes: budget for resident models.
        dtype_name: default run dtype, a torch name (`float32`, `bfloat16`, `float16`).
        threads: CPU threads a forward pass may use.
    """

    name: str
    kind: str
    memory_bytes: int
    dtype_name: str
    threads: int

    def settle(self) -> None:
        """Give torch its thread count; call on the device thread once torch is imported. Harmless without."""
        torch: Any = sys.modules.get("torch")
        if torch is not None and torch.get_num_threads() != self.threads:
            torch.set_num_threads(self.threads)

    def free_caches(self) -> None:
        """Hand cached, unused device memory back; call on the device thread."""
        torch: Any = sys.modules.get("torch")
        if torch is not None and self.kind == "cuda":
            torch.cuda.empty_cache()
        elif torch is not None and self.kind == "mps":
            torch.mps.empty_cache()

    def allocated_bytes(self) -> int | None:
        """Return what tensors take of the accelerator's memory now; None on the CPU, where nobody counts."""
        torch: Any = sys.modules.get("torch")
        if torch is None or self.kind not in {"cuda", "mps"}:
            return None
        if self.kind == "mps":
            return int(torch.mps.current_allocated_memory())
        return int(torch.cuda.memory_allocated(self.name))


def pick(settings: Settings) -> Device:
    """Choose the device by `PIXELKILN_DEVICE`; `auto` is the first accelerator torch sees, else the CPU.

    Raises:
        Misconfigured: the device asked for is not there.
    """
    threads = settings.torch_threads or _usable_cpus()
    wish = settings.device
    name = _available(wish) if wish != "cpu" else "cpu"
    kind = name.partition(":")[0]
    budget = settings.worker_memory_mb * _MIB if settings.worker_memory_mb else _budget_bytes(name, kind)
    return Device(
        name=name, kind=kind, memory_bytes=budget, dtype_name=_dtype_name(name, kind), threads=threads
    )


def accelerator_here() -> bool:
    """Whether this machine may have an accelerator; told without torch, whose import takes seconds."""
    return sys.platform != "linux" or any(Path(node).exists() for node in _ACCELERATORS)


def _available(wish: str) -> str:
    if wish == "auto" and not accelerator_here():
        return "cpu"
    import torch

    cards = torch.cuda.device_count() if torch.cuda.is_available() else 0
    mps = torch.backends.mps.is_available()
    if wish == "auto":
        return "cuda:0" if cards else "mps" if mps else "cpu"
    if wish == "mps" and mps:
        return "mps"
    index = int(wish.partition(":")[2] or 0)
    if wish.startswith("cuda") and index < cards:
        return f"cuda:{index}"
    raise Misconfigured(f"PIXELKILN_DEVICE: there is no {wish} on this machine; `auto` takes what there is")


def _usable_cpus() -> int:
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _budget_bytes(name: str, kind: str) -> int:
    if kind == "cuda":
        import torch

        return int(torch.cuda.get_device_properties(name).total_memory * _GPU_SHARE)
    return int(_host_memory_bytes() * _CPU_SHARE)


def _host_memory_bytes() -> int:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:  # a container's limit is below the host's
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text("ascii"))
    except (OSError, ValueError):
        return total
    return min(total, limit)


def _dtype_name(name: str, kind: str) -> str:
    if kind != "cuda":
        return "float32"
    import torch

    return "bfloat16" if torch.cuda.get_device_properties(name).major >= 8 else "float16"


class DeviceThread:
    """The only thread that touches the device: runs what it is handed, one at a time, in order of arrival."""

    def __init__(self) -> None:
        self._work: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None] = queue.SimpleQueue()
        self._busy_s = 0.0
        self._busy_since: float | None = None
        self._started = time.monotonic()
        self._thread = threading.Thread(target=self._loop, name="device", daemon=True)
        self._thread.start()

    def run(self, work: Callable[[], T]) -> T:
        """Run `work` on the device thread and wait for it; what it raises is raised here."""
        if threading.current_thread() is self._thread:
            return work()
        return self.hand_over(work).result()

    def hand_over(self, work: Callable[[], T]) -> Future[T]:
        """Let the device thread run `work` when it is its turn; what it raises comes with the future."""
        future: Future[T] = Future()
        self._work.put((work, future))
        return future

    @property
    def busy_s(self) -> float:
        """Seconds the device has worked so far, the current work included."""
        since = self._busy_since
        return self._busy_s + (time.monotonic() - since if since is not None else 0.0)

    @property
    def up_s(self) -> float:
        """Seconds since the thread started."""
        return time.monotonic() - self._started

    def close(self) -> None:
        """Let the thread end after the work already handed over."""
        self._work.put(None)

    def _loop(self) -> None:
        while (item := self._work.get()) is not None:
            work, future = item
            self._busy_since = began = time.monotonic()
            try:
                future.set_result(work())
            except BaseException as error:  # noqa: BLE001 - the waiting thread raises it
                future.set_exception(error)
            finally:
                self._busy_since = None
                self._busy_s += time.monotonic() - began
            del work, future, item  # nothing of a finished batch stays alive while this thread waits
