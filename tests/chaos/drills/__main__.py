"""`python -m tests.chaos.drills [NAME ...]`: one fault at a time, and figures; exit 0 when all goals hold."""

from __future__ import annotations

import argparse
import signal
import sys
from datetime import UTC, datetime
from pathlib import Path

from tests.chaos.drills.canceled import cancel
from tests.chaos.drills.outage import outage
from tests.chaos.drills.overload import overload
from tests.chaos.drills.poisoned import poison
from tests.chaos.drills.redis_away import redis_away
from tests.chaos.drills.report import Row, table
from tests.chaos.drills.signaled import signals
from tests.chaos.run import commit

FOLDER = Path(__file__).parents[3] / "build" / "drills"
DRILLS = {
    "outage": outage,
    "redis": redis_away,
    "overload": overload,
    "poison": poison,
    "cancel": cancel,
    "signals": signals,
}


def main() -> int:
    """Do the drills that the command line names, or all; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.drills", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(DRILLS)}; left out: all")
    parser.add_argument(
        "--seconds", type=float, default=300.0, help="how long store outage and overload last"
    )
    parser.add_argument("--repeats", type=int, default=3, help="how often what is short is done again")
    given = parser.parse_args()
    unknown = set(given.names) - DRILLS.keys()
    if unknown:
        parser.error(f"no such drill: {', '.join(sorted(unknown))}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is ended
    running, rows = commit(), list[Row]()
    for name in given.names or DRILLS:
        folder = FOLDER / f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{name}"
        folder.mkdir(parents=True)
        found = DRILLS[name](folder, given.seconds, given.repeats)
        print(table(found), flush=True)
        rows += found
    held = all(row.holds is not False for row in rows)
    said = "all held" if held else "NOT ALL HELD"
    print(f"\n{table(rows)}\n\n{datetime.now(UTC):%Y-%m-%d}, {running}: {said}")
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
