"""The rules by which a worker offers lanes and makes room."""

from __future__ import annotations

import pytest

from pixelkiln_shared.catalogue import ModelEntry
from pixelkiln_shared.kinds import Kind
from pixelkiln_worker.choices import leaving, max_wait_s, offers

LANES = {
    f"generate.{name}": ModelEntry(id=name, family="stub", kinds=(Kind.GENERATE,), title=name)
    for name in ("a", "b", "c")
}


def test_a_lane_waits_ten_seconds_or_four_loads() -> None:
    assert [max_wait_s(load_s) for load_s in (0.0, 2.5, 3.0)] == [10.0, 10.0, 12.0]


def test_every_lane_is_offered_but_those_that_rest() -> None:
    offered = offers(LANES, resident=("a",), load_s=lambda _: 5.0, resting=lambda name: name == "b")
    assert [(one.lane, one.resident, one.max_wait_s) for one in offered] == [
        ("generate.a", True, 20.0),
        ("generate.c", False, 20.0),
    ]


@pytest.mark.parametrize(
    ("needed_bytes", "keep", "gone"),
    [(20, None, []), (21, None, ["a"]), (61, None, ["a", "b"]), (61, "a", ["b"]), (200, "b", ["a"])],
)
def test_the_least_recently_used_leave_until_the_rest_fits(
    needed_bytes: int, keep: str | None, gone: list[str]
) -> None:
    footprints = {"a": 40, "b": 40}
    assert list(leaving(footprints, needed_bytes=needed_bytes, budget_bytes=100, keep=keep)) == gone
