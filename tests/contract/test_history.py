"""Manifests found again in each store, among much that is none."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime, timedelta
from functools import partial
from typing import Any

import numpy as np
import pytest

from pixelkiln import history
from pixelkiln.history import Scope, Tally
from pixelkiln_shared import keys
from pixelkiln_shared.errors import NotFound, StorageUnavailable
from pixelkiln_shared.jobs import JobSpec, Result, Status
from pixelkiln_shared.kinds import Role
from pixelkiln_shared.storage.contract import Storage
from pixelkiln_shared.storage.folder import FolderStorage
from pixelkiln_shared.testing.ledger import MemoryLedger
from pixelkiln_shared.testing.storage import MemoryStorage
from pixelkiln_worker.encode import encode
from pixelkiln_worker.families.contract import Outcome, Picture
from tests.contract.test_ledger_restore import id_at
from tests.worker_processes import stub_spec

NOW = datetime.now(UTC).replace(microsecond=0)
SCOPE = Scope(tenant="tests")
DAY_S = 86_400
restore = partial(history.restore, retention_s=7 * DAY_S)


def made(days_ago: float = 0, **changes: Any) -> JobSpec:
    """Return a job made some days ago."""
    moment = NOW - timedelta(days=days_ago)
    chance = keys.new_id("job")[-16:]
    return stub_spec(id=id_at(round(moment.timestamp() * 1_000), chance), **changes)


def finish(storage: Storage, spec: JobSpec, attempt: int = 1, **changes: Any) -> dict[str, Any]:
    """Store what a worker stores of an attempt; `changes` go into the manifest. Returns it."""
    outcome = Outcome(
        pictures=(Picture(pixels=np.zeros((8, 8, 3), np.uint8), seed=7),), detail={"method": "stub"}
    )
    facts = {
        "attempt": attempt,
        "worker": "w1",
        "started_at": (NOW - timedelta(seconds=2)).isoformat(),
        "completed_at": NOW.isoformat(),
        "batch": {"size": 2, "index": 1},
        "timings_ms": {"run_ms": 12.5},
    }
    prefix = keys.attempt_prefix(spec.tenant, spec.id, attempt)
    document: dict[str, Any] = {}
    for file in encode(spec, outcome, facts=facts):
        data = file.data
        if file.role is Role.MANIFEST:
            document = {**json.loads(data), **changes}
            data = json.dumps(document).encode()
        storage.put(prefix + file.name, data, media_type=file.media_type)
    return document


def test_what_a_worker_stored_becomes_a_record(storage: Storage) -> None:
    spec = made(group="grp_a", labels={"for": "Anna"}, warnings=[{"code": "c", "message": "m"}])
    finish(storage, spec)
    ledger = MemoryLedger()
    assert restore(storage, ledger, SCOPE) == Tally(objects=2, restored=1)
    record = ledger.get(spec.id)
    assert (record.status, record.attempt, record.worker, record.group) == (
        Status.SUCCEEDED,
        1,
        "w1",
        "grp_a",
    )
    assert JobSpec.model_validate_json(record.spec) == spec.model_copy(update={"group": None})
    assert record.started_at == record.completed_at == NOW.timestamp()  # never before it was made
    result = Result.model_validate_json(record.result or "")
    assert result.metrics == {"run_ms": 12.5, "batch_size": 2, "batch_index": 1}
    assert (result.seed, result.detail, result.warnings) == (1, {"method": "stub"}, spec.warnings)
    assert [artifact.role for artifact in result.artifacts] == [Role.IMAGE, Role.MANIFEST]
    for artifact in result.artifacts:
        assert storage.get(artifact.key)
        head = storage.head(artifact.key)
        assert head is not None
        assert (head.size_bytes, head.sha256) == (artifact.size_bytes, artifact.sha256)


def test_the_newest_whole_attempt_wins(storage: Storage) -> None:
    spec, other = made(), made()
    for attempt in (2, 10, 9):
        finish(storage, spec, attempt)
    finish(storage, other, 1)
    finish(storage, other, 2)
    storage.delete(keys.attempt_prefix("tests", other.id, 2) + "0.png")
    ledger = MemoryLedger()
    assert restore(storage, ledger, SCOPE).restored == 2
    assert (ledger.get(spec.id).attempt, ledger.get(other.id).attempt) == (10, 1)


def test_days_and_tenants_bound_what_is_imported(storage: Storage) -> None:
    specs = [made(days_ago) for days_ago in (4, 3, 2, 1)]
    for spec in [*specs, made(2, tenant="tests2"), made(2, tenant="test")]:
        finish(storage, spec)
    days = [keys.id_time(spec.id).date() for spec in specs]
    ledger = MemoryLedger()
    scope = Scope(tenant="tests", since=days[1], until=days[2])
    assert restore(storage, ledger, scope) == Tally(objects=4, restored=2)
    assert [record.id for record in ledger.jobs("tests").records] == [specs[2].id, specs[1].id]
    assert restore(storage, ledger, SCOPE) == Tally(objects=8, restored=2, known=2)
    assert restore(storage, ledger, Scope(tenant="tests", until=date(2020, 1, 1))).restored == 0


def test_without_a_tenant_all_are_found(storage: Storage) -> None:
    names = ["a", "a-b", "a.b", "a0", "default", "uploads"]
    specs = [made(tenant=name) for name in names for _ in range(2)]
    for spec in specs:
        finish(storage, spec)
    for key in ("a/uploads/upl_x", "alone.txt", "weights/sd/model.safetensors", "zz/2026/notes.txt"):
        storage.put(key, b"x", media_type="application/octet-stream")
    assert list(history.tenants_of(storage)) == sorted([*names, "weights", "zz"], key=lambda name: f"{name}/")
    ledger = MemoryLedger()
    tally = restore(storage, ledger, Scope())
    assert (tally.restored, tally.lost, tally.foreign) == (12, 0, 1)
    assert {name: len(ledger.jobs(name).records) for name in names} == dict.fromkeys(names, 2)


def test_records_live_until_they_would_have_been_forgotten(storage: Storage) -> None:
    usual, long, short = made(6), made(6, retention_s=30 * DAY_S), made(6, retention_s=7 * DAY_S + 3_600)
    for spec in (usual, long, short):
        finish_at(storage, spec, days_ago=6)
    clock = [NOW.timestamp()]
    ledger = MemoryLedger(lambda: clock[0], retention_s=99 * DAY_S)
    assert restore(storage, ledger, SCOPE).restored == 3
    for passed_s, left in ((DAY_S - 60, 3), (DAY_S + 60, 2), (DAY_S + 3_700, 1), (24 * DAY_S + 60, 0)):
        clock[0] = NOW.timestamp() + passed_s
        ledger.reap()
        assert len(ledger.jobs("tests").records) == left


def test_what_had_expired_comes_back_only_when_asked_for(storage: Storage) -> None:
    for days_ago, retention_s in ((8, None), (2, DAY_S), (8, 9 * DAY_S)):
        finish_at(storage, made(days_ago, retention_s=retention_s), days_ago=days_ago)
    ledger = MemoryLedger()
    assert restore(storage, ledger, SCOPE) == Tally(objects=6, restored=1, expired=2)
    everything = Scope(tenant="tests", expired=True)
    assert restore(storage, ledger, everything) == Tally(objects=6, restored=2, known=1)
    ledger.reap()
    assert len(ledger.jobs("tests").records) == 3


def finish_at(storage: Storage, spec: JobSpec, *, days_ago: float) -> None:
    """Store an attempt that ended some days ago."""
    completed_at = (NOW - timedelta(days=days_ago)).isoformat()
    finish(storage, spec, run={"attempt": 1, "completed_at": completed_at})


def test_garbage_is_counted_and_passed_over(storage: Storage) -> None:
    good = made()
    finish(storage, good)
    day = f"tests/{NOW:%Y/%m/%d}"
    lone, torn, liar, text = made(), made(), made(), made()
    storage.put(keys.input_key("tests", lone.id), b"x", media_type="image/png")
    finish(storage, torn)
    storage.delete(keys.attempt_prefix("tests", torn.id, 1) + "0.png")
    finish(storage, liar, job=good.model_dump(mode="json"))
    for data, spec in ((b"not json", text), (b"{}", made()), (b'{"format":"other/1","job":{}}', made())):
        key = keys.attempt_prefix("tests", spec.id, 1) + "manifest.json"
        storage.put(key, data, media_type="application/json")
    for key in (f"{day}/notes.txt", f"{day}/job_short/a1/manifest.json", "tests/2020/x/y.png"):
        storage.put(key, b"{}", media_type="application/json")
    elsewhere = f"tests/2021/01/01/{good.id}/a1/manifest.json"  # the id is of another day
    storage.put(elsewhere, b"{}", media_type="application/json")
    storage.put("tests/embeddings/x", b"x", media_type="application/octet-stream")
    storage.put("tests/uploads/upl_x", b"x", media_type="application/octet-stream")
    ledger = MemoryLedger()
    tally = restore(storage, ledger, SCOPE)
    assert (tally.restored, tally.unfinished, tally.incomplete, tally.broken) == (1, 1, 1, 4)
    assert tally.foreign == 4
    assert tally.lost == 5
    assert [record.id for record in ledger.jobs("tests").records] == [good.id]


@pytest.mark.parametrize(
    "changes", [{"format": "pixelkiln-manifest/2", "files": "elsewhere"}, {"job": {"v": 2, "kind": "dream"}}]
)
def test_a_manifest_of_a_newer_version_is_left_to_newer_programs(changes: dict[str, Any]) -> None:
    storage, spec = MemoryStorage(), made()
    finish(storage, spec, **changes)
    tally = restore(storage, MemoryLedger(), SCOPE)
    assert (tally.other_version, tally.restored, tally.lost) == (1, 0, 1)


def test_a_manifest_without_what_came_later_and_with_what_will_come_is_read(storage: Storage) -> None:
    spec = made(1)
    document = finish(storage, spec)
    run = {"attempt": 1, "device": "cpu", "moon": "full"}
    finish(storage, spec, run=run, files=[{**document["files"][0], "mood": "blue"}], weather="fine")
    ledger = MemoryLedger()
    assert restore(storage, ledger, SCOPE).restored == 1
    record = ledger.get(spec.id)
    assert record.started_at is None
    assert abs((record.completed_at or 0) - datetime.now(UTC).timestamp()) < 600  # when it was stored


def test_a_damaged_manifest_costs_one_job_and_not_the_import(folder_storage: FolderStorage) -> None:
    damaged, whole = made(), made()
    for spec in (damaged, whole):
        finish(folder_storage, spec)
    path = folder_storage.root / keys.attempt_prefix("tests", damaged.id, 1) / "manifest.json"
    path.write_bytes(path.read_bytes().replace(b"stub", b"bust"))
    tally = restore(folder_storage, MemoryLedger(), SCOPE)
    assert (tally.restored, tally.broken) == (1, 1)


def test_a_store_that_goes_away_ends_the_import(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: object) -> bytes:
        raise StorageUnavailable("away")

    finish(storage, made())
    for name in ("get", "head"):
        monkeypatch.setattr(storage, name, away)
    with pytest.raises(StorageUnavailable):
        restore(storage, MemoryLedger(), SCOPE)


@pytest.mark.parametrize("name", ["../../x.png", "a/b.png", "", ".hidden"])
def test_a_manifest_names_no_file_outside_its_folder(name: str) -> None:
    storage, spec = MemoryStorage(), made()
    document = finish(storage, spec)
    finish(storage, spec, files=[{**document["files"][0], "name": name}])
    assert restore(storage, MemoryLedger(), SCOPE).broken == 1


def test_a_dry_run_counts_and_writes_nothing(storage: Storage) -> None:
    spec = made()
    finish(storage, spec)
    ledger = MemoryLedger()
    assert restore(storage, ledger, SCOPE, dry_run=True) == Tally(objects=2, restored=1)
    with pytest.raises(NotFound):
        ledger.get(spec.id)


def test_progress_is_told_as_days_go_by(storage: Storage) -> None:
    finish(storage, made())
    told: list[tuple[int, str]] = []
    restore(storage, MemoryLedger(), SCOPE, progress=lambda tally, day: told.append((tally.restored, day)))
    assert told == [(1, f"{NOW:%Y/%m/%d}")]
