"""The soak: what the samples of a long life are taken to show, and how its page is written."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import pytest
import redis

from bench import soak, soak_jobs
from bench.results import Result
from bench.soak_counts import STEP, Footprint, Leftovers, Sample, document, footprint, grown, rows, table
from bench.soak_ground import Ground
from bench.soak_receiver import receiver
from bench.stage import free_port, redis_server
from pixelkiln_shared import keys
from pixelkiln_shared.settings import Settings
from pixelkiln_shared.storage.folder import FolderStorage

NOTHING = Leftovers(keys=0, unacked=0, waiting=0, temporary_files=0, uploads=0, objects=0)


def life(*, jobs: int = 10_000, leak_bytes: int = 0, handles_leak: float = 0.0) -> list[Sample]:
    """Workers that warm up to 100 MB in 500 jobs; they leak so many bytes and handles a job."""
    return [
        Sample(
            jobs=done,
            processes={
                "workers": Footprint(
                    rss_bytes=100_000_000 + min(0, done - 500) * 10_000 + done * leak_bytes,
                    handles=20 + int(done * handles_leak),
                    threads=24,
                ),
                "API": Footprint(rss_bytes=80_000_000, handles=9, threads=3),
            },
            temporary_files=0,
            redis_keys=900,
            redis_bytes=3_000_000,
        )
        for done in range(STEP, jobs + 1, STEP)
    ]


def verdicts(samples: list[Sample], left: Leftovers = NOTHING) -> dict[str, bool | None]:
    return {row.what.split(" after")[0]: row.met for row in rows(samples, left, "a test")}


def missed(samples: list[Sample], left: Leftovers = NOTHING) -> list[str]:
    return [what for what, met in verdicts(samples, left).items() if not met]


def test_warming_up_is_no_growth() -> None:
    assert missed(life()) == []
    assert len(verdicts(life())) == 4 + len(NOTHING.counts())


def test_workers_that_grow_by_a_tenth_miss_the_goal() -> None:
    assert missed(life(leak_bytes=1_100)) == ["resident memory in MB of the workers"]


def test_growth_of_four_per_cent_is_within_the_goal() -> None:
    assert missed(life(leak_bytes=400)) == []


def test_a_leak_that_the_last_samples_hide_shows_in_the_line() -> None:
    points = [
        (sample.jobs, float(sample.processes["workers"].rss_bytes)) for sample in life(leak_bytes=1_100)
    ]
    hidden = [*points[:-3], *((jobs, points[1][1]) for jobs, _ in points[-3:])]

    after, before = grown(hidden)

    assert after > 1.05 * before


def test_a_jump_at_the_end_shows_beside_a_flat_line() -> None:
    points = [(sample.jobs, 100.0) for sample in life()]

    assert grown([*points[:-3], *((jobs, 110.0) for jobs, _ in points[-3:])]) == (110.0, 100.0)


def test_one_odd_sample_decides_nothing() -> None:
    points = [(sample.jobs, 100.0) for sample in life()]

    after, before = grown([*points[:-1], (10_000, 130.0)])

    assert after < 1.05 * before


def test_two_handles_that_are_never_closed_miss_the_goal() -> None:
    assert missed(life(handles_leak=0.0002)) == ["open handles of the workers"]


@pytest.mark.parametrize("what", ["keys", "unacked", "waiting", "temporary_files", "uploads", "objects"])
def test_a_single_thing_left_behind_misses_the_goal(what: str) -> None:
    left: dict[str, Any] = {what: 1}
    assert len(missed(life(), replace(NOTHING, **left))) == 1


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="only Linux tells")
def test_a_process_that_opens_a_file_has_a_handle_more() -> None:
    before = footprint(os.getpid())
    with open(os.devnull, "rb"):
        during = footprint(os.getpid())

    assert during.handles == before.handles + 1
    assert during.rss_bytes > 10_000_000
    assert during.threads >= 1


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="only Linux tells")
def test_processes_are_counted_together() -> None:
    assert footprint(os.getpid(), os.getpid()).threads == 2 * footprint(os.getpid()).threads


def test_the_page_shows_a_kept_soak_at_ten_moments() -> None:
    kept = json.loads(document(life(), replace(NOTHING, keys=2), setting="10,000 jobs", date="1 May 2026"))

    text = table(kept)

    shown = [line.split(" | ")[0] for line in text.splitlines() if line.endswith("| 900 | 2.86 | 0 |")]
    assert shown == [f"| {jobs:,}" for jobs in (500, *range(1_000, 10_001, 1_000))]
    assert "Redis keys beyond those before 2" in text
    assert "1 May 2026" in text


def test_every_kind_of_job_is_in_each_round() -> None:
    kinds = {kind.__name__ for kind in soak_jobs._MIX}

    assert len(soak_jobs._MIX) == soak_jobs.ROUND
    assert kinds >= {"segmented", "failed", "canceled", "told", "watched", "waited", "repeated", "odd"}


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Ground]:
    """A ground without processes: a Redis, a folder, nothing else."""
    port = free_port()
    with redis_server(tmp_path, port), redis.Redis(port=port, decode_responses=True) as client:
        yield Ground(
            url="",
            hook="",
            settings=Settings(redis_url=f"redis://127.0.0.1:{port}/0"),
            client=client,
            storage=FolderStorage(tmp_path / "objects", secret=b"of a test"),
            bucket=None,
            scratch=tmp_path / "tmp",
            pids={},
        )


def test_objects_that_a_manifest_names_are_no_leftovers(place: Ground) -> None:
    made, lost = (keys.job_prefix("default", keys.new_id("job")) for _ in range(2))
    manifest = json.dumps({"files": [{"name": "0.png"}]}).encode()
    for key in (f"{made}a1/0.png", f"{made}input.image", f"{lost}a1/0.png", f"{lost}input.image"):
        place.storage.put(key, b"bytes", media_type="image/png")
    place.storage.put(f"{made}a1/manifest.json", manifest, media_type="application/json")
    place.storage.put(f"{made}a2/0.png", b"bytes", media_type="image/png")

    assert sorted(soak._unnamed(place)) == sorted(
        [f"{made}a2/0.png", f"{lost}a1/0.png", f"{lost}input.image"]
    )


def test_keys_are_at_rest_when_what_has_a_lifetime_is_gone(place: Ground) -> None:
    place.client.set("pk:sequence", 1)
    place.client.set("pk:job:one", 1, px=300)

    known = soak._resting(place, set())

    assert known == {"pk:sequence"}


def test_keys_bells_and_unacked_that_stay_are_left(place: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soak, "RUN_OUT_S", 0.0)
    place.client.set("pk:job:one", 1)
    place.client.hset("pk:celery:unacked", "tag", "message")
    place.client.rpush("pk:celery:generate.stub", "bell", "bell")

    left = soak._left(place, set())

    assert (left.keys, left.unacked, left.waiting, left.objects) == (3, 1, 2, 0)
    assert "pk:job:one" in left.notes


def test_a_receiver_takes_what_it_is_told() -> None:
    with receiver() as url:
        assert httpx2.post(url, json={"type": "job.succeeded"}, trust_env=False).status_code == 200


def test_elsewhere_than_on_linux_the_row_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pathlib.Path.exists", lambda _: False)

    [row] = soak.run(1, full=False)

    assert isinstance(row, Result)
    assert row.met is None
    assert "Linux" in row.caveat
