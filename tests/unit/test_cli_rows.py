"""Rows of files as jobs, and the journal that makes a bulk submit repeatable."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from pixelkiln.cli import main
from pixelkiln.cli.faults import Refused
from pixelkiln.cli.journal import Journal
from pixelkiln.cli.options import Duration, literal
from pixelkiln.cli.rows import read_rows
from pixelkiln.client.requests import row_request


def written(folder: Path, name: str, text: str) -> str:
    path = folder / name
    path.write_text(text, "utf-8")
    return str(path)


def dry_run(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["submit", "--dry-run", *arguments])


def test_csv_columns_are_renamed_and_numbers_read(tmp_path: Path) -> None:
    file = written(tmp_path, "p.csv", "\ufeffcaption,seed,guidance\na red house,7,2.5\n007,,\n")
    rows = list(read_rows(file, {"caption": "prompt"}))
    assert [row.fields for row in rows] == [
        {"prompt": "a red house", "seed": 7, "guidance": 2.5},
        {"prompt": "007"},
    ]


def test_equal_rows_have_keys_of_their_own(tmp_path: Path) -> None:
    file = written(tmp_path, "p.jsonl", '{"prompt": "a"}\n\n{"prompt": "a"}\n')
    keys = [row.key for row in read_rows(file, {})]
    assert len(set(keys)) == 2
    assert keys == [row.key for row in read_rows(file, {})]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("p.jsonl", '{"prompt": "a"}\n{"prompt', "line 2"),
        ("p.jsonl", "[1]", "not a JSON object"),
        ("p.csv", "prompt\na,b\n", "more cells than columns"),
        ("p.txt", "a", "only .csv and .jsonl"),
    ],
)
def test_a_wrong_file_is_refused_by_line(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(Refused, match=message):
        list(read_rows(written(tmp_path, name, text), {}))


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(Refused, match="UTF-8"):
        list(read_rows(str(tmp_path / "p.jsonl"), {}))


def test_flat_rows_become_envelopes() -> None:
    assert row_request({"prompt": "a", "seed": 1, "model": "m", "labels": {"set": "x"}}) == {
        "kind": "generate",
        "model": "m",
        "labels": {"set": "x"},
        "input": {"prompt": "a", "seed": 1},
    }
    assert row_request({"image": {"job": "j"}, "labels": ["tree"]}) == {
        "kind": "segment",
        "input": {"image": {"job": "j"}, "labels": ["tree"]},
    }
    envelope = {"kind": "segment", "input": {"image": {"job": "j"}}}
    assert row_request(envelope) == envelope


def test_a_dry_run_checks_every_row_and_names_the_lines(tmp_path: Path) -> None:
    file = written(
        tmp_path,
        "p.jsonl",
        '{"prompt": "a"}\n{"prompt": ""}\n{"prompt": "a", "colour": 1}\n{"prompt": "a", "steps": "many"}\n'
        '{"image": "none.png"}\n',
    )
    result = dry_run(file)
    assert result.exit_code == 2
    assert [line.split(":")[0] for line in result.stderr.splitlines()[:4]] == [
        "line 2",
        "line 3",
        "line 4",
        "line 5",
    ]
    assert "--map" in result.stderr
    assert "4 of 5 rows are wrong" in result.stderr


def test_a_good_dry_run_counts_what_would_be_done(tmp_path: Path) -> None:
    file = written(tmp_path, "p.csv", "caption\na\nb\n")
    result = dry_run(file, "--map", "prompt=caption", "--model", "toyworld")
    assert result.exit_code == 0
    assert result.stdout == "2 generate with toyworld\n"


def test_a_journal_remembers_what_was_sent_and_what_was_answered(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "deep" / "j.jsonl")
    journal.start()
    journal.send("key-1", ["r1", "r2"], [{"a": 1}, {"a": 2}])
    journal.answered("grp_1", ["job_1", "job_2"])
    journal.send("key-2", ["r3"], [{"a": 3}])
    again = Journal.load(journal.path)
    assert again.accepted == {"r1": "job_1", "r2": "job_2"}
    assert again.group == "grp_1"
    assert again.pending == {"key": "key-2", "rows": ["r3"], "requests": [{"a": 3}], "group": "grp_1"}
    assert not again.complete


def test_a_journal_cut_off_in_a_line_loses_only_that_line(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j.jsonl")
    journal.start()
    journal.send("key-1", ["r1"], [{}])
    with journal.path.open("a") as file:
        file.write(json.dumps({"accepted": {"r1": "job_1"}, "group": "g"})[:-9])
    assert Journal.load(journal.path).pending is not None


@pytest.mark.parametrize(("text", "seconds"), [("90", 90), ("90s", 90), ("10m", 600), ("1.5h", 5400)])
def test_times_are_written_with_units(text: str, seconds: int) -> None:
    assert Duration().convert(text, None, None) == seconds


def test_values_are_read_as_what_they_look_like() -> None:
    assert [literal(text) for text in ("7", "2.5", "true", "euler")] == [7, 2.5, True, "euler"]
