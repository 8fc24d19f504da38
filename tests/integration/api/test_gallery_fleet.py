"""The page of the workers, as the server renders it."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from pixelkiln.gallery.fleet import duration, size
from pixelkiln_shared.fleet import DeviceTime, LoadedModel, ModelTally
from tests.integration.api.conftest import Api

HTML = {"Accept": "text/html"}
BAR = re.compile(r'<rect class="(\w+)[^"]*" x="([\d.]+)" y="0" width="([\d.]+)"')


def test_a_bar_is_as_long_as_its_parts(api: Api) -> None:
    spent = DeviceTime(busy_s=50, load_s=30, idle_waiting_s=0, idle_no_work_s=20)
    loaded = (LoadedModel(id="toyworld", footprint_bytes=250, load_s=1.5),)
    api.serve("generate.toyworld", device_time=spent, loaded=loaded, memory_bytes=1_000)
    page = api.http.get("/workers/now").text
    assert BAR.findall(page) == [
        ("busy", "0.0", "50.0"),
        ("load", "50.0", "30.0"),
        ("idle", "80.0", "20.0"),
        ("model", "0.0", "25.0"),
    ]
    assert "50 % busy" in page


def test_models_beyond_the_budget_do_not_burst_their_bar(api: Api) -> None:
    loaded = tuple(LoadedModel(id=name, footprint_bytes=300, load_s=1) for name in "ab")
    api.serve("generate.toyworld", loaded=loaded, memory_bytes=400)
    bars = BAR.findall(api.http.get("/workers/now").text)
    assert [part for part in bars if part[0] == "model"] == [
        ("model", "0.0", "50.0"),
        ("model", "50.0", "50.0"),
    ]


def test_what_waits_is_shown_by_lane_and_what_nobody_serves_stands_out(api: Api) -> None:
    api.submit("a red house")
    api.http.post("/v1/jobs", json={"kind": "generate", "model": "stub", "input": {"prompt": "a hill"}})
    api.serve("generate.toyworld")
    rows = re.findall(r"<tr>\s*<td>(.*?)</tr>", api.http.get("/workers/now").text, re.DOTALL)
    assert {"no worker" in row for row in rows if "toyworld" in row} == {False}
    assert {"no worker" in row for row in rows if "stub" in row} == {True}


def test_jobs_in_hand_lead_to_their_pages_and_many_are_counted(api: Api) -> None:
    jobs = tuple(f"job_{number:026}" for number in range(11))
    tallies = {"toyworld": ModelTally(batches=1_200, rows=4_800, max_batch=8, loads=2)}
    api.serve("generate.toyworld", running=jobs, tallies=tallies)
    page = api.http.get("/workers").text
    assert page.count('<a href="/jobs/job_') == 8
    assert "and 3 more" in page
    assert "1,200 batches that were 50 % full" in page


def test_what_workers_say_is_text_and_never_markup(api: Api) -> None:
    api.serve("generate.toyworld", unavailable={"m": "<script>alert(1)</script>"})
    page = api.http.get("/workers")
    assert "<script>alert" not in page.text
    assert "style-src 'self';" in page.headers["content-security-policy"]
    assert "style=" not in page.text, "the page's own policy would ignore it"


def test_the_page_asks_strangers_for_the_key(start_api: Callable[..., Api]) -> None:
    api = start_api(api_key="k" * 20)
    answer = api.http.get("/workers", headers=HTML)
    assert (answer.status_code, answer.headers["location"]) == (303, "/login?next=/workers")
    assert api.http.get("/workers/now").status_code == 401


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0 s"), (59.9, "59 s"), (60, "1 min"), (61, "1 min 1 s"), (3_600, "1 h"), (273_600, "3 d 4 h")],
)
def test_times_are_told_in_two_units(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_sizes_are_told_in_fitting_units() -> None:
    assert (size(0), size(312e6), size(24e9)) == ("0 MB", "312 MB", "24.0 GB")
