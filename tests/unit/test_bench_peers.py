"""The frame around the peers: their files, the tally that counts for them, the rows of their figures."""

from __future__ import annotations

import ast
import json
import sys
import venv
from pathlib import Path

import pytest

from bench.peers import environments, rounds, running, work
from bench.peers.environments import CannotInstall
from bench.peers.field import EVERYONE, Peer
from bench.peers.rounds import measure, quantile, rows
from bench.peers.running import PeerFailed

SCRIPTS = Path(running.__file__).parent
VERBS = {"submit", "latency", "pictures", "cancel"}
FAST = Peer(name="fast", script="none.py", environment="rq", setting="as it comes")
MUTE = Peer(name="mute", script="none.py", environment="rq", setting="", cannot={"submit": "it has no queue"})


@pytest.mark.parametrize("peer", EVERYONE, ids=lambda peer: peer.script)
def test_every_peer_compiles_and_knows_the_verbs_it_is_asked_for(peer: Peer) -> None:
    tree = ast.parse((SCRIPTS / peer.script).read_text("utf-8"))
    defined = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert "serve" in defined
    assert defined & VERBS == VERBS - set(peer.cannot)


@pytest.mark.parametrize("peer", EVERYONE, ids=lambda peer: peer.script)
def test_a_peer_imports_nothing_of_ours_but_the_work(peer: Peer) -> None:
    imported: set[str] = set()
    for node in ast.walk(ast.parse((SCRIPTS / peer.script).read_text("utf-8"))):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module or "")
    assert "work" in imported
    assert not {name for name in imported if name.startswith(("pixelkiln", "bench"))}


def test_every_requirement_is_pinned() -> None:
    assert {peer.environment for peer in EVERYONE} <= set(environments.REQUIREMENTS)
    assert all("==" in one for several in environments.REQUIREMENTS.values() for one in several)


def test_a_finished_environment_is_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Path] = []
    monkeypatch.setattr(venv, "create", lambda place, **_: made.append(place))
    monkeypatch.setattr(environments, "_install", lambda *_: None)
    binary = tmp_path / "rq" / "bin" / "python"
    binary.parent.mkdir(parents=True)
    binary.touch()
    assert environments.python("rq", tmp_path) == binary
    environments.python("rq", tmp_path)
    assert made == [tmp_path / "rq"]


def test_what_pip_cannot_install_is_told(tmp_path: Path) -> None:
    refuses = tmp_path / "python"
    refuses.write_text("#!/bin/sh\necho 'ERROR: no such version' >&2\nexit 1\n", "utf-8")
    refuses.chmod(0o755)
    with pytest.raises(CannotInstall, match=r"rq==3\.0\.0.*no such version"):
        environments._install(refuses, ("rq==3.0.0",))


def test_the_tally_is_seen_from_another_mapping(tmp_path: Path) -> None:
    ours, theirs = work.Tally(tmp_path / "tally"), work.Tally(tmp_path / "tally")
    theirs.began()
    theirs.done()
    theirs.done(2)
    theirs.reached(7)
    assert (ours.count, ours.step) == (3, 7)
    assert 0 <= ours.span_s < 60
    ours.reset()
    assert (theirs.count, theirs.step, theirs.last_end) == (0, 0, 0.0)


def test_a_peer_with_figures_has_a_row_that_compares_and_one_without_says_why() -> None:
    figures = iter((100.0, 200.0))
    found = measure("p0", "submit", [FAST, MUTE], lambda peer: next(figures), 2)
    fast, mute = rows(
        "p0", "jobs", [1_000.0, 1_000.0], [FAST, MUTE], found, goal=lambda peer: 5.0, caveat="made up"
    )
    assert (fast.ratio, fast.spread, fast.met) == (7.5, (5.0, 10.0), True)
    assert "as it comes" in fast.caveat
    assert fast.versions["rq"] == "3.0.0"
    assert (mute.ratio, mute.met, mute.caveat) == (0.0, None, "it has no queue")


def test_one_round_of_a_peer_serves_for_all_of_ours() -> None:
    [row] = rows(
        "p0",
        "ms",
        [2.0, 4.0, 8.0],
        [FAST],
        {"fast": [4.0]},
        goal=lambda peer: 1.0,
        caveat="",
        less_is_better=True,
    )
    assert (row.ratio, row.spread) == (1.0, (0.5, 2.0))


@pytest.mark.parametrize("error", [CannotInstall("no network"), PeerFailed("it fell over")])
def test_a_peer_that_fails_costs_its_row_only(error: Exception) -> None:
    def once(peer: Peer) -> float:
        if peer is FAST:
            raise error
        return 1.0

    steady = Peer(name="steady", script="none.py", environment="rq", setting="")
    found = measure("p0", "submit", [FAST, steady], once, 1)
    assert found == {"fast": f"not measured: {error}", "steady": [1.0]}


def test_a_quantile_of_few_values_is_the_largest() -> None:
    assert quantile([3.0, 1.0, 2.0], 0.95) == 3.0
    assert rounds.quantile(list(map(float, range(100))), 0.95) == 95.0


def test_a_ground_runs_a_peer_and_tells_what_it_said(tmp_path: Path) -> None:
    script = tmp_path / "peer.py"
    script.write_text(
        "import json, sys\n"
        "if sys.argv[2] == '0': sys.exit('it will not')\n"
        "print('a warning')\n"
        "print(json.dumps(sys.argv[1:]))\n",
        "utf-8",
    )
    place = running.Ground(
        peer=Peer(name="one", script=str(script), environment="rq", setting=""),
        verb="submit",
        python=Path(sys.executable),
        folder=tmp_path,
        environment={},
        tally=work.Tally(tmp_path / "tally"),
    )
    assert place.drive(5) == json.loads('["submit", "5"]')
    with pytest.raises(PeerFailed, match="it will not"):
        place.drive(0)
