"""ETAs and warnings with a real worker that serves the stub alone: learned, told, and held to the truth."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from pixelkiln_shared.costs import Costs
from tests.integration.api.conftest import Api
from tests.worker_processes import Stack, wait_for

LANE = "generate.stub"
OPTIONS = {"device_ms": 300, "per_item_ms": 40}  # a full batch of 8: 620 ms


@pytest.fixture
def stack(api: Api, redis_url: str, tmp_path: Path) -> Iterator[Stack]:
    stack = Stack(redis_url, tmp_path)
    stack.start()
    yield stack
    stack.close()


def submit(api: Api, count: int) -> list[str]:
    """Submit a group of alike stub jobs and return their ids."""
    wanted = {"width": 512, "height": 512, "steps": 2, "options": OPTIONS}
    jobs = [
        {"kind": "generate", "model": "stub", "input": {"prompt": f"hill {n}", **wanted}}
        for n in range(count)
    ]
    return list(api.http.post("/v1/groups", json={"jobs": jobs}).json()["ids"])


def look(api: Api, job_id: str) -> dict[str, Any]:
    """Read a job."""
    return dict(api.http.get(f"/v1/jobs/{job_id}").json())


def moment(text: str) -> float:
    """Return a time of the API in Unix seconds."""
    return datetime.fromisoformat(text).timestamp()


@pytest.mark.slow
def test_the_eta_of_the_last_of_forty_jobs_comes_near_the_truth(api: Api, stack: Stack) -> None:
    stack.until(submit(api, 24))
    costs = Costs(stack.client)
    wait_for(lambda: costs.known().get(LANE), 15, "nothing was learned")

    ids = submit(api, 40)
    began = moment(look(api, ids[-1])["created_at"])
    etas = [moment(job["eta"]) for job in (look(api, one) for one in ids) if job["eta"]]
    last = etas[-1]
    assert len(etas) >= 24, "but for those that were done before they were looked at, each has one"
    in_order = sum(earlier <= later + 0.2 for earlier, later in pairwise(etas))
    assert in_order >= 0.9 * (len(etas) - 1), "who is further back is told a later time"

    told = []
    while (job := look(api, ids[-1]))["status"] == "queued":
        told.append(moment(job["eta"]) - time.time())
        time.sleep(0.1)
    stack.until(ids)
    truth = moment(look(api, ids[-1])["completed_at"])
    fell = sum(later <= earlier + 0.2 for earlier, later in pairwise(told))
    assert fell >= 0.7 * (len(told) - 1), "the time left shrinks, but for a step back when a batch is claimed"
    assert told[-1] < 0.8 * told[0]
    assert 0.5 <= (last - began) / (truth - began) <= 2


@pytest.mark.slow
def test_only_what_a_worker_serves_goes_without_a_warning(api: Api, stack: Stack) -> None:
    wait_for(lambda: api.http.get("/v1/stats").json()["workers"] or None, 5, "the API saw no worker")
    served = api.submit(model="stub", input={"options": OPTIONS})
    other = api.submit(model="toyworld")
    assert [one["code"] for one in served["warnings"]] == []
    assert [one["code"] for one in other["warnings"]] == ["no_worker_for_model"]
    stack.until([served["id"]])
    lanes = {one["lane"]: one for one in api.http.get("/v1/stats").json()["lanes"]}
    assert lanes["generate.toyworld"]["servable"] is False
    assert look(api, other["id"])["status"] == "queued"
    refused = api.http.post(
        "/v1/jobs",
        json={"kind": "generate", "model": "toyworld", "input": {"prompt": "a red house"}},
        headers={"Prefer": "wait=5"},
    )
    assert refused.json()["code"] == "no_worker_for_model"


@pytest.mark.slow
def test_a_fleet_that_has_gone_leaves_what_it_learned(api: Api, stack: Stack) -> None:
    stack.until(submit(api, 8))
    wait_for(lambda: Costs(stack.client).known().get(LANE), 15, "nothing was learned")
    stack.launchers[0].terminate()
    wait_for(lambda: None if stack.fleet.workers() else True, 20, "the worker did not leave")
    submit(api, 8)
    [lane] = api.http.get("/v1/stats").json()["lanes"]
    assert (lane["servable"], lane["waiting"]) == (False, 8)
    assert 0.3 <= lane["work_s"] <= 10
