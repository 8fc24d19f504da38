"""The tables of docs/scale.md: where they go, and what they are worked out from."""

from __future__ import annotations

import pytest

from bench.moves import PAGE, SECONDS, SET, Cost, tables, written


def costs(**us: float) -> dict[str, Cost]:
    prices = {
        "submit, 1,000 at a time": (1_000, 15_000.0),
        "claim of 8": (8, 400.0),
        "publish": (1, 100.0),
        "forget": (1_000, 20_000.0),
        "progress": (1, us.get("progress", 50.0)),
        "renew of 8": (8, 80.0),
        SET: (1, 10.0),
    }
    return {
        name: Cost(name=name, jobs=jobs, us=price, bytes_in=300.0 * jobs, bytes_out=0.0)
        for name, (jobs, price) in prices.items()
    }


def test_the_page_has_a_place_for_each_table() -> None:
    page = PAGE.read_text("utf-8")
    once = written(page, {"moves": "| one |", "devices": "| two |"})
    assert "<!-- moves: measured -->\n| one |\n<!-- moves: end -->" in once
    assert written(once, {"moves": "| three |"}).count("| one |") == 0
    assert once.partition("<!-- moves")[0] == page.partition("<!-- moves")[0]


def test_a_page_without_the_place_is_refused() -> None:
    with pytest.raises(ValueError, match="no place for moves"):
        written("# Nothing", {"moves": "| one |"})


def test_a_life_is_the_sum_of_its_moves() -> None:
    text = tables(costs())["moves"]
    assert "is 185 µs of Redis and 1,200 bytes: 5,405 jobs a second" in text
    assert "| publish | 10,000 | 100 | 100.0 | 0.1 | 300 |" in text


def test_devices_fed_fall_with_the_price_of_progress() -> None:
    def fed(text: str) -> list[int]:
        lines = [line for line in text.splitlines() if line.endswith("|")][2:]
        return [int(line.split("|")[4].replace(",", "")) for line in lines]

    cheap, dear = (fed(tables(costs(progress=us))["devices"]) for us in (5.0, 50.0))
    assert len(cheap) == len(SECONDS)
    assert all(one > other for one, other in zip(cheap, dear, strict=True))
