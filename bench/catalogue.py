"""Which benchmarks there are. A module has `run(rounds, full)`, which measures and returns a row a peer."""

from __future__ import annotations

from importlib import import_module
from typing import cast

from bench.results import Result

SHORT = {
    "p1": "p1_stub_path",
    "p3": "p3_empty_jobs",
    "p4": "p4_submit",
    "p5": "p5_idle_latency",
    "p6": "p6_depth",
    "p7": "p7_churn",
    "p10": "p10_cancel",
    "p12": "p12_masks",
    "start": "startup",
}
"""What `make bench` runs, in seven minutes: id and module."""

LONG: dict[str, str] = {
    "p2": "p2_embedded",
    "p8": "p8_fairness",
    "p9": "p9_scaling",
    "p13": "p13_gpu",
    "batch": "batching",
    "moves": "moves",
    "joining": "joining",
    "crashes": "crashes",
    "soak": "soak",
}
"""What only `make bench-full` runs besides; any of them runs by its id."""


def names(*, short: bool = False) -> list[str]:
    """Return the ids, those of `make bench` first."""
    return list(SHORT if short else SHORT | LONG)


def run(name: str, rounds: int, *, full: bool) -> list[Result]:
    """Measure one benchmark; `full` asks for work of the size the goals are stated for."""
    module = import_module(f"bench.{(SHORT | LONG)[name]}")
    return cast(list[Result], module.run(rounds, full))
