"""Records brought back into a ledger that lost them, on both ledgers."""

from __future__ import annotations

from typing import Any

import pytest

from pixelkiln_shared.errors import AlreadyTerminal, NotFound
from pixelkiln_shared.jobs import Priority, Status
from pixelkiln_shared.keys import new_id
from pixelkiln_shared.kinds import Kind
from pixelkiln_shared.ledger.contract import Record
from pixelkiln_shared.ledger.restoring import RESTORE_CHUNK, restored_sequence
from tests.ledger_worlds import RETENTION_S, START, World

ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"


def id_at(milliseconds: int, chance: str = "0" * 16) -> str:
    """Return an id made at a moment."""
    return "job_" + "".join(ALPHABET[milliseconds >> shift & 31] for shift in range(45, -1, -5)) + chance


def old(job_id: str | None = None, **fields: Any) -> Record:
    """Return the record of a job that succeeded a day before the ledger's clock began."""
    defaults = {
        "id": job_id or new_id("job"),
        "kind": Kind.GENERATE,
        "lane": "generate.m",
        "tenant": "anna",
        "priority": Priority.STANDARD,
        "batch_key": "m:64",
        "rows": 2,
        "work": 2_000,
        "spec": '{"v":1}',
        "status": Status.SUCCEEDED,
        "sequence": 0,
        "attempt": 2,
        "worker": "w-old",
        "created_at": START - 86_400,
        "started_at": START - 86_399.5,
        "completed_at": START - 86_390.25,
        "result": '{"artifacts":[]}',
    }
    return Record(**{**defaults, **fields})


def test_a_restored_record_reads_as_it_was(world: World) -> None:
    given = old(group="grp_a")
    assert world.ledger.restore([given]) == [True]
    found = world.ledger.get(given.id)
    assert {**_facts(found), "sequence": 0} == _facts(given)


def _facts(record: Record) -> dict[str, Any]:
    return {name: getattr(record, name) for name in Record.__dataclass_fields__}


def test_restoring_again_changes_nothing(world: World) -> None:
    given = old(group="grp_a")
    world.ledger.restore([given])
    before = world.ledger.get(given.id)
    assert world.ledger.restore([old(given.id, group="grp_a", attempt=3, result="{}")]) == [False]
    assert world.ledger.get(given.id) == before
    assert world.ledger.group("grp_a").total == 1
    assert world.ledger.counts("anna")[Status.SUCCEEDED] == 1


def test_a_live_job_is_never_overwritten(world: World) -> None:
    waiting = world.one()
    assert world.ledger.restore([old(waiting)]) == [False]
    assert world.ledger.get(waiting).status is Status.QUEUED
    [claimed] = world.claimed()
    assert world.ledger.restore([old(waiting)]) == [False]
    world.publish([claimed])
    assert world.ledger.get(waiting).attempt == 1


def test_restored_jobs_list_by_the_time_of_their_ids_behind_the_live_ones(world: World) -> None:
    moments = [1_700_000_000_000 + at for at in (5, 1, 3)]
    fifth, first, third = map(id_at, moments)
    live = world.one()
    world.ledger.restore([old(fifth), old(first)])
    world.ledger.restore([old(third)])
    newest = world.one()
    listed = [record.id for record in world.ledger.jobs("anna").records]
    assert listed == [newest, live, fifth, third, first]


def test_jobs_of_one_moment_are_all_found_page_by_page(world: World) -> None:
    chances = ["0" * 14 + ALPHABET[at // 32] + ALPHABET[at % 32] for at in range(40)]
    same = [id_at(1_700_000_000_000, chance) for chance in chances]
    kinds = [Kind.GENERATE, Kind.SEGMENT]
    world.ledger.restore([old(job_id, kind=kinds[at % 2]) for at, job_id in enumerate(same)])
    seen, after = [], None
    while True:
        page = world.ledger.jobs("anna", limit=7, after=after)
        seen += [record.id for record in page.records]
        after = page.after
        if after is None:
            break
    assert sorted(seen) == same


def test_the_order_of_ids_is_kept_within_a_moment_and_from_one_to_the_next() -> None:
    ids = sorted(new_id("job") for _ in range(500))
    places = [restored_sequence(job_id) for job_id in ids]
    assert places == sorted(places)
    assert all(place < 0 and float(place) == place for place in places)


def test_a_group_gathers_what_was_restored_of_it(world: World) -> None:
    world.ledger.restore([old(group="grp_a", created_at=START - ago) for ago in (50, 60)])
    group = world.ledger.group("grp_a")
    assert (group.tenant, group.total, group.created_at) == ("anna", 2, START - 60)
    assert group.counts[Status.SUCCEEDED] == 2
    assert len(world.ledger.jobs("anna", group="grp_a").records) == 2


def test_nobody_is_restored_into_the_group_of_another(world: World) -> None:
    world.one(tenant="bob", group="grp_b")
    stranger = old(group="grp_b")
    assert world.ledger.restore([stranger]) == [False]
    with pytest.raises(NotFound):
        world.ledger.get(stranger.id)


def test_a_restored_record_lives_a_full_retention_from_now(world: World) -> None:
    given = old(group="grp_a")
    world.ledger.restore([given])
    world.clock.advance(RETENTION_S - 1)
    world.ledger.reap()
    assert world.ledger.get(given.id).status is Status.SUCCEEDED
    world.clock.advance(2)
    world.ledger.reap()
    with pytest.raises(NotFound):
        world.ledger.get(given.id)
    with pytest.raises(NotFound):
        world.ledger.group("grp_a")


def test_a_restored_record_can_be_given_its_own_end(world: World) -> None:
    given, other = old(), old()
    assert world.ledger.restore([given, other], {given.id: START + 100.5}) == [True, True]
    world.clock.advance(100)
    world.ledger.reap()
    assert world.ledger.get(given.id)
    world.clock.advance(1)
    world.ledger.reap()
    with pytest.raises(NotFound):
        world.ledger.get(given.id)
    assert world.ledger.get(other.id)


def test_a_restored_job_can_be_a_parent_and_be_deleted_but_not_run(world: World) -> None:
    parent = old()
    world.ledger.restore([parent])
    with pytest.raises(AlreadyTerminal):
        world.ledger.retry(parent.id)
    child = world.one(waits_for=(parent.id,))
    assert world.ledger.get(child).status is Status.QUEUED
    world.serve(1)
    world.ledger.delete(parent.id)
    assert [record.id for record in world.ledger.jobs("anna").records] == [child]


def test_more_than_one_call_can_take_are_restored(world: World) -> None:
    records = [old() for _ in range(RESTORE_CHUNK + 5)]
    assert world.ledger.restore(records) == [True] * len(records)
    assert world.ledger.counts("anna")[Status.SUCCEEDED] == len(records)
    assert world.ledger.restore([]) == []


def test_no_restored_job_is_work(world: World) -> None:
    world.ledger.restore([old()])
    assert world.claim() is None
    assert world.ledger.lanes() == []
