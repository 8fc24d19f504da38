"""What is finished waits for a store that is away: bounded, sent once, removed when its process is dead."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pixelkiln_shared.errors import RedisUnavailable
from pixelkiln_shared.jobs import Status
from pixelkiln_shared.ledger.contract import LaneOffer, Record
from pixelkiln_shared.testing.storage import MemoryStorage
from pixelkiln_worker import outgoing, refusals, spool
from pixelkiln_worker.firing import fire
from pixelkiln_worker.held import Gone
from pixelkiln_worker.refusals import Refusals
from pixelkiln_worker.spool import own_folder
from tests.firing_houses import House, code_of, firing_house
from tests.worker_processes import stub_spec, wait_for
from tests.workshops import spool_on


@pytest.fixture
def house(monkeypatch: pytest.MonkeyPatch) -> Iterator[House]:
    """A workshop whose store is away, and whose spool waits for nothing and keeps nothing in memory."""
    monkeypatch.setattr(spool, "AT_ONCE_S", 0.05)
    monkeypatch.setattr(spool, "IN_MEMORY_BYTES", 0)
    with firing_house() as house:
        house.storage.outage = True
        yield house
        house.storage.outage = True


def ended(house: House, ids: list[str]) -> list[Record]:
    def found() -> list[Record] | None:
        records = [house.ledger.get(name) for name in ids]
        return records if all(record.status.terminal for record in records) else None

    return wait_for(found, 15, "the jobs did not end")


def spooled(house: House) -> list[Path]:
    return [path for path in house.shop.spool.folder.rglob("*") if path.is_file()]


def test_a_batch_ends_although_the_store_is_away(house: House) -> None:
    [record] = house.run(stub_spec())

    assert record.status is Status.RUNNING
    assert house.shop.spool.waiting == 1
    assert {path.name for path in spooled(house)} == {"0.png", "manifest.json"}
    assert house.shop.spool.why == "the store is down"


def test_what_waited_is_published_when_the_store_is_back_and_ran_once(house: House) -> None:
    ids = [house.run(stub_spec(str(number), seed=number))[0].id for number in range(12)]
    assert house.shop.spool.waiting == 12  # more than there are senders
    house.storage.outage = False

    records = ended(house, ids)

    assert {(record.status, record.attempt) for record in records} == {(Status.SUCCEEDED, 1)}
    assert len(house.brush.batches) == 12
    wait_for(lambda: not spooled(house) or None, 5, "files stayed behind")
    assert (house.shop.spool.waiting, house.shop.spool.waiting_bytes) == (0, 0)
    assert not house.shop.held.jobs()


def test_a_suspect_whose_result_waits_keeps_the_worker_from_nothing(house: House) -> None:
    suspects = house.submit(*(stub_spec(str(number), seed=number) for number in range(2)))
    house.ledger.claim("dead", [LaneOffer(lane="generate.stub", max_rows=2)], lease_s=15)
    house.ledger.lapse("dead")
    house.ledger.reap()
    for _ in suspects:
        fire(house.shop)
    assert house.shop.spool.waiting == 2
    assert house.brush.batches == [["0"], ["1"]]  # alone
    house.ledger.lapse("w1")
    house.ledger.reap()
    records = house.ledger.get_many(suspects)
    assert [record and record.strikes for record in records] == [0, 0]


def test_that_a_result_waits_is_told_when_redis_is_back(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelve, tries = house.ledger.shelve, []

    def away_at_first(job_id: str, attempt: int) -> None:
        tries.append(job_id)
        if len(tries) == 1:
            raise RedisUnavailable("away")
        shelve(job_id, attempt)

    monkeypatch.setattr(house.ledger, "shelve", away_at_first)
    [record] = house.run(stub_spec())
    assert (record.status, tries) == (Status.RUNNING, [record.id] * 2)


def test_little_waits_in_memory(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool, "IN_MEMORY_BYTES", 1 << 20)
    [record] = house.run(stub_spec())
    assert (house.shop.spool.waiting, spooled(house)) == (1, [])

    house.storage.outage = False

    assert ended(house, [record.id])[0].status is Status.SUCCEEDED


def test_a_full_spool_stops_the_claims_and_says_why(house: House) -> None:
    with spool_on(house.storage, bound_bytes=1) as small:
        refusals = Refusals(small)
        house.shop = replace(house.shop, spool=small, refusals=refusals)
        assert not refusals.reason
        [record] = house.run(stub_spec())
        assert refusals.reason.startswith("spool_full: ")
        assert refusals.reason.endswith("wait for the store: 1 (the store is down)")

        house.storage.outage = False
        refusals.wait(lambda: False)

        assert ended(house, [record.id])[0].status is Status.SUCCEEDED


def test_who_waits_to_claim_hears_of_a_drain(house: House) -> None:
    with spool_on(house.storage, bound_bytes=0) as full:
        house.shop = replace(house.shop, spool=full, refusals=Refusals(full))
        house.run(stub_spec())
        [name] = house.submit(stub_spec())
        house.shop.draining.set()

        assert fire(house.shop) == "draining"
        assert house.ledger.get(name).status is Status.QUEUED


def test_an_outage_that_outlasts_patience_fails_the_job_typed(house: House) -> None:
    with spool_on(house.storage, patience_s=0.3) as impatient:
        house.shop = replace(house.shop, spool=impatient)
        [record] = house.run(stub_spec())

        [record] = ended(house, [record.id])

        assert (record.status, code_of(record)) == (Status.FAILED, "storage_unavailable")
        wait_for(lambda: impatient.waiting == 0 or None, 5, "the spool keeps it")


def test_a_job_canceled_meanwhile_leaves_nothing(house: House) -> None:
    [record] = house.run(stub_spec())
    house.ledger.cancel(record.id)
    house.shop.held.leave([record.id], Gone.CANCELED)
    for job in house.shop.held.jobs():
        house.shop.held.settle(job)

    wait_for(lambda: not spooled(house) or None, 10, "its files stayed")

    assert house.ledger.get(record.id).status is Status.CANCELED


def test_a_full_disk_loses_no_result(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(parcel: object, folder: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(spool.Parcel, "write", full)
    [record] = house.run(stub_spec())
    house.storage.outage = False

    assert ended(house, [record.id])[0].status is Status.SUCCEEDED


def test_the_spool_of_a_killed_process_goes_and_that_of_a_living_one_stays(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other.lock").touch()
    program = (
        "import sys, time; from pathlib import Path; from pixelkiln_worker.spool import own_folder\n"
        "folder = own_folder(Path(sys.argv[1]), name=sys.argv[2]).path\n"
        "(folder / 'result.png').write_bytes(b'x'); print('there', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", program, tmp_path, "dead"], stdout=subprocess.PIPE) as dead:
        assert dead.stdout is not None
        assert dead.stdout.readline() == b"there\n"
        living = own_folder(tmp_path, name="living")
        assert (tmp_path / "dead.spool" / "result.png").exists()
        dead.kill()
        dead.wait()

    following = own_folder(tmp_path, name="following")

    folders = {path.name for path in tmp_path.iterdir() if path.is_dir()}
    assert folders == {"living.spool", "following.spool", "other"}
    living.remove()
    following.remove()
    assert {path.name for path in tmp_path.iterdir()} == {"other", "other.lock"}


def test_a_worker_that_could_claim_says_what_waits(house: House) -> None:
    house.run(stub_spec())
    time.sleep(0.01)
    assert house.shop.refusals.reason == ""
    assert house.shop.refusals.note == "results that wait for the store: 1 (the store is down)"


def test_a_late_result_that_cannot_be_published_does_not_keep_its_job_running(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RedisUnavailable("away for longer than patience lasts")

    monkeypatch.setattr(outgoing, "_publish", broken)
    [record] = house.run(stub_spec())
    house.storage.outage = False

    [record] = ended(house, [record.id])

    assert record.status is Status.FAILED
    assert not house.shop.held.jobs()


def test_memory_above_its_ceiling_is_a_reason_until_it_is_below(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refusals, "LOOK_S", 0.0)
    tight = Refusals(house.shop.spool, rss_limit_bytes=1_000_000)
    assert tight.reason.startswith("memory_pressure: ")
    assert tight.swollen_s >= 0

    monkeypatch.setattr(refusals, "resident_bytes", lambda: 900_000)

    assert (tight.reason, tight.swollen_s) == ("", 0.0)


def test_a_disk_that_is_gone_is_a_reason(tmp_path: Path) -> None:
    with spool_on(MemoryStorage()) as spool:
        refusals_ = Refusals(spool)
        assert not refusals_.reason
        spool.folder.rmdir()
        assert Refusals(spool).reason.startswith("worker_disk_full: ")
        spool.folder.mkdir()
