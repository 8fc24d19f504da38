"""Workers through the API: their figures, and the wish that one ends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from pixelkiln import AsyncClient, Client
from pixelkiln_shared import keys
from pixelkiln_shared.fleet import DeviceTime, Fleet, Histogram, ModelTally
from tests.integration.api.conftest import Api

SPENT = DeviceTime(busy_s=60, load_s=20, idle_waiting_s=5, idle_no_work_s=15)
WAITS = Histogram(bounds=(1.0,), counts=(1, 1), sum=2.0)
TALLIES = {
    "toyworld": ModelTally(loads=3, switches=1, batches=4, rows=16, max_batch=8, queue_wait=WAITS),
    "stub": ModelTally(loads=1, batches=1, rows=1),
}


def wished(api: Api) -> bool:
    return Fleet(api.redis).unwanted("worker-of-tests")


def test_a_drain_is_accepted_again_and_again(api: Api) -> None:
    api.serve("generate.toyworld")
    for _ in range(2):
        answer = api.http.post("/v1/workers/worker-of-tests/drain")
        assert (answer.status_code, answer.json()["id"]) == (202, "worker-of-tests")
    assert wished(api)


def test_a_worker_that_nobody_knows_cannot_be_drained(api: Api) -> None:
    for name in ("worker-of-tests", "*", "..%2Fx"):
        answer = api.http.post(f"/v1/workers/{name}/drain")
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
    assert api.redis.exists(keys.drain("worker-of-tests")) == 0


def test_who_has_no_key_drains_nobody(start_api: Callable[..., Api]) -> None:
    api = start_api(api_key="k" * 20)
    api.serve("generate.toyworld")
    path = "/v1/workers/worker-of-tests/drain"
    assert api.http.post(path).status_code == 401
    assert not wished(api)
    assert api.http.post(path, headers={"Authorization": f"Bearer {'k' * 20}"}).status_code == 202
    assert wished(api)


def test_another_site_cannot_make_a_browser_drain(api: Api) -> None:
    api.serve("generate.toyworld")
    headers = {"Origin": "https://evil.example"}
    assert api.http.post("/v1/workers/worker-of-tests/drain", headers=headers).status_code == 403
    assert not wished(api)


def test_the_client_that_blocks_drains(api: Api, client: Client) -> None:
    api.serve("generate.toyworld")
    assert client.drain_worker("worker-of-tests").state == "ready"
    assert wished(api)


def test_the_client_that_awaits_drains(api: Api) -> None:
    async def drain() -> str:
        async with AsyncClient(api.url) as client:
            return (await client.drain_worker("worker-of-tests")).id

    api.serve("generate.toyworld")
    assert asyncio.run(drain()) == "worker-of-tests"
    assert wished(api)


def test_a_worker_tells_how_its_time_went_and_how_full_its_batches_were(api: Api) -> None:
    api.serve("generate.toyworld", device_time=SPENT, tallies=TALLIES)
    [worker] = api.http.get("/v1/workers").json()["data"]
    assert worker["busy_share"] == 0.6
    assert worker["device_time"] == SPENT.model_dump()
    tally = worker["tallies"]["toyworld"]
    assert (tally["loads"], tally["switches"], tally["batch_fill"]) == (3, 1, 0.5)
    assert worker["tallies"]["stub"]["batch_fill"] is None
    assert "queue_wait" not in tally, "histograms are for /metrics"


def test_the_metrics_tell_of_the_workers(api: Api) -> None:
    api.serve("generate.toyworld", device_time=SPENT, tallies=TALLIES)
    told = api.http.get("/metrics").text
    assert 'pixelkiln_worker_device_seconds_total{state="busy",worker="worker-of-tests"} 60.0' in told
    assert 'pixelkiln_job_queue_wait_seconds_count{model="toyworld",worker="worker-of-tests"} 2.0' in told


# ------------------------------------------------------------------------------------------ command line


def test_the_list_shows_busy_loads_and_fill(api: Api, pixelkiln: Any) -> None:
    api.serve("generate.toyworld", device_time=SPENT, tallies=TALLIES)
    head, row = pixelkiln("workers").stdout.splitlines()
    shown = dict(zip(head.split(), row.split(), strict=False))
    assert (shown["BUSY"], shown["LOADS"], shown["FILL"]) == ("60%", "4/1", "50%")
    assert shown["NEEDED"] == "no"
    api.submit("a red house")
    assert "yes" in pixelkiln("workers").stdout.splitlines()[1].split()


def test_the_beginning_of_an_id_will_do(api: Api, pixelkiln: Any) -> None:
    api.serve("generate.toyworld")
    done = pixelkiln("worker", "drain", "worker-of")
    assert (done.exit_code, done.stdout) == (0, "worker-of-tests drains; 0 in hand\n")
    assert wished(api)


def test_a_beginning_that_fits_two_workers_is_refused(api: Api, pixelkiln: Any) -> None:
    api.serve("generate.toyworld")
    [info] = Fleet(api.redis).workers()
    Fleet(api.redis).report(info.model_copy(update={"id": "worker-of-others"}))
    api.serve("generate.toyworld")
    done = pixelkiln("worker", "drain", "worker-of")
    assert done.exit_code == 2
    assert "worker-of-others, worker-of-tests" in done.stderr
    assert not wished(api)


def test_a_host_is_drained_as_a_whole(api: Api, pixelkiln: Any) -> None:
    api.serve("generate.toyworld")
    assert pixelkiln("worker", "drain", "--host", "elsewhere").exit_code == 2
    assert not wished(api)
    done = pixelkiln("worker", "drain", "--host", "here", "-q")
    assert (done.exit_code, done.stdout) == (0, "worker-of-tests\n")
    assert wished(api)


def test_nobody_named_drains_nobody(api: Api, pixelkiln: Any) -> None:
    api.serve("generate.toyworld")
    for words in ((), ("nobody",), ("",)):
        assert pixelkiln("worker", "drain", *words).exit_code == 2
    assert not wished(api)


def test_waiting_ends_with_the_worker_or_the_time(api: Api, pixelkiln: Any) -> None:
    api.serve("generate.toyworld")
    done = pixelkiln("worker", "drain", "worker-of-tests", "--wait", "--timeout", "1s")
    assert done.exit_code == 3
    assert "still there: worker-of-tests" in done.stderr
    api.redis.expire(keys.worker("worker-of-tests"), 1)
    done = pixelkiln("worker", "drain", "worker-of-tests", "--wait", "--timeout", "20s")
    assert done.exit_code == 0
