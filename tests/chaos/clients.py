"""Those who use the API while it is broken: each a thread that submits, polls, cancels and insists.

A client sends a job's POST again with the same idempotency key until it has an answer that says 2xx. It
never looks into Redis or the store: what it knows, it knows over HTTP.
"""

from __future__ import annotations

import random
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import httpx2

from tests.chaos.checker import KEY_LABEL, POISON_LABEL
from tests.chaos.history import Event, History
from tests.chaos.schedule import Size

TIMEOUT_S = 30.0
DEVICE_MS = (20, 100, 300, 500, 500)
CANCELED_SHARE = 0.03
_AGAIN_S = 0.3
_UNSURE = (500, 502, 503, 504)
_TERMINAL = {"succeeded", "failed", "canceled", "expired"}


@dataclass(slots=True)
class Traffic:
    """What the clients share with the hand that does the faults. `posting` counts POSTs under way."""

    history: History
    url: str
    over: threading.Event = field(default_factory=threading.Event)  # ask every job once more, then end
    given_up: threading.Event = field(default_factory=threading.Event)  # end
    posting: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


class Client:
    """One thread of requests. `waiting` are its jobs that it has not seen end."""

    def __init__(self, number: int, count: int, size: Size, seed: int, traffic: Traffic) -> None:
        self.number = number
        self.waiting: deque[str] = deque()
        self._jobs: list[str] = []
        self._count = count
        self._size = size
        self._seed = seed
        self._traffic = traffic
        self._dice = random.Random(f"pixelkiln-client-{seed}-{number}")
        self._http = httpx2.Client(base_url=traffic.url, timeout=TIMEOUT_S, trust_env=False)
        self.thread = threading.Thread(target=self._go, name=f"client-{number}", daemon=True)
        self.sent_all = False

    def _go(self) -> None:
        with self._http:
            self._submit_all()
            self.sent_all = True
            while not self._traffic.over.is_set():
                self._look()
                time.sleep(0.05)
            for job_id in self._jobs:
                if self._traffic.given_up.is_set():
                    return
                self._poll(job_id)

    def _submit_all(self) -> None:
        began, pause_s = time.monotonic(), self._size.seconds / self._count
        for index in range(self._count):
            job_id = self._submit(index)
            if job_id is None:
                return
            self._jobs.append(job_id)
            self.waiting.append(job_id)
            if self._dice.random() < CANCELED_SHARE:
                time.sleep(self._dice.uniform(0, 0.3))
                self._cancel(job_id)
            while time.monotonic() < began + pause_s * (index + 1):
                self._look()
                time.sleep(0.02)

    def _submit(self, index: int) -> str | None:
        key = f"{self._seed}-{self.number}-{index}"
        body = self._job(key, poison=self._is_poison(index))
        while not self._traffic.given_up.is_set():
            with self._traffic.lock:
                self._traffic.posting += 1
            try:
                seen = self._ask("submit", key, "POST", "/v1/jobs", json=body)
            finally:
                with self._traffic.lock:
                    self._traffic.posting -= 1
            if seen is not None:
                return str(seen["id"])
            time.sleep(_AGAIN_S * self._dice.uniform(0.5, 1.5))
        return None

    def _is_poison(self, index: int) -> bool:
        """The first client sends the poison, in the first half: it takes several lives, and time, to end."""
        spacing = max(1, self._count // (2 * self._size.poison)) if self._size.poison else 0
        return bool(spacing) and self.number == 0 and index % spacing == 1 and index < self._count / 2

    def _job(self, key: str, *, poison: bool) -> dict[str, Any]:
        options = {"device_ms": self._dice.choice(DEVICE_MS), "per_item_ms": 0}
        given = {"prompt": f"{key} [crash]" if poison else key, "seed": 1, "width": 64, "height": 64}
        given |= {"steps": self._dice.choice((1, 2)), "options": options}
        labels = {KEY_LABEL: key, **({POISON_LABEL: "1"} if poison else {})}
        return {"kind": "generate", "model": "stub", "input": given, "labels": labels}

    def _look(self) -> None:
        """Poll the job that was polled longest ago."""
        if self.waiting:
            job_id = self.waiting.popleft()
            seen = self._poll(job_id)
            if seen is None or seen["status"] not in _TERMINAL:
                self.waiting.append(job_id)

    def _poll(self, job_id: str) -> dict[str, Any] | None:
        return self._ask("poll", job_id, "GET", f"/v1/jobs/{job_id}")

    def _cancel(self, job_id: str) -> None:
        self._ask("cancel", job_id, "POST", f"/v1/jobs/{job_id}/cancel")

    def _ask(self, op: str, key: str, method: str, path: str, **more: Any) -> dict[str, Any] | None:
        """Send one request and write down what came of it; returns the job as answered, if it was."""
        if op == "submit":
            more["headers"] = {"Idempotency-Key": key}
        self._traffic.history.add(self.number, op, "invoke", key)
        began = time.monotonic()
        try:
            answer = self._http.request(method, path, **more)
        except httpx2.HTTPError:
            self._note(op, "unknown", key, began)
            return None
        if answer.status_code in (200, 202):
            seen = _seen(answer.json())
            self._note(op, "ok", key, began, status=answer.status_code, seen=seen)
            return seen
        unsure: Event = "unknown" if answer.status_code in _UNSURE else "fail"
        seen = {"code": _code(answer)}
        self._note(op, unsure, key, began, status=answer.status_code, seen=seen)
        return None

    def _note(self, op: str, event: Event, key: str, began: float, **more: Any) -> None:
        took_s = round(time.monotonic() - began, 3)
        self._traffic.history.add(self.number, op, event, key, took_s=took_s, **more)


def _seen(job: dict[str, Any]) -> dict[str, Any]:
    results = [artifact["sha256"] for artifact in job["artifacts"]]
    return {"id": job["id"], "status": job["status"], "results": results}


def _code(answer: httpx2.Response) -> str:
    try:
        return str(answer.json().get("code"))
    except ValueError:
        return ""


def make_clients(size: Size, seed: int, traffic: Traffic) -> list[Client]:
    """Return the clients of a run; together they send `size.jobs` jobs within `size.seconds`."""
    shares = [size.jobs // size.clients + (n < size.jobs % size.clients) for n in range(size.clients)]
    return [Client(number, count, size, seed, traffic) for number, count in enumerate(shares)]
