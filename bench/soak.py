"""A soak: 5,000 jobs a worker, of all kinds and ends, and nothing grows or is left behind (P11 and more).

Two worker processes with their launchers, the API over HTTP, Redis, and a store. After each 250 jobs, with
none under way, the processes are looked at from outside. Records, idempotency keys and notes of delivered
messages live a minute here, so that they run out while the soak goes on. `python -m bench soak` measures;
`python -m bench.soak` writes what was kept into docs/reliability.md.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import cast
from unittest.mock import patch

from bench import plots, soak_jobs
from bench.moves import written
from bench.results import Result, unable
from bench.soak_counts import MIB, STEP, WARM, Leftovers, Sample, document, footprint, line, rows, table
from bench.soak_ground import WORKERS, Bucket, Ground, ground
from bench.stage import until
from pixelkiln.leftovers import DAYS, ROUND, Orphans, sweep_uploads
from pixelkiln_shared import keys
from pixelkiln_shared.keys import CELERY_PREFIX, LedgerKey
from pixelkiln_shared.ledger import open_ledger
from pixelkiln_shared.manifest import MANIFEST_NAME

JOBS, FULL_JOBS = 2_000, 5_750 * WORKERS  # one in ten fails or is canceled: none a worker did
CLIENTS = 16
CROWD = 32  # at first, so that pools of connections are as large as they will ever be
RETENTION_S = 60
RUN_OUT_S = 180.0  # until all that lives a minute is gone, however late the sweeps are
AWAY_EVERY = 1_000
AWAY_JOBS = 12  # of 8 MB and more: what two workers keep in memory, and a few that go to the disk
AWAY_FIRST = 32  # the same, at first: more than the workers send side by side
SWEEP_EVERY = 500  # jobs; while the records are there that tell what is an orphan
KEPT = Path(__file__).parent / "results" / "soak.json"
PAGE = Path(__file__).parents[1] / "docs" / "reliability.md"
SETTLE_S = 6.0  # until the API knows that its clients hung up, and a worker at rest has given memory back
_HANDS = 8
_PASSING = ("job", "idempotency", "delivery", "preview", "queue", "held")


def run(rounds: int, full: bool) -> list[Result]:
    """Soak once, whatever the rounds; keep the samples and draw them."""
    if not Path("/proc/self/statm").exists():
        why = "only Linux is looked at here"
        return [unable("p11", "resident memory in MB", peer_name="a process", goal=1.0, why=why)]
    with tempfile.TemporaryDirectory(prefix="pixelkiln-soak-") as name:
        samples, left, setting = soak(Path(name), FULL_JOBS if full else JOBS)
    KEPT.write_text(document(samples, left, setting=setting, date=f"{datetime.now(UTC):%-d %B %Y}"), "utf-8")
    _draw(samples)
    return rows(samples, left, setting)


def soak(folder: Path, jobs: int) -> tuple[list[Sample], Leftovers, str]:
    """Do so many jobs in an empty folder; returns the samples, what is left, and what was done in words."""
    with ground(folder, f"{soak_jobs.STUB},{soak_jobs.SEGMENTER}", RETENTION_S) as place:
        samples, known, ends, began = [], set[str](), Counter[str](), time.monotonic()
        for done in range(STEP, jobs + 1, STEP):
            clients = CROWD if done <= WARM else CLIENTS
            ends += soak_jobs.do(place.url, place.hook, "soak", range(done - STEP, done), clients=clients)
            if place.bucket and (done == STEP or done % AWAY_EVERY == 0):
                count = AWAY_FIRST if done == STEP else AWAY_JOBS
                ends["stored late"] += _while_away(place, place.bucket, count)
            if done % SWEEP_EVERY == 0:
                ends["orphans swept"] += _sweep(place, done)
            known = known or _resting(place, known)
            samples.append(_sample(place, done))
            print(f"soak: {line(samples[-1])}", file=sys.stderr)
        took_s = time.monotonic() - began
        told = ", ".join(f"{count:,} {what}" for what, count in sorted(ends.items()))
        by_worker = " and ".join(f"{count:,}" for count in place.jobs_done())
        setting = f"{jobs:,} jobs in {took_s:.0f} s: {told}; the workers saw to {by_worker}"
        setting += f"; store: {'S3' if place.bucket else 'a folder'}"
        left = _left(place, known)
    return samples, replace(left, temporary_files=len(place.temporary_files())), setting


def _while_away(place: Ground, bucket: Bucket, count: int) -> int:
    """Have large pictures made while the store is away, until some wait on the disk; returns how many."""
    with ThreadPoolExecutor(1) as hand:
        with bucket.away():
            ends = hand.submit(
                soak_jobs.do, place.url, place.hook, "away", range(count), clients=count, big=True
            )
            until(
                lambda: any(_size(path) > 8 * MIB for path in place.temporary_files()) or ends.done(),
                "nothing large waits on the disk",
                soak_jobs.PATIENCE_S,
            )
        return sum(ends.result().values())


def _size(path: Path) -> int:
    with suppress(FileNotFoundError):
        return path.stat().st_size
    return 0


def _sweep(place: Ground, jobs: int) -> int:
    """Remove orphans as if hours had passed; returns how many there were."""
    later = datetime.now(UTC) + timedelta(seconds=keys.ORPHAN_S + 60)
    orphans = Orphans(place.storage, open_ledger(place.settings), now=lambda: later)
    return sum(orphans.sweep() for _ in range(DAYS + 2 + 5 * jobs // ROUND))


def _sample(place: Ground, done: int) -> Sample:
    time.sleep(SETTLE_S)
    return Sample(
        jobs=done,
        processes={name: footprint(*pids) for name, pids in place.pids.items()},
        temporary_files=len(place.temporary_files()),
        redis_keys=place.client.dbsize(),
        redis_bytes=int(place.client.info("memory")["used_memory"]),
    )


# -------------------------------------------------------------------------------------------- what is left


def _resting(place: Ground, known: set[str]) -> set[str]:
    """Wait until all that has a lifetime has run out; returns the names of the keys that stay."""
    deadline = time.monotonic() + RUN_OUT_S
    while True:
        names = set(cast(Iterator[str], place.client.scan_iter(count=1_000))) - {keys.REAP_LOCK}
        passing = {name for name in names if name.startswith(tuple(f"pk:{what}:" for what in _PASSING))}
        if (names <= known if known else not passing) or time.monotonic() > deadline:
            return names
        time.sleep(1.0)


def _left(place: Ground, known: set[str]) -> Leftovers:
    names = _resting(place, known)
    with patch.object(keys, "UPLOAD_S", 0):
        sweep_uploads(place.storage)
    unnamed = _unnamed(place)
    more = sorted(names - known)
    return Leftovers(
        keys=len(more),
        unacked=sum(1 for name in names if name.startswith(CELERY_PREFIX) and "unacked" in name),
        waiting=_waiting(place, names),
        temporary_files=0,
        uploads=place.bucket.uploads() if place.bucket else 0,
        objects=len(unnamed),
        notes=(*more[:50], *unnamed[:50]),
    )


def _waiting(place: Ground, names: set[str]) -> int:
    counts = cast(list[str], place.client.hvals(LedgerKey.WAITING))
    bells = [name for name in names if name.startswith(CELERY_PREFIX) and place.client.type(name) == "list"]
    return sum(map(int, counts)) + sum(place.client.llen(name) for name in bells)


def _unnamed(place: Ground) -> list[str]:
    """Return the objects that are neither a manifest nor named by one, nor an input of a job that has one."""
    found = [stored.key for stored in place.storage.list("")]
    manifests = [key for key in found if key.endswith(f"/{MANIFEST_NAME}")]
    named = set(manifests)
    with ThreadPoolExecutor(_HANDS) as hands:
        for key, data in zip(manifests, hands.map(place.storage.get, manifests), strict=True):
            attempt = key.removesuffix(MANIFEST_NAME)
            named |= {f"{attempt}{file['name']}" for file in json.loads(data)["files"]}
    jobs = {key.removesuffix(MANIFEST_NAME).rsplit("/", 2)[0] for key in manifests}
    return [key for key in found if key not in named and key.rpartition("/input.")[0] not in jobs]


# --------------------------------------------------------------------------------------------- what is kept


def _draw(samples: Sequence[Sample]) -> None:
    names = list(samples[0].processes)
    memory = {
        name: [(one.jobs, one.processes[name].rss_bytes / MIB) for one in samples] for name in names
    } | {"Redis, data": [(one.jobs, one.redis_bytes / MIB) for one in samples]}
    open_ones = {name: [(one.jobs, float(one.processes[name].handles)) for one in samples] for name in names}
    for what, series, unit in (("memory", memory, "MB"), ("handles", open_ones, "open handles")):
        title = f"Soak: {unit} while jobs of all kinds go through"
        plots.lines(KEPT.with_name(f"soak-{what}.png"), series, title=title, x="jobs done", y=unit)


def main() -> int:
    """Write what was kept of the last soak into its page."""
    text = table(json.loads(KEPT.read_text("utf-8")))
    PAGE.write_text(written(PAGE.read_text("utf-8"), {"soak": text}), "utf-8")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
