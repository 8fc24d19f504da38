"""Counting what a run with kills came to, and the rows that are made of it."""

from __future__ import annotations

import ast
from collections.abc import Collection
from pathlib import Path

import pytest

from bench import crashes, killing
from bench.crash_counts import Count, Line, Strike, Trace, count, read_accepted, recoveries_s, running
from bench.crash_sides import stored
from bench.peers import field, stamps
from bench.peers import running as grounds
from bench.peers.field import CELERY_SAFE, RAY_SAFE, Peer
from pixelkiln_shared.storage.folder import FolderStorage

SCRIPTS = Path(grounds.__file__).parent


def ran(job: int, began: float, ended: float | None, pid: int = 1) -> list[Line]:
    """Return the lines of a run; `ended` None: it was killed."""
    lines = [Line(job=job, what=stamps.STARTED, at=began, pid=pid)]
    return lines if ended is None else [*lines, Line(job=job, what=stamps.ENDED, at=ended, pid=pid)]


def counted(lines: list[Line], *, shown: Collection[int], kept: Collection[int] = ()) -> Count:
    """Count a run of two jobs, both accepted at 0 s."""
    return count({0: 0.0, 1: 0.0}, lines, shown=shown, kept=kept)


def wrongs(of: Count) -> tuple[int, int, int, int]:
    return of.lost, of.stuck, of.doubled, of.untrue


def test_jobs_that_end_once_and_show_it_are_right() -> None:
    found = counted([*ran(0, 1, 2), *ran(1, 2, 5)], shown={0, 1})
    assert wrongs(found) == (0, 0, 0, 0)
    assert (found.wrong, found.again, found.seconds, found.longest_s) == (0, 0, 5, 5)


def test_a_job_without_result_is_stuck_while_the_queue_holds_it_and_else_lost() -> None:
    found = counted(ran(0, 1, None), shown=set(), kept={1})
    assert wrongs(found) == (1, 1, 0, 0)


def test_a_job_that_ended_but_shows_nothing_is_lost() -> None:
    assert wrongs(counted([*ran(0, 1, 2), *ran(1, 1, 2)], shown={1})) == (1, 0, 0, 0)


def test_a_job_begun_again_after_a_kill_is_not_doubled() -> None:
    found = counted([*ran(0, 1, None, pid=1), *ran(0, 3, 4, pid=2), *ran(1, 1, 2)], shown={0, 1})
    assert wrongs(found) == (0, 0, 0, 0)
    assert found.again == 1


def test_a_job_that_ended_twice_is_doubled_and_done_at_its_first_end() -> None:
    found = counted([*ran(0, 1, 2, pid=1), *ran(0, 3, 9, pid=2), *ran(1, 1, 3)], shown={0, 1})
    assert wrongs(found) == (0, 0, 1, 0)
    assert found.seconds == 3


def test_a_result_that_nobody_made_is_untrue() -> None:
    assert wrongs(counted(ran(0, 1, 2), shown={0, 1})) == (0, 0, 0, 1)


def test_jobs_nobody_accepted_are_not_counted() -> None:
    found = counted([*ran(0, 1, 2), *ran(1, 1, 2), *ran(7, 1, 99), *ran(7, 1, 99)], shown={0, 1, 7}, kept={8})
    assert wrongs(found) == (0, 0, 0, 0)
    assert found.seconds == 2


def test_the_jobs_of_a_process_are_those_it_has_not_ended() -> None:
    lines = [*ran(0, 1, 2, pid=1), *ran(1, 1, None, pid=1), *ran(2, 1, None, pid=2), *ran(2, 3, 4, pid=1)]
    assert running(lines) == {1: (1,), 2: (2,)}


def test_the_recovery_runs_from_the_kill_to_the_next_start_in_another_process() -> None:
    strikes = [
        Strike(at=10.0, pid=1, whole=False, jobs=(0, 1)),
        Strike(at=20.0, pid=2, whole=True, jobs=(0, 2)),
    ]
    lines = [
        *ran(0, 9, None, pid=1),
        *ran(0, 13, None, pid=2),
        *ran(0, 36, 37, pid=3),
        *ran(1, 9, None, pid=1),
        *ran(1, 12, 13, pid=2),
        *ran(2, 19, None, pid=2),
    ]
    assert recoveries_s(strikes, lines, whole=False) == [3.0, 2.0]
    assert recoveries_s(strikes, lines, whole=True) == [16.0]
    assert recoveries_s(strikes, lines) == [3.0, 2.0, 16.0]


