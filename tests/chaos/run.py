"""One run from start to verdict, and the table it prints."""

from __future__ import annotations

import json
import subprocess
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.chaos import recovery, told
from tests.chaos.checker import check
from tests.chaos.clients import Traffic, make_clients
from tests.chaos.hand import Hand
from tests.chaos.history import Entry, History
from tests.chaos.hooks import Hooks, hooks
from tests.chaos.schedule import Fault, Kind, Size, schedule
from tests.chaos.stage import Stage, stage
from tests.chaos.verdict import Breach, Verdict

FOLDER = Path(__file__).parents[2] / "build" / "chaos"
LAST_WORD_S = 60.0  # a killed courier's messages come back after 30 s, and are tried again after 5 more
LAST_LOOK_S = 60.0  # for the clients to look at every job once more


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What a run came to. `struck` counts the faults, `missed` those that found no target."""

    seed: int
    size: Size
    mutant: str
    commit: str
    folder: Path
    verdict: Verdict
    recovery: dict[str, float]
    struck: dict[str, int]
    missed: int
    s3_calls: int
    s3_faults: int
    settled_s: float
    took_s: float


def longest_s(size: Size) -> float:
    """Return how many seconds a run takes at most, about: start, traffic, settling, the last looks."""
    return 20.0 + size.seconds + size.longest_freeze_s + size.settle_s + LAST_WORD_S + LAST_LOOK_S


def perform(seed: int, size: Size, *, mutant: str = "", folder: Path | None = None) -> Outcome:
    """Run it. The folder (`build/chaos/...` when left out) keeps history, logs and Redis's file."""
    began, running = time.monotonic(), commit()
    folder = folder or FOLDER / f"{datetime.now(UTC):%Y%m%d-%H%M%S}-seed-{seed}{mutant and '-' + mutant}"
    folder.mkdir(parents=True)
    faults = schedule(seed, size)
    history = History(folder / "history.jsonl")
    with (
        hooks(history, seed) as receiver,
        stage(folder, size, seed=seed, mutant=mutant, more=receiver.environment) as made,
    ):
        hand, settled_s = _play(made, size, seed, faults, receiver, history)
        entries = history.entries()
        records, objects = made.records(), made.objects()
        events = list(made.events())
        verdict = check(
            entries,
            records,
            objects,
            groups=made.groups(records),
            given_back=recovery.given_back(events),
            swept=made.sweep(),
        )
        outcome = Outcome(
            seed=seed,
            size=size,
            mutant=mutant,
            commit=running,
            folder=folder,
            verdict=verdict,
            recovery=recovery.figures(recovery.waits_s(entries, recovery.starts(events))),
            struck=_struck(entries),
            missed=hand.missed,
            s3_calls=made.s3.calls if made.s3 is not None else 0,
            s3_faults=made.s3.faults if made.s3 is not None else 0,
            settled_s=round(settled_s, 1),
            took_s=round(time.monotonic() - began, 1),
        )
    history.close()
    (folder / "result.json").write_text(json.dumps(facts(outcome), indent=2) + "\n")
    return outcome


def _play(
    made: Stage, size: Size, seed: int, faults: Sequence[Fault], receiver: Hooks, history: History
) -> tuple[Hand, float]:
    """Let the clients go and the faults strike; then wait until every job has ended, or for so long."""
    traffic = Traffic(history=history, url=made.url, hook_url=receiver.url)
    clients = make_clients(size, seed, traffic)
    hand = Hand(made, faults, traffic)
    for client in clients:
        client.thread.start()
    hand.strike_all()
    struck = time.monotonic()
    while time.monotonic() < struck + size.settle_s:
        if all(client.sent_all for client in clients) and _all_ended(made):
            break
        time.sleep(0.5)
    settled_s = time.monotonic() - struck
    if made.s3 is not None:
        made.s3.share = 0.0
    receiver.steady.set()
    _hear(made, history)
    traffic.over.set()
    until = time.monotonic() + LAST_LOOK_S
    for client in clients:
        client.thread.join(max(0.0, until - time.monotonic()))
    traffic.given_up.set()
    for client in clients:
        client.thread.join()
    return hand, settled_s


def _hear(made: Stage, history: History) -> None:
    """Wait until every end that a webhook tells was told, or for so long."""
    records, until = made.records(), time.monotonic() + LAST_WORD_S
    while told.untold(history.entries(), records) and time.monotonic() < until:
        time.sleep(0.5)


def _all_ended(made: Stage) -> bool:
    counts = made.ledger.counts("default")
    return not any(count for status, count in counts.items() if not status.terminal)


def _struck(entries: Sequence[Entry]) -> dict[str, int]:
    return dict(Counter(entry.key for entry in entries if entry.op == "fault" and entry.event == "invoke"))


def facts(outcome: Outcome) -> dict[str, Any]:
    """Return the outcome as JSON takes it."""
    verdict = outcome.verdict
    return {
        "seed": outcome.seed,
        "commit": outcome.commit,
        "date": datetime.now(UTC).date().isoformat(),
        "clean": verdict.clean,
        "mutant": outcome.mutant,
        "size": asdict(outcome.size),
        "faults": outcome.struck,
        "faults_without_target": outcome.missed,
        "s3_calls": outcome.s3_calls,
        "s3_calls_failed": outcome.s3_faults,
        "settled_s": outcome.settled_s,
        "took_s": outcome.took_s,
        "breaches": {str(breach): verdict.count(breach) for breach in Breach},
        "figures": {**verdict.figures, **outcome.recovery},
        "findings": [asdict(finding) for finding in verdict.findings],
    }


def table(outcome: Outcome) -> str:
    """Return the result as a table in Markdown."""
    verdict = outcome.verdict
    rows = [("seed", outcome.seed), ("commit", outcome.commit), *verdict.figures.items()]
    rows += list(outcome.recovery.items())
    rows += [(f"fault: {kind}", outcome.struck.get(kind, 0)) for kind in Kind]
    s3 = f"{outcome.s3_faults} of {outcome.s3_calls}" if outcome.s3_calls else "no S3 server: skipped"
    rows += [("S3 calls failed", s3), ("faults without a target", outcome.missed)]
    rows += [("settled after the last fault, s", outcome.settled_s), ("took, s", outcome.took_s)]
    rows += [(f"**{breach}**", verdict.count(breach)) for breach in Breach]
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])


def commit() -> str:
    """Return the commit that runs, with `+` when the tree differs from it."""
    here = Path(__file__).parent
    try:
        name = subprocess.check_output(
            ["git", "rev-parse", "--short=12", "HEAD"], cwd=here, text=True
        ).strip()
        changed = subprocess.check_output(["git", "status", "--porcelain"], cwd=here, text=True).strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return name + ("+" if changed else "")
