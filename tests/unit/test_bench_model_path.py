"""The bare loop in its own process, and the jobs that both sides do."""

from __future__ import annotations

import pytest

from bench.model_path import Mix, bare_loop, generate_jobs, renewed, segment_jobs, segment_results
from pixelkiln_shared.catalogue import Catalogue
from pixelkiln_shared.kinds import ObjectRef
from pixelkiln_worker.families.stub import DEVICE_MS, PER_ITEM_MS

CATALOGUE = Catalogue.load(stub=True)
ENVIRONMENT = {"PIXELKILN_DEVICE": "cpu", "PIXELKILN_STUB": "1"}


def pipeline() -> Mix:
    made = generate_jobs(CATALOGUE.get("toyworld"), 3)
    return Mix(name="both", stages=(made, segment_results(CATALOGUE.get("toyworld-classes"), made)))


def test_jobs_of_a_model_may_share_a_batch_and_are_all_different() -> None:
    jobs = generate_jobs(CATALOGUE.get("toyworld"), 16)

    assert len({job.batch_key for job in jobs}) == 1
    assert len({(job.input["prompt"], job.input["seed"]) for job in jobs}) == 16
    assert {job.input["steps"] for job in jobs} == {14}


def test_stored_pictures_are_taken_in_turn() -> None:
    refs = [ObjectRef(object=name, sha256="0", width=1, height=1) for name in ("a", "b")]

    jobs = segment_jobs(CATALOGUE.get("toyworld-classes"), refs, 5)

    assert [job.input["image"]["object"] for job in jobs] == ["a", "b", "a", "b", "a"]


def test_jobs_done_again_have_new_ids_and_still_read_each_others_results() -> None:
    mix = pipeline()

    again = renewed(mix)

    assert {spec.id for spec in again.specs}.isdisjoint(spec.id for spec in mix.specs)
    made, taken_apart = again.stages
    assert [spec.input["image"]["job"] for spec in taken_apart] == [spec.id for spec in made]
    assert [spec.input["seed"] for spec in made] == [0, 1, 2]


def test_the_loop_runs_every_batch_and_tells_how_long_it_took() -> None:
    stub = CATALOGUE.get("stub")
    jobs = generate_jobs(stub, 2 * stub.limits.max_batch, width=64, height=64)

    with bare_loop(ENVIRONMENT) as loop:
        took_s = loop.seconds(Mix(name="stub", stages=(jobs,)))

    assert took_s >= 2 * (DEVICE_MS + PER_ITEM_MS * stub.limits.max_batch) / 1_000


def test_a_loop_that_cannot_do_its_work_says_that_it_ended(capfd: pytest.CaptureFixture[str]) -> None:
    [job] = generate_jobs(CATALOGUE.get("stub"), 1, width=64, height=64)
    unknown = job.model_copy(update={"model": "nobody"})

    with bare_loop(ENVIRONMENT) as loop, pytest.raises(RuntimeError, match="ended early"):
        loop.seconds(Mix(name="unknown", stages=((unknown,),)))

    assert "nobody" in capfd.readouterr().err
