"""P11: what a worker process and an API process hold after 5,000 jobs, beside what they held after 500.

Every job goes the way of a user's: `POST /v1/jobs`, the ledger, Celery, the worker, files in a folder, and
`GET /v1/jobs/{id}` until it has succeeded. After each hundred, with nothing left to do, the processes are
looked at from outside. The jobs are the stub's, a picture of 256 x 256 each; at full length another pair of
processes lives through 1,500 of the embedded segmenter's, whose worker has torch in it.
"""

from __future__ import annotations

import base64
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import httpx2

from bench import batching, plots
from bench.results import Result, compared, unable
from bench.stage import Stage, free_port, stage
from pixelkiln_shared.ledger import redis_client
from pixelkiln_worker.imaging import png_of

JOBS, FULL_JOBS, SEGMENTED = 1_500, 5_000, 1_500
STEP = 100
WARM = 500  # jobs until caches are full; growth counts from here
MOST_GROWTH = 0.05
SIZE_PX = 256
PATIENCE_S = 120.0
PLOTS = Path(__file__).parent / "results"
STUB, SEGMENTER = "stub", "toyworld-classes"
_WHAT = "resident memory in MB"
_MIB = 1_048_576


@dataclass(frozen=True, kw_only=True, slots=True)
class Footprint:
    """A process as the kernel sees it: resident bytes, open handles, threads."""

    rss_bytes: int
    handles: int
    threads: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """Everything after so many jobs. `scratch_files` lie in the worker's folder for temporary files."""

    jobs: int
    worker: Footprint
    api: Footprint
    scratch_files: int
    redis_keys: int
    redis_bytes: int


def run(rounds: int, full: bool) -> list[Result]:
    """Measure once, whatever the rounds: one long life of the processes."""
    if not Path("/proc/self/statm").exists():
        return [unable("p11", _WHAT, peer_name="a process", goal=_goal(), why="only Linux is looked at here")]
    lives = {STUB: FULL_JOBS, SEGMENTER: SEGMENTED} if full else {STUB: JOBS}
    found = []
    for model, jobs in lives.items():
        samples = _live(model, jobs)
        _draw(model, samples)
        found += rows(model, samples)
    return found


def rows(model: str, samples: Sequence[Sample]) -> list[Result]:
    """Return what one life shows: memory and handles of both processes."""
    jobs = samples[-1].jobs
    kept = f"{_per_job(samples, 'redis_keys'):.1f} keys and {_per_job(samples, 'redis_bytes'):.0f} bytes"
    caveat = f"{samples[-1].scratch_files} temporary files at the end; Redis keeps {kept} a finished job"
    found = []
    for process in ("worker", "api"):
        name = f"the same {process} process after {WARM} jobs of {model}"
        before, after = growth(samples, process, "rss_bytes")
        found.append(
            compared(
                "p11",
                f"resident memory in MB after {jobs} jobs",
                [(after / _MIB, before / _MIB)],
                peer_name=f"memory of {name}",
                goal=_goal(),
                caveat=caveat,
                less_is_better=True,
            )
        )
        before, after = growth(samples, process, "handles")
        threads = max(getattr(sample, process).threads for sample in samples)
        found.append(
            compared(
                "p11",
                f"open handles after {jobs} jobs",
                [(after, before + threads)],
                peer_name=f"handles of {name}, and one for each of its {threads} threads",
                goal=1.0,
                caveat=f"{before:.0f} after {WARM} jobs; a pool opens a connection when more threads than "
                "before want one at once, until there is one for each",
                less_is_better=True,
            )
        )
    return found


def growth(samples: Sequence[Sample], process: str, name: str) -> tuple[float, float]:
    """Return a figure after the first 500 jobs and at the end, each the median of three samples."""
    values = [(sample.jobs, getattr(getattr(sample, process), name)) for sample in samples]
    around = [value for jobs, value in values if abs(jobs - WARM) <= STEP]
    return float(statistics.median(around)), float(statistics.median(value for _, value in values[-3:]))


def _draw(model: str, samples: Sequence[Sample]) -> None:
    series = {
        "worker": [(sample.jobs, sample.worker.rss_bytes / _MIB) for sample in samples],
        "API": [(sample.jobs, sample.api.rss_bytes / _MIB) for sample in samples],
        "Redis, data": [(sample.jobs, sample.redis_bytes / _MIB) for sample in samples],
    }
    title = f"Memory while jobs of {model} go through"
    plots.lines(PLOTS / f"p11-{model}.png", series, title=title, x="jobs done", y="MB")


