"""What follows from queues, costs and workers: seconds, how many workers, which can go, when jobs end."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pixelkiln.scaling import Outlook
from pixelkiln_shared.costs import Cost
from pixelkiln_shared.fleet import State, WorkerInfo, serves
from pixelkiln_shared.ledger.contract import LaneStats

NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)
A, B, C = LANES = ("generate.a", "generate.b", "segment.c")
TARGET_S = 60.0


def lane(name: str = A, *, waiting: int = 0, running: int = 0, each: int = 1_000) -> LaneStats:
    """Return a lane whose jobs are `each` of work."""
    return LaneStats(
        lane=name,
        waiting=waiting,
        running=running,
        oldest_s=0,
        work=each * waiting,
        running_work=each * running,
    )


def worker(
    name: str = "w1",
    *lanes: str,
    state: State = "ready",
    running: tuple[str, ...] = (),
    resident: tuple[str, ...] = (),
    unavailable: tuple[str, ...] = (),
    minutes: int = 0,
) -> WorkerInfo:
    """Return a worker that serves lane A unless others are named."""
    return WorkerInfo(
        id=name,
        host="host",
        pid=7,
        device="cpu",
        state=state,
        lanes=lanes or (A,),
        running=running,
        resident=resident,
        unavailable=dict.fromkeys(unavailable, "no weights"),
        started_at=NOON + timedelta(minutes=minutes),
        version="0",
    )


def outlook(
    lanes: Sequence[LaneStats] = (),
    workers: Sequence[WorkerInfo] = (),
    *,
    work_s: float | None = 0.001,
    load_s: float | None = None,
) -> Outlook:
    """Return a moment in which every lane costs `work_s`; None: nothing is learned."""
    cost = Cost(work_s=work_s, load_s=load_s)
    return Outlook(
        lanes={one.lane: one for one in lanes}, costs=dict.fromkeys(LANES, cost), workers=tuple(workers)
    )


# ------------------------------------------------------------------------------------------------ lanes


def test_seconds_of_work_are_what_waits_at_the_learned_cost() -> None:
    assert outlook([lane(waiting=30, running=5)]).waiting_s(A) == pytest.approx(30.0)


def test_a_lane_of_which_nothing_is_learned_has_no_seconds() -> None:
    assert outlook([lane(waiting=30)], work_s=None).waiting_s(A) is None
    assert Outlook(lanes={A: lane(waiting=1)}).waiting_s(A) is None


@pytest.mark.parametrize(
    ("info", "servable"),
    [
        (worker(), True),
        (worker("w1", B), False),
        (worker(state="starting"), False),
        (worker(state="draining"), False),
        (worker(unavailable=("a",)), False),
        (worker(unavailable=("b",)), True),
    ],
)
def test_a_lane_needs_a_ready_worker_that_could_load_its_model(info: WorkerInfo, servable: bool) -> None:
    assert outlook([], [info]).servable(A) is servable


# ------------------------------------------------------------------------------------------------ workers


@pytest.mark.parametrize(
    ("waiting", "running", "desired"),
    [(0, 0, 0), (0, 3, 1), (1, 0, 1), (60, 0, 1), (61, 0, 2), (600, 0, 10), (601, 9, 11)],
)
def test_as_many_workers_as_finish_in_time(waiting: int, running: int, desired: int) -> None:
    moment = outlook([lane(waiting=waiting, running=running)])
    assert moment.desired_workers(TARGET_S) == desired


def test_workers_that_are_at_work_stay_desired_when_nothing_waits() -> None:
    busy = [worker(f"w{number}", running=(f"job_{number}",)) for number in range(3)]
    idle, leaving = worker("w8"), worker("w9", state="draining", running=("job_9",))
    moment = outlook([lane(running=4)], [*busy, idle, leaving])
    assert moment.desired_workers(TARGET_S) == 3
    assert moment.safe_to_stop(TARGET_S) == ["w8"]


def test_never_more_workers_than_jobs() -> None:
    assert outlook([lane(waiting=2, each=10**9)]).desired_workers(TARGET_S) == 2


def test_a_lane_that_nobody_knows_counts_as_one_worker() -> None:
    known, unknown = lane(waiting=120), lane(B, waiting=500)
    moment = Outlook(lanes={A: known, B: unknown}, costs={A: Cost(work_s=0.001)})
    assert moment.desired_workers(TARGET_S) == 3


def test_when_nothing_waits_or_runs_every_idle_worker_can_go() -> None:
    assert set(outlook([], [worker("w1"), worker("w2")]).safe_to_stop(TARGET_S)) == {"w1", "w2"}


def test_as_many_stay_as_are_desired_and_the_youngest_go_first() -> None:
    workers = [worker(f"w{number}", minutes=number) for number in range(4)]
    assert outlook([lane(waiting=120)], workers).safe_to_stop(TARGET_S) == ["w3", "w2"]


def test_a_worker_with_the_model_that_is_waited_for_goes_last() -> None:
    workers = [worker("w1"), worker("w2", minutes=9, resident=("a",))]
    assert outlook([lane(waiting=1)], workers).safe_to_stop(TARGET_S) == ["w1"]


def test_the_only_worker_of_a_lane_stays() -> None:
    workers = [worker("w1", A, B), worker("w2", A, minutes=1), worker("w3", A, minutes=2)]
    assert outlook([lane(B, waiting=1)], workers).safe_to_stop(TARGET_S) == ["w3", "w2"]


def test_a_worker_that_holds_jobs_or_starts_is_left_alone() -> None:
    workers = [worker("w1", running=("job_1",)), worker("w2", state="starting")]
    assert outlook([lane(running=1)], workers).safe_to_stop(TARGET_S) == []


def test_a_draining_worker_can_go_once_it_is_through() -> None:
    workers = [worker("w1", state="draining"), worker("w2", state="draining", running=("job_1",))]
    assert outlook([lane(waiting=5)], workers).safe_to_stop(TARGET_S) == ["w1"]


counts = st.integers(0, 2_000)
moments = st.builds(
    lambda sizes, costs, workers: Outlook(
        lanes={
            name: lane(name, waiting=waiting, running=running, each=each)
            for name, (waiting, running, each) in zip(LANES, sizes, strict=True)
            if waiting + running
        },
        costs={name: Cost(work_s=cost) for name, cost in zip(LANES, costs, strict=True)},
        workers=tuple(
            worker(
                f"w{number}", *lanes, state=state, running=("job_1",) * busy, unavailable=bad, minutes=number
            )
            for number, (lanes, state, busy, bad) in enumerate(workers)
        ),
    ),
    st.tuples(*[st.tuples(counts, counts, st.integers(1, 10**6))] * 3),
    st.tuples(*[st.none() | st.floats(1e-6, 1.0)] * 3),
    st.lists(
        st.tuples(
            st.lists(st.sampled_from(LANES), min_size=1, max_size=3, unique=True),
            st.sampled_from(["starting", "ready", "ready", "ready", "draining"]),
            st.booleans(),
            st.sampled_from([(), (), ("a",)]),
        ),
        max_size=8,
    ),
)


@given(moments, st.floats(1, 3_600))
def test_desired_workers_are_between_one_and_the_jobs(moment: Outlook, target_s: float) -> None:
    desired = moment.desired_workers(target_s)
    jobs = sum(one.waiting + one.running for one in moment.lanes.values())
    assert (desired >= 1) is (jobs > 0)
    assert desired <= jobs


@given(moments, st.floats(1, 3_600))
def test_desired_workers_do_finish_in_time(moment: Outlook, target_s: float) -> None:
    seconds = [moment.waiting_s(name) or 0.0 for name in moment.lanes]
    jobs = sum(one.waiting + one.running for one in moment.lanes.values())
    desired = moment.desired_workers(target_s)
    in_time = sum(seconds) / max(desired, 1) <= target_s * (1 + 1e-9)
    assert in_time or desired == jobs, "unless there is a worker for each job already"


@given(moments, st.floats(1, 3_600), st.integers(1, 500))
def test_more_work_never_needs_fewer_workers(moment: Outlook, target_s: float, more: int) -> None:
    for name, stats in moment.lanes.items():
        grown = lane(name, waiting=stats.waiting + more, running=stats.running)
        larger = Outlook(
            lanes={**moment.lanes, name: max(grown, stats, key=lambda one: (one.work, one.waiting))},
            costs=moment.costs,
            workers=moment.workers,
        )
        if larger.lanes[name] is grown:
            assert larger.desired_workers(target_s) >= moment.desired_workers(target_s)


@given(moments, st.floats(1, 3_600))
def test_stopping_what_is_safe_strands_nothing(moment: Outlook, target_s: float) -> None:
    stopped = set(moment.safe_to_stop(target_s))
    by_id = {info.id: info for info in moment.workers}
    assert not any(by_id[name].running or by_id[name].state == "starting" for name in stopped)
    left = [info for info in moment.workers if info.id not in stopped]
    for name, stats in moment.lanes.items():
        if stats.waiting and moment.servable(name):
            assert any(serves(info, name) for info in left)
    ready = sum(info.state == "ready" for info in moment.workers)
    left_ready = sum(info.state == "ready" for info in left)
    assert left_ready == ready or left_ready >= moment.desired_workers(target_s)


# ------------------------------------------------------------------------------------------------ jobs


def test_a_job_waits_for_what_runs_and_what_is_ahead_and_runs_itself() -> None:
    moment = outlook([lane(waiting=10, running=2)], [worker(resident=("a",))])
    assert moment.waiting_ends_in_s(A, ahead=3_000, own=1_000) == pytest.approx(2 + 3 + 1)


def test_workers_share_what_is_ahead_but_not_the_job_itself() -> None:
    workers = [worker("w1", resident=("a",)), worker("w2")]
    moment = outlook([lane(waiting=10)], workers)
    assert moment.waiting_ends_in_s(A, ahead=4_000, own=1_000) == pytest.approx(4 / 2 + 1)


def test_a_worker_of_two_busy_lanes_gives_each_half() -> None:
    both, idle = lane(B, waiting=1), lane(C, running=1)
    moment = outlook([lane(waiting=9), both, idle], [worker("w1", A, B, C, resident=("a",))])
    assert moment.waiting_ends_in_s(A, ahead=4_000, own=1_000) == pytest.approx(4 * 2 + 1)


def test_the_model_is_loaded_first_where_no_worker_has_it() -> None:
    away = worker("w2", B, resident=("a",))
    cold = outlook([lane(waiting=1)], [worker(), away], load_s=7.0)
    assert cold.waiting_ends_in_s(A, ahead=0, own=1_000) == pytest.approx(8.0)
    assert outlook([lane(waiting=1)], [worker()]).waiting_ends_in_s(A, ahead=0, own=1_000) == 1.0


@pytest.mark.parametrize(
    "moment",
    [
        outlook([lane(waiting=1)], [worker()], work_s=None),
        outlook([lane(waiting=1)], []),
        outlook([lane(waiting=1)], [worker("w1", B)]),
        outlook([lane(waiting=1)], [worker(state="draining")]),
        outlook([lane(waiting=1)], [worker(unavailable=("a",))]),
    ],
    ids=["nothing learned", "no workers", "none of this lane", "draining", "cannot load"],
)
def test_where_nothing_tells_there_is_no_eta(moment: Outlook) -> None:
    assert moment.waiting_ends_in_s(A, ahead=0, own=1_000) is None


def test_a_running_job_ends_by_its_own_progress() -> None:
    moment = outlook([lane(running=1)], [worker()], work_s=None)
    assert moment.running_ends_in_s(A, own=1_000, elapsed_s=6, step=3, steps=4) == pytest.approx(2.0)
    assert moment.running_ends_in_s(A, own=1_000, elapsed_s=6, step=4, steps=4) == 0.0


def test_a_running_job_without_progress_ends_with_what_runs_beside_it() -> None:
    moment = outlook([lane(running=8)], [worker("w1"), worker("w2")])
    assert moment.running_ends_in_s(A, own=1_000, elapsed_s=1) == pytest.approx(8 / 2 - 1)
    assert moment.running_ends_in_s(A, own=1_000, elapsed_s=99) == 0.0
    assert outlook([lane(running=8)]).running_ends_in_s(A, own=1_000, elapsed_s=1) == pytest.approx(7.0)
    assert outlook([lane(running=8)], work_s=None).running_ends_in_s(A, own=1, elapsed_s=1) is None


@given(moments, st.lists(st.integers(0, 10**9), min_size=2, max_size=8))
def test_who_stands_further_back_ends_later(moment: Outlook, places: list[int]) -> None:
    for name in LANES:
        ends = [moment.waiting_ends_in_s(name, ahead=ahead, own=1_000) for ahead in sorted(places)]
        known = [one for one in ends if one is not None]
        assert len(known) in (0, len(ends))
        assert all(earlier <= later for earlier, later in pairwise(known))
        assert all(one > 0 for one in known)
