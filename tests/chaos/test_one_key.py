"""One idempotency key, very many POSTs, and an API that is killed among them: one job."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import httpx2
import pytest

from tests.chaos.proxy import wait_for_port
from tests.chaos.schedule import PROOF
from tests.chaos.stage import stage

POSTS = 1_000
SENDERS = 16
KILLS = 3
JOB = {"kind": "generate", "model": "stub", "input": {"prompt": "a hill", "seed": 1}}


@pytest.mark.slow
def test_a_thousand_posts_of_one_key_are_one_job(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    with stage(folder, replace(PROOF, workers=0), seed=1) as made, ExitStack() as clients:
        port = int(made.url.rpartition(":")[2])
        wait_for_port(port, seconds=60)
        local = threading.local()
        ids: list[str] = []

        def send(_: int) -> int:
            """POST until an answer comes; returns the status."""
            if not hasattr(local, "http"):
                http = httpx2.Client(base_url=made.url, timeout=30, trust_env=False)
                local.http = clients.enter_context(http)
            while True:
                try:
                    answer = local.http.post("/v1/jobs", json=JOB, headers={"Idempotency-Key": "one"})
                except httpx2.HTTPError:
                    time.sleep(0.1)
                    continue
                if answer.status_code == 202:
                    ids.append(answer.json()["id"])
                return int(answer.status_code)

        with ThreadPoolExecutor(SENDERS) as senders:
            sent = senders.map(send, range(POSTS))
            for killed in range(KILLS):
                answered = (killed + 1) * POSTS // (KILLS + 2)
                while len(ids) < answered:
                    time.sleep(0.001)
                made.api.kill()
            statuses = set(sent)

        assert statuses <= {202, 409, 503}
        assert len(set(ids)) == 1
        assert [record.id for record in made.records()] == ids[:1]
