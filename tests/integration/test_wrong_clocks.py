"""Processes whose wall clock is an hour wrong: leases and times of jobs are Redis's own."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx2
import pytest

from pixelkiln_shared.jobs import Status
from tests.worker_processes import BOOT_S, Stack, wait_for

SHIFTED = Path(__file__).parent.parent / "shifted_clock"


@pytest.fixture
def stack(redis_url: str, tmp_path: Path) -> Iterator[Stack]:
    stack = Stack(redis_url, tmp_path, PYTHONPATH=os.pathsep.join([str(SHIFTED), *sys.path[1:]]))
    yield stack
    stack.close()


def test_wrong_clocks_end_no_lease_early_and_date_no_job_wrong(stack: Stack) -> None:
    stack.launch(SHIFTED_CLOCK_S="3600")
    stack.launch(SHIFTED_CLOCK_S="-3600")
    url = stack.serve(SHIFTED_CLOCK_S="3600")
    wait_for(lambda: all_ready(stack, 2), BOOT_S, "the workers did not become ready")
    hours = sorted(round((w.started_at.timestamp() - time.time()) / 3_600) for w in stack.fleet.workers())
    assert hours == [-1, 1], "the clocks are wrong"
    began = time.time()
    with httpx2.Client(base_url=url, timeout=20, trust_env=False) as http:
        ids = [http.post("/v1/jobs", json=a_job(device_ms=1_800 + i)).json()["id"] for i in range(4)]
        records = stack.until(ids, seconds=60)  # each takes longer than a lease of 1.5 s; everybody sweeps
        assert {(record.status, record.attempt) for record in records} == {(Status.SUCCEEDED, 1)}
        for record in records:
            told = http.get(f"/v1/jobs/{record.id}").json()
            times = [
                datetime.fromisoformat(told[f"{name}_at"]) for name in ("created", "started", "completed")
            ]
            dates = [began - 1, *(moment.timestamp() for moment in times), time.time() + 1]
            assert dates == sorted(dates)
            assert http.get(told["artifacts"][0]["url"]).content.startswith(b"\x89PNG")


def all_ready(stack: Stack, count: int) -> bool | None:
    return sum(info.state == "ready" for info in stack.fleet.workers()) == count or None


def a_job(device_ms: int) -> dict[str, Any]:
    """Return a job of 25 steps that shares no batch with others."""
    wish = {"prompt": "a hill", "width": 64, "height": 64, "steps": 25, "options": {"device_ms": device_ms}}
    return {"kind": "generate", "model": "stub", "input": wish}
