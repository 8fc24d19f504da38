"""The probe behind `/readyz`: seldom, and never in each other's way."""

from __future__ import annotations

import threading

import pytest

from pixelkiln.api import probe
from pixelkiln.api.probe import Probe


def test_nobody_waits_for_a_store_that_takes_long_to_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "PROBE_S", 0.0)
    asked, release = threading.Event(), threading.Event()
    release.set()

    def slow() -> None:
        asked.set()
        assert release.wait(10)

    watched = Probe(lambda: None, slow)
    assert watched.state()["ready"]
    release.clear()
    asked.clear()
    looking = threading.Thread(target=watched.state)
    looking.start()
    try:
        assert asked.wait(10)
        others = [threading.Thread(target=watched.state, daemon=True) for _ in range(3)]
        for other in others:
            other.start()
        for other in others:
            other.join(2)
        assert not any(other.is_alive() for other in others)
    finally:
        release.set()
        looking.join(10)
