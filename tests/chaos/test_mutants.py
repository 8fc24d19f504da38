"""The broken products still break what they say, after whatever was changed in the whole one."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.chaos.stage import MUTANTS, MUTATIONS

# Prints what a process would run: the scripts' hashes, and whose sweep and bells these are.
PROGRAM = """
import redis
from pixelkiln_shared.bells import CeleryBells
from pixelkiln_shared.ledger.redis_ledger import RedisLedger
from pixelkiln_shared.ledger.scripts import Scripts
scripts = Scripts(redis.Redis(), retention_s=1)
print(*(scripts._source(move)[0] for move in ("reap", "end_attempt")))
print(RedisLedger.reap.__qualname__, RedisLedger.waiting.__qualname__, CeleryBells.ring.__qualname__)
"""


def what_runs(mutant: str) -> str:
    environment = {
        **os.environ,
        "CHAOS_MUTANT": mutant,
        "PYTHONPATH": os.pathsep.join(map(str, [MUTATIONS, *sys.path[1:]])),
    }
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True
    )
    assert ended.stderr == ""
    return ended.stdout


@pytest.fixture(scope="module")
def whole() -> str:
    return what_runs("")


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_mutant_differs_from_the_whole_product(mutant: str, whole: str) -> None:
    assert what_runs(mutant) != whole


def test_without_a_name_nothing_is_changed(whole: str) -> None:
    assert whole.splitlines()[1] == "RedisLedger.reap LedgerReader.waiting CeleryBells.ring"
