"""The results of the benchmarks as the table of their page."""

from __future__ import annotations

import pytest

from bench import catalogue, report
from bench.__main__ import LATEST
from bench.results import Result, read


def result(name: str = "p1", **fields: object) -> Result:
    known: dict[str, object] = {
        "what": "pictures a second",
        "ours": 98.7,
        "peer": 100.0,
        "peer_name": "the bare loop",
        "ratio": 0.987,
        "goal": 0.98,
        "met": True,
        "machine": "2 x Fast CPU, load 0.3, Python 3.13.1",
        "commit": "abc1234",
        "caveat": "3 rounds; a folder",
        "spread": (0.95, 0.991),
    }
    return Result(id=name, **(known | fields))  # type: ignore[arg-type]


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def first_row(*results: Result) -> list[str]:
    return cells(report.table(results).splitlines()[2])


def test_a_row_tells_figures_spread_goal_and_verdict() -> None:
    assert first_row(result()) == [
        "`p1`",
        "pictures a second",
        "the bare loop",
        "98.7",
        "100",
        "0.987 (0.95 to 0.991)",
        "0.98",
        "met",
    ]


def test_a_missed_goal_stands_out() -> None:
    assert first_row(result(met=False))[-1] == "**missed**"


def test_a_row_without_a_goal_is_only_shown() -> None:
    assert first_row(result(goal=0.0))[-2:] == ["–", "shown"]


def test_what_cannot_be_measured_says_why() -> None:
    row = first_row(result(met=None, ratio=0.0, caveat="no GPU on this machine"))

    assert row[3:6] == ["–", "–", "–"]
    assert row[-1] == "cannot: no GPU on this machine"


def test_every_row_has_as_many_cells_as_the_head() -> None:
    lines = report.table([result(what="a | b"), result(met=None)]).splitlines()[:4]

    assert {len(cells(line)) for line in lines} == {8}


def test_rows_of_one_machine_and_commit_share_a_line_whatever_its_load() -> None:
    busy = result("p2", machine="2 x Fast CPU, load 7.1, Python 3.13.1")

    text = report.table([result(), busy, result("p3", commit="def5678")])

    assert "- `abc1234` on 2 x Fast CPU, Python 3.13.1: `p1`, `p2`" in text.splitlines()
    assert "- `def5678` on 2 x Fast CPU, Python 3.13.1: `p3`" in text.splitlines()


def test_only_what_is_between_the_marks_is_replaced() -> None:
    page = f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n"

    page = report.embedded(report.embedded(page, "first\n"), "second\n")

    assert page == f"before\n{report.BEGIN}\n\nsecond\n\n{report.END}\nafter\n"


@pytest.mark.parametrize("page", ["", report.BEGIN, f"{report.END} {report.BEGIN}"])
def test_a_page_without_its_marks_is_refused(page: str) -> None:
    with pytest.raises(ValueError, match="the page has no"):
        report.embedded(page, "text")


def test_the_page_shows_the_results_that_are_kept() -> None:
    page = report.PAGE.read_text("utf-8")

    assert report.embedded(page, report.table(read(LATEST))) == page, "run: python -m bench.report --write"


def test_the_page_names_every_benchmark() -> None:
    page = report.PAGE.read_text("utf-8")

    assert [name for name in catalogue.names() if f"`{name}" not in page] == []
