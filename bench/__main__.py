"""`python -m bench [ID ...]`: run the benchmarks, print a line a row, write `bench/results/`.

Exit status 1 when a goal was missed.
"""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

from bench import catalogue, plots
from bench.results import Result, read, write

RESULTS = Path(__file__).parent / "results"
LATEST = RESULTS / "latest.json"
ROUNDS, FULL_ROUNDS = 3, 7


def main() -> int:
    """Run what was asked for; results of other benchmarks stay in the file."""
    # a killed bench ends what it started, as an interrupted one does
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("ids", nargs="*", metavar="ID", help=f"which: {', '.join(catalogue.names())}")
    parser.add_argument("--rounds", type=int, help=f"how often each is measured (default: {ROUNDS})")
    parser.add_argument("--full", action="store_true", help=f"all of them, {FULL_ROUNDS} rounds, larger work")
    arguments = parser.parse_args()
    wanted = arguments.ids or catalogue.names(short=not arguments.full)
    unknown = [name for name in wanted if name not in catalogue.names()]
    if unknown:
        parser.error(f"no benchmark {unknown[0]!r}")
    rounds = arguments.rounds or (FULL_ROUNDS if arguments.full else ROUNDS)
    missed = False
    for name in wanted:
        results = catalogue.run(name, rounds, full=arguments.full)
        _keep(results)
        for result in results:
            print(_line(result), flush=True)
        missed = missed or any(result.met is False for result in results)
    return 1 if missed else 0


def _keep(results: list[Result]) -> None:
    measured = {result.id for result in results}
    write(LATEST, results + [old for old in read(LATEST) if old.id not in measured])
    for name in measured:
        plots.bars(RESULTS / f"{name}.png", [result for result in results if result.id == name])


def _line(result: Result) -> str:
    if result.met is None:
        return f"{result.id:6} {result.peer_name}: cannot: {result.caveat}"
    low, high = result.spread
    verdict = f"goal {result.goal:g}: {'met' if result.met else 'MISSED'}" if result.goal else "no goal"
    return (
        f"{result.id:6} {result.ratio:8.4g} ({low:.4g} to {high:.4g}) of {result.peer_name}: "
        f"ours {result.ours:g}, peer {result.peer:g}; {verdict}"
    )


if __name__ == "__main__":
    sys.exit(main())
