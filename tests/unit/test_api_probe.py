"""The probe behind `/readyz`: seldom, and never in each other's way."""

from __future__ import annotations

import threading

import pytest

from pixelkiln.api import probe
from pixelkiln.api.probe import Probe
from pixelkiln_shared.errors import StorageUnavailable


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


def test_ready_workers_are_counted_and_none_is_no_fault() -> None:
    assert Probe(lambda: None, lambda: None, lambda: 0).state() == {
        "ready": True,
        "redis": "ok",
        "storage": "ok",
        "ready_workers": 0,
    }
    assert Probe(lambda: None, lambda: None, lambda: 3).state()["ready_workers"] == 3


def test_a_store_that_is_away_is_no_readiness() -> None:
    def away() -> None:
        raise StorageUnavailable("the bucket does not exist")

    state = Probe(lambda: None, away).state()
    assert (state["ready"], state["redis"], state["storage"]) == (False, "ok", "storage_unavailable")
