"""`python -m tests.chaos --seed 7 --jobs 10000`: exit 0 only when the run was clean."""

from __future__ import annotations

import argparse
import secrets
import signal
import sys
from collections import Counter

from tests.chaos.run import Outcome, longest_s, perform, table
from tests.chaos.schedule import CUT, FULL, PROOF, Size, schedule
from tests.chaos.stage import MUTANTS
from tests.chaos.verdict import Breach

SHOWN = 20


def main() -> int:
    """Run what the command line says; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seed", type=int, help="replays a run's faults; left out: a new one")
    parser.add_argument("--jobs", type=int, default=FULL.jobs, help="fewer jobs meet fewer faults")
    parser.add_argument("--minutes", type=float, help="how long the clients send; left out: by the jobs")
    parser.add_argument("--cut", action="store_true", help="the short run that CI does")
    parser.add_argument(
        "--mutants",
        nargs="?",
        const="all",
        choices=("all", *MUTANTS),
        help="break the product: is it seen?",
    )
    parser.add_argument("--show", action="store_true", help="print the schedule and end")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is ended
    seed = secrets.randbelow(1 << 31) if given.seed is None else given.seed
    if given.mutants:
        return prove(seed, (given.mutants,) if given.mutants != "all" else ("", *MUTANTS))
    size = CUT if given.cut else FULL.scaled(given.jobs, given.minutes and given.minutes * 60)
    announce(seed, size)
    if given.show:
        for fault in schedule(seed, size):
            print(f"{fault.at_s:9.3f} s  {fault.kind:14} {fault.lasts_s:7.3f} s  pick {fault.pick:.4f}")
        return 0
    outcome = perform(seed, size)
    report(outcome)
    return 0 if outcome.verdict.clean else 1


def prove(seed: int, mutants: tuple[str, ...]) -> int:
    """Run the product whole, which must be clean, and each mutant, which must not; returns the exit code."""
    as_expected = True
    for mutant in mutants:
        outcome = perform(seed, PROOF, mutant=mutant)
        good = outcome.verdict.clean == (not mutant)
        as_expected &= good
        breaches = {str(b): n for b in Breach if (n := outcome.verdict.count(b))}
        print(f"{'as expected' if good else 'WRONG':12} {mutant or 'whole':12} {breaches}", flush=True)
    return 0 if as_expected else 1


def announce(seed: int, size: Size) -> None:
    """Say what is about to happen."""
    counts = Counter(fault.kind for fault in schedule(seed, size))
    print(f"seed {seed}: {size.jobs} jobs, {size.workers} workers, {size.s3_share:.0%} of S3 calls fail")
    print("faults: " + ", ".join(f"{count} {kind}" for kind, count in counts.items()))
    print(f"takes at most about {longest_s(size) / 60:.0f} minutes", flush=True)


def report(outcome: Outcome) -> None:
    """Print the table, the first findings and where the rest is."""
    print(table(outcome))
    for finding in outcome.verdict.findings[:SHOWN]:
        print(f"{finding.breach}: {finding.subject}: {finding.says}")
    print(f"{'clean' if outcome.verdict.clean else 'NOT CLEAN'}; all of it in {outcome.folder}")


if __name__ == "__main__":
    sys.exit(main())
