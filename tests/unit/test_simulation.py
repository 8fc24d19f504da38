"""The simulation of many workers: nothing is lost, time runs forward, small traces come out as by hand."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bench.desks import LedgerDesk, QueueDesk, VirtualClock
from bench.simulation import Machine, SimBatch, SimJob, SimModel, Simulation, SimWorker
from bench.traces import zipf
from pixelkiln_shared.testing.ledger import MemoryLedger
from pixelkiln_worker.choices import longest_wait_s, max_wait_s

MODELS = {
    name: SimModel(id=name, load_s=4.0, fixed_s=1.0, per_row_s=0.5, max_batch=2) for name in ("a", "b", "c")
}


def twin_desk(models: dict[str, SimModel], *, busy: float = 0.0) -> LedgerDesk:
    clock = VirtualClock()
    return LedgerDesk(MemoryLedger(clock), clock, models, busy=busy)


class Noting(QueueDesk):
    """A queue that notes when it was asked and what was loaded when a batch had run."""

    def __init__(self) -> None:
        super().__init__("fifo", max_batch=2)
        self.asked_s: list[float] = []
        self.held: list[int] = []

    def claim(self, now_s: float, worker: SimWorker) -> SimBatch | None:
        self.asked_s.append(now_s)
        return super().claim(now_s, worker)

    def done(self, now_s: float, worker: SimWorker, batch: SimBatch) -> None:
        self.held.append(sum(worker.resident.values()))


def one_worker(*, room: int = 1, models: dict[str, SimModel] = MODELS) -> list[Machine]:
    return [Machine(id="w1", models=tuple(models), memory_bytes=room)]


def job(number: int, at_s: float, model: str) -> SimJob:
    return SimJob(id=f"job_{number}", at_s=at_s, model=model)


def test_a_small_trace_comes_out_as_by_hand() -> None:
    trace = [job(0, 0.0, "a"), job(1, 1.0, "a"), job(2, 5.0, "b"), job(3, 5.5, "a")]
    served = Simulation(MODELS, one_worker(), QueueDesk("fifo"), top_up_after_load=True).run(trace)
    # a loads until 4, takes job 1 along, runs 2 s; b loads until 10, runs 1.5 s; a again until 15.5
    assert [(one.job.id, one.batch, one.started_s, one.ended_s) for one in served] == [
        ("job_0", 2, 4.0, 6.0),
        ("job_1", 2, 4.0, 6.0),
        ("job_2", 1, 10.0, 11.5),
        ("job_3", 1, 15.5, 17.0),
    ]


def test_our_rule_serves_what_is_loaded_first() -> None:
    trace = [job(0, 0.0, "a"), job(1, 1.0, "a"), job(2, 5.0, "b"), job(3, 5.5, "a")]
    served = Simulation(MODELS, one_worker(), twin_desk(MODELS)).run(trace)
    assert [one.job.id for one in served] == ["job_0", "job_1", "job_3", "job_2"]


def test_without_a_second_top_up_a_batch_stays_as_it_was_before_the_load() -> None:
    trace = [job(0, 0.0, "a"), job(1, 1.0, "a")]
    served = Simulation(MODELS, one_worker(), QueueDesk("fifo")).run(trace)
    assert [one.batch for one in served] == [1, 1]


def test_the_next_batch_may_be_claimed_before_the_device_is_free() -> None:
    trace = [job(number, 0.0, "a") for number in range(4)]
    desk = Noting()
    sim = Simulation(MODELS, one_worker(), desk, lead=lambda run_s: 0.5)
    assert [one.started_s for one in sim.run(trace)] == [4.0, 4.0, 6.0, 6.0]
    assert desk.asked_s[:2] == [0.0, 5.5]


@pytest.mark.parametrize("busy", [0.0, 1.0])
def test_calls_take_virtual_time_when_asked_to(busy: float) -> None:
    machines = [Machine(id=f"w{number}", models=("a",), memory_bytes=1) for number in range(3)]
    desk = twin_desk(MODELS, busy=busy)
    served = Simulation(MODELS, machines, desk).run([job(number, 0.0, "a") for number in range(6)])
    calls_s = sum(desk.took_s["submit"] + desk.took_s["claim"][:3])  # one after the other
    assert max(one.started_s for one in served) == pytest.approx(4.0 + busy * calls_s)


@pytest.mark.parametrize("rule", ["ours", "fifo", "lookahead", "longest"])
def test_every_job_is_served_once_and_after_it_came(rule: str) -> None:
    trace = zipf(tuple(MODELS), jobs=120, per_s=0.8, seed=1)
    desk = twin_desk(MODELS) if rule == "ours" else QueueDesk(rule, max_batch=2)  # type: ignore[arg-type]
    machines = [*one_worker(), Machine(id="w2", models=("a", "b"), memory_bytes=2)]
    sim = Simulation(MODELS, machines, desk)
    served = sim.run(trace)
    assert Counter(one.job.id for one in served) == Counter(job.id for job in trace)
    assert all(one.job.at_s <= one.started_s < one.ended_s for one in served)
    assert all(one.worker == "w1" for one in served if one.job.model == "c")
    assert [one.ended_s for one in served] == sorted(one.ended_s for one in served)
    end_s = served[-1].ended_s
    assert all(worker.busy_s + worker.loading_s <= end_s for worker in sim.workers)


def test_a_worker_never_holds_more_than_fits() -> None:
    desk = Noting()
    Simulation(MODELS, one_worker(room=2), desk).run(zipf(tuple(MODELS), jobs=60, per_s=1, seed=2))
    assert max(desk.held) == 2


def test_a_trace_nobody_can_serve_is_an_error() -> None:
    sim = Simulation(MODELS, [Machine(id="w1", models=("a",), memory_bytes=1)], QueueDesk("fifo"))
    with pytest.raises(RuntimeError, match="nobody"):
        sim.run([job(0, 0.0, "b")])


@st.composite
def fleets(draw: st.DrawFn) -> tuple[dict[str, SimModel], list[Machine], list[SimJob]]:
    """Draw models of any cost, workers that serve some of them each, a flood for one, few for the rest."""
    names = [f"m{number}" for number in range(draw(st.integers(2, 5)))]
    tenths = st.integers(0, 40).map(lambda value: value / 10)
    models = {
        name: SimModel(id=name, load_s=draw(tenths), fixed_s=1 + draw(tenths), per_row_s=0.1, max_batch=2)
        for name in names
    }
    machines = [Machine(id="all", models=tuple(names), memory_bytes=draw(st.integers(1, 3)))]
    if draw(st.booleans()):
        some = draw(st.lists(st.sampled_from(names), min_size=1, unique=True))
        machines.append(Machine(id="some", models=tuple(some), memory_bytes=1))
    arrivals = draw(st.lists(st.tuples(st.integers(0, 100), st.sampled_from(names)), min_size=1, max_size=40))
    flood = [(0, names[0])] * draw(st.sampled_from([0, 150]))
    trace = [job(number, float(at_s), model) for number, (at_s, model) in enumerate(flood + arrivals)]
    return models, machines, trace


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(fleets())
def test_no_lane_is_passed_over_longer_than_the_printed_bound(
    fleet: tuple[dict[str, SimModel], list[Machine], list[SimJob]],
) -> None:
    models, machines, trace = fleet
    desk = twin_desk(models)
    Simulation(models, machines, desk).run(trace)
    assert all(
        desk.passed_over_s[name] <= bound_s(models, machines, name) + 0.01 for name in desk.passed_over_s
    )


def bound_s(models: dict[str, SimModel], machines: list[Machine], name: str) -> float:
    """Return what the workers that serve a model promise, the best of them."""
    load_s = {model.id: model.load_s for model in models.values()}
    run_s = {model.id: model.run_s(model.max_batch) for model in models.values()}
    return min(
        longest_wait_s({lane: lane for lane in machine.models}, load_s, run_s)
        for machine in machines
        if name in machine.models
    )


def test_the_bound_is_the_wait_allowed_the_turn_under_way_and_one_for_each_other_lane() -> None:
    lanes = {"generate.a": "a", "edit.a": "a", "segment.b": "b"}
    load_s, run_s = {"a": 4.0, "b": 1.0}, {"a": 2.0, "b": 3.0}
    turn_a, turn_b = 5 * 4.0 + 3.0, 5 * 1.0 + 3.0
    a_waits = max_wait_s(4.0) + turn_a + turn_a + turn_b
    b_waits = max_wait_s(1.0) + turn_a + turn_a + turn_a
    assert longest_wait_s(lanes, load_s, run_s) == max(a_waits, b_waits)
    assert longest_wait_s({}, {}, {}) == 0.0
