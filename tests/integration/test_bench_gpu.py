"""P13 with tiny networks on the CPU: the same code that measures a GPU, from weights to rows."""

from __future__ import annotations

import pytest

from bench import p13_gpu
from bench.random_weights import TINY
from pixelkiln_shared.fleet import DeviceTime


@pytest.mark.slow
def test_both_networks_go_the_whole_path_and_are_set_beside_the_loop() -> None:
    work = p13_gpu.Work(pictures=4, segmented=4, batch=2, steps=2, device="cpu")

    rows = p13_gpu.measure(TINY, work, rounds=1)

    assert [row.id for row in rows] == ["p13", "p13-busy", "p13", "p13-busy"]
    assert all(row.ours > 0 for row in rows)
    assert all(row.ratio <= 1 for row in rows if row.id == "p13-busy")
    assert ["SDXL" in row.what for row in rows] == [True, True, False, False]


def test_without_a_gpu_the_rows_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)

    rows = p13_gpu.run(3, full=True)

    assert [row.id for row in rows] == ["p13", "p13-busy"]
    assert all(row.met is None and row.ratio == 0 and "no GPU" in row.caveat for row in rows)


def test_the_busy_share_is_of_our_own_rounds() -> None:
    before = DeviceTime(busy_s=10.0, load_s=1.0, idle_no_work_s=50.0)
    after = DeviceTime(busy_s=25.0, load_s=2.0, idle_no_work_s=90.0)

    share = p13_gpu.busy_share(before, after, 20, [(2.5, 3.0), (2.0, 3.0)])

    assert share == pytest.approx(16 / 18)
