"""What a process does beside its firings, loop by loop, called by hand."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Iterator, Mapping

import numpy as np
import pytest
import redis
from PIL import Image

from pixelkiln_shared import keys
from pixelkiln_shared.costs import Cost, Costs, Measured
from pixelkiln_shared.events import stream_of
from pixelkiln_shared.jobs import Status
from pixelkiln_shared.ledger.contract import LaneOffer
from pixelkiln_worker import hung_loads, lifecycle
from pixelkiln_worker.compute import Run
from pixelkiln_worker.held import Gone
from pixelkiln_worker.refusals import Refusals
from pixelkiln_worker.serving import (
    EXIT_DEAF,
    EXIT_DRAINED,
    EXIT_HUNG,
    EXIT_LOAD_HUNG,
    EXIT_POISONED,
    EXIT_SWOLLEN,
)
from tests.lifecycle_houses import LANE, House, lifecycle_house
from tests.worker_processes import new_job, stub_spec, wait_for


@pytest.fixture
def house(redis_url: str) -> Iterator[House]:
    with lifecycle_house(redis_url) as house:
        yield house


def test_a_heartbeat_keeps_the_leases(house: House) -> None:
    [job] = house.hold(stub_spec())
    house.clock.now += 10
    house.life.heartbeat()
    house.clock.now += 10
    assert house.ledger.reap().requeued == ()
    assert job.wanted


def test_a_heartbeat_brings_cancels_and_lost_leases(house: House) -> None:
    canceled, lost = house.hold(stub_spec("a"), stub_spec("b"))
    house.ledger.cancel(canceled.id)
    house.ledger.fail(lost.id, lost.attempt, "{}")  # as a newer attempt's process may
    house.life.heartbeat()
    assert (canceled.gone, lost.gone) == (Gone.CANCELED, Gone.LOST)


def test_progress_reaches_the_ledger_once(house: House) -> None:
    [job] = house.hold(stub_spec())
    job.step, job.steps = 3, 9
    house.life.pulse()
    record = house.ledger.get(job.id)
    assert (record.step, record.steps) == (3, 9)
    assert job.reported == (3, 9)


def test_a_preview_is_told_once_small_and_for_a_short_time(house: House) -> None:
    [job] = house.hold(stub_spec())
    job.step, job.steps = 3, 9
    job.preview = np.full((600, 900, 3), 80, np.uint8)
    house.life.show_previews()
    house.life.show_previews()
    with redis.Redis.from_url(house.redis_url) as client:
        webp = client.get(keys.preview(job.id))
        assert 0 < client.ttl(keys.preview(job.id)) <= keys.PREVIEW_S
        [(_, told)] = client.xrange(stream_of(job.id))
    with Image.open(io.BytesIO(webp)) as image:
        assert (image.format, image.size) == ("WEBP", (256, 171))
    assert told[b"type"] == b"preview"
    assert json.loads(told[b"data"]) == {"job": job.id, "step": 3, "steps": 9}


def test_nobody_is_shown_a_job_that_is_not_wanted(house: House) -> None:
    [job] = house.hold(stub_spec())
    job.preview = np.zeros((8, 8, 3), np.uint8)
    job.gone = Gone.CANCELED
    house.life.show_previews()
    with redis.Redis.from_url(house.redis_url) as client:
        assert client.get(keys.preview(job.id)) is None


def test_a_canceled_job_is_confirmed_when_its_model_lets_it_go(house: House) -> None:
    [job] = house.hold(stub_spec())
    house.shop.compute.current = Run((job,), time.monotonic())
    house.ledger.cancel(job.id)
    house.life.heartbeat()
    house.life.pulse()
    assert house.ledger.get(job.id).status is Status.CANCELING
    job.at_boundary = True
    house.life.pulse()
    assert house.ledger.get(job.id).status is Status.CANCELED


def test_a_canceled_job_that_no_model_has_is_confirmed_at_once(house: House) -> None:
    [job] = house.hold(stub_spec())
    house.ledger.cancel(job.id)
    house.life.heartbeat()
    house.life.pulse()
    assert house.ledger.get(job.id).status is Status.CANCELED


def test_a_late_job_times_out_and_the_others_go_on(house: House) -> None:
    late, patient = house.hold(stub_spec("a", run_timeout_s=1), stub_spec("b", run_timeout_s=600))
    house.shop.compute.current = Run((late, patient), time.monotonic() - 30)
    house.life.pulse()
    assert house.ledger.get(late.id).status is Status.FAILED
    assert patient.wanted
    assert house.codes == []


def test_a_hung_model_ends_the_process_and_gives_the_rest_back(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lifecycle, "HUNG_GRACE_S", 0.1)
    [hung] = house.hold(stub_spec("a", run_timeout_s=1))
    [waiting] = house.hold(stub_spec("b"))
    hung.started = True
    house.shop.compute.current = Run((hung,), time.monotonic() - 30)
    house.life.pulse()
    assert house.ledger.get(hung.id).status is Status.FAILED
    assert house.ledger.get(waiting.id).status is Status.QUEUED
    assert house.codes == [EXIT_HUNG]


def test_a_broken_device_ends_the_process_and_its_jobs_become_suspects(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lifecycle, "HUNG_GRACE_S", 0.1)
    poison, rider = house.hold(stub_spec("a"), stub_spec("b"))
    [waiting] = house.hold(stub_spec("c"))
    house.life.end_poisoned([poison, rider])
    assert house.codes == [EXIT_POISONED]
    assert {house.ledger.get(job.id).status for job in (poison, rider, waiting)} == {Status.QUEUED}
    claims = [house.ledger.claim(f"w{i}", [LaneOffer(lane=LANE, max_rows=8)], lease_s=15) for i in range(3)]
    taken = {job.id: claim.suspect for claim in claims if claim is not None for job in claim.jobs}
    assert taken == {poison.id: True, rider.id: True, waiting.id: False}


def test_a_job_that_breaks_the_device_alone_three_times_has_failed(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lifecycle, "HUNG_GRACE_S", 0.1)
    jobs = house.hold(stub_spec())
    for _ in range(2):
        house.life.end_poisoned(jobs)
        claim = house.ledger.claim("w1", [LaneOffer(lane=LANE, max_rows=8)], lease_s=15)
        assert claim is not None
        jobs = house.shop.held.take(claim.jobs)
    house.life.end_poisoned(jobs)
    record = house.ledger.get(jobs[0].id)
    assert record.status is Status.FAILED
    assert "worker_crashed" in (record.error or "")


def test_a_drain_gives_back_at_once_what_no_model_has(house: House) -> None:
    running, waiting = house.hold(stub_spec("a"), stub_spec("b"))
    running.started = True
    house.life.drain()
    wait_for(lambda: house.ledger.get(waiting.id).status is Status.QUEUED or None, 1, "not given back")
    wait_for(lambda: house.ledger.get(running.id).status is Status.QUEUED or None, 2, "not given back")
    wait_for(lambda: house.codes or None, 5, "the process did not end")
    assert house.codes == [0]
    assert house.bells.queues[LANE] == 2
    assert house.shop.draining.is_set()


def test_a_sweep_takes_back_and_rings(house: House) -> None:
    [job] = house.hold(stub_spec())
    house.clock.now += 20
    house.life.reap()
    assert house.ledger.get(job.id).status is Status.QUEUED
    assert house.bells.queues[LANE] == 1


def test_sweeps_without_finds_do_not_ring_each_time(house: House) -> None:
    house.put(stub_spec())
    house.life.reap()
    assert house.bells.queues[LANE] == 1
    house.bells.queues.clear()
    house.life._client.delete(keys.REAP_LOCK)
    house.life.reap()
    assert house.bells.queues[LANE] == 0


def test_two_processes_do_not_sweep_at_once(house: House) -> None:
    house.life.reap()
    house.hold(stub_spec())
    house.clock.now += 20
    house.life.reap()  # the lock of the first still holds
    assert house.ledger.counts("tests")[Status.RUNNING] == 1


def test_only_our_lanes_are_rung(house: House) -> None:
    house.ledger.submit([new_job(stub_spec()), new_job(stub_spec(model="other"))])
    house.life._ringer.ring()
    assert +house.bells.queues == {LANE: 1}


def test_surplus_bells_are_taken_away_and_no_waiting_job_loses_its_own(house: House) -> None:
    house.bells.ring({LANE: 50})
    house.ledger.submit([new_job(stub_spec())])
    house.life._ringer.hush()
    house.life._ringer.ring()
    assert house.bells.queues[LANE] == 1


def test_a_bell_heard_for_nothing_is_not_rung_again_at_once(house: House) -> None:
    house.ledger.submit([new_job(stub_spec())])  # one that, say, only another worker may take
    house.life._ringer.hush()
    house.life._ringer.ring()
    assert house.bells.queues[LANE] == 0
    house.life._ringer.ring()  # the periodic one
    assert house.bells.queues[LANE] == 1


def test_a_job_that_comes_while_bells_are_taken_away_is_rung_for(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    house.bells.ring({LANE: 50})
    hush = house.bells.hush

    def hush_late(waiting: Mapping[str, int]) -> int:
        house.ledger.submit([new_job(stub_spec())])  # its own ring found fifty bells, and added none
        return hush(waiting)

    monkeypatch.setattr(house.bells, "hush", hush_late)
    house.life._ringer.hush()
    house.life._ringer.ring()
    assert house.bells.queues[LANE] == 1


def test_the_report_names_what_is_held(house: House) -> None:
    [job] = house.hold(stub_spec())
    house.life.report()
    [info] = house.fleet.workers()
    assert (info.id, info.state, info.lanes, info.running) == ("w1", "starting", (LANE,), (job.id,))
    assert info.longest_lane_wait_s == 10.0  # no load and no run is known yet


def test_a_load_that_hangs_ends_the_process_and_blames_no_job(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lifecycle, "HUNG_GRACE_S", 0.1)
    [waiting] = house.hold(stub_spec())
    house.shop.residency._loading = ("slow", time.monotonic() - 599)
    house.life.pulse()
    assert house.codes == []

    house.shop.residency._loading = ("slow", time.monotonic() - 601)
    house.life.pulse()

    assert house.codes == [EXIT_LOAD_HUNG]
    record = house.ledger.get(waiting.id)
    assert (record.status, record.attempt) == (Status.QUEUED, 1)
    [(model, rest_s)] = hung_loads.lately(house.shop.spool.folder.parent, 600).items()
    assert model == "slow"
    assert 590 < rest_s <= 600
    assert not hung_loads.lately(house.shop.spool.folder.parent, 0)


def test_a_deaf_process_ends(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifecycle, "DEAF_S", 0.05)
    house.life.ready()
    house.ledger.submit([new_job(stub_spec())])
    house.life.listen()
    assert house.codes == []
    house.clock.now += 1
    time.sleep(0.1)
    house.life.listen()
    assert house.codes == [EXIT_DEAF]


def test_an_idle_process_that_hears_bells_but_takes_nothing_ends(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lifecycle, "DEAF_S", 0.05)
    house.life.ready()
    house.ledger.submit([new_job(stub_spec())])
    house.clock.now += 1
    time.sleep(0.1)
    house.shop.telemetry.heard()
    house.life.listen()
    assert house.codes == [EXIT_DEAF]


@pytest.mark.parametrize("why", ["it works", "it refuses", "the model rests", "it claimed just now"])
def test_a_process_with_a_reason_to_take_nothing_lives(
    house: House, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    monkeypatch.setattr(lifecycle, "DEAF_S", 0.05)
    house.life.ready()
    if why == "it works":
        house.hold(stub_spec())
    elif why == "it refuses":
        monkeypatch.setattr(Refusals, "reason", "no room")
    elif why == "the model rests":
        house.shop.residency.rest("stub", "it hung", 60)
    house.ledger.submit([new_job(stub_spec())])
    house.clock.now += 1
    time.sleep(0.1)
    if why == "it claimed just now":
        house.shop.telemetry.claimed("stub", [1.0])
    house.life.listen()
    assert house.codes == []


def test_memory_that_stays_above_its_ceiling_ends_an_idle_process(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Refusals, "swollen_s", lifecycle.SWOLLEN_S + 1)
    house.life.pulse()
    assert house.codes == []  # it starts: loading may take much for a while

    house.life.ready()
    [job] = house.hold(stub_spec())
    house.life.pulse()
    assert house.codes == []

    house.shop.held.publish([(job, "{}")])
    house.life.pulse()
    assert house.codes == [EXIT_SWOLLEN]


def test_a_cancel_is_heard_in_milliseconds(house: House, redis_url: str) -> None:
    [job] = house.hold(stub_spec())
    house.life._wishes.start()

    def heard() -> bool | None:
        with redis.Redis.from_url(redis_url) as client:
            client.publish("pk:cancels", job.id)
        return job.gone is Gone.CANCELED or None

    wait_for(heard, 3, "the cancel was not heard")


def test_a_ready_worker_that_is_asked_to_drain_ends_as_after_sigterm(house: House) -> None:
    house.life.ready()
    house.life.report()
    house.fleet.drain("w1")
    house.life.report()
    house.life.report()
    assert (house.ends, house.codes, house.life.exit_code) == (["SIGTERM"], [], EXIT_DRAINED)


def test_a_worker_that_still_loads_ends_by_itself_when_asked_to_drain(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lifecycle, "LAST_WORDS_S", 0.0)
    house.life.report()
    house.fleet.drain("w1")
    house.life.report()
    wait_for(lambda: house.codes or None, 5, "it did not end")
    assert (house.ends, house.codes) == ([], [EXIT_DRAINED])
    assert house.fleet.workers() == []


def test_a_wish_to_drain_is_for_one_worker_and_heard_at_once(house: House) -> None:
    house.life.ready()
    house.life.report()
    house.life._wishes.start()

    def heard() -> bool | None:
        house.life._client.publish(keys.DRAINS, "w2")
        assert house.ends == []
        house.fleet.drain("w1")  # again and again: the channel may not be open yet
        time.sleep(0.05)
        return house.ends == ["SIGTERM"] or None

    wait_for(heard, 3, "the wish was not heard")


def test_a_report_tells_what_batches_cost_once(house: House) -> None:
    house.shop.telemetry.ran(LANE, Measured(seconds=2.0, work=1_000, batches=1, load_s=3.0))
    house.life.report()
    with redis.Redis.from_url(house.redis_url, decode_responses=True) as client:
        told = client.hgetall(keys.COSTS)
        house.life.report()
        assert client.hgetall(keys.COSTS) == told
        assert Costs(client).known() == {LANE: Cost(work_s=0.002, load_s=3.0)}


def test_a_worker_that_leaves_tells_what_its_last_batches_cost(house: House) -> None:
    house.shop.telemetry.ran(LANE, Measured(seconds=2.0, work=1_000, batches=1))
    house.life.stop()
    with redis.Redis.from_url(house.redis_url, decode_responses=True) as client:
        assert Costs(client).known() == {LANE: Cost(work_s=0.002)}
