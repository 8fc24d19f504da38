"""The rules by which a worker offers lanes and makes room."""

from __future__ import annotations

from typing import Any

import pytest

from pixelkiln_shared.catalogue import ModelEntry
from pixelkiln_shared.kinds import Kind
from pixelkiln_worker import families
from pixelkiln_worker.choices import (
    SHORTEST_MAX_WAIT_S,
    Demand,
    LastLoad,
    by_worth,
    leaving,
    max_wait_s,
    offers,
)
from tests.workshops import workshop

LANES = {
    f"generate.{name}": ModelEntry(id=name, family="stub", kinds=(Kind.GENERATE,), title=name)
    for name in ("a", "b", "c")
}


def test_a_lane_waits_ten_seconds_or_four_loads() -> None:
    assert [max_wait_s(load_s) for load_s in (0.0, 2.5, 3.0)] == [10.0, 10.0, 12.0]


def test_every_lane_is_offered_but_those_that_rest() -> None:
    offered = offers(
        LANES,
        resident=("a",),
        load_s=lambda _: 5.0,
        last_load=LastLoad(ago_s=7.0, took_s=5.0),
        resting=lambda name: name == "b",
    )
    assert [(one.lane, one.resident, one.max_wait_s, one.holds_s) for one in offered] == [
        ("generate.a", True, 20.0, 7.0),
        ("generate.c", False, 20.0, None),
    ]


@pytest.mark.parametrize(
    ("ago_s", "holds_s"), [(0.0, 0.0), (4.9, 0.0), (5.0, 5.0), (19.9, 19.9), (20.0, None)]
)
def test_a_load_earns_a_turn(ago_s: float, holds_s: float | None) -> None:
    assert LastLoad(ago_s=ago_s, took_s=5.0).holds_s == holds_s


def test_a_device_that_loaded_nothing_yet_holds_nothing() -> None:
    assert LastLoad().holds_s is None


def test_demand_fades() -> None:
    demand = Demand()
    demand.note("a", 8, 0.0)
    demand.note("a", 1, 300.0)
    assert demand.of("a", 300.0) == pytest.approx(8 / 2.71828 + 1, rel=1e-4)
    assert demand.of("b", 300.0) == 0.0


def test_what_costs_least_to_bring_back_makes_room_first() -> None:
    demand = Demand()
    for name, rows in (("often", 30), ("slow", 10), ("quick", 20)):
        demand.note(name, rows, 0.0)
    load_s = {"often": 2.0, "slow": 4.0, "quick": 1.0, "never asked for": 9.0}
    assert by_worth(load_s, demand=demand, load_s=load_s.__getitem__, now_s=0.0) == [
        "never asked for",
        "quick",
        "slow",
        "often",
    ]


def test_among_equals_the_least_recently_used_makes_room_first() -> None:
    assert by_worth(["old", "new"], demand=Demand(), load_s=lambda _: 1.0, now_s=0.0) == ["old", "new"]


@pytest.mark.parametrize(
    ("needed_bytes", "keep", "gone"),
    [(20, None, []), (21, None, ["a"]), (61, None, ["a", "b"]), (61, "a", ["b"]), (200, "b", ["a"])],
)
def test_the_least_recently_used_leave_until_the_rest_fits(
    needed_bytes: int, keep: str | None, gone: list[str]
) -> None:
    footprints = {"a": 40, "b": 40}
    assert list(leaving(footprints, needed_bytes=needed_bytes, budget_bytes=100, keep=keep)) == gone


def test_a_worker_tells_its_bound_from_what_it_knows_of_its_models() -> None:
    with workshop(LANES, families.load) as (shop, _, _):
        assert shop.longest_lane_wait_s == SHORTEST_MAX_WAIT_S  # nothing known: no load, no run
        shop.residency.ran("a", rows=1, run_s=3.0)
        assert shop.longest_lane_wait_s == SHORTEST_MAX_WAIT_S + 3 * 3.0


def test_models_with_jobs_waiting_leave_last() -> None:
    room: dict[str, Any] = {"needed_bytes": 0, "budget_bytes": 50}
    footprints = {"a": 40, "b": 40, "c": 40}
    assert list(leaving(footprints, waiting={"a"}, **room)) == ["b", "c"]
    assert list(leaving(footprints, waiting={"b"}, keep="c", **room)) == ["a", "b"]
    assert list(leaving(footprints, waiting=footprints, **room)) == ["a", "b"]


def test_a_lane_is_offered_with_the_rows_it_can_use() -> None:
    offered = offers(
        LANES,
        resident=(),
        load_s=lambda _: 0.0,
        last_load=LastLoad(),
        resting=lambda _: False,
        size=lambda lane, limit: limit // 2 if lane == "generate.b" else limit,
    )
    assert [one.max_rows for one in offered] == [8, 4, 8]
