"""Following and cancelling large groups: how often the server is asked, against one that only counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import httpx2
import pytest

from pixelkiln import Client
from pixelkiln_shared.jobs import Status


class Server:
    """A group of so many jobs, newest first in its listing; `act` is called before each look at the group."""

    def __init__(self, size: int, act: Callable[[Server], None]) -> None:
        self.states = [Status.QUEUED] * size
        self.asked: Counter[str] = Counter()
        self._act = act

    def client(self) -> Client:
        return Client("http://test", transport=httpx2.MockTransport(self._answer))

    def end(self, *numbers: int) -> None:
        for number in numbers:
            self.states[number] = Status.SUCCEEDED

    def _answer(self, request: httpx2.Request) -> httpx2.Response:
        path = request.url.path
        if path == "/v1/groups/grp_1/cancel":
            self.asked["cancel"] += 1
            waiting = [number for number, state in enumerate(self.states) if state is Status.QUEUED]
            for number in waiting[-3:]:
                self.states[number] = Status.CANCELED
            return httpx2.Response(202 if len(waiting) > 3 else 200, json=self._group())
        if path == "/v1/groups/grp_1":
            self._act(self)
            return httpx2.Response(200, json=self._group())
        self.asked["page"] += 1
        return httpx2.Response(200, json=self._page(request.url.params))

    def _group(self) -> dict[str, Any]:
        return {
            "id": "grp_1",
            "total": len(self.states),
            "counts": Counter(str(state) for state in self.states),
            "done": Status.QUEUED not in self.states,
            "created_at": "2026-11-20T12:00:00Z",
        }

    def _page(self, asked: httpx2.QueryParams) -> dict[str, Any]:
        below = int(asked.get("cursor") or len(self.states))
        fitting = [n for n in range(below - 1, -1, -1) if self.states[n] == asked["status"]]
        shown = fitting[: int(asked["limit"])]
        more = len(fitting) > len(shown)
        return {
            "jobs": [_job(n, self.states[n]) for n in shown],
            "next_cursor": str(shown[-1]) if more else None,
        }


def _job(number: int, status: Status) -> dict[str, Any]:
    created = "2026-11-20T12:00:00Z"
    facts = {"kind": "generate", "model": "stub", "priority": "standard", "created_at": created}
    return {"id": f"job_{number}", "status": status, **facts}


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pixelkiln.client.sync.time.sleep", lambda _: None)


def test_following_a_group_reads_each_part_of_its_listing_about_once() -> None:
    def fifty_more(server: Server) -> None:
        first = server.states.index(Status.QUEUED) if Status.QUEUED in server.states else 0
        server.end(*range(first, min(first + 50, len(server.states))))

    server = Server(5_000, fifty_more)
    with server.client() as client:
        ids = [job.id for job in client.group("grp_1").as_completed()]
    assert sorted(ids) == sorted(f"job_{number}" for number in range(5_000))
    assert server.asked["page"] <= 2 * 5_000 / 50, "two pages a look, however many have ended"


def test_what_ends_out_of_its_order_is_found_too() -> None:
    order = [*range(1_999, 1_000, -1), *range(1_001)]

    def some_more(server: Server) -> None:
        server.end(*(order.pop(0) for _ in range(min(100, len(order)))))

    server = Server(2_000, some_more)
    with server.client() as client:
        ids = [job.id for job in client.group("grp_1").as_completed()]
    assert len(ids) == len(set(ids)) == 2_000


def test_cancelling_a_group_goes_on_while_some_are_left() -> None:
    server = Server(10, lambda _: None)
    with server.client() as client:
        group = client.group("grp_1").cancel()
    assert group.counts[Status.CANCELED] == 10
    assert server.asked["cancel"] == 4


def test_a_server_that_cancels_a_group_at_once_is_asked_once() -> None:
    server = Server(3, lambda _: None)
    with server.client() as client:
        client.group("grp_1").cancel()
    assert server.asked["cancel"] == 1
