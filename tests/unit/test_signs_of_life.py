"""What a launcher hears of its child, and what it does not take for silence."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from pixelkiln_worker import signs_of_life
from pixelkiln_worker.signs_of_life import LONGEST_LOOK_S, SignsOfLife
from tests.worker_processes import wait_for


@pytest.fixture
def clock() -> list[float]:
    """The listener's clock, which the test moves."""
    return [0.0]


@pytest.fixture
def signs(clock: list[float]) -> Iterator[SignsOfLife]:
    signs = SignsOfLife(lambda: clock[0])
    yield signs
    signs.close()


def looks(signs: SignsOfLife, clock: list[float], count: int, *, every_s: float = 0.5) -> float:
    for _ in range(count):
        clock[0] += every_s
        signs.look()
    return signs.silent_s


def test_silence_counts_from_the_last_sign(signs: SignsOfLife, clock: list[float]) -> None:
    os.write(signs.descriptor, b".")
    assert looks(signs, clock, 5) == 2.0
    os.write(signs.descriptor, b".")
    assert looks(signs, clock, 3) == 1.0


def test_who_was_never_heard_is_not_silent(signs: SignsOfLife, clock: list[float]) -> None:
    assert looks(signs, clock, 1_000) == 0.0


def test_while_nobody_looked_nobody_was_silent(signs: SignsOfLife, clock: list[float]) -> None:
    os.write(signs.descriptor, b".")
    looks(signs, clock, 1)
    assert looks(signs, clock, 1, every_s=600) == LONGEST_LOOK_S


def test_a_closed_pipe_is_not_silence(signs: SignsOfLife, clock: list[float]) -> None:
    os.write(signs.descriptor, b".")
    signs.handed_over()
    assert looks(signs, clock, 100) == 0.0


def test_a_child_gives_signs_and_forgets_where_to() -> None:
    signs = SignsOfLife()
    program = (
        "import os, time; from pixelkiln_worker import signs_of_life as signs; before = dict(os.environ)\n"
        "signs.give(); print(len(before) - len(os.environ), flush=True); time.sleep(60)"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", program],
        env={**os.environ, **signs.environment},
        pass_fds=(signs.descriptor,),
        stdout=subprocess.PIPE,
    )
    try:
        signs.handed_over()
        assert child.stdout is not None
        assert child.stdout.readline() == b"1\n"

        def heard() -> Any:
            signs.look()
            return signs.heard or None

        wait_for(heard, 20, "no sign")
    finally:
        child.kill()
        child.communicate()
        signs.close()


def test_without_a_launcher_nothing_is_given() -> None:
    before = threading.active_count()
    signs_of_life.give()
    assert threading.active_count() == before
