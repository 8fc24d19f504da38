"""How much device work a job is beside others of its model."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pixelkiln_shared.jobs import JobSpec
from pixelkiln_shared.kinds import Kind

PICTURE = {"object": "t/1", "sha256": "0" * 64, "width": 400, "height": 250}
SAMPLED: dict[str, Any] = {"prompt": "a hill", "width": 1_000, "height": 1_000, "steps": 20, "guidance": 1.0}


def work(kind: Kind = Kind.GENERATE, **given: Any) -> int:
    """Return the work of a job with this input."""
    return JobSpec(id="job_1", kind=kind, model="m", tenant="t", input=given).work


def test_a_step_of_a_megapixel_is_a_thousand() -> None:
    assert work(**SAMPLED) == 20_000


@pytest.mark.parametrize(
    ("change", "times"),
    [
        ({"count": 3}, 3),
        ({"steps": 40}, 2),
        ({"height": 500}, 0.5),
        ({"guidance": 5.0}, 2),
        ({"guidance": None}, 1),
    ],
)
def test_what_makes_a_sampled_job_longer(change: dict[str, Any], times: float) -> None:
    assert work(**{**SAMPLED, **change}) == 20_000 * times


def test_an_edit_takes_only_the_last_steps() -> None:
    assert work(Kind.EDIT, **SAMPLED, image=PICTURE, strength=0.5) == 10_000


def test_an_upscale_is_as_large_as_what_it_makes() -> None:
    once = work(Kind.UPSCALE, image=PICTURE, scale=2)
    assert once == 400
    assert work(Kind.UPSCALE, image=PICTURE, scale=4) == 4 * once
    assert work(Kind.UPSCALE, image=PICTURE, scale=2, steps=10, guidance=2.0) == 20 * once


def test_a_picture_that_is_not_made_yet_counts_as_a_usual_one() -> None:
    assert work(Kind.UPSCALE, image={"job": "job_2", "role": "image"}, scale=2) == 1_049


@pytest.mark.parametrize(
    "kind", [Kind.SEGMENT, Kind.CUTOUT, Kind.DEPTH, Kind.STEREO, Kind.CLASSIFY], ids=lambda kind: kind.value
)
def test_a_picture_looked_at_is_one_row_whatever_its_size(kind: Kind) -> None:
    assert work(kind, image=PICTURE) == work(kind, image={**PICTURE, "width": 4_000}) == 1_000


@given(
    kind=st.sampled_from(Kind), steps=st.none() | st.integers(1, 200), side=st.none() | st.integers(8, 8_192)
)
def test_every_job_is_some_work(kind: Kind, steps: int | None, side: int | None) -> None:
    assert work(kind, steps=steps, width=side, height=side, image=PICTURE) >= 1
