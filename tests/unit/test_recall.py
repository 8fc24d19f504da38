"""What models worked out about pictures: read with the inputs, stored after the result, swept when old."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

import numpy as np
import pytest

from pixelkiln_shared import keys
from pixelkiln_shared.testing.storage import MemoryStorage
from pixelkiln_worker.families.contract import Memory, Outcome, Task, Watch
from pixelkiln_worker.recall import Recall
from tests.tiny_models import segment_task

PICTURE = np.zeros((4, 4, 3), np.uint8)
TASK = segment_task(PICTURE)
KEY = "k-t"


@dataclass
class Elephant:
    """A model that remembers; `held` is what it has at hand."""

    held: set[str] = field(default_factory=set)
    footprint_bytes: int = 0
    identity: dict[str, Any] = field(default_factory=dict)
    max_rows: int = 8

    def memory_key(self, task: Task) -> str:
        return f"k-{task.spec.tenant}"

    def at_hand(self, key: str) -> bool:
        return key in self.held

    def run(self, batch: Sequence[Task], watch: Watch) -> list[Outcome | Exception]:
        return []

    def close(self) -> None:
        pass


@dataclass
class Counted(MemoryStorage):
    """A store that counts what is read."""

    def __post_init__(self) -> None:
        super().__init__()
        self.gets = 0

    def get(self, key: str) -> bytes:
        self.gets += 1
        return super().get(key)


@pytest.fixture
def storage() -> Counted:
    return Counted()


@pytest.fixture
def recall(storage: Counted) -> Recall:
    return Recall(storage)


def test_what_one_worker_keeps_another_reads(storage: Counted, recall: Recall) -> None:
    recall.keep("t", Memory(key=KEY, data=b"numbers"))
    task = Recall(storage).prepare(TASK, Elephant())
    assert task.memory == Memory(key=KEY, data=b"numbers")
    assert task.images is TASK.images


def test_another_tenants_memory_is_not_read(storage: Counted, recall: Recall) -> None:
    recall.keep("t", Memory(key=KEY, data=b"numbers"))
    stranger = replace(TASK, spec=TASK.spec.model_copy(update={"tenant": "stranger"}))
    assert recall.prepare(stranger, Elephant()).memory == Memory(key="k-stranger")
    assert [stored.key for stored in storage.list("t/")] == [f"t/embeddings/{KEY}"]


def test_what_is_at_hand_is_not_fetched(storage: Counted, recall: Recall) -> None:
    recall.keep("t", Memory(key=KEY, data=b"numbers"))
    assert recall.prepare(TASK, Elephant(held={KEY})).memory == Memory(key=KEY)
    assert storage.gets == 0


def test_models_that_remember_nothing_are_asked_nothing(storage: Counted, recall: Recall) -> None:
    assert recall.prepare(TASK, None) is TASK
    assert recall.prepare(segment_task(None), Elephant()).memory is None
    assert storage.gets == 0


def test_a_store_that_is_away_costs_no_job(storage: Counted, recall: Recall) -> None:
    storage.outage = True
    assert recall.prepare(TASK, Elephant()).memory == Memory(key=KEY)
    recall.keep("t", Memory(key=KEY, data=b"numbers"))


def test_memories_read_elsewhere_are_not_stored_again(storage: Counted, recall: Recall) -> None:
    recall.keep("t", Memory(key=KEY))
    recall.keep("t", None)
    assert list(storage.list("t/")) == []


def test_old_memories_are_swept_and_young_ones_stay(storage: Counted, recall: Recall) -> None:
    recall.keep("t", Memory(key="old", data=b"1"))
    recall.keep("t", Memory(key="young", data=b"2"))
    storage.put("t/uploads/upl_1", b"3", media_type="image/png")
    _age(storage, "t/embeddings/old", keys.EMBEDDING_S + 60)
    assert recall.sweep("t") == 1
    assert [stored.key for stored in storage.list("t/")] == ["t/embeddings/young", "t/uploads/upl_1"]


def test_a_process_sweeps_when_it_first_stores_and_then_rarely(storage: Counted) -> None:
    for name in ("old", "older"):
        Recall(storage).keep("t", Memory(key=name, data=b"1"))
    _age(storage, "t/embeddings/old", keys.EMBEDDING_S + 60)
    recall = Recall(storage)
    recall.keep("t", Memory(key="new", data=b"2"))
    assert storage.head("t/embeddings/old") is None
    _age(storage, "t/embeddings/older", keys.EMBEDDING_S + 60)
    recall.keep("t", Memory(key="newer", data=b"3"))
    assert storage.head("t/embeddings/older") is not None


def _age(storage: MemoryStorage, key: str, seconds: float) -> None:
    stored, content = storage._objects[key]
    aged = replace(stored, modified_at=stored.modified_at - timedelta(seconds=seconds))
    storage._objects[key] = (aged, content)
