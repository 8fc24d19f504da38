"""Memory that really runs out: torch's allocator is refused, and the worker lives on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS is honoured on Linux only")


@pytest.fixture(scope="module")
def told() -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.hungry_worker"]
    environment = os.environ | {"MALLOC_ARENA_MAX": "2", "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 0, ended.stderr[-3_000:]
    found: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return found


def test_a_batch_that_does_not_fit_runs_in_parts(told: dict[str, Any]) -> None:
    assert told["batch"] == ["succeeded"] * 8
    assert told["batch_sizes"] == [8, 4, 2, 2, 4, 2, 2]


def test_a_job_that_does_not_fit_alone_fails_with_advice(told: dict[str, Any]) -> None:
    [error] = told["too_large"]
    assert error.startswith("out_of_memory")
    assert "ask for a smaller size than 64 x 64" in error


def test_the_next_job_is_served(told: dict[str, Any]) -> None:
    assert told["after"] == told["at_last"] == ["succeeded"]


def test_other_models_are_unloaded_before_a_job_fails(told: dict[str, Any]) -> None:
    assert told["beside"] == ["succeeded"]
    assert told["needs_the_room_of_another"] == ["succeeded"]
    assert told["resident"] == ["plain"]


def test_a_model_that_can_do_with_less_is_asked_to(told: dict[str, Any]) -> None:
    assert told["thrifty"] == ["succeeded"]


def test_a_model_that_does_not_fit_is_unavailable_and_says_why(told: dict[str, Any]) -> None:
    [error] = told["huge"]
    assert error.startswith("model_unavailable")
    assert "memory of this worker's device" in error
