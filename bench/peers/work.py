"""The work that every peer does, and how it is counted: run by a peer's own Python, beside its file.

Standard library only at import. The tally is a small file mapped into memory: the benchmark looks into it
without asking the peer, and counting costs a job about a microsecond.

Files in `BENCH_FOLDER`: `tally`, and `pictures/` for what the device made.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import mmap
import os
import struct
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

DEVICE_MS, PER_ITEM_MS = 40.0, 5.0
SIZE_PX = 512
STEPS, STEP_MS = 100, 20.0

_COUNT, _STEP = struct.Struct("<q"), struct.Struct("<q")
_TIMES = struct.Struct("<dd")
_BYTES = 64


class Tally:
    """Jobs done, the step reached, when the first job began and the last one ended (`time.time()`)."""

    def __init__(self, path: Path) -> None:
        if not path.exists():
            path.write_bytes(bytes(_BYTES))
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), _BYTES)
        self._lock = threading.Lock()

    def reset(self) -> None:
        """Begin to count anew; no job may run meanwhile."""
        self._map[:] = bytes(_BYTES)

    def began(self) -> None:
        """Note the first beginning."""
        if self._times()[0] == 0.0:
            _TIMES.pack_into(self._map, 16, time.time(), 0.0)

    def done(self, jobs: int = 1) -> None:
        """Count jobs, from any thread of one process at a time."""
        with self._lock:
            _COUNT.pack_into(self._map, 0, self.count + jobs)
            _TIMES.pack_into(self._map, 16, self._times()[0], time.time())

    def reached(self, step: int) -> None:
        """Note the step a long job reached."""
        _STEP.pack_into(self._map, 8, step)

    @property
    def count(self) -> int:
        """Jobs done."""
        return int(_COUNT.unpack_from(self._map, 0)[0])

    @property
    def step(self) -> int:
        """The step reached."""
        return int(_STEP.unpack_from(self._map, 8)[0])

    @property
    def span_s(self) -> float:
        """Seconds from the first beginning to the last end."""
        first, last = self._times()
        return last - first

    @property
    def last_end(self) -> float:
        """When the last job ended, `time.time()`."""
        return self._times()[1]

    def _times(self) -> tuple[float, float]:
        first, last = _TIMES.unpack_from(self._map, 16)
        return float(first), float(last)


def folder() -> Path:
    """Return where this run keeps its files."""
    return Path(os.environ["BENCH_FOLDER"])


def redis_url() -> str:
    """Return the Redis of this run."""
    return os.environ["BENCH_REDIS_URL"]


@lru_cache(maxsize=1)
def tally() -> Tally:
    """Return this run's tally."""
    return Tally(folder() / "tally")


def empty() -> None:
    """Do nothing, counted."""
    counted = tally()
    counted.began()
    counted.done()


_device = threading.Lock()


def device(pictures: int) -> None:
    """Occupy the one device as long as a batch of so many pictures takes."""
    with _device:
        time.sleep((DEVICE_MS + PER_ITEM_MS * pictures) / 1_000)


def picture(seed: int) -> str:
    """Make one picture as a tutorial does: the device, then PNG as Pillow writes it, then the store."""
    tally().began()
    device(1)
    name = store(seed)
    tally().done()
    return name


def store(seed: int) -> str:
    """Write the picture of a seed as a PNG of Pillow's default; return its name."""
    from PIL import Image

    target = folder() / "pictures" / f"{seed}.png"
    target.parent.mkdir(exist_ok=True)
    x, y = seed * 37 % 256, seed * 101 % 256
    Image.fromarray(_canvas()[y : y + SIZE_PX, x : x + SIZE_PX]).save(target)
    return target.name


@lru_cache(maxsize=1)
def _canvas() -> Any:
    """Return the surface our own stub cuts its pictures from: slopes with a sensor's noise, HWC uint8."""
    import numpy as np

    rows = np.linspace(0, 200, SIZE_PX + 256)[:, None, None]
    columns = np.linspace(0, 3, SIZE_PX + 256)[None, :, None]
    slope = rows * 0.5 + 50 * np.sin(columns + np.arange(3)) + 64
    noise = np.random.default_rng(0).normal(0, 3, slope.shape)
    return np.clip(slope + noise, 0, 255).astype(np.uint8)


