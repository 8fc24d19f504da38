"""Objects that killed processes left behind go after a while; everything that somebody may ask for stays."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from pixelkiln import leftovers
from pixelkiln.leftovers import DAYS, Orphans
from pixelkiln_shared import keys
from pixelkiln_shared.errors import StorageUnavailable
from pixelkiln_shared.jobs import Artifact, Result
from pixelkiln_shared.kinds import Role
from pixelkiln_shared.ledger.contract import Claimed, LaneOffer
from pixelkiln_shared.storage.contract import Storage
from pixelkiln_shared.storage.folder import FolderStorage
from pixelkiln_shared.testing.ledger import MemoryLedger
from pixelkiln_shared.testing.storage import MemoryStorage
from tests.ledger_worlds import LANE, new_job

TENANT = "default"
LATE = timedelta(seconds=keys.ORPHAN_S + 60)


@dataclass
class Attic:
    """A store, a ledger, and a sweeper whose clock the test moves."""

    storage: Storage
    ledger: MemoryLedger = field(default_factory=MemoryLedger)
    later: timedelta = LATE

    def __post_init__(self) -> None:
        self.orphans = Orphans(self.storage, self.ledger, now=lambda: datetime.now(UTC) + self.later)

    def job(self) -> str:
        """Submit a job with an input."""
        job = new_job(tenant=TENANT)
        self.put(keys.input_key(TENANT, job.id))
        self.ledger.submit([job])
        return job.id

    def claim(self) -> Claimed:
        claim = self.ledger.claim("w", [LaneOffer(lane=LANE, max_rows=1)], lease_s=60)
        assert claim is not None
        return claim.jobs[0]

    def put(self, key: str) -> str:
        self.storage.put(key, b"x", media_type="image/png")
        return key

    def store(self, job_id: str, attempt: int, *, names: tuple[str, ...] = ("image-0.png",)) -> list[str]:
        """Store an attempt's files."""
        return [self.put(keys.attempt_prefix(TENANT, job_id, attempt) + name) for name in names]

    def publish(self, job: Claimed) -> list[str]:
        """Store a whole attempt and publish it; returns the keys."""
        stored = self.store(job.id, job.attempt, names=("image-0.png", "manifest.json"))
        artifacts = [
            Artifact(role=Role.IMAGE, index=0, key=key, media_type="image/png", size_bytes=1, sha256="")
            for key in stored
        ]
        self.ledger.publish(job.id, job.attempt, Result(artifacts=artifacts).model_dump_json())
        return stored

    def turn(self) -> int:
        """Sweep every day once."""
        return sum(self.orphans.sweep() for _ in range(DAYS + 1))

    def left(self) -> set[str]:
        return {stored.key for stored in self.storage.list("")}


@pytest.fixture(params=["memory", "folder"])
def attic(request: pytest.FixtureRequest, tmp_path: Path) -> Attic:
    made: dict[str, Callable[[], Storage]] = {
        "memory": MemoryStorage,
        "folder": lambda: FolderStorage(tmp_path / "objects", secret=b"s"),
    }
    return Attic(made[request.param]())


def test_files_of_a_killed_attempt_go_and_the_result_stays(attic: Attic) -> None:
    job_id = attic.job()
    attic.store(job_id, 1)
    attic.ledger.release(job_id, attic.claim().attempt)
    shown = attic.publish(attic.claim())

    assert attic.turn() == 1
    assert attic.left() == {keys.input_key(TENANT, job_id), *shown}


@pytest.mark.parametrize("end", ["fail", "cancel"])
def test_a_job_that_ended_without_a_result_keeps_its_input_for_a_retry(attic: Attic, end: str) -> None:
    job_id = attic.job()
    job = attic.claim()
    attic.store(job_id, job.attempt)
    if end == "fail":
        attic.ledger.fail(job_id, job.attempt, '{"code": "x", "message": "y"}')
    else:
        attic.ledger.cancel(job_id)
        attic.ledger.stopped(job_id, job.attempt)

    assert attic.turn() == 1
    assert attic.left() == {keys.input_key(TENANT, job_id)}


def test_a_job_that_still_runs_is_left_alone(attic: Attic) -> None:
    job_id = attic.job()
    attic.store(job_id, attic.claim().attempt)

    assert attic.turn() == 0


def test_what_is_young_is_left_alone(attic: Attic) -> None:
    job_id = attic.job()
    attic.ledger.release(job_id, attic.claim().attempt)
    attic.store(job_id, 1)
    attic.publish(attic.claim())
    attic.later = timedelta(seconds=keys.ORPHAN_S - 60)

    assert attic.turn() == 0


def test_the_input_of_a_job_that_never_came_to_be_goes(attic: Attic) -> None:
    attic.job()
    orphan = attic.put(keys.input_key(TENANT, keys.new_id("job")))

    assert attic.turn() == 1
    assert orphan not in attic.left()


def test_results_outlive_their_records(attic: Attic) -> None:
    attic.job()
    forgotten = keys.new_id("job")
    attic.put(keys.input_key(TENANT, forgotten))
    attic.store(forgotten, 1, names=("image-0.png", "manifest.json"))

    assert attic.turn() == 0


def test_nothing_goes_where_the_ledger_knows_nobody(attic: Attic) -> None:
    attic.put(keys.input_key(TENANT, keys.new_id("job")))

    assert attic.turn() == 0


def test_uploads_and_embeddings_are_not_its_business(attic: Attic) -> None:
    attic.job()
    attic.put(keys.upload_key(TENANT, keys.new_id("upl")))
    attic.put(keys.embedding_key(TENANT, "abc.npz"))

    assert attic.turn() == 0


def test_a_round_is_bounded_and_the_next_one_goes_on(attic: Attic, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leftovers, "ROUND", 4)
    for _ in range(5):
        job_id = attic.job()
        attic.ledger.fail(job_id, attic.claim().attempt, '{"code": "x", "message": "y"}')
        attic.store(job_id, 1)

    removed = [attic.orphans.sweep() for _ in range(DAYS + 4)]

    assert max(removed) == 2
    assert sum(removed) == 5


def test_an_outage_costs_no_place() -> None:
    store = MemoryStorage()
    attic = Attic(store)
    job_id = attic.job()
    attic.ledger.fail(job_id, attic.claim().attempt, '{"code": "x", "message": "y"}')
    attic.store(job_id, 1)
    store.outage = True
    with pytest.raises(StorageUnavailable):
        attic.turn()
    store.outage = False

    assert attic.turn() == 1
