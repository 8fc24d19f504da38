"""Those who use the API while it is broken: each a thread that submits, polls, cancels and insists.

A client sends a POST again with the same idempotency key until it has an answer that says 2xx. It never looks
into Redis or the store: what it knows, it knows over HTTP.
"""

from __future__ import annotations

import random
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import httpx2

from tests.chaos.history import Event, History
from tests.chaos.orders import PARENT, UPLOAD, Order, Post, Shape, other, plan
from tests.chaos.schedule import Size
from tests.picture_files import photo, saved

TIMEOUT_S = 30.0
PICTURE_PX = 32
_AGAIN_S = 0.3
_UNSURE = (500, 502, 503, 504)
_TERMINAL = {"succeeded", "failed", "canceled", "expired"}


@dataclass(slots=True)
class Traffic:
    """What the clients share with the hand that does the faults. `posting` counts POSTs under way."""

    history: History
    url: str
    hook_url: str = ""
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
        self._uploads: list[str] = []
        self._orders = plan(number, count, size, seed, traffic.hook_url)
        self._pause_s = size.seconds / count if count else 0.0
        self._traffic = traffic
        self._http = httpx2.Client(base_url=traffic.url, timeout=TIMEOUT_S, trust_env=False)
        self.thread = threading.Thread(target=self._go, name=f"client-{number}", daemon=True)
        self.sent_all = False

    def _go(self) -> None:
        with self._http:
            self._send_all()
            self.sent_all = True
            while not self._traffic.over.is_set():
                self._look()
                time.sleep(0.05)
            for job_id in self._jobs:
                if self._traffic.given_up.is_set():
                    return
                self._poll(job_id)

    def _send_all(self) -> None:
        began, sent = time.monotonic(), 0
        for order in self._orders:
            self._do(order)
            sent += order.jobs
            while time.monotonic() < began + self._pause_s * sent:
                self._look()
                time.sleep(0.02)

    # ---------------------------------------------------------------------------------------------- one order

    def _do(self, order: Order) -> None:
        """Send an order and do to it what it says."""
        made: list[str] = []
        group = ""
        for post in order.posts:
            body = self._filled(post.body, made, fresh=order.fresh)
            seen = self._submit(post, body, twin=order.twin) if body else None
            if seen is None:
                return
            made += seen["ids"]
            group = seen["group"]
            self._jobs += seen["ids"]
            self.waiting += seen["ids"]
        if order.reuse:
            first = order.posts[0]
            body = self._filled(other(first), made, fresh=False)
            if body:
                self._ask("reuse", first.key, "POST", first.path, json=body, keyed=True)
        if order.cancel_s is not None:
            time.sleep(order.cancel_s)
            self._cancel(made[0], group if order.shape is Shape.GROUP else "")

    def _filled(self, body: dict[str, Any], made: list[str], *, fresh: bool) -> dict[str, Any] | None:
        """Put ids where the body lacks them; None when the run is over before there is one."""
        image = body.get("input", {}).get("image")
        if image == PARENT:
            return body | {"input": {"image": {"job": made[0]}}}
        if image != UPLOAD:
            return body
        upload = self._upload() if fresh or not self._uploads else self._uploads[-1]
        return body | {"input": {"image": {"upload": upload}}} if upload else None

    def _upload(self) -> str | None:
        picture = saved(photo(PICTURE_PX, PICTURE_PX), "PNG")
        name = f"picture-{self.number}-{len(self._uploads)}"
        seen = self._insist("upload", name, "/v1/uploads", files={"file": (f"{name}.png", picture)})
        if seen is None:
            return None
        self._uploads.append(str(seen["id"]))
        return self._uploads[-1]

    def _submit(self, post: Post, body: dict[str, Any], *, twin: bool) -> dict[str, Any] | None:
        """Send a POST until it is accepted, where asked twice at the same time; returns what was answered."""
        if not twin:
            return self._insist("submit", post.key, post.path, json=body, keyed=True)
        arguments = ("submit", post.key, post.path)
        beside = threading.Thread(target=self._insist, args=arguments, kwargs={"json": body, "keyed": True})
        beside.start()
        seen = self._insist(*arguments, json=body, keyed=True)
        beside.join()
        return seen

    def _insist(self, op: str, key: str, path: str, **more: Any) -> dict[str, Any] | None:
        while not self._traffic.given_up.is_set():
            with self._traffic.lock:
                self._traffic.posting += 1
            try:
                seen = self._ask(op, key, "POST", path, **more)
            finally:
                with self._traffic.lock:
                    self._traffic.posting -= 1
            if seen is not None:
                return seen
            time.sleep(_AGAIN_S * random.uniform(0.5, 1.5))
        return None

    # -------------------------------------------------------------------------------------------- one request

    def _look(self) -> None:
        """Poll the job that was polled longest ago."""
        if self.waiting:
            job_id = self.waiting.popleft()
            seen = self._poll(job_id)
            if seen is None or seen["status"] not in _TERMINAL:
                self.waiting.append(job_id)

    def _poll(self, job_id: str) -> dict[str, Any] | None:
        return self._ask("poll", job_id, "GET", f"/v1/jobs/{job_id}")

    def _cancel(self, job_id: str, group: str) -> None:
        if group:
            self._ask("cancel_group", group, "POST", f"/v1/groups/{group}/cancel")
        else:
            self._ask("cancel", job_id, "POST", f"/v1/jobs/{job_id}/cancel")

    def _ask(
        self, op: str, key: str, method: str, path: str, *, keyed: bool = False, **more: Any
    ) -> dict[str, Any] | None:
        """Send one request and write down what came of it; returns what was answered, if it was 2xx."""
        if keyed:
            more["headers"] = {"Idempotency-Key": key}
        self._traffic.history.add(self.number, op, "invoke", key)
        began = time.monotonic()
        try:
            answer = self._http.request(method, path, **more)
        except httpx2.HTTPError:
            self._note(op, "unknown", key, began)
            return None
        if answer.is_success:
            seen = _seen(op, answer.json())
            self._note(op, "ok", key, began, status=answer.status_code, seen=seen)
            return seen
        unsure: Event = "unknown" if answer.status_code in _UNSURE else "fail"
        seen = {"code": _code(answer)}
        self._note(op, unsure, key, began, status=answer.status_code, seen=seen)
        return None

    def _note(self, op: str, event: Event, key: str, began: float, **more: Any) -> None:
        took_s = round(time.monotonic() - began, 3)
        self._traffic.history.add(self.number, op, event, key, took_s=took_s, **more)


def _seen(op: str, answer: dict[str, Any]) -> dict[str, Any]:
    """Return of an answer what the judge asks for."""
    if op in ("submit", "reuse"):
        steps = answer.get("steps", {}).values()
        return {"ids": answer.get("ids") or list(steps) or [answer["id"]], "group": answer.get("group") or ""}
    if op == "cancel_group":
        return {"id": answer["id"], "counts": answer["counts"]}
    if op == "upload":
        return {"id": answer["id"]}
    results = [artifact["sha256"] for artifact in answer["artifacts"]]
    return {"id": answer["id"], "status": answer["status"], "results": results}


def _code(answer: httpx2.Response) -> str:
    try:
        return str(answer.json().get("code"))
    except ValueError:
        return ""


def make_clients(size: Size, seed: int, traffic: Traffic) -> list[Client]:
    """Return the clients of a run; together they send `size.jobs` jobs within `size.seconds`."""
    shares = [size.jobs // size.clients + (n < size.jobs % size.clients) for n in range(size.clients)]
    return [Client(number, count, size, seed, traffic) for number, count in enumerate(shares)]
