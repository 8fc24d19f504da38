"""`python -m bench [ID ...]`: run the benchmarks, print a line each, write `bench/results/latest.json`.

Exit status 1 when a goal was missed.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from bench import batching, p1_stub_path
from bench.results import Result, read, write

BENCHMARKS = {"p1": p1_stub_path.run, **batching.benchmarks()}
LATEST = Path(__file__).parent / "results" / "latest.json"


def main() -> int:
    """Run what was asked for; results of other benchmarks stay in the file."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("ids", nargs="*", metavar="ID", help=f"which: {', '.join(BENCHMARKS)} (default: all)")
    parser.add_argument("--rounds", type=int, default=5, help="how often to repeat each, peer and us in turn")
    parser.add_argument("--full", action="store_true", help="three times as many rounds")
    arguments = parser.parse_args()
    rounds = arguments.rounds * (3 if arguments.full else 1)
    wanted = arguments.ids or list(BENCHMARKS)
    unknown = [name for name in wanted if name not in BENCHMARKS]
    if unknown:
        parser.error(f"no benchmark {unknown[0]!r}")
    results: list[Result] = []
    for name in wanted:
        results.append(BENCHMARKS[name](rounds))
        write(LATEST, results + [old for old in read(LATEST) if old.id not in {new.id for new in results}])
        print(json.dumps(results[-1].shown(), ensure_ascii=False))
    return 0 if all(result.met for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
