"""Jobs over HTTP: from acceptance to the end, idempotency, waiting, listing, deletion."""

from __future__ import annotations

import base64
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import pytest

from pixelkiln_shared import keys
from pixelkiln_shared.kinds import Role
from tests.integration.api.conftest import Api, picture

BODY = {"kind": "generate", "input": {"prompt": "a red house"}}


def test_an_accepted_job_is_queued_and_settled(api: Api) -> None:
    answer = api.http.post("/v1/jobs", json=BODY)
    job = answer.json()
    assert answer.status_code == 202
    assert answer.headers["location"] == f"/v1/jobs/{job['id']}"
    assert (job["status"], job["model"], job["queue_position"]) == ("queued", "toyworld", 0)
    assert job["input"]["width"] == 128
    assert job["input"]["seed"] == job["seed"] >= 0
    assert api.http.get(answer.headers["location"]).json()["id"] == job["id"]


def test_a_finished_job_shows_its_picture_by_a_link_that_works(api: Api) -> None:
    job_id = api.submit(input={"seed": 7})["id"]
    data = api.publish(api.claim())
    job = api.http.get(f"/v1/jobs/{job_id}").json()
    assert (job["status"], job["seed"], job["progress"]["value"]) == ("succeeded", 7, 1.0)
    assert job["metrics"]["run_ms"] == 12.5
    artifact = job["artifacts"][0]
    assert "key" not in artifact
    assert api.http.get(artifact["url"]).content == data


def test_a_failed_job_tells_why_and_can_be_retried(api: Api) -> None:
    job_id = api.submit()["id"]
    claimed = api.claim()
    api.ledger.fail(claimed.id, claimed.attempt, '{"code": "out_of_memory", "message": "make it smaller"}')
    job = api.http.get(f"/v1/jobs/{job_id}").json()
    assert (job["status"], job["error"]["code"]) == ("failed", "out_of_memory")
    again = api.http.post(f"/v1/jobs/{job_id}/retry")
    assert (again.status_code, again.json()["status"]) == (200, "queued")
    assert api.http.post(f"/v1/jobs/{job_id}/retry").status_code == 409


def test_progress_is_shown_while_it_runs(api: Api) -> None:
    job_id = api.submit()["id"]
    claimed = api.claim()
    api.ledger.progress(claimed.id, claimed.attempt, 7, 14)
    job = api.http.get(f"/v1/jobs/{job_id}").json()
    assert (job["status"], job["attempts"], job["progress"]["value"]) == ("running", 1, 0.5)


def test_cancel_is_idempotent_and_harmless_after_the_end(api: Api) -> None:
    waiting, running, done = (api.submit()["id"] for _ in range(3))
    api.http.post(f"/v1/jobs/{waiting}/cancel")
    assert api.http.post(f"/v1/jobs/{waiting}/cancel").json()["status"] == "canceled"
    assert api.claim().id == running
    assert api.http.post(f"/v1/jobs/{running}/cancel").json()["status"] == "canceling"
    api.publish(api.claim())
    answer = api.http.post(f"/v1/jobs/{done}/cancel")
    assert (answer.status_code, answer.json()["status"]) == (200, "succeeded")


def test_deletion_takes_record_and_objects_and_waits_for_the_end(api: Api) -> None:
    job_id = api.submit()["id"]
    refused = api.http.delete(f"/v1/jobs/{job_id}")
    assert (refused.status_code, refused.json()["code"]) == (409, "not_terminal")
    api.publish(api.claim())
    url = api.http.get(f"/v1/jobs/{job_id}").json()["artifacts"][0]["url"]
    assert api.http.delete(f"/v1/jobs/{job_id}").status_code == 204
    assert api.http.get(f"/v1/jobs/{job_id}").status_code == 404
    assert api.http.get(url).status_code == 404
    assert not list(api.storage.list(keys.job_prefix("default", job_id)))
    assert api.http.delete(f"/v1/jobs/{job_id}").status_code == 404


def test_unicode_of_every_kind_comes_back_as_it_was_sent(api: Api) -> None:
    prompt = "שלום \u202ea \u200d\U0001f9d1\u200d\U0001f680 Z\u0351\u036b\u0343 о house\n\tred"
    job = api.submit(prompt)
    assert job["input"]["prompt"] == prompt
    assert api.http.get(f"/v1/jobs/{job['id']}").json()["input"]["prompt"] == prompt


# ------------------------------------------------------------------------------------------------ idempotency


def test_the_same_key_and_body_answer_with_the_same_job(api: Api) -> None:
    first = api.http.post("/v1/jobs", json=BODY, headers={"Idempotency-Key": "one"})
    again = api.http.post("/v1/jobs", json=BODY, headers={"Idempotency-Key": '"one"'})
    assert "idempotency-replayed" not in first.headers
    assert again.headers["idempotency-replayed"] == "true"
    assert (again.status_code, again.json()["id"]) == (202, first.json()["id"])
    assert again.json()["seed"] == first.json()["seed"]


