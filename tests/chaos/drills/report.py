"""What a drill found: goals beside what was measured, as a table in Markdown."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One line. `holds` is None where nothing was promised and the figure is only told."""

    drill: str
    what: str
    goal: str
    measured: str
    holds: bool | None


@dataclass(frozen=True, slots=True)
class Told:
    """Makes the rows of one drill."""

    drill: str

    def exactly(self, what: str, goal: int, measured: int) -> Row:
        """A count that must be so."""
        return self._row(what, f"{goal:,}", f"{measured:,}", measured == goal)

    def at_most(self, what: str, goal: float, measured: float, unit: str) -> Row:
        """A figure that must not be larger; NaN is larger than everything."""
        return self._row(what, f"<= {goal:g} {unit}", f"{figure(measured)} {unit}", measured <= goal)

    def at_least(self, what: str, goal: float, measured: float, unit: str) -> Row:
        """A figure that must not be smaller."""
        return self._row(what, f">= {goal:g} {unit}", f"{figure(measured)} {unit}", measured >= goal)

    def longest(self, what: str, goal_s: float, measured_s: Sequence[float]) -> Row:
        """Times of several repetitions: the longest must not be larger."""
        shown = f"{spread(measured_s)} s, {len(measured_s)} times"
        return self._row(what, f"<= {goal_s:g} s", shown, bool(measured_s) and max(measured_s) <= goal_s)

    def told(self, what: str, measured: str) -> Row:
        """A figure that was not promised."""
        return self._row(what, "", measured, None)

    def _row(self, what: str, goal: str, measured: str, holds: bool | None) -> Row:
        return Row(drill=self.drill, what=what, goal=goal, measured=measured, holds=holds)


def figure(value: float) -> str:
    """Return a number with as many places as say something."""
    return f"{value:,.0f}" if math.isnan(value) or abs(value) >= 100 else f"{value:.1f}"


def spread(values: Sequence[float]) -> str:
    """Return the median and the longest; a dash for none."""
    return f"median {figure(median(values))}, longest {figure(max(values))}" if values else "-"


def quantile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that `share` of all do not exceed; NaN for none."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else math.nan


def table(rows: Sequence[Row]) -> str:
    """Return the rows as Markdown; what missed its goal is bold."""
    lines = ["| drill | what | goal | measured | |", "|---|---|---|---|---|"]
    for row in rows:
        verdict = {True: "holds", False: "**missed**", None: ""}[row.holds]
        lines.append(f"| {row.drill} | {row.what} | {row.goal} | {row.measured} | {verdict} |")
    return "\n".join(lines)
