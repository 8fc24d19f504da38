"""Seconds of work, ETAs and what an autoscaler reads, over HTTP: costs and workers are as the test says."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from pixelkiln import Client
from pixelkiln.gallery.cards import soon
from pixelkiln_shared.costs import Costs, Measured
from tests.integration.api.conftest import Api

LANE = "generate.stub"
JOB_S = 8.0  # what a job of these tests was learned to take


def submit(api: Api, count: int = 1) -> list[dict[str, Any]]:
    """Submit stub jobs of 4,000 of work each; the answers."""
    size = {"width": 1_000, "height": 1_000, "steps": 4, "guidance": 1.0}
    return [api.submit(model="stub", input=size) for _ in range(count)]


def learn(api: Api, *, load_s: float | None = None) -> None:
    """Let a worker have told what jobs cost."""
    measured = Measured(seconds=JOB_S, work=4_000, batches=1, load_s=load_s)
    Costs(api.redis).learn({LANE: measured})


def seconds_left(job: dict[str, Any]) -> float:
    """Return the time until a job's ETA."""
    return (datetime.fromisoformat(job["eta"]) - datetime.now(UTC)).total_seconds()


def look(api: Api, job: dict[str, Any]) -> dict[str, Any]:
    """Read a job again."""
    return dict(api.http.get(f"/v1/jobs/{job['id']}").json())


def test_a_lane_has_seconds_of_work_once_its_cost_is_learned(api: Api) -> None:
    submit(api, 3)
    [lane] = api.http.get("/v1/stats").json()["lanes"]
    assert (lane["lane"], lane["waiting"], lane["work_s"]) == (LANE, 3, None)
    learn(api)
    api.claim(LANE)
    [lane] = api.http.get("/v1/stats").json()["lanes"]
    assert (lane["waiting"], lane["running"]) == (2, 1)
    assert lane["work_s"] == pytest.approx(2 * JOB_S)


def test_stats_say_how_many_workers_are_desired_and_which_can_go(start_api: Callable[..., Api]) -> None:
    api = start_api(scale_target_s=2 * JOB_S)
    learn(api)
    api.serve(LANE)
    assert api.http.get("/v1/stats").json()["safe_to_stop"] == ["worker-of-tests"]
    submit(api, 5)
    stats = api.http.get("/v1/stats").json()
    assert (stats["desired_workers"], stats["safe_to_stop"]) == (3, [])


def test_prometheus_reads_the_same(api: Api) -> None:
    submit(api)
    api.submit()
    learn(api)
    api.serve(LANE)
    text = api.http.get("/metrics").text
    assert f'pixelkiln_queue_work_seconds{{lane="{LANE}"}} {JOB_S}' in text
    assert 'pixelkiln_queue_work_seconds{lane="generate.toyworld"}' not in text, "nothing is learned of it"
    assert f'pixelkiln_queue_servable{{lane="{LANE}"}} 1.0' in text
    assert 'pixelkiln_queue_servable{lane="generate.toyworld"} 0.0' in text
    assert "pixelkiln_desired_workers 2.0" in text
    assert "pixelkiln_workers_safe_to_stop 0.0" in text


def test_an_idle_installation_wants_no_worker(api: Api) -> None:
    assert api.http.get("/v1/stats").json()["desired_workers"] == 0
    assert "pixelkiln_desired_workers 0.0" in api.http.get("/metrics").text


def test_a_waiting_job_is_told_when_it_will_be_ready(api: Api) -> None:
    learn(api)
    api.serve(LANE, resident=("stub",))
    jobs = [look(api, job) for job in submit(api, 3)]
    assert [job["queue_position"] for job in jobs] == [0, 1, 2]
    for place, job in enumerate(jobs, 1):
        assert seconds_left(job) == pytest.approx(JOB_S * place, abs=2)


def test_loading_the_model_comes_first_where_nobody_has_it(api: Api) -> None:
    learn(api, load_s=30)
    api.serve(LANE)
    [job] = submit(api)
    assert seconds_left(job) == pytest.approx(30 + JOB_S, abs=2)


