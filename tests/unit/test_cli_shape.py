"""The command line's outside: help, exit codes, what goes to which stream."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from pixelkiln.cli import COMMANDS, main
from pixelkiln.cli.screen import clean, shorten

NOWHERE = "http://127.0.0.1:9"


def run(*arguments: str, stdin: str | None = None) -> Result:
    return CliRunner().invoke(main, ["--url", NOWHERE, *arguments], input=stdin)


def test_help_lists_every_command() -> None:
    result = run("--help")
    assert result.exit_code == 0
    assert [line.split()[0] for line in result.stdout.partition("Commands:\n")[2].splitlines()] == list(
        COMMANDS
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str) -> None:
    result = run(command, "--help")
    assert result.exit_code == 0
    assert f"main {command}" in result.stdout
    assert len(result.stdout.splitlines()[2].strip()) > 10


def test_help_imports_no_heavy_library() -> None:
    heavy = "{'httpx2', 'pydantic', 'rich', 'redis', 'celery', 'boto3', 'fastapi', 'torch', 'numpy', 'PIL'}"
    script = f"""
import sys
sys.argv = ["pixelkiln", "--help"]
from pixelkiln.cli import main
try:
    main()
except SystemExit:
    print("LOADED", sorted({heavy} & set(sys.modules)))
"""
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert told.stdout.splitlines()[-1] == "LOADED []"


def test_no_server_is_exit_code_5_and_names_the_next_command() -> None:
    result = run("ls")
    assert result.exit_code == 5
    assert result.stdout == ""
    assert "pixelkiln up" in result.stderr


def test_with_json_an_error_is_an_object_on_stdout() -> None:
    result = run("ls", "--json")
    assert result.exit_code == 5
    assert json.loads(result.stdout)["code"] == "server_unreachable"


@pytest.mark.parametrize(
    "arguments",
    [
        ("no-such-command",),
        ("wait",),
        ("cancel",),
        ("retry", "--failed"),
        ("wait", "job_1", "--timeout", "soon"),
        ("generate", "x", "--size", "big"),
        ("generate", "x", "--label", "=1"),
        ("segment", "x.png", "--box", "1,2,3"),
        ("segment", "x.png", "--format", "voc"),
    ],
)
def test_wrong_usage_is_exit_code_2(arguments: tuple[str, ...]) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "Traceback" not in result.stderr


def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    for missing in (str(tmp_path / "none.png"), str(tmp_path)):
        result = run("segment", missing)
        assert result.exit_code == 2
        assert len(result.stderr.splitlines()) == 1
        assert missing in result.stderr


def test_stdin_that_is_a_terminal_or_closed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.TextIOWrapper):
        def isatty(self) -> bool:
            return True

    from pixelkiln.cli import make
    from pixelkiln.cli.faults import Refused

    for stdin in (Terminal(io.BytesIO()), None):
        monkeypatch.setattr(sys, "stdin", stdin)
        with pytest.raises(Refused, match="nothing is piped"):
            make.read_stdin()


def test_text_of_others_cannot_drive_the_terminal() -> None:
    assert clean("\x1b[31mred\x1b[0m\nline\x07") == "red line"
    assert clean("\x1b]0;title\x07after") == "after"
    assert clean("a\x9b2Jb") == "a2Jb"
    assert clean("abc\u202edef") == "abcdef"
    assert clean("снег ☃ 雪") == "снег ☃ 雪"
    assert shorten("a" * 20, 5) == "aaaa…"


def test_colour_is_off_when_asked() -> None:
    script = "import click; from pixelkiln.cli import main; main(['--help'], standalone_mode=False)"
    told = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, check=True, env={"NO_COLOR": "1"}
    )
    assert b"\x1b" not in told.stdout


def test_a_file_name_never_leads_out_of_its_folder() -> None:
    from pixelkiln.client.results import ArtifactFacts
    from pixelkiln.resources import ArtifactResource

    facts = {"role": "mask", "index": 3, "media_type": "image/png", "size_bytes": 1, "sha256": ""}
    resource = ArtifactResource(**facts, label="../a Tree!", url="/x", url_expires_at="2026-11-20T12:00:00Z")
    assert ArtifactFacts("job_1", resource).filename() == "job_1_mask_003_a-tree.png"
    assert ArtifactFacts("../../job", resource).filename() == "-..-job_mask_003_a-tree.png"
    assert ArtifactFacts("job_1", resource).filename("фото") == "фото_mask_003_a-tree.png"


def test_an_id_is_never_another_path() -> None:
    from pixelkiln.client.wire import below

    assert below("/v1/jobs", "../groups/x?a=1", "cancel") == "/v1/jobs/..%2Fgroups%2Fx%3Fa%3D1/cancel"
