"""Traces of jobs for the simulation: drawn once from a seed, served by every policy alike."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from bench.simulation import SimJob


def zipf(models: Sequence[str], *, jobs: int, per_s: float, seed: int, exponent: float = 1.0) -> list[SimJob]:
    """Return Poisson arrivals whose model is Zipf distributed, the first model being the most wanted."""
    random = Random(seed)
    weights = [1 / (rank + 1) ** exponent for rank in range(len(models))]
    trace, at_s = [], 0.0
    for number in range(jobs):
        at_s += random.expovariate(per_s)
        model = random.choices(models, weights)[0]
        trace.append(SimJob(id=f"job_{number:07}", at_s=at_s, model=model))
    return trace