def test_without_costs_or_workers_there_is_no_eta(api: Api) -> None:
    [job] = submit(api)
    assert job["eta"] is None
    learn(api)
    assert look(api, job)["eta"] is None, "nobody serves it"


def test_a_running_job_is_told_by_its_progress_and_an_ended_one_nothing(api: Api) -> None:
    learn(api)
    api.serve(LANE)
    [job] = submit(api)
    claimed = api.claim(LANE)
    running = look(api, job)
    assert running["queue_position"] is None
    assert seconds_left(running) == pytest.approx(JOB_S, abs=2)
    api.ledger.progress(claimed.id, claimed.attempt, 4, 4)
    assert seconds_left(look(api, job)) == pytest.approx(0, abs=2)
    api.publish(claimed)
    assert look(api, job)["eta"] is None


def test_a_job_that_waits_for_another_has_no_eta(api: Api) -> None:
    learn(api)
    api.serve(LANE, "segment.toyworld-classes")
    [scene] = submit(api)
    child = api.segment({"job": scene["id"]}).json()
    assert (child["status"], look(api, child)["eta"]) == ("blocked", None)


def test_lists_stay_quick_and_leave_the_eta_out(api: Api) -> None:
    learn(api)
    api.serve(LANE)
    submit(api)
    assert api.http.get("/v1/jobs").json()["jobs"][0]["eta"] is None


def test_whoever_follows_a_job_is_told_too(api: Api) -> None:
    learn(api)
    api.serve(LANE)
    [job] = submit(api)
    with api.http.stream("GET", job["urls"]["events"]) as stream:
        data = next(line for line in stream.iter_lines() if line.startswith("data: "))
    assert seconds_left(json.loads(data.removeprefix("data: "))) == pytest.approx(JOB_S, abs=2)


def test_the_gallery_says_when_a_picture_comes(api: Api) -> None:
    learn(api)
    api.serve(LANE)
    job = submit(api, 4)[-1]
    for path in ("/", "/cards", f"/jobs/{job['id']}"):
        assert re.search(r"3 before it, ready in about (30|40) s", api.http.get(path).text), path


def test_the_gallery_says_that_nobody_serves_a_model(api: Api) -> None:
    [job] = submit(api)
    for path in ("/cards", f"/jobs/{job['id']}"):
        assert "no worker serves its model" in api.http.get(path).text, path


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (-5, "a few seconds"),
        (9, "a few seconds"),
        (41, "about 40 s"),
        (58, "about 1 min"),
        (7_300, "about 2 h"),
    ],
)
def test_a_time_to_come_is_said_as_people_say_it(seconds: float, words: str) -> None:
    assert soon(datetime.now(UTC) + timedelta(seconds=seconds)) == f"in {words}"


# ------------------------------------------------------------------------------------- nobody serves it


def warned(answer: dict[str, Any]) -> list[str]:
    """Return the messages of warnings that no worker serves a model."""
    return [one["message"] for one in answer["warnings"] if one["code"] == "no_worker_for_model"]


def rows(*models: str) -> list[dict[str, Any]]:
    """Return a request for each model."""
    return [{"kind": "generate", "model": model, "input": {"prompt": "a red house"}} for model in models]


def test_a_group_is_warned_once_for_each_model_nobody_serves(api: Api) -> None:
    api.serve(LANE)
    body = {"jobs": rows("stub", "toyworld", "toyworld", "toyworld-vae")}
    answer = api.http.post("/v1/groups", json=body, headers={"Idempotency-Key": "k"})
    assert warned(answer.json()) == [
        "no live worker serves toyworld; 2 of 4 jobs wait",
        "no live worker serves toyworld-vae; 1 of 4 jobs wait",
    ]
    again = api.http.post("/v1/groups", json=body, headers={"Idempotency-Key": "k"})
    assert again.json() == answer.json()
    assert api.http.post("/v1/groups", json={"jobs": rows("stub")}).json()["warnings"] == []


