"""The arrivals of a batch: what is stored is published as it comes, and nobody is waited for."""

from __future__ import annotations

import threading

from pixelkiln_worker.compute import Work
from pixelkiln_worker.delivery import Arrivals, Stored
from pixelkiln_worker.families.contract import Task
from pixelkiln_worker.held import HeldJob
from tests.worker_processes import stub_spec


def stored(name: str) -> Stored:
    spec = stub_spec(name)
    job = HeldJob(spec=spec, attempt=1)
    return Stored(work=Work(job, Task(spec=spec, images={})), result=name, pictures=0)


def names(several: list[Stored]) -> list[str]:
    return [one.result for one in several]


def test_what_has_come_is_given_together() -> None:
    arrivals = Arrivals(3)
    for name in ("a", "b", "c"):
        arrivals.put(stored(name))
    assert [names(several) for several in arrivals] == [["a", "b", "c"]]


def test_the_first_does_not_wait_for_the_second() -> None:
    arrivals, given = Arrivals(2), []
    arrivals.put(stored("a"))
    for several in arrivals:
        given.append(names(several))
        if len(given) == 1:
            threading.Timer(0.05, arrivals.put, [stored("b")]).start()
    assert given == [["a"], ["b"]]


def test_what_could_not_be_stored_is_waited_for_but_not_given() -> None:
    arrivals = Arrivals(3)
    for one in (None, stored("a"), None):
        arrivals.put(one)
    assert [names(several) for several in arrivals] == [["a"]]


def test_an_empty_batch_gives_nothing() -> None:
    assert list(Arrivals(0)) == []
