"""The short chaos run: 300 jobs through everything that can be killed, within three minutes."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

import pytest

from tests.chaos.run import perform, table
from tests.chaos.schedule import CUT


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_nothing_is_lost_or_doubled_whatever_is_killed(tmp_path: Path) -> None:
    seed = int(os.environ.get("CHAOS_SEED") or secrets.randbelow(1 << 31))
    print(f"CHAOS_SEED={seed} replays these faults")

    outcome = perform(seed, CUT, folder=tmp_path / "run")

    print(table(outcome))
    assert outcome.verdict.findings == (), f"CHAOS_SEED={seed}"
    assert outcome.verdict.figures["accepted"] == CUT.jobs
    assert outcome.missed <= 2, "the faults found nobody to strike"