def test_a_pipeline_is_warned_of_each_step_nobody_serves(api: Api) -> None:
    api.serve(LANE)
    steps = [
        {"id": "scene", **rows("stub")[0]},
        {"id": "masks", "kind": "segment", "input": {"image": "$scene.image"}},
    ]
    scene, masks = api.http.post("/v1/pipelines", json={"steps": steps}).json()["jobs"]
    assert warned(scene) == []
    assert masks["status"] == "blocked"
    assert len(warned(masks)) == 1


def test_a_worker_that_refuses_jobs_is_told_with_its_reason(api: Api) -> None:
    why = "spool_full: 9 results wait for the store"
    api.serve(LANE, state="refusing", reason=why)

    [job] = submit(api)

    assert warned(job) == [f"no worker takes jobs of stub for now ({why}); the job waits"]
    [shown] = api.http.get("/v1/workers").json()["data"]
    assert (shown["state"], shown["reason"]) == ("refusing", why)
    assert api.http.get("/readyz").json()["ready_workers"] == 0
    assert 'pixelkiln_workers{state="refusing"} 1.0' in api.http.get("/metrics").text
    assert why in api.http.get("/workers").text


def test_a_model_that_no_worker_can_load_is_as_if_nobody_served_it(api: Api) -> None:
    why = "stub did not load: the weights are missing"
    api.serve(LANE, unavailable={"stub": why})
    [job] = submit(api)
    assert warned(job) == [f"no live worker could load stub: {why}; the job may fail"]
    assert api.http.get("/v1/stats").json()["lanes"][0]["servable"] is False


def test_a_model_that_did_not_load_is_tried_again_for_whoever_waits(api: Api) -> None:
    api.serve(LANE, unavailable={"stub": "stub did not load: the bucket was away"})
    answer = api.http.post("/v1/jobs", json=rows("stub")[0], headers={"Prefer": "wait=1"})
    assert answer.status_code == 202, "a refusal would keep its worker from ever trying again"


def test_the_python_client_hands_the_warnings_on(api: Api, client: Client) -> None:
    assert warned(client.submit_batch(rows("stub"), group=None).model_dump()) != []


# ------------------------------------------------------------------------------------- the command line


def test_the_command_line_shows_seconds_of_work_and_workers(api: Api, pixelkiln: Callable[..., Any]) -> None:
    api.serve(LANE)
    submit(api)
    assert re.search(rf"{LANE} +1 +0 +\d+s +\? +yes", pixelkiln("stats").stdout)
    learn(api)
    shown = pixelkiln("stats").stdout
    assert re.search(rf"{LANE} +1 +0 +\d+s +8s +yes", shown)
    assert "1 workers, 1 desired" in shown
    api.publish(api.claim(LANE))
    assert "safe to stop: worker-of-tests" in pixelkiln("stats").stdout


def test_the_command_line_shows_when_a_job_is_ready(api: Api, pixelkiln: Callable[..., Any]) -> None:
    learn(api)
    api.serve(LANE)
    job = submit(api, 2)[-1]
    assert re.search(r"ready +in 1[456]s, at \d\d:\d\d:\d\d UTC", pixelkiln("show", job["id"]).stdout)


def test_a_submit_hints_at_a_model_nobody_serves(
    api: Api, pixelkiln: Callable[..., Any], tmp_path: Any
) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"a red house {n}"}) + "\n" for n in range(3)))
    done = pixelkiln("submit", file)
    assert done.exit_code == 0
    assert done.stderr.count("warning: no live worker serves toyworld\n") == 1
    assert "no live worker serves toyworld" in pixelkiln("generate", "a red house").stderr


def test_a_guess_beyond_all_calendars_is_still_a_date(api: Api) -> None:
    Costs(api.redis).learn({LANE: Measured(seconds=1e15, work=1, batches=1)})
    api.serve(LANE)
    [job] = submit(api)
    assert datetime.fromisoformat(job["eta"]).year < 2100