def test_the_same_key_with_another_body_is_refused(api: Api) -> None:
    api.http.post("/v1/jobs", json=BODY, headers={"Idempotency-Key": "one"})
    other = api.http.post("/v1/jobs", json={**BODY, "labels": {"a": "b"}}, headers={"Idempotency-Key": "one"})
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")


@pytest.mark.parametrize("key", ["", '""', "x" * 256, "a\x7fb"])
def test_impossible_idempotency_keys_are_refused(api: Api, key: str) -> None:
    answer = api.http.post("/v1/jobs", json=BODY, headers={"Idempotency-Key": key})
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_idempotency_key")


def test_a_hundred_at_once_with_one_key_make_one_job(api: Api) -> None:
    begin = threading.Barrier(100)
    upload = {"base64": base64.b64encode(picture()).decode()}
    body = {"kind": "segment", "input": {"image": upload}}

    def post(_: int) -> httpx2.Response:
        begin.wait()
        return httpx2.post(
            f"{api.url}/v1/jobs", json=body, headers={"Idempotency-Key": "k"}, timeout=60, trust_env=False
        )

    with ThreadPoolExecutor(100) as pool:
        answers = list(pool.map(post, range(100)))
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert sum("idempotency-replayed" not in answer.headers for answer in answers) == 1
    assert len(api.http.get("/v1/jobs").json()["jobs"]) == 1
    assert len(list(api.storage.list("default/"))) == 1, "inputs of replays stayed behind"


# ------------------------------------------------------------------------------------------------ waiting


def test_waiting_answers_as_soon_as_the_job_is_done(api: Api) -> None:
    api.serve("generate.toyworld")
    finisher = threading.Timer(0.6, lambda: api.publish(api.claim()))
    finisher.start()
    began = time.monotonic()
    answer = api.http.post("/v1/jobs", json=BODY, headers={"Prefer": "wait=20"})
    finisher.join()
    assert (answer.status_code, answer.json()["status"]) == (200, "succeeded")
    assert answer.headers["preference-applied"] == "wait=20"
    assert 0.3 < time.monotonic() - began < 3


def test_waiting_gives_up_in_time_and_the_job_goes_on(api: Api) -> None:
    api.serve("generate.toyworld")
    answer = api.http.post("/v1/jobs", json=BODY, headers={"Prefer": "respond-async, wait=1"})
    assert (answer.status_code, answer.json()["status"]) == (202, "queued")
    assert answer.headers["preference-applied"] == "wait=1"


def test_a_job_that_reports_progress_holds_nobody_beyond_the_time_asked_for(api: Api) -> None:
    api.serve("generate.toyworld")
    over = threading.Event()

    def work() -> None:
        time.sleep(0.3)
        claimed = api.claim()
        for step in range(1, 30):
            api.ledger.progress(claimed.id, claimed.attempt, step, 30)
            if over.wait(0.2):
                return

    worker = threading.Thread(target=work)
    worker.start()
    began = time.monotonic()
    answer = api.http.post("/v1/jobs", json=BODY, headers={"Prefer": "wait=1"})
    over.set()
    worker.join()
    assert (answer.status_code, answer.json()["status"]) == (202, "running")
    assert time.monotonic() - began < 2.5


def test_nobody_waits_for_a_model_that_no_worker_serves(api: Api) -> None:
    plain = api.http.post("/v1/jobs", json=BODY).json()
    assert [warning["code"] for warning in plain["warnings"]] == ["no_worker_for_model"]
    answer = api.http.post("/v1/jobs", json=BODY, headers={"Prefer": "wait=5"})
    assert (answer.status_code, answer.json()["code"]) == (503, "no_worker_for_model")
    assert answer.headers["x-should-retry"] == "false"
    assert len(api.http.get("/v1/jobs").json()["jobs"]) == 1, "the refused one left no job"


# ------------------------------------------------------------------------------------------------ listing


def pages(api: Api, **filters: Any) -> list[list[str]]:
    found, cursor = [], None
    while True:
        params = {**filters, **({"cursor": cursor} if cursor else {})}
        page = api.http.get("/v1/jobs", params=params).json()
        found.append([job["id"] for job in page["jobs"]])
        cursor = page["next_cursor"]
        if cursor is None:
            return found


def test_pages_hold_every_job_once_newest_first(api: Api) -> None:
    ids = [api.submit()["id"] for _ in range(7)]
    got = pages(api, limit=3)
    assert [len(page) for page in got] == [3, 3, 1]
    assert [one for page in got for one in page] == ids[::-1]