def test_a_line_that_is_not_whole_waits_for_its_end(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    trace = Trace(path)
    assert trace.lines() == []
    path.write_text("3 start 1.5 7\n3 en", "ascii")
    assert trace.lines() == [Line(job=3, what="start", at=1.5, pid=7)]
    with path.open("a", encoding="ascii") as file:
        file.write("d 2.5 7\n")
    assert trace.lines()[1:] == [Line(job=3, what="end", at=2.5, pid=7)]


def test_stamps_are_read_as_they_were_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENCH_FOLDER", str(tmp_path))
    stamps.run(4, 1)
    stamps.stamp([5, 6], stamps.STARTED)
    lines = Trace(tmp_path / "trace").lines()
    assert [(line.job, line.what) for line in lines] == [(4, "start"), (4, "end"), (5, "start"), (6, "start")]
    assert lines[0].at < lines[1].at


def test_what_was_fed_is_accepted_but_for_what_warmed_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BENCH_FOLDER", str(tmp_path))
    stamps.feed(lambda job: f"id-{job}", stamps.WARM, 2, 1_000)
    stamps.feed(lambda job: f"id-{job}", 0, 3, 1_000)
    assert list(read_accepted(tmp_path / "accepted")) == [0, 1, 2]
    assert stamps.accepted()["id-2"] == 2


def test_a_result_is_shown_when_the_store_has_just_its_bytes(tmp_path: Path) -> None:
    store = FolderStorage(tmp_path, secret=b"secret of the test")
    digest = store.put("a.png", b"bytes", media_type="image/png").sha256

    def told(key: str, sha256: str | None) -> str:
        return (
            f'{{"artifacts":[{{"role":"image","index":0,"key":"{key}","media_type":"image/png",'
            f'"size_bytes":5,"sha256":"{sha256}"}}]}}'
        )

    assert stored(told("a.png", digest), store)
    assert not stored(told("a.png", "0" * 64), store)
    assert not stored(told("b.png", digest), store)


# ----------------------------------------------------------------------------------------------- the schedule


def test_a_seed_gives_the_same_kills_again_and_another_seed_others() -> None:
    kills = killing.schedule(7, 10, 70.0)
    assert kills == killing.schedule(7, 10, 70.0) != killing.schedule(8, 10, 70.0)
    assert [one.whole for one in kills] == [False, True] * 5
    assert sorted(kills, key=lambda one: one.at_s) == kills
    assert all(0 < one.at_s < 70 and 0 <= one.pick < 1 for one in kills)


# ------------------------------------------------------------------------------------------------- the rows


def played(process_s: list[float], whole_s: list[float], **wrong: int) -> crashes.Played:
    none = {"lost": 0, "stuck": 0, "doubled": 0, "untrue": 0, "again": 2}
    of = Count(accepted=100, seconds=50.0, longest_s=20.0, **{**none, **wrong})
    return crashes.Played(count=of, strikes=(), process_s=process_s, whole_s=whole_s)


def test_recoveries_stand_beside_the_goals() -> None:
    median, longest = crashes.rows(played([1.0, 2.0], [16.0, 40.0]), [], "seed 1")
    assert (median.ours, median.peer, median.met) == (9.0, 20.0, True)
    assert (longest.ours, longest.peer, longest.ratio, longest.met) == (40.0, 30.0, 0.75, False)


def test_the_ratio_of_counts_stays_finite_and_shows_the_counts() -> None:
    theirs = played([2.0], [20.0], lost=2, doubled=1)
    found = {row.id: row for row in crashes.rows(played([1.0], [10.0]), [(CELERY_SAFE, theirs)], "seed 1")}
    wrong = found["crashes-wrong"]
    assert (wrong.ours, wrong.peer, wrong.ratio, wrong.met) == (0.0, 3.0, 4.0, True)
    assert "2 lost" in wrong.caveat
    assert (found["crashes-process"].ratio, found["crashes-worker"].ratio) == (2.0, 2.0)
    assert found["crashes-seconds"].ratio == 1.0


def test_more_wrong_than_the_peer_misses_the_goal() -> None:
    rows = crashes.rows(played([1.0], [10.0], stuck=1), [(CELERY_SAFE, played([2.0], [20.0]))], "seed 1")
    [wrong] = [row for row in rows if row.id == "crashes-wrong"]
    assert (wrong.ratio, wrong.met) == (0.5, False)


def test_a_peer_that_was_not_measured_has_rows_that_say_why() -> None:
    rows = crashes.rows(played([1.0], [10.0]), [(RAY_SAFE, "not measured: no network")], "seed 1")[2:]
    assert {row.id for row in rows} >= {"crashes-process", "crashes-worker", "crashes-wrong"}
    assert {(row.met, row.caveat) for row in rows} == {(None, "not measured: no network")}


def test_a_peer_without_whole_workers_says_so() -> None:
    rows = crashes.rows(played([1.0], [10.0]), [(RAY_SAFE, played([2.0], []))], "seed 1")
    [row] = [row for row in rows if row.id == "crashes-worker"]
    assert row.met is None
    assert "raylet" in row.caveat


@pytest.mark.parametrize("peer", [field.CELERY_SAFE, field.RAY_SAFE], ids=lambda peer: peer.script)
def test_a_struck_peer_knows_its_verbs_and_imports_nothing_of_ours_but_the_work(peer: Peer) -> None:
    tree = ast.parse((SCRIPTS / peer.script).read_text("utf-8"))
    assert {node.name for node in tree.body if isinstance(node, ast.FunctionDef)} >= {
        "serve",
        "feed",
        "fates",
    }
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {"stamps", "work"} <= imported
    assert not {name for name in imported if name.startswith(("pixelkiln", "bench"))}
