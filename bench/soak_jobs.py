"""The jobs of a soak, of every kind and every end, and the clients that follow them over HTTP."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import Any

import httpx2

from bench.batching import picture
from bench.stage import until
from pixelkiln_worker.imaging import png_of

STUB, SEGMENTER = "stub", "toyworld-classes"
SIZE_PX, BIG_PX = 64, 2_560
ROUND = 20  # jobs until the same kinds come again
BIG_EVERY = 25  # rounds
PATIENCE_S = 300.0  # a busy machine makes twelve pictures of 8 MB in minutes
_TERMINAL = {"succeeded", "failed", "canceled", "expired"}
_MISHAPS = ("error", "batch", "oom_alone")
_BRISK = {"device_ms": 5, "per_item_ms": 1}


@dataclass(frozen=True, slots=True)
class Caller:
    """A client of the API. `hook` is told of the jobs that ask for it; `run` names the idempotency keys."""

    http: httpx2.Client
    hook: str
    run: str

    def polled(self, number: int) -> str:
        """A picture, looked for until it is there."""
        return self._ended(self._submit(_stub(number)))

    def waited(self, number: int) -> str:
        """A picture, the answer held until it is there."""
        return self._ended(self._submit(_stub(number), {"Prefer": "wait=30"}))

    def watched(self, number: int) -> str:
        """A picture of several steps, followed by its events until the stream ends."""
        job = self._submit(_stub(number, steps=4))
        with self.http.stream("GET", f"/v1/jobs/{job['id']}/events") as events:
            for _ in events.iter_lines():
                pass
        return self._ended(job)

    def segmented(self, number: int) -> str:
        """The masks of an uploaded picture."""
        answer = self.http.post("/v1/uploads", files={"file": ("scene.png", _scene(number % 8))})
        answer.raise_for_status()
        given = {"image": {"upload": answer.json()["id"]}}
        return self._ended(self._submit({"kind": "segment", "model": SEGMENTER, "input": given}))

    def repeated(self, number: int) -> str:
        """A picture asked for twice with one idempotency key."""
        headers = {"Idempotency-Key": f"{self.run}-{number}"}
        first, second = (self._submit(_stub(number), headers) for _ in range(2))
        if first["id"] != second["id"]:
            raise RuntimeError("one idempotency key made two jobs")
        return self._ended(second)

    def told(self, number: int) -> str:
        """A picture whose end a webhook tells."""
        return self._ended(self._submit(_stub(number) | {"webhook": {"url": self.hook}}))

    def failed(self, number: int) -> str:
        """A job that fails, alone, or with all that share its batch, or for want of memory."""
        mishap = _MISHAPS[number // ROUND % len(_MISHAPS)]
        return self._ended(self._submit(_stub(number, prompt=f"hill {number} [fail={mishap}]")), "failed")

    def canceled(self, number: int) -> str:
        """A longer job that is canceled at once, before or while it runs."""
        job = self._submit(_stub(number, steps=20, device_ms=1_000))
        self.http.post(f"/v1/jobs/{job['id']}/cancel").raise_for_status()
        return self._ended(job, "canceled", "succeeded")  # on a busy machine the cancel may come too late

    def odd(self, number: int) -> str:
        """Two pictures as WebP, or now and then one larger than what a store takes in one part."""
        if number // ROUND % BIG_EVERY == 0:
            return self.big(number)
        return self._ended(self._submit(_stub(number, count=2, format="webp")))

    def big(self, number: int) -> str:
        """A picture of more than 8 MB."""
        return self._ended(self._submit(_stub(number, width=BIG_PX, height=BIG_PX)))

    def _submit(self, body: dict[str, Any], headers: dict[str, str] | None = None) -> dict[str, Any]:
        answer = self.http.post("/v1/jobs", json=body, headers=headers or {})
        answer.raise_for_status()
        job: dict[str, Any] = answer.json()
        return job

    def _ended(self, job: dict[str, Any], *wanted: str) -> str:
        """Look at a job until it has ended; returns how."""
        seen = job

        def over() -> bool:
            nonlocal seen
            if seen["status"] not in _TERMINAL:
                seen = self.http.get(f"/v1/jobs/{job['id']}").raise_for_status().json()
            return seen["status"] in _TERMINAL

        until(over, f"job {job['id']} did not end", PATIENCE_S)
        status: str = seen["status"]
        if status not in (wanted or ("succeeded",)):
            raise RuntimeError(f"a job of the soak is {status}: {seen.get('error')}")
        return status


_MIX: tuple[Callable[[Caller, int], str], ...] = (
    *(Caller.polled, Caller.waited, Caller.segmented, Caller.watched, Caller.polled),
    *(Caller.failed, Caller.waited, Caller.repeated, Caller.told, Caller.polled),
    *(Caller.segmented, Caller.canceled, Caller.waited, Caller.watched, Caller.polled),
    *(Caller.told, Caller.repeated, Caller.polled, Caller.waited, Caller.odd),
)


def do(
    url: str, hook: str, run: str, numbers: Iterable[int], *, clients: int, big: bool = False
) -> Counter[str]:
    """Do these jobs, each followed to its end; returns how many ended how.

    Args:
        url: of the API.
        hook: the receiver of webhooks.
        run: tells idempotency keys of several soaks apart.
        numbers: which jobs; a number's kind is always the same.
        clients: how many jobs at a time.
        big: have pictures of more than 8 MB all the same.
    """
    limits = httpx2.Limits(max_connections=clients, max_keepalive_connections=clients)
    with (
        httpx2.Client(base_url=url, timeout=PATIENCE_S, limits=limits, trust_env=False) as http,
        ThreadPoolExecutor(clients) as hands,
    ):
        caller = Caller(http, hook, run)

        def one(number: int) -> str:
            return (Caller.big if big else _MIX[number % ROUND])(caller, number)

        return Counter(hands.map(one, numbers))


def _stub(number: int, *, device_ms: int = 5, **more: Any) -> dict[str, Any]:
    options = _BRISK | {"device_ms": device_ms}
    given = {"prompt": f"hill {number}", "seed": number, "width": SIZE_PX, "height": SIZE_PX}
    return {"kind": "generate", "model": STUB, "input": given | {"options": options} | more}


@cache
def _scene(index: int) -> bytes:
    """Return a scene of toyworld as a PNG."""
    return png_of(picture(index))