def footprint(pid: int) -> Footprint:
    """Return what a process holds now (Linux)."""
    status = dict(
        line.split(":", 1)
        for line in Path(f"/proc/{pid}/status").read_text("utf-8").splitlines()
        if ":" in line
    )
    return Footprint(
        rss_bytes=1_024 * int(status["VmRSS"].split()[0]),
        handles=len(os.listdir(f"/proc/{pid}/fd")),
        threads=int(status["Threads"]),
    )


def _goal() -> float:
    return round(1 / (1 + MOST_GROWTH), 3)


def _per_job(samples: Sequence[Sample], name: str) -> float:
    first = next(sample for sample in samples if sample.jobs >= WARM)
    jobs = samples[-1].jobs - first.jobs
    return float(getattr(samples[-1], name) - getattr(first, name)) / max(1, jobs)


# -------------------------------------------------------------------------------------------------- the lives


def _live(model: str, jobs: int) -> list[Sample]:
    with tempfile.TemporaryDirectory(prefix="pixelkiln-bench-") as name:
        scratch = Path(name) / "tmp"
        scratch.mkdir()
        with (
            stage(models=model, environment={"TMPDIR": str(scratch)}) as ready,
            _api(ready) as (api_pid, url),
            httpx2.Client(base_url=url, timeout=PATIENCE_S) as client,
        ):
            samples = []
            for done in range(STEP, jobs + 1, STEP):
                _do(client, [_order(model, number) for number in range(done - STEP, done)])
                samples.append(_sample(ready, api_pid, scratch, done))
                print(f"p11: {_line(samples[-1])}", file=sys.stderr)
            return samples


def _order(model: str, number: int) -> dict[str, Any]:
    """Return the body of a request for a job; jobs of the stub all differ."""
    if model == STUB:
        given = {"prompt": f"hill {number}", "seed": number, "width": SIZE_PX, "height": SIZE_PX}
        return {"kind": "generate", "model": model, "input": given}
    picture = base64.b64encode(png_of(batching.picture(number % 8))).decode("ascii")
    return {"kind": "segment", "model": model, "input": {"image": {"base64": picture}}}


def _do(client: httpx2.Client, orders: Sequence[dict[str, Any]]) -> None:
    """Submit jobs one by one and look at each until it has succeeded."""
    ids = []
    for order in orders:
        answer = client.post("/v1/jobs", json=order)
        answer.raise_for_status()
        ids.append(answer.json()["id"])
    until = time.monotonic() + PATIENCE_S
    while ids:
        status = client.get(f"/v1/jobs/{ids[-1]}").json()["status"]
        if status == "succeeded":
            ids.pop()
        elif status in {"failed", "canceled", "expired"} or time.monotonic() > until:
            raise RuntimeError(f"a job of the benchmark is {status}")
        else:
            time.sleep(0.02)


def _sample(ready: Stage, api_pid: int, scratch: Path, done: int) -> Sample:
    with redis_client(ready.settings) as client:
        return Sample(
            jobs=done,
            worker=footprint(ready.worker_pid),
            api=footprint(api_pid),
            scratch_files=sum(1 for path in scratch.rglob("*") if path.is_file()),
            redis_keys=cast(int, client.dbsize()),
            redis_bytes=int(cast(dict[str, Any], client.info("memory"))["used_memory"]),
        )


@contextmanager
def _api(ready: Stage) -> Iterator[tuple[int, str]]:
    """Run an API process over the stage; gives its process id and address."""
    port = free_port()
    environment = {
        **os.environ,
        "PIXELKILN_REDIS_URL": ready.settings.redis_url,
        "PIXELKILN_STORAGE_URL": ready.settings.storage_url,
        "PIXELKILN_PORT": str(port),
        "PIXELKILN_STUB": "1",
        "PIXELKILN_LOG_LEVEL": "WARNING",
    }
    process = subprocess.Popen([sys.executable, "-m", "pixelkiln.api"], env=environment)
    url = f"http://127.0.0.1:{port}"
    try:
        _await(url, process)
        yield process.pid, url
    finally:
        process.terminate()
        process.wait(PATIENCE_S)


def _await(url: str, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + PATIENCE_S
    while True:
        try:
            if httpx2.get(f"{url}/healthz").is_success:
                return
        except httpx2.TransportError:
            pass
        if process.poll() is not None or time.monotonic() > until:
            raise RuntimeError("the API did not start")
        time.sleep(0.1)


def _line(sample: Sample) -> str:
    parts = [
        f"{name} {one.rss_bytes / _MIB:.1f} MB, {one.handles} handles, {one.threads} threads"
        for name, one in (("worker", sample.worker), ("API", sample.api))
    ]
    redis = f"Redis {sample.redis_keys} keys, {sample.redis_bytes / _MIB:.1f} MB"
    return f"{sample.jobs} jobs: {'; '.join(parts)}; {redis}; {sample.scratch_files} temporary files"
