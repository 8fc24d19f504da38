"""COCO's run-length code, read back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pixelkiln_shared.rle import lengths
from pixelkiln_worker.annotations import compressed, regions


@given(st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=40))
def test_what_was_written_is_read(counts: list[int]) -> None:
    assert lengths(compressed(np.array(counts))) == counts


def test_the_runs_of_a_mask_are_its_pixels_column_by_column() -> None:
    ids = np.zeros((5, 7), np.int32)
    ids[1:4, 2:6] = 1
    ids[2, 3] = 0
    runs = lengths(compressed(regions(ids)[1].counts))
    flat = np.concatenate([np.full(run, number % 2) for number, run in enumerate(runs)])
    assert (ids == flat.reshape(7, 5).T).all()


@pytest.mark.parametrize("text", ["P", "a b", "\x7f"])
def test_what_is_no_code_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="code"):
        lengths(text)
