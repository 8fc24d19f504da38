"""docs/faults.md tells of every fault of the matrix, and each test it names is there."""

from __future__ import annotations

import ast
import re
from functools import lru_cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/faults.md").read_text("utf-8")
ROWS = re.findall(r"^\| (F\d+) \| (.+) \| (.+) \| (.+) \|$", PAGE, re.MULTILINE)
NAMED = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


@lru_cache
def functions_of(path: str) -> frozenset[str]:
    """Return the names of a file's test functions; it is read, not run."""
    found = ast.parse((ROOT / path).read_text("utf-8")).body
    return frozenset(node.name for node in found if isinstance(node, ast.FunctionDef))


def test_no_fault_of_the_matrix_is_missing() -> None:
    assert [number for number, *_ in ROWS] == [f"F{number}" for number in range(1, 46)]


@pytest.mark.parametrize(("number", "fault", "seen", "tests"), ROWS, ids=[row[0] for row in ROWS])
def test_every_fault_names_tests_and_nothing_else(number: str, fault: str, seen: str, tests: str) -> None:
    assert fault
    assert seen
    assert NAMED.search(tests)
    rest = re.sub(r"\([^)]*\)|the cut", "", NAMED.sub("", tests))  # the cut is named once, above the table
    assert not rest.strip(" ,;"), f"{number}: {rest}"


def test_every_test_named_is_there() -> None:
    named = NAMED.findall(PAGE)
    assert len(named) > 60
    missing = [f"{path}::{name}" for path, name in named if name not in functions_of(path)]
    assert not missing