def test_filters_choose_by_status_kind_and_group(api: Api) -> None:
    canceled, queued = api.submit()["id"], api.submit()["id"]
    api.http.post(f"/v1/jobs/{canceled}/cancel")
    assert pages(api, status="canceled") == [[canceled]]
    assert pages(api, status="queued", kind="generate") == [[queued]]
    assert pages(api, kind="segment") == [[]]
    assert pages(api, group="grp_nothing") == [[]]


def test_a_cursor_fits_only_its_own_listing(api: Api) -> None:
    for _ in range(3):
        api.submit()
    cursor = api.http.get("/v1/jobs", params={"limit": 1}).json()["next_cursor"]
    assert api.http.get("/v1/jobs", params={"limit": 2, "cursor": cursor}).status_code == 200
    for params in ({"cursor": cursor, "kind": "generate"}, {"cursor": cursor[:-2] + "AA"}):
        answer = api.http.get("/v1/jobs", params=params)
        assert (answer.status_code, answer.json()["code"]) == (400, "invalid_cursor")


# ------------------------------------------------------------------------------------------------ overload


def test_a_full_queue_says_when_to_come_back(start_api: Callable[..., Api]) -> None:
    api = start_api(max_queue=2)
    api.submit()
    api.submit()
    answer = api.http.post("/v1/jobs", json=BODY)
    assert (answer.status_code, answer.json()["code"]) == (429, "queue_full")
    assert int(answer.headers["retry-after"]) > 0


def test_without_redis_the_answer_is_503_and_not_a_riddle(start_api: Callable[..., Api]) -> None:
    api = start_api(redis_url="redis://127.0.0.1:1/0", redis_timeout_s=1)
    answer = api.http.post("/v1/jobs", json=BODY)
    assert (answer.status_code, answer.json()["code"]) == (503, "redis_unavailable")
    assert answer.headers["retry-after"]
    assert "127.0.0.1" not in answer.text
    ready = api.http.get("/readyz")
    assert (ready.status_code, ready.json()["redis"]) == (503, "redis_unavailable")
    assert ready.json()["ready_workers"] is None
    assert api.http.get("/healthz").status_code == 200


def test_bells_that_cannot_ring_lose_nothing(api: Api) -> None:
    # A list where a string is expected makes every push of a bell fail, as a broker in trouble would.
    api.redis.set("pk:celery:generate.toyworld", "in the way")
    job = api.submit()
    assert api.http.get(f"/v1/jobs/{job['id']}").json()["status"] == "queued"
    api.redis.delete("pk:celery:generate.toyworld")
    deadline = time.monotonic() + 12
    while not api.redis.exists("pk:celery:generate.toyworld"):
        assert time.monotonic() < deadline, "the sweep rang no bell"
        time.sleep(0.2)


# ------------------------------------------------------------------------------------------------ around


def test_stats_metrics_and_models_agree_with_the_queue(api: Api) -> None:
    api.submit()
    lanes = api.http.get("/v1/stats").json()["lanes"]
    assert [(lane["lane"], lane["waiting"], lane["servable"]) for lane in lanes] == [
        ("generate.toyworld", 1, False)
    ]
    api.serve("generate.toyworld")
    assert api.http.get("/v1/stats").json()["lanes"][0]["servable"] is True
    assert [worker["id"] for worker in api.http.get("/v1/workers").json()["data"]] == ["worker-of-tests"]
    models = {model["id"]: model for model in api.http.get("/v1/models").json()["data"]}
    assert models["toyworld"]["ready_workers"] == 1
    metrics = api.http.get("/metrics").text
    assert 'pixelkiln_queue_waiting{lane="generate.toyworld"} 1.0' in metrics
    assert 'pixelkiln_jobs{status="queued"} 1.0' in metrics


def test_a_job_of_another_tenant_does_not_exist(api: Api) -> None:
    from pixelkiln.producer import Producer

    theirs = Producer(api.settings).submit(BODY, tenant="somebody-else").id
    missing = api.http.get("/v1/jobs/job_00000000000000000000000000").json()
    for method, path in [
        ("GET", ""),
        ("POST", "/cancel"),
        ("POST", "/retry"),
        ("DELETE", ""),
        ("GET", "/events"),
    ]:
        answer = api.http.request(method, f"/v1/jobs/{theirs}{path}")
        assert (answer.status_code, answer.json()["detail"]) == (404, missing["detail"])
    used = api.segment({"job": theirs})
    assert (used.status_code, used.json()["code"]) == (404, "not_found")
    assert pages(api) == [[]]


def test_artifacts_of_other_roles_are_linked_too(api: Api) -> None:
    job_id = api.submit()["id"]
    api.publish(api.claim(), role=Role.PREVIEW)
    assert api.http.get(f"/v1/jobs/{job_id}").json()["artifacts"][0]["role"] == "preview"
