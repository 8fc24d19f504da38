"""Ten times as many jobs as can be done, for minutes (goal G11)."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from pixelkiln_shared.jobs import Status
from tests.chaos.drills.load import ROW_MS
from tests.chaos.drills.report import Row, Told, figure, quantile
from tests.chaos.drills.traffic import (
    STUB_ONLY,
    Looks,
    User,
    looking,
    open_jobs,
    processor_s,
    recent,
    rss_mb,
    seconds_until,
    sending,
    stub_job,
    unsuccessful,
    watching,
)
from tests.chaos.schedule import FULL
from tests.chaos.stage import Stage, stage

TIMES = 10
MAX_QUEUE = 100
CLIENTS = 32
LOOK_MS, RSS_MB = 250.0, 100.0
_WARM_S = 10.0
_CALM_S = 15.0
_END_S = 120.0
_MORE = 1.2  # than the tenfold is tried: senders of the lowest priority fall behind


def overload(folder: Path, seconds: float, repeats: int) -> list[Row]:
    """Play it for so long; `repeats` is not used."""
    told = Told("overload")
    with stage(folder, FULL, seed=1, more={**STUB_ONLY, "PIXELKILN_MAX_QUEUE": str(MAX_QUEUE)}) as made:
        if made.s3 is not None:
            made.s3.share = 0.0
        rate = len(made.launchers) * 1_000 / ROW_MS
        known, calm, looks = _Known(made), Looks(), Looks()
        with watching(known.look, 1.0):
            with (
                sending(User(made.url), [], rate / 2, _job),
                looking(User(made.url), lambda: known.ids, calm),
            ):
                time.sleep(_WARM_S + _CALM_S)
            first_mb = rss_mb(made.api.pid)
            before = len(made.records())
            begun = processor_s(made.api.pid)
            with looking(User(made.url), lambda: known.ids, looks):
                sent = _load(made.url, TIMES * _MORE * rate, seconds)
            ended = processor_s(made.api.pid)
            done = sum(r.status is Status.SUCCEEDED for r in made.records()) - before
            end_s = seconds_until(lambda: not open_jobs(made), _END_S)
        accepted, answers = sent["accepted"], sent["answers"]
        offered = sum(answers.values()) / sent["seconds"]
        done_s = done / sent["seconds"]
        return [
            told.at_least("offered, of what is done", TIMES, offered / done_s, "times"),
            told.told(
                "offered, done a second; seconds",
                f"{figure(offered)}, {figure(done_s)}; {sent['seconds']:.0f}",
            ),
            told.told("answers to POSTs", f"{answers}, p99 {quantile(sent['took_s'], 0.99) * 1_000:.0f} ms"),
            told.exactly(
                "neither 202 nor 429/503 with Retry-After", 0, len(sent["impolite"]) + _cut(answers)
            ),
            told.exactly("accepted jobs that are lost or did not succeed", 0, unsuccessful(made, accepted)),
            told.at_most("all accepted done after the last POST", _END_S, end_s, "s"),
            told.at_most("GET /v1/jobs/{id}, p99", LOOK_MS, quantile(looks.took_s, 0.99) * 1_000, "ms"),
            told.told("the same: p50, p99, longest, number", looks.shown()),
            told.told("the same at half of what can be done", calm.shown()),
            told.told(
                "the API's threads: had a processor, waited for one",
                f"{figure(ended[0] - begun[0])} s, {figure(ended[1] - begun[1])} s",
            ),
            told.exactly("GETs refused or cut", 0, sum(looks.refused.values())),
            told.at_most("API's memory, growth", RSS_MB, known.most_mb - first_mb, "MB"),
            told.told("API's memory: before, most", f"{figure(first_mb)}, {figure(known.most_mb)} MB"),
        ]


class _Known:
    """The newest jobs, for those who look at some, and the API's memory."""

    def __init__(self, made: Stage) -> None:
        self._made = made
        self.ids: list[str] = []
        self.most_mb = 0.0

    def look(self) -> None:
        """Look once."""
        self.ids = [record.id for record in recent(self._made)][:200]
        self.most_mb = max(self.most_mb, rss_mb(self._made.api.pid))


def _load(url: str, rate: float, seconds: float) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.chaos.drills.load", url, str(rate), str(seconds), str(CLIENTS)]
    found: dict[str, Any] = json.loads(subprocess.check_output(["nice", "-n", "19", *command], text=True))
    return found


def _job(number: int) -> dict[str, Any]:
    return stub_job(f"calm {number}", device_ms=0, per_item_ms=ROW_MS)


def _cut(answers: dict[str, int]) -> int:
    return sum(count for name, count in answers.items() if not name.isdigit())
