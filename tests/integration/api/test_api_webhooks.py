"""Webhooks over HTTP: asked for with a job or group, told by the API, listed, sent again; no way inside."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import redis
from standardwebhooks import Webhook

from pixelkiln import Client
from pixelkiln.client import flows
from pixelkiln.webhooks.signing import read_secrets
from pixelkiln_shared import keys
from pixelkiln_shared.errors import Misconfigured
from pixelkiln_shared.jobs import JobSpec, Status
from pixelkiln_shared.kinds import Kind
from pixelkiln_shared.ledger import RedisLedger, redis_client
from pixelkiln_shared.ledger.contract import NewJob
from pixelkiln_shared.ledger.outbox import RedisOutbox
from pixelkiln_shared.settings import Settings
from tests.integration.api.conftest import WEBHOOK_SECRET, Api
from tests.ledger_worlds import new_job
from tests.receivers import OK, Got, Receiver, receiving, status

REFUSED = [
    "http://127.0.0.1:PORT/", "http://localhost:PORT/", "http://2130706433:PORT/", "http://[::1]:PORT/",
    "http://[::ffff:127.0.0.1]:PORT/", "http://169.254.169.254/latest", "http://10.0.0.1/", "file:///etc/passwd",
    "ftp://a.example/", "http://user:secret@a.example/", "//a.example", "",
]  # fmt: skip


def verified(got: Got) -> dict[str, Any]:
    """Return a message whose signature is right."""
    (secret,) = read_secrets(WEBHOOK_SECRET).of(f"http://{got.headers['host']}")
    found: dict[str, Any] = Webhook(secret).verify(got.body, got.headers)
    return found


def deliveries(api: Api, at: str) -> list[dict[str, Any]]:
    answer = api.http.get(at)
    assert answer.status_code == 200, answer.text
    return list(answer.json()["deliveries"])


def ended(api: Api, at: str) -> dict[str, Any]:
    """Wait until the first delivery there has ended."""
    deadline = time.monotonic() + 15
    while (found := deliveries(api, at)[0])["status"] == "pending":
        assert time.monotonic() < deadline, found
        time.sleep(0.05)
    return found


def test_a_finished_job_is_told_with_links_that_open(told: Api, receiver: Receiver) -> None:
    job = told.submit(webhook={"url": receiver.url}, labels={"set": "a"})
    picture = told.publish(told.claim())
    (got,) = receiver.wait_for(1)
    message = verified(got)
    assert message["type"] == "job.succeeded"
    data = message["data"]
    assert (data["id"], data["status"], data["labels"]) == (job["id"], "succeeded", {"set": "a"})
    link = data["artifacts"][0]["url"]
    assert link.startswith("http://127.0.0.1:")
    assert told.http.get(link.partition(":8700")[2]).content == picture
    delivery = ended(told, f"/v1/jobs/{job['id']}/webhooks")
    assert (delivery["id"], delivery["response_status"]) == (got.headers["webhook-id"], 200)
    assert message["timestamp"] == delivery["created_at"]


def test_only_the_events_asked_for_are_told(told: Api, receiver: Receiver) -> None:
    quiet = told.submit(webhook={"url": receiver.url, "events": ["job.failed"]})
    told.http.post(f"/v1/jobs/{quiet['id']}/cancel")
    loud = told.submit(webhook={"url": receiver.url, "events": ["job.canceled", "job.failed"]})
    told.http.post(f"/v1/jobs/{loud['id']}/cancel")
    assert verified(receiver.wait_for(1)[0])["data"]["id"] == loud["id"]
    assert deliveries(told, f"/v1/jobs/{quiet['id']}/webhooks") == []
    assert len(receiver.got) == 1


def test_a_group_is_told_once_when_all_have_ended(told: Api, receiver: Receiver) -> None:
    rows = [{"kind": "generate", "input": {"prompt": "a red house"}} for _ in range(3)]
    answer = told.http.post("/v1/groups", json={"jobs": rows, "webhook": {"url": receiver.url}}).json()
    for _ in range(2):
        told.publish(told.claim())
    told.http.post(f"/v1/groups/{answer['group']}/cancel")
    (got,) = receiver.wait_for(1)
    message = verified(got)
    assert (message["type"], message["data"]["id"]) == ("group.completed", answer["group"])
    assert message["data"]["counts"]["succeeded"] == 2
    assert message["data"]["done"] is True
    assert [one["event"] for one in deliveries(told, f"/v1/groups/{answer['group']}/webhooks")] == [
        "group.completed"
    ]
    assert len(receiver.got) == 1


def test_a_groups_webhook_covers_its_jobs_but_those_with_their_own(told: Api, receiver: Receiver) -> None:
    with receiving() as own:
        plain = {"kind": "generate", "input": {"prompt": "a red house"}}
        body = {
            "jobs": [plain, {**plain, "webhook": {"url": own.url}}],
            "webhook": {"url": receiver.url, "events": ["job.canceled", "group.completed"]},
        }
        group = told.http.post("/v1/groups", json=body).json()
        told.http.post(f"/v1/groups/{group['group']}/cancel")
        messages = [verified(got) for got in receiver.wait_for(2)]
        assert {one["type"] for one in messages} == {"job.canceled", "group.completed"}
        assert verified(own.wait_for(1)[0])["data"]["id"] == group["ids"][1]


def test_a_pipeline_is_told_as_a_group(told: Api, receiver: Receiver) -> None:
    steps = [
        {"id": "scene", "kind": "generate", "input": {"prompt": "a red house"}},
        {"id": "masks", "kind": "segment", "input": {"image": "$scene.image"}},
    ]
    made = told.http.post("/v1/pipelines", json={"steps": steps, "webhook": {"url": receiver.url}}).json()
    told.http.post(f"/v1/jobs/{made['steps']['scene']}/cancel")
    message = verified(receiver.wait_for(1)[0])
    assert message["data"]["counts"] | {"canceled": 1, "failed": 1} == message["data"]["counts"]


@pytest.mark.parametrize("url", REFUSED)
def test_a_url_that_leads_inside_is_refused_and_nothing_is_accepted(
    start_api: Callable[..., Api], receiver: Receiver, url: str
) -> None:
    api = start_api(webhook_secrets=WEBHOOK_SECRET)
    here = url.replace("PORT", str(receiver.server_address[1]))
    plain = {"kind": "generate", "input": {"prompt": "a red house"}}
    hook = {"webhook": {"url": here}}
    for path, body, pointer in [
        ("/v1/jobs", plain | hook, "/webhook/url"),
        ("/v1/groups", {"jobs": [plain | hook]}, "/jobs/0/webhook/url"),
        ("/v1/groups", {"jobs": [plain], **hook}, "/webhook/url"),
        ("/v1/pipelines", {"steps": [{"id": "a", **plain}], **hook}, "/webhook/url"),
    ]:
        answer = api.http.post(path, json=body)
        assert answer.status_code == 422, answer.text
        problem = answer.json()
        assert (problem["code"], problem["errors"][0]["pointer"]) == ("webhook_not_allowed", pointer)
    assert receiver.connections == 0
    assert api.http.get("/v1/jobs").json()["jobs"] == []


@pytest.mark.parametrize(
    ("webhook", "code"),
    [
        ({"events": ["job.failed"]}, "missing_field"),
        ({"url": "https://a.example/", "events": []}, "too_short"),
        ({"url": "https://a.example/", "events": ["job.finished"]}, "unknown_option"),
        ({"url": "https://a.example/", "events": ["group.completed"]}, "unknown_option"),
        ({"url": "https://a.example/", "secret": "x"}, "unknown_field"),
        ({"url": "https://a.example/" + "x" * 2_000}, "too_long"),
        ({"url": 7}, "invalid_type"),
        ("https://a.example/", "invalid_type"),
    ],
)
def test_a_webhook_that_makes_no_sense_is_refused(told: Api, webhook: Any, code: str) -> None:
    body = {"kind": "generate", "input": {"prompt": "a red house"}, "webhook": webhook}
    answer = told.http.post("/v1/jobs", json=body)
    assert (answer.status_code, answer.json()["code"]) == (422, code)


def test_without_a_secret_there_are_no_webhooks(api: Api, receiver: Receiver) -> None:
    body = {"kind": "generate", "input": {"prompt": "a red house"}, "webhook": {"url": receiver.url}}
    answer = api.http.post("/v1/jobs", json=body)
    assert (answer.status_code, answer.json()["code"]) == (422, "webhook_not_allowed")


def test_a_wrong_secret_stops_the_start(start_api: Callable[..., Api]) -> None:
    with pytest.raises(Misconfigured, match="PIXELKILN_WEBHOOK_SECRETS"):
        start_api(webhook_secrets="hunter2")


def test_a_failed_message_is_listed_and_sent_again(told: Api) -> None:
    with receiving(status(410), OK) as receiver:
        job = told.submit(webhook={"url": receiver.url})
        told.http.post(f"/v1/jobs/{job['id']}/cancel")
        failed = ended(told, f"/v1/jobs/{job['id']}/webhooks")
        assert (failed["status"], failed["response_status"], failed["error"]) == ("failed", 410, "gone")
        assert [one["id"] for one in deliveries(told, "/v1/webhooks?status=failed")] == [failed["id"]]
        assert deliveries(told, "/v1/webhooks?status=pending") == []
        assert 'pixelkiln_webhooks{status="failed"} 1.0' in told.http.get("/metrics").text
        again = told.http.post(httpx2.URL(failed["urls"]["redeliver"]).path)
        assert (again.status_code, again.json()["status"]) == (202, "pending")
        first, second = receiver.wait_for(2)
        assert first.headers["webhook-id"] == second.headers["webhook-id"]
        delivered = ended(told, f"/v1/jobs/{job['id']}/webhooks")
    assert (delivered["status"], delivered["attempts"]) == ("delivered", 2)
    assert told.http.get(f"/v1/webhooks/{delivered['id']}").json() == delivered


def test_a_waiting_message_says_when_it_is_tried_next(told: Api) -> None:
    with receiving(status(500)) as receiver:
        job = told.submit(webhook={"url": receiver.url})
        told.http.post(f"/v1/jobs/{job['id']}/cancel")
        receiver.wait_for(1)
        deadline = time.monotonic() + 10
        while not (found := deliveries(told, f"/v1/jobs/{job['id']}/webhooks")[0])["response_status"]:
            assert time.monotonic() < deadline
    assert (found["status"], found["response_status"], found["error"]) == ("pending", 500, "status")
    assert found["next_attempt_at"] > found["last_attempt_at"]


def test_pages_of_messages_follow_a_signed_cursor(told: Api, receiver: Receiver) -> None:
    jobs = []
    for _ in range(5):
        jobs.append(told.submit(webhook={"url": receiver.url})["id"])
        told.http.post(f"/v1/jobs/{jobs[-1]}/cancel")
    first = told.http.get("/v1/webhooks?limit=3").json()
    second = told.http.get("/v1/webhooks", params={"limit": 3, "cursor": first["next_cursor"]}).json()
    assert [one["subject"] for one in first["deliveries"] + second["deliveries"]] == jobs[::-1]
    assert second["next_cursor"] is None
    foreign = told.http.get("/v1/jobs", params={"cursor": first["next_cursor"]})
    assert foreign.json()["code"] == "invalid_cursor"


@pytest.mark.parametrize("name", ["msg_1", "*", "msg_00000000000000000000000000_1", "x" * 3_000])
def test_an_unknown_message_is_not_found(told: Api, name: str) -> None:
    assert told.http.get(f"/v1/webhooks/{name}").status_code == 404
    assert told.http.post(f"/v1/webhooks/{name}/redeliver").status_code == 404
    assert told.http.get(f"/v1/jobs/{name}/webhooks").status_code == 404


def test_what_was_deleted_meanwhile_is_told_by_its_id(told: Api) -> None:
    with receiving(status(500), OK) as receiver:
        job = told.submit(webhook={"url": receiver.url})
        told.http.post(f"/v1/jobs/{job['id']}/cancel")
        receiver.wait_for(1)
        assert told.http.delete(f"/v1/jobs/{job['id']}").status_code == 204
        last = verified(receiver.wait_for(2)[1])
    assert last["data"] == {"id": job["id"], "deleted": True}


@pytest.fixture
def process(redis_url: str, tmp_path: Path) -> Iterator[Callable[[], subprocess.Popen[bytes]]]:
    """Starts API processes that can be killed."""
    running: list[subprocess.Popen[bytes]] = []
    environment = {
        **os.environ,
        "PIXELKILN_REDIS_URL": redis_url,
        "PIXELKILN_STORAGE_URL": f"file://{tmp_path}/objects",
        "PIXELKILN_PORT": "0",
        "PIXELKILN_WEBHOOK_SECRETS": WEBHOOK_SECRET,
        "PIXELKILN_WEBHOOK_HOSTS": "127.0.0.1",
    }

    def start() -> subprocess.Popen[bytes]:
        with (tmp_path / "api.log").open("ab") as log:
            one = subprocess.Popen(
                [sys.executable, "-m", "pixelkiln.api"], env=environment, stdout=log, stderr=log
            )
        running.append(one)
        return one

    yield start
    for one in running:
        one.kill()
        one.wait()


def test_an_api_killed_between_the_end_and_the_message_loses_nothing(
    redis_url: str, process: Callable[[], subprocess.Popen[bytes]]
) -> None:
    """Killed while the receiver was being told; and one job ended while no API lived at all."""
    with redis_client(Settings(redis_url=redis_url)) as client, receiving("never", OK) as receiver:
        ledger, outbox = RedisLedger(client), RedisOutbox(client)
        jobs = [_job(receiver.url) for _ in range(2)]
        ledger.submit(jobs)
        first = process()
        ledger.cancel(jobs[0].id)
        (cut,) = receiver.wait_for(1)
        first.send_signal(signal.SIGKILL)
        first.wait()
        ledger.cancel(jobs[1].id)
        _end_leases(client)
        process()
        receiver.wait_for(3)
        told = [(got.headers["webhook-id"], verified(got)["data"]["id"]) for got in receiver.got[1:]]
        assert sorted(told) == sorted((outbox.of(job.id)[0].id, job.id) for job in jobs)
        assert cut.headers["webhook-id"] == outbox.of(jobs[0].id)[0].id
        assert json.loads(cut.body)["type"] == "job.canceled"


def _job(url: str) -> NewJob:
    spec = JobSpec(id=keys.new_id("job"), kind=Kind.GENERATE, model="toyworld", tenant="default", input={})
    return new_job(id=spec.id, tenant="default", spec=spec.compact(), webhook=url, notify=(Status.CANCELED,))


def _end_leases(client: redis.Redis) -> None:
    """Let the time of killed couriers pass at once."""
    for name in client.zrange(keys.LedgerKey.ALOFT, 0, -1):
        client.zadd(keys.LedgerKey.ALOFT, {str(name): 0})


def test_the_client_reads_every_page(told: Api, receiver: Receiver) -> None:
    for _ in range(3):
        job = told.submit(webhook={"url": receiver.url})["id"]
        told.http.post(f"/v1/jobs/{job}/cancel")
    with Client(told.url) as client:
        assert len(list(client.webhooks())) == 3
        (one,) = client.webhooks(job=job)
        assert one.subject == job
        assert list(client.webhooks(job=job, status="failed")) == []


def test_a_group_sent_in_many_requests_is_complete_once(
    told: Api, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each chunk has ended before the next one comes, so a webhook in the first would speak too early."""
    monkeypatch.setattr(flows, "CHUNK_ROWS", 2)

    def rows() -> Iterator[dict[str, Any]]:
        for number in range(6):
            for record in told.ledger.jobs("default", status=Status.QUEUED).records:
                told.ledger.cancel(record.id)
            yield {"prompt": f"a red house {number}"}

    with Client(told.url) as client:
        events = ["job.canceled", "group.completed"]
        group = client.submit_many(rows(), webhook={"url": receiver.url, "events": events})
        group.cancel()
        types = [verified(got)["type"] for got in receiver.wait_for(7)]
        assert (types.count("job.canceled"), types.count("group.completed")) == (6, 1)
        time.sleep(0.7)  # a round of the courier
        assert len(receiver.got) == 7