def long_job() -> None:
    """Run 100 steps of 20 ms; whoever can interrupt it may do so at any of them."""
    for step in range(1, STEPS + 1):
        time.sleep(STEP_MS / 1_000)
        tally().reached(step)


async def long_job_async() -> None:
    """Run the same steps in an event loop, where a cancel may arrive between any two."""
    for step in range(1, STEPS + 1):
        await asyncio.sleep(STEP_MS / 1_000)
        tally().reached(step)


# ------------------------------------------------------------------------------------------------ measuring

WARM_UP = 20
PATIENCE_S = 20.0


def latencies(call: Callable[[], object], count: int) -> list[float]:
    """Return milliseconds of `count` calls, one after the other, after a few that are not counted."""
    for _ in range(WARM_UP):
        call()
    found = []
    for _ in range(count):
        began = time.perf_counter()
        call()
        found.append((time.perf_counter() - began) * 1_000)
    return found


def cancels(
    steps: Sequence[int],
    submit_long: Callable[[], Any],
    submit_next: Callable[[], object],
    cancel: Callable[[Any], object],
) -> list[float]:
    """Return, for each step, seconds from the cancel at that step until the job behind has run.

    Raises:
        TimeoutError: the long job did not start, or the one behind did not run.
    """
    counted, found = tally(), []
    for step in steps:
        counted.reset()
        job = submit_long()
        submit_next()
        _until(lambda step=step: counted.step >= step, "the long job did not start")  # type: ignore[misc]
        asked_at = time.time()
        cancel(job)
        _until(lambda: counted.count > 0, "the job behind did not run")
        found.append(counted.last_end - asked_at)
    return found


def until_up(look: Callable[[], object]) -> None:
    """Wait until a call succeeds.

    Raises:
        TimeoutError: it never did.
    """

    def up() -> bool:
        try:
            look()
        except Exception:  # noqa: BLE001 - whatever a server that is not there yet makes of it
            return False
        return True

    _until(up, "the server did not answer", limit_s=60.0)


def post(path: str, body: object = None, *, method: str = "POST") -> Any:
    """Send JSON to the peer's server over this thread's kept connection; return the answer's JSON.

    Raises:
        OSError: the server refused, or does not answer.
    """
    if not hasattr(_wires, "wire"):
        _wires.wire = http.client.HTTPConnection("127.0.0.1", port(), timeout=60)
    wire: http.client.HTTPConnection = _wires.wire
    try:
        text = None if body is None else json.dumps(body)
        wire.request(method, path, text, {"Content-Type": "application/json"})
        answer = wire.getresponse()
        told = answer.read()
    except (OSError, http.client.HTTPException):
        wire.close()
        raise
    if answer.status >= 400:
        raise OSError(f"{path}: {answer.status} {told[:200]!r}")
    return json.loads(told) if told[:1] in (b"{", b"[") else None


def port() -> int:
    """Return the port a peer with a server of its own shall use."""
    return int(os.environ["BENCH_PORT"])


def side_by_side(call: Callable[[int], object], count: int, *, threads: int) -> None:
    """Call `count` times from several threads, as that many clients would."""
    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(call, range(count)):
            pass


def main(**verbs: Callable[..., object]) -> None:
    """Run the verb named on the command line with its whole numbers; print what it returns as JSON."""
    verb, *arguments = sys.argv[1:]
    found = verbs[verb](*(int(one) if one.isdigit() else one for one in arguments))
    print(json.dumps(found), flush=True)


def run(*command: str) -> None:
    """Become another command, which must lie beside this Python."""
    binary = Path(sys.executable).parent / command[0]
    os.execv(binary, [str(binary), *command[1:]])  # noqa: S606 - the bench's own command


_wires = threading.local()


def _until(look: Callable[[], bool], otherwise: str, *, limit_s: float = PATIENCE_S) -> None:
    deadline = time.monotonic() + limit_s
    while not look():
        if time.monotonic() > deadline:
            raise TimeoutError(otherwise)
        time.sleep(0.001)
