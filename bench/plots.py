"""Plots of what was measured, as PNG files beside the results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from bench.results import Result

OURS, PEER, GOAL = "#c8553d", "#8a9aa5", "#2f4858"
mpl.use("Agg")


def bars(path: Path, results: Sequence[Result]) -> None:
    """Draw the ratios of one benchmark, a bar a peer, with their spread and the goal as a line."""
    shown = [result for result in results if result.ratio > 0]
    if not shown:
        return
    figure = Figure(figsize=(8, 1.2 + 0.5 * len(shown)), layout="constrained")
    axes = figure.subplots()
    places = range(len(shown))
    ratios = [result.ratio for result in shown]
    spread = [
        [max(0.0, result.ratio - (result.spread[0] or result.ratio)) for result in shown],
        [max(0.0, (result.spread[1] or result.ratio) - result.ratio) for result in shown],
    ]
    axes.barh(places, ratios, xerr=spread, color=OURS, height=0.6, capsize=3)
    axes.set_yticks(places, [result.peer_name for result in shown])
    axes.invert_yaxis()
    for place, result in zip(places, shown, strict=True):
        axes.text(max(result.ratio, result.spread[1]), place, f"  {result.ratio:.3g}", va="center")
        axes.plot([result.goal, result.goal], [place - 0.4, place + 0.4], color=GOAL, lw=2)
    axes.set_xlabel("Pixelkiln, the peer being 1; dark lines: the goals")
    axes.set_title(f"{shown[0].id}: {shown[0].what}", fontsize=9, wrap=True)
    axes.margins(x=0.12)
    figure.savefig(path, dpi=110)


def lines(
    path: Path,
    series: Mapping[str, Sequence[tuple[float, float]]],
    *,
    title: str,
    x: str,
    y: str,
    log: bool = False,
) -> None:
    """Draw curves of `(x, y)` points, one a name; `log` makes both axes logarithmic."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for name, points in series.items():
        axes.plot([one for one, _ in points], [two for _, two in points], marker="o", ms=3, label=name)
    if log:
        axes.set_xscale("log")
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=110)
