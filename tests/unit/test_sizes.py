"""Which size of a batch is learned from what runs cost, on curves of known shape."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable

import pytest

from pixelkiln_worker.sizes import RECHECK_S, Sizes

KEY, LANE = "model:64:64", "generate.model"
Cost = Callable[[int], float]


class Bench:
    """Runs full batches as `Compute` does; `ran` are the rows of each run."""

    def __init__(self, cost: Cost, limit: int = 8) -> None:
        self.now = 0.0
        self.sizes = Sizes(lambda: self.now)
        self.cost, self.limit = cost, limit
        self.ran: list[int] = []
        self.spent_s = 0.0

    def batches(self, count: int, rows: int | None = None) -> None:
        for _ in range(count):
            left = self.limit if rows is None else rows
            size, others = self.sizes.plan(KEY, self.limit, left)
            while left:
                now = min(size, left)
                self._run(now)
                left, size = left - now, others

    def _run(self, rows: int) -> None:
        took_s = self.cost(rows)
        self.now += took_s
        self.spent_s += took_s
        self.ran.append(rows)
        self.sizes.ran(KEY, rows, took_s)

    @property
    def learned(self) -> int:
        return self.sizes.full(KEY, self.limit)


@pytest.mark.parametrize(
    ("cost", "size"),
    [
        (lambda n: 0.040 + 0.005 * n, 8),  # a fixed part: the largest
        (lambda n: 1.0 * n, 1),  # no gain from company
        (lambda n: 0.0, 8),  # nothing to gain but fewer claims
        (lambda n: 0.500 * n + 0.2 * max(0, n - 4) ** 2, 1),  # dearer beyond four, no gain below
        (lambda n: 0.300 + 0.900 * n, 8),  # half the size would cost 4 % more
        (lambda n: 0.2 + 0.050 * n + 0.08 * max(0, n - 4) ** 2, 4),  # the bottom of a U
    ],
    ids=["fixed and linear", "linear", "nothing", "bent", "steep", "U"],
)
def test_the_smallest_size_about_as_cheap_as_the_best_is_learned(cost: Cost, size: int) -> None:
    bench = Bench(cost)
    bench.batches(40)
    assert bench.learned == size
    assert set(bench.ran[-10:]) == {size}


def test_the_largest_size_is_kept_until_it_has_been_seen_a_few_times() -> None:
    bench = Bench(lambda n: 1.0 * n)
    bench.batches(20, rows=3)
    assert bench.ran == [3] * 20
    assert bench.learned == 8
    bench.batches(2)
    assert bench.ran[20:] == [8, 8]


def test_a_look_that_is_plainly_dearer_costs_one_run() -> None:
    bench = Bench(lambda n: 0.040 + 0.005 * n)
    bench.batches(100)
    assert Counter(bench.ran) == {8: 99, 4: 2}
    assert bench.spent_s == pytest.approx(100 * 0.080 + 0.040)


def test_noise_does_not_lead_far_from_the_best() -> None:
    dice = random.Random(7)
    bench = Bench(lambda n: (0.040 + 0.005 * n) * dice.uniform(0.9, 1.2))
    bench.batches(300)
    assert Counter(bench.ran[-100:])[8] >= 98


def test_a_first_run_that_warms_up_is_not_held_against_the_size() -> None:
    runs = iter([9.0])
    bench = Bench(lambda n: next(runs, 0.040 + 0.005 * n))
    bench.batches(40)
    assert bench.learned == 8


def test_what_was_learned_is_doubted_after_a_while() -> None:
    crowded = True
    bench = Bench(lambda n: 0.2 + 0.050 * n + (0.08 * max(0, n - 4) ** 2 if crowded else 0.0))
    bench.batches(40)
    assert bench.learned == 4
    crowded = False
    bench.batches(20)
    assert bench.learned == 4  # nobody looks
    bench.now += RECHECK_S + 1
    assert bench.learned == 8  # to have a look, as many are collected
    bench.batches(10)
    assert set(bench.ran[-5:]) == {8}


def test_no_size_goes_beyond_what_fits_the_memory() -> None:
    bench = Bench(lambda n: 0.040 + 0.005 * n)
    bench.sizes.too_large(KEY, 8)
    bench.batches(20)
    assert bench.learned == 4
    assert max(bench.ran) == 4


def test_a_lane_offers_what_its_recent_batch_keys_can_use() -> None:
    bench = Bench(lambda n: 1.0 * n)
    bench.batches(40)
    sizes = bench.sizes
    assert sizes.offer(LANE, 8) == 8
    sizes.claimed(LANE, KEY)
    assert sizes.offer(LANE, 8) == 1
    sizes.claimed(LANE, "an unknown key")
    assert sizes.offer(LANE, 8) == 8
    for _ in range(4):
        sizes.claimed(LANE, KEY)
    for name in "abcd":
        sizes.claimed(LANE, name)
        sizes.too_large(name, 6)
    assert sizes.offer(LANE, 8) == 3


def test_a_few_hundred_batch_keys_are_remembered_and_no_more() -> None:
    sizes = Sizes()
    for number in range(300):
        sizes.too_large(str(number), 8)
    assert (sizes.full("299", 8), sizes.full("0", 8)) == (4, 8)
