"""The users of a drill: some send jobs at a steady rate, some look at jobs all the while, over HTTP alone."""

from __future__ import annotations

import itertools
import random
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx2

from pixelkiln_shared.errors import RedisUnavailable
from pixelkiln_shared.jobs import Status
from pixelkiln_shared.ledger.contract import Record
from tests.chaos.drills.report import quantile
from tests.chaos.stage import TENANT, Stage

TIMEOUT_S = 60.0
STUB_ONLY = {"PIXELKILN_WORKER_MODELS": "stub"}
AGAIN_S = 0.3
RECENT = 1_000  # records of one look at the ledger
ENDED = {"succeeded", "failed", "canceled", "expired"}


def stub_job(prompt: str, *, side_px: int = 64, steps: int = 1, **options: float) -> dict[str, Any]:
    """Return a job of the model that sleeps; `options` are its own."""
    given = {"prompt": prompt, "seed": 1, "width": side_px, "height": side_px, "steps": steps}
    return {"kind": "generate", "model": "stub", "input": {**given, "options": options}}


class User:
    """Speaks to one API. Safe for threads."""

    def __init__(self, url: str) -> None:
        self._http = httpx2.Client(
            base_url=url, timeout=TIMEOUT_S, trust_env=False, limits=httpx2.Limits(max_connections=None)
        )
        self.answers: Counter[str] = Counter()  # to POSTs of jobs
        self.unpolite = 0  # 429 and 503 without Retry-After
        self.slowest_s = 0.0

    def submit(self, job: dict[str, Any], *, until: Callable[[], bool] = lambda: False) -> str | None:
        """Send a job, again under one key when it is told to, until it is accepted; returns its id."""
        key = secrets.token_hex(8)
        while not until():
            pause_s = AGAIN_S
            began = time.monotonic()
            try:
                answer = self._http.post("/v1/jobs", json=job, headers={"Idempotency-Key": key})
            except httpx2.HTTPError:
                self.answers["cut"] += 1
            else:
                self.slowest_s = max(self.slowest_s, time.monotonic() - began)
                self.answers[str(answer.status_code)] += 1
                if answer.status_code in (200, 202):
                    return str(answer.json()["id"])
                if answer.status_code in (429, 503):
                    self.unpolite += "retry-after" not in answer.headers
                    pause_s = float(answer.headers.get("retry-after", AGAIN_S))
                else:
                    answer.raise_for_status()
            time.sleep(pause_s * random.uniform(1.0, 1.5))
        return None

    def get(self, job_id: str) -> httpx2.Response:
        """Ask for a job as it is now."""
        return self._http.get(f"/v1/jobs/{job_id}")

    def cancel(self, job_id: str) -> dict[str, Any]:
        """Cancel a job; returns it as acknowledged."""
        answer = self._http.post(f"/v1/jobs/{job_id}/cancel")
        answer.raise_for_status()
        found: dict[str, Any] = answer.json()
        return found


class Looks:
    """What those who look have seen. `took_s` of each answer; `refused` those that were no 200."""

    def __init__(self) -> None:
        self.took_s: list[float] = []
        self.refused: Counter[str] = Counter()

    def shown(self) -> str:
        """Return median, 99th percentile and longest, and how many answers there were."""
        times = [quantile(self.took_s, share) * 1_000 for share in (0.5, 0.99, 1.0)]
        return f"{', '.join(f'{ms:.0f}' for ms in times)} ms; {len(self.took_s):,}"


@contextmanager
def sending(
    user: User, ids: list[str], rate: float, job: Callable[[int], dict[str, Any]], hands: int = 4
) -> Iterator[None]:
    """Send `rate` jobs a second, appended to `ids` when they are accepted, until the block ends."""
    numbers, began, over = itertools.count(), time.monotonic(), threading.Event()

    def send() -> None:
        while not over.is_set():
            number = next(numbers)
            if over.wait(max(0.0, began + number / rate - time.monotonic())):
                return
            job_id = user.submit(job(number), until=over.is_set)
            if job_id is not None:
                ids.append(job_id)

    with _running([threading.Thread(target=send, daemon=True) for _ in range(hands)], over):
        yield


@contextmanager
def looking(user: User, ids: Callable[[], Sequence[str]], looks: Looks, rate: float = 20.0) -> Iterator[None]:
    """Ask for one of `ids`, `rate` times a second, until the block ends."""
    over, dice = threading.Event(), random.Random(1)

    def look() -> None:
        while not over.wait(1 / rate):
            known = ids()
            if not known:
                continue
            began = time.monotonic()
            try:
                answer = user.get(dice.choice(known))
            except httpx2.HTTPError as error:
                looks.refused[type(error).__name__] += 1
            else:
                looks.took_s.append(time.monotonic() - began)
                if answer.status_code != 200:
                    looks.refused[str(answer.status_code)] += 1

    with _running([threading.Thread(target=look, daemon=True)], over):
        yield


@contextmanager
def watching(look: Callable[[], None], every_s: float) -> Iterator[None]:
    """Call `look` every so often until the block ends."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(every_s):
            with suppress(OSError, RedisUnavailable):
                look()

    with _running([threading.Thread(target=watch, daemon=True)], over):
        yield


@contextmanager
def _running(threads: Sequence[threading.Thread], over: threading.Event) -> Iterator[None]:
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join()


def recent(stage: Stage, status: Status | None = None) -> tuple[Record, ...]:
    """Return the newest records, of one status or all; none while Redis is away."""
    with suppress(RedisUnavailable):
        return tuple(stage.ledger.jobs(TENANT, status=status, limit=RECENT).records)
    return ()


def unsuccessful(stage: Stage, ids: Iterable[str]) -> int:
    """Return how many of those accepted are not in the ledger, or did not succeed."""
    found = {record.id for record in stage.records() if record.status is Status.SUCCEEDED}
    return sum(name not in found for name in ids)


def open_jobs(stage: Stage) -> int:
    """Return how many jobs have not ended."""
    counts = stage.ledger.counts(TENANT)
    return sum(count for status, count in counts.items() if not status.terminal)


def seconds_until(look: Callable[[], bool], at_most_s: float) -> float:
    """Return how long it took until it was so, or infinity."""
    began = time.monotonic()
    while time.monotonic() < began + at_most_s:
        if look():
            return time.monotonic() - began
        time.sleep(0.1)
    return float("inf")


def rss_mb(pid: int) -> float:
    """Return the resident memory of a process; 0 when it is gone."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) / 1_024
    return 0.0


def processor_s(pid: int) -> tuple[float, float]:
    """Return how long the threads of a process have had a processor, and how long they waited for one."""
    ran = waited = 0
    for path in Path(f"/proc/{pid}/task").glob("*/schedstat"):
        with suppress(OSError, ValueError):
            fields = path.read_text().split()
            ran, waited = ran + int(fields[0]), waited + int(fields[1])
    return ran / 1e9, waited / 1e9
