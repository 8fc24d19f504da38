"""What a drill says of itself."""

from __future__ import annotations

import math

from tests.chaos.drills.report import Told, quantile, spread, table

told = Told("drill")


def test_a_figure_at_its_goal_holds_and_beyond_it_does_not() -> None:
    assert told.at_most("wait", 2.0, 2.0, "s").holds
    assert not told.at_most("wait", 2.0, 2.01, "s").holds
    assert told.at_least("share", 80.0, 80.0, "%").holds
    assert not told.at_least("share", 80.0, 79.9, "%").holds
    assert told.exactly("lost", 0, 0).holds
    assert not told.exactly("lost", 0, 1).holds


def test_nothing_measured_is_a_goal_missed() -> None:
    assert not told.at_most("p99", 250.0, math.nan, "ms").holds
    assert not told.longest("wait", 10.0, []).holds


def test_the_longest_of_several_times_counts() -> None:
    assert told.longest("wait", 10.0, [1.0, 10.0]).holds
    row = told.longest("wait", 10.0, [1.0, 2.0, 11.0])
    assert (row.holds, row.measured) == (False, "median 2.0, longest 11.0 s, 3 times")
    assert not told.longest("wait", 10.0, [1.0, math.inf]).holds


def test_a_quantile_is_one_of_the_values() -> None:
    values = [float(value) for value in range(1, 101)]
    assert [quantile(values, share) for share in (0.0, 0.5, 0.99, 1.0)] == [1.0, 50.0, 99.0, 100.0]
    assert math.isnan(quantile([], 0.5))
    assert spread([]) == "-"


def test_a_table_marks_what_was_missed() -> None:
    rows = [told.exactly("lost", 0, 1), told.exactly("failed", 0, 0), told.told("jobs", "2,000")]
    assert table(rows).splitlines()[2:] == [
        "| drill | lost | 0 | 1 | **missed** |",
        "| drill | failed | 0 | 0 | holds |",
        "| drill | jobs |  | 2,000 |  |",
    ]
