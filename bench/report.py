"""`python -m bench.report`: the results as a Markdown table; with `--write`, into the page of the benchmarks.

The table stands between two marks in `bench/README.md`, and is never edited by hand.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from bench.__main__ import LATEST
from bench.results import Result, read

PAGE = Path(__file__).parent / "README.md"
BEGIN = "<!-- the results, written by `python -m bench.report --write` -->"
END = "<!-- the end of the results -->"
_HEAD = ("id", "what", "beside", "ours", "peer", "ratio (spread)", "goal", "")
_NONE = "–"


def table(results: Iterable[Result]) -> str:
    """Return the rows as Markdown, in the order given; below, the machines and commits they come from."""
    results = list(results)
    if not results:
        return "Nothing has been measured yet.\n"
    lines = [_line(_HEAD), _line(["---"] * len(_HEAD)), *(_line(_cells(result)) for result in results)]
    where = [f"- `{commit}` on {machine}: {ids}" for (commit, machine), ids in _origins(results).items()]
    return "\n".join([*lines, "", "Measured at", "", *where]) + "\n"


def embedded(page: str, text: str) -> str:
    """Return a page with `text` between its marks.

    Raises:
        ValueError: the page lacks a mark, or has them in the wrong order.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"the page has no {BEGIN} ... {END}")
    return f"{before}{begin}\n\n{text}\n{end}{after}"


def _cells(result: Result) -> list[str]:
    shown = [f"`{result.id}`", result.what, result.peer_name]
    if result.met is None:
        return [*shown, _NONE, _NONE, _NONE, _goal(result), f"cannot: {result.caveat}"]
    low, high = result.spread
    ratio = f"{result.ratio:.3g}" + (f" ({low:.3g} to {high:.3g})" if low != high else "")
    verdict = "met" if result.met else "**missed**"
    return [
        *shown,
        f"{result.ours:.4g}",
        f"{result.peer:.4g}",
        ratio,
        _goal(result),
        verdict if result.goal else "shown",
    ]


def _goal(result: Result) -> str:
    return f"{result.goal:.3g}" if result.goal else _NONE


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def _origins(results: Iterable[Result]) -> dict[tuple[str, str], str]:
    """Return which ids were measured at which commit, on which machine, whatever its load was."""
    found: dict[tuple[str, str], dict[str, None]] = {}
    for result in results:
        machine = ", ".join(part for part in result.machine.split(", ") if not part.startswith("load "))
        found.setdefault((result.commit, machine), {})[f"`{result.id}`"] = None
    return {origin: ", ".join(ids) for origin, ids in found.items()}


def main() -> int:
    """Print the table, or write it into the page."""
    parser = argparse.ArgumentParser(prog="python -m bench.report", description=__doc__)
    parser.add_argument("--write", action="store_true", help="into bench/README.md, between its marks")
    text = table(read(LATEST))
    if parser.parse_args().write:
        PAGE.write_text(embedded(PAGE.read_text("utf-8"), text), "utf-8")
    else:
        print(text, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
