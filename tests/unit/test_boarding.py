"""Who rides in a batch, and who missed it."""

from __future__ import annotations

import threading

from pixelkiln_worker.boarding import Boarding
from pixelkiln_worker.compute import Work
from pixelkiln_worker.families.contract import Task
from pixelkiln_worker.held import HeldJob
from tests.worker_processes import stub_spec


def job() -> HeldJob:
    return HeldJob(spec=stub_spec(), attempt=1)


def work(of: HeldJob) -> Work:
    return Work(of, Task(spec=of.spec))


def test_jobs_ride_in_the_order_in_which_they_are_ready() -> None:
    boarding, first, second = Boarding(), job(), job()
    boarding.expect([first, second])
    works = [work(second), work(first)]
    for one in works:
        boarding.board(one.job, one)
    assert boarding.close() == works
    assert boarding.missed() == []


def test_who_is_not_ready_in_time_missed_it() -> None:
    boarding, ready, late = Boarding(), job(), job()
    boarding.expect([ready, late])
    boarding.board(ready, riding := work(ready))
    assert boarding.missed() == []
    assert boarding.close() == [riding]
    boarding.board(late, work(late))
    assert boarding.close() == [riding]
    assert boarding.missed() == [late]


def test_a_job_that_never_will_be_ready_is_not_waited_for() -> None:
    boarding, bad = Boarding(), job()
    boarding.expect([bad])
    assert not boarding.wait(0.01)
    boarding.board(bad, None)
    assert boarding.wait(0.01)
    assert boarding.close() == []


def test_closing_ends_every_wait() -> None:
    boarding = Boarding()
    boarding.expect([job()])
    assert not boarding.wait_closed(0.01)
    closing = threading.Thread(target=boarding.close)
    closing.start()
    assert boarding.wait_closed(5)
    assert boarding.wait(5)
    closing.join()
