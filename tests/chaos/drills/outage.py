"""The store is away for minutes while jobs keep coming (goal G5)."""

from __future__ import annotations

import base64
import io
import os
import threading
import time
from pathlib import Path
from typing import Any

from PIL import Image

from pixelkiln_shared.jobs import Status
from pixelkiln_shared.ledger.contract import Record
from tests.chaos.drills.report import Row, Told, figure
from tests.chaos.drills.traffic import (
    Looks,
    User,
    looking,
    open_jobs,
    recent,
    rss_mb,
    seconds_until,
    sending,
    stub_job,
    watching,
)
from tests.chaos.schedule import FULL
from tests.chaos.stage import Stage, stage

JOBS_S = 2.0
SIDE_PX = 512
DEVICE_MS = (100, 200, 300)
SEGMENTER = "classical-felzenszwalb"
SPOOL_MB = 1_024
UPLOADERS = 100  # more than the API has threads
BACK_S = 60.0
_LEAD_S = 8.0  # before the store goes, and after it is back


def outage(folder: Path, seconds: float, repeats: int) -> list[Row]:
    """Play it; `seconds` is how long the store is away."""
    told = Told("outage")
    settings = {
        "PIXELKILN_SPOOL_DIR": str(folder / "spool"),
        "PIXELKILN_SPOOL_MB": str(SPOOL_MB),
        "PIXELKILN_WORKER_MODELS": f"stub,{SEGMENTER}",
    }
    with stage(folder, FULL.scaled(FULL.jobs), seed=1, more=settings) as made:
        if made.s3 is None:
            raise SystemExit("the outage drill needs an S3 server in TEST_S3_ENDPOINT")
        made.s3.share = 0.0
        user, looks, kept = User(made.url), Looks(), _Kept(made)
        segments = User(made.url)
        ids: list[str] = []
        pids = sorted(made.device_pids())
        with looking(User(made.url), lambda: ids, looks), watching(kept.look, 1.0):
            with sending(user, ids, JOBS_S, _picture):
                time.sleep(_LEAD_S)
                ids += [job_id for n in range(4) if (job_id := segments.submit(_segment(n)))]
                made.s3.away = True
                uploads = _Uploads(segments, ids)
                time.sleep(seconds)
                made.s3.away = False
                back = time.monotonic()
                waited = kept.waiting
                time.sleep(_LEAD_S)
            uploads.end()
            late_s = seconds_until(lambda: not open_jobs(made), BACK_S * 3)
            done_s = time.monotonic() - back if late_s != float("inf") else late_s
        time.sleep(6)  # the workers' last report
        records = [record for record in made.records() if record.id in set(ids)]
        rows = sum(tally.rows for info in made.fleet.workers() for tally in info.tallies.values())
        return [
            told.told(
                "store away, s; jobs, of them segments",
                f"{seconds:g}; {len(ids)}, {_kinds(records)}",
            ),
            told.exactly("accepted jobs without a record", 0, len(set(ids)) - len(records)),
            told.exactly("jobs failed", 0, sum(r.status is not Status.SUCCEEDED for r in records)),
            told.exactly("device runs beyond one a job", 0, rows - len(records)),
            told.told("jobs given back before they ran", str(sum(r.attempt != 1 for r in records))),
            told.exactly("workers that died", 0, len(set(pids) - set(made.device_pids()))),
            told.at_most("all done after the return", BACK_S, done_s, "s"),
            told.exactly("status reads refused or cut", 0, sum(looks.refused.values())),
            told.told("status reads: p50, p99, longest, number", looks.shown()),
            told.told(
                "answers to POSTs of segment jobs",
                f"{dict(segments.answers)}, slowest {segments.slowest_s:.1f} s",
            ),
            told.exactly("503 without Retry-After", 0, segments.unpolite + user.unpolite),
            told.told(
                "answers to POSTs of generate jobs", f"{dict(user.answers)}, slowest {user.slowest_s:.1f} s"
            ),
            told.told("results waiting at the return", f"{waited}"),
            told.at_most("spool of one worker on disk, most", SPOOL_MB, kept.spool_mb, "MB"),
            told.told(
                "worker's memory: at first, most", f"{figure(kept.first_mb)}, {figure(kept.most_mb)} MB"
            ),
        ]


class _Uploads:
    """Somebody who insists on segment jobs whose pictures the store should take."""

    def __init__(self, user: User, ids: list[str]) -> None:
        self._user, self._ids, self._over = user, ids, threading.Event()
        self._threads = [threading.Thread(target=self._go, args=(n,), daemon=True) for n in range(UPLOADERS)]
        for thread in self._threads:
            thread.start()

    def _go(self, number: int) -> None:
        while not self._over.is_set():
            number += UPLOADERS
            job_id = self._user.submit(_segment(number), until=self._over.is_set)
            if job_id is not None:
                self._ids.append(job_id)
            self._over.wait(UPLOADERS)

    def end(self) -> None:
        """Send no more."""
        self._over.set()
        for thread in self._threads:
            thread.join()


class _Kept:
    """What waits, where, and what it takes."""

    def __init__(self, made: Stage) -> None:
        self._made = made
        self.first_mb = max(map(rss_mb, made.device_pids()))
        self.most_mb = self.spool_mb = 0.0
        self.waiting = 0

    def look(self) -> None:
        """Look once."""
        self.most_mb = max(self.most_mb, *map(rss_mb, self._made.device_pids()))
        for folder in (self._made.folder / "spool").glob("*.spool"):
            self.spool_mb = max(self.spool_mb, _bytes(folder) / 1e6)
        self.waiting = sum(record.status is Status.RUNNING for record in recent(self._made))


def _bytes(folder: Path) -> int:
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                total += (Path(place) / name).stat().st_size
            except FileNotFoundError:  # sent meanwhile
                continue
    return total


def _picture(number: int) -> dict[str, Any]:
    device_ms = DEVICE_MS[number % len(DEVICE_MS)]
    return stub_job(f"a hill {number}", side_px=SIDE_PX, device_ms=device_ms, per_item_ms=0)


def _segment(number: int) -> dict[str, Any]:
    file = io.BytesIO()
    Image.effect_noise((96, 96), 20 + number).convert("RGB").save(file, "PNG")
    image = {"base64": base64.b64encode(file.getvalue()).decode()}
    return {"kind": "segment", "model": SEGMENTER, "input": {"image": image}}


def _kinds(records: list[Record]) -> str:
    return str(sum(record.kind == "segment" for record in records))
