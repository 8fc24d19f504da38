"""Loaded models under a memory budget."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from pixelkiln_shared.catalogue import ModelEntry
from pixelkiln_shared.errors import ModelUnavailable
from pixelkiln_shared.kinds import Kind
from pixelkiln_worker.device import Device, Poisoned
from pixelkiln_worker.families.contract import Outcome, Task, Watch
from pixelkiln_worker.residency import Residency

CARD = Device(name="cpu", kind="cpu", memory_bytes=100, dtype_name="float32", threads=1)


@dataclass
class Block:
    """A model that takes so many bytes."""

    footprint_bytes: int
    closed: bool = False
    identity: dict[str, Any] = field(default_factory=dict)
    max_rows: int = 1

    def run(self, batch: Sequence[Task], watch: Watch) -> list[Outcome | Exception]:
        return []

    def close(self) -> None:
        self.closed = True


def entry(name: str, footprint_bytes: int = 40) -> ModelEntry:
    return ModelEntry(
        id=name, family="stub", kinds=(Kind.GENERATE,), title=name, defaults={"bytes": footprint_bytes}
    )


def load(entry: ModelEntry, device: Device) -> Block:
    return Block(entry.defaults["bytes"])


def test_a_model_is_loaded_once_and_its_load_time_told_once() -> None:
    residency = Residency(CARD, load)
    first, second = residency.use(entry("a")), residency.use(entry("a"))
    assert first.model is second.model
    assert first.load_ms > 0
    assert second.load_ms == 0


def test_what_is_asked_for_most_stays() -> None:
    residency = Residency(CARD, load)
    residency.use(entry("a"))
    residency.ran("a", rows=8, run_s=0.5)
    residency.use(entry("b"))
    residency.ran("b", rows=1, run_s=2.0)
    residency.use(entry("c"))
    assert residency.resident == ("a", "c")
    assert residency.runs_s == {"a": 0.5, "b": 2.0}


def test_the_longest_batch_is_remembered() -> None:
    residency = Residency(CARD, load)
    for run_s in (0.5, 2.0, 1.0):
        residency.ran("a", rows=1, run_s=run_s)
    assert residency.runs_s == {"a": 2.0}


def test_the_newest_load_is_told() -> None:
    residency = Residency(CARD, load)
    assert residency.last_load.holds_s is None
    residency.use(entry("a"))
    took_s = residency.last_load.took_s
    assert took_s == residency.loads_s["a"] > 0
    assert residency.last_load.ago_s < 60


def test_the_least_recently_used_makes_room() -> None:
    residency = Residency(CARD, load)
    a, b = residency.use(entry("a")).model, residency.use(entry("b")).model
    residency.use(entry("a"))
    residency.use(entry("c"))
    assert residency.resident == ("a", "c")
    assert isinstance(a, Block)
    assert isinstance(b, Block)
    assert (a.closed, b.closed) == (False, True)


def test_a_model_nobody_waits_for_makes_room_before_one_with_jobs() -> None:
    residency = Residency(CARD, load)
    residency.use(entry("a"))
    residency.use(entry("b"))
    residency.use(entry("c"), waiting={"a", "c"})
    assert residency.resident == ("a", "c")


def test_loads_are_told_and_those_for_which_another_model_left() -> None:
    told: list[tuple[str, bool]] = []
    residency = Residency(CARD, load, lambda model, took_s, switched: told.append((model, switched)))
    for name in ("a", "b", "b", "c", "a"):
        residency.use(entry(name))
    assert told == [("a", False), ("b", False), ("c", True), ("a", True)]


def test_a_model_over_the_budget_is_served_alone() -> None:
    residency = Residency(CARD, load)
    residency.use(entry("a"))
    residency.use(entry("huge", 1_000))
    assert residency.resident == ("huge",)


def test_running_out_of_memory_leaves_only_the_model_that_runs() -> None:
    residency = Residency(CARD, load)
    residency.use(entry("a"))
    residency.use(entry("b"))
    residency.evict_others("a")
    assert residency.resident == ("a",)


def test_a_model_that_does_not_load_is_unavailable_and_rests() -> None:
    def broken(entry: ModelEntry, device: Device) -> Block:
        if entry.id == "bad":
            raise OSError("a truncated file")
        return load(entry, device)

    residency = Residency(CARD, broken)
    with pytest.raises(ModelUnavailable, match="bad did not load"):
        residency.use(entry("bad"))
    assert residency.resting("bad")
    assert not residency.resting("a")
    assert residency.use(entry("a")).model.footprint_bytes == 40


def test_a_model_that_nobody_can_load_is_refused_without_trying_until_the_rest_is_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tries: list[str] = []

    def broken(entry: ModelEntry, device: Device) -> Block:
        tries.append(entry.id)
        raise OSError("a truncated file")

    def fails(residency: Residency) -> None:
        with pytest.raises(ModelUnavailable, match="bad did not load"):
            residency.use(entry("bad"))

    now = [1_000.0]
    monkeypatch.setattr("pixelkiln_worker.residency.time.monotonic", lambda: now[0])
    residency = Residency(CARD, broken)
    fails(residency)
    assert residency.nobody_loads({"bad"})
    assert not residency.resting("bad")
    for _ in range(3):
        fails(residency)
    assert tries == ["bad"]
    assert not residency.nobody_loads({"bad"})  # nothing new
    now[0] += 11
    fails(residency)
    assert tries == ["bad", "bad"]
    assert not residency.resting("bad")  # as before: it fails at once for all who wait
    residency.nobody_loads(set())  # another worker came
    assert residency.resting("bad")


def test_a_model_that_did_not_load_says_why_until_it_does() -> None:
    full = [True]

    def tight(entry: ModelEntry, device: Device) -> Block:
        if full.pop() if full else False:
            raise MemoryError
        return load(entry, device)

    residency = Residency(CARD, tight)
    with pytest.raises(ModelUnavailable, match="does not hold it"):
        residency.use(entry("a"))
    assert "does not hold it" in residency.unavailable["a"]
    residency.use(entry("a"))
    assert residency.unavailable == {}


def test_a_broken_device_is_not_blamed_on_the_model() -> None:
    def broken(entry: ModelEntry, device: Device) -> Block:
        raise RuntimeError("CUDA error: uncorrectable ECC error encountered")

    residency = Residency(CARD, broken)
    with pytest.raises(Poisoned):
        residency.use(entry("a"))
    assert residency.unavailable == {}


def test_what_a_model_takes_of_an_accelerator_is_measured() -> None:
    class Card(Device):
        def allocated_bytes(self) -> int:
            return allocated[0]

    def heavy(entry: ModelEntry, device: Device) -> Block:
        allocated[0] += 70
        return load(entry, device)

    allocated = [5]
    residency = Residency(
        Card(name="cuda:0", kind="cuda", memory_bytes=100, dtype_name="float32", threads=1), heavy
    )
    residency.use(entry("a"))
    [told] = residency.residents
    assert (told.id, told.footprint_bytes) == ("a", 70)
    assert told.load_s > 0
    residency.use(entry("b"))  # by what it says, both would fit
    assert residency.resident == ("b",)


def test_memory_that_runs_out_while_loading_is_freed_and_tried_again() -> None:
    class OutOfMemoryError(RuntimeError):
        pass

    def tight(entry: ModelEntry, device: Device) -> Block:
        if entry.id == "b" and residency.resident:
            raise OutOfMemoryError("fragmented")
        return load(entry, device)

    residency = Residency(CARD, tight)
    residency.use(entry("a"))
    residency.use(entry("b"))
    assert residency.resident == ("b",)


def test_a_model_whose_loading_hung_is_not_tried_before_its_rest_is_over() -> None:
    tries: list[str] = []

    def load(entry: ModelEntry, device: Device) -> Any:
        tries.append(entry.id)
        raise ModelUnavailable("no weights")

    residency, slow = Residency(CARD, load), entry("slow")
    residency.rest(slow.id, "it hung", 0.1)
    assert residency.resting(slow.id)
    with pytest.raises(ModelUnavailable, match="it hung"):
        residency.use(slow)
    assert tries == []

    time.sleep(0.11)
    assert not residency.resting(slow.id)
    with pytest.raises(ModelUnavailable, match="no weights"):
        residency.use(slow)
    assert tries == [slow.id]
