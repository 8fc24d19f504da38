"""The gallery in a real browser: live cards, a live job page, masks that obey; nothing from elsewhere."""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
from PIL import Image

from pixelkiln_shared import keys
from pixelkiln_shared.costs import Costs, Measured
from pixelkiln_shared.fleet import DeviceTime, Fleet
from pixelkiln_shared.jobs import Artifact, JobSpec, Result
from pixelkiln_shared.kinds import Role
from pixelkiln_shared.ledger.contract import Record
from pixelkiln_shared.previews import Previews
from tests.integration.api.conftest import Api, picture

pytestmark = pytest.mark.browser

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]


def chromium() -> str | None:
    names = ("chromium", "chromium-browser", "google-chrome")
    return os.environ.get("CHROMIUM") or next((path for name in names if (path := shutil.which(name))), None)


@pytest.fixture
def page(api: Api) -> Iterator[Any]:
    """A browser's page; what it complains of, and whom it asks, is checked at the end."""
    playwright = pytest.importorskip("playwright.sync_api")
    binary = chromium()
    if binary is None:
        pytest.skip("no Chromium on this machine")
    complaints: list[str] = []
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=binary, args=FLAGS)
        page = browser.new_page(base_url=api.url)
        page.on("console", lambda said: complaints.append(said.text) if said.type == "error" else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on(
            "request",
            lambda asked: None if asked.url.startswith((api.url, "blob:")) else complaints.append(asked.url),
        )
        yield page
        browser.close()
    assert complaints == []


def until(page: Any, condition: str) -> None:
    """Wait for a condition without `eval`, which the pages' own policy forbids."""
    for _ in range(100):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(100)
    raise AssertionError(f"never: {condition}")


def publish_masks(api: Api) -> None:
    """End the next segment job with two regions: the left half (1) and the right (2)."""
    claimed = api.claim("segment.classical-felzenszwalb")
    spec = JobSpec.model_validate_json(claimed.spec)
    ids = Image.new("P", (48, 32), 1)
    ids.paste(2, (24, 0, 48, 32))
    ids.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])
    mask = io.BytesIO()
    ids.save(mask, "PNG")
    found = {
        "categories": [{"id": 1, "name": "left half"}, {"id": 2, "name": "right half"}],
        "annotations": [{"id": n, "category_id": n, "area": 768} for n in (1, 2)],
    }
    files = [
        (Role.MASK, "image/png", mask.getvalue()),
        (Role.ANNOTATIONS, "application/json", json.dumps(found).encode()),
    ]
    artifacts = []
    for role, media_type, data in files:
        key = f"{keys.attempt_prefix(spec.tenant, spec.id, claimed.attempt)}{role}.{media_type[-3:]}"
        stored = api.storage.put(key, data, media_type=media_type)
        facts = {"size_bytes": len(data), "sha256": stored.sha256 or ""}
        artifacts.append(Artifact(role=role, index=0, key=key, media_type=media_type, **facts))
    api.ledger.publish(claimed.id, claimed.attempt, Result(artifacts=artifacts).model_dump_json())


def test_a_prompt_becomes_a_card_that_follows_its_job(api: Api, page: Any) -> None:
    page.goto("/")
    page.fill("#paint textarea", "a red house")
    page.fill("#paint [name=count]", "1")
    page.click("#paint .fire")
    page.wait_for_selector(".card.queued")
    claimed = api.claim()
    api.ledger.progress(claimed.id, claimed.attempt, 7, 14)
    page.wait_for_selector(".card.running >> text=running 7/14")
    api.publish(claimed)
    page.wait_for_selector(".card.succeeded img")
    until(page, "document.querySelector('.card img').naturalWidth > 0")


def test_a_job_page_shows_the_picture_when_it_is_there(api: Api, page: Any) -> None:
    job_id = api.submit()["id"]
    page.goto(f"/jobs/{job_id}")
    claimed = api.claim()
    page.wait_for_selector(".live .pill >> text=running")
    api.ledger.progress(claimed.id, claimed.attempt, 5, 10)
    page.wait_for_selector("text=step 5 of 10")
    api.publish(claimed)
    page.wait_for_selector(".big img")
    until(page, "document.querySelector('.big img').naturalWidth === 128")
    page.click("text=With a new seed")
    page.wait_for_url(lambda url: job_id not in url)
    assert api.http.get("/v1/jobs").json()["jobs"][0]["input"]["prompt"] == "a red house"


def test_a_rough_picture_shows_while_its_job_runs(api: Api, page: Any) -> None:
    job_id = api.submit()["id"]
    claimed = api.claim()
    page.goto("/")
    page.wait_for_selector(".card.running .ember")
    page.wait_for_timeout(500)
    Previews(api.redis).put(job_id, picture(40, 30, "WEBP"), step=3, steps=14)
    until(page, "document.querySelector('.card img.preview')?.naturalWidth === 40")
    api.ledger.progress(claimed.id, claimed.attempt, 7, 14)
    page.wait_for_selector(".card.running >> text=running 7/14")
    assert page.evaluate("document.querySelector('.card img.preview').naturalWidth") == 40
    page.click(".card .face")
    page.wait_for_selector(".big.waiting")
    page.wait_for_timeout(500)
    Previews(api.redis).put(job_id, picture(48, 36, "WEBP"), step=8, steps=14)
    until(page, "document.querySelector('.big img')?.naturalWidth === 48")


def test_a_page_and_a_card_say_when_the_picture_comes(api: Api, page: Any) -> None:
    learned = Measured(seconds=30.0, work=JobSpec.model_validate_json(queued(api).spec).work, batches=1)
    Costs(api.redis).learn({"generate.toyworld": learned})
    api.serve("generate.toyworld")
    last = api.submit()["id"]
    page.goto("/")
    page.wait_for_selector(".card.queued >> text=/1 before it, ready in about 1 min/")
    page.goto(f"/jobs/{last}")
    page.wait_for_selector(".live .words >> text=/1 before it, ready in about/")
    page.wait_for_selector(".live .words >> text=/ready in about 50 s/")  # counted down on the page


def queued(api: Api) -> Record:
    """Submit a job and return its record."""
    return api.ledger.get(api.submit()["id"])


def test_masks_lie_over_the_picture_and_obey(api: Api, page: Any) -> None:
    page.goto("/")
    page.set_input_files("#cut [name=file]", {"name": "a.png", "mimeType": "image/png", "buffer": picture()})
    page.wait_for_selector(".card.queued")
    publish_masks(api)
    page.wait_for_selector(".card.succeeded")
    page.click(".card .face")
    page.wait_for_selector(".legend li >> text=right half")
    alpha = "(x) => document.querySelector('canvas').getContext('2d').getImageData(x, 16, 1, 1).data[3]"
    assert page.evaluate(alpha, 10) == pytest.approx(0.6 * 255, abs=2)
    page.locator("#opacity").fill("20")
    assert page.evaluate(alpha, 10) == pytest.approx(0.2 * 255, abs=2)
    page.click(".legend li >> text=right half")
    page.mouse.move(0, 0)
    assert page.evaluate(alpha, 40) == 0
    assert page.evaluate(alpha, 10) > 0
    page.hover("canvas", position={"x": 20, "y": 20})
    assert page.inner_text(".tip") == "left half"


def test_deleting_a_job_asks_first_and_then_goes_home(api: Api, page: Any) -> None:
    job_id = api.submit()["id"]
    api.http.post(f"/v1/jobs/{job_id}/cancel")
    page.goto(f"/jobs/{job_id}")
    page.on("dialog", lambda dialog: dialog.accept())
    page.click("text=Delete")
    page.wait_for_url(f"{api.url}/")
    assert api.http.get(f"/v1/jobs/{job_id}").status_code == 404


def an_edit(api: Api) -> str:
    """An edit of an uploaded picture, 48 x 32, done: its result is 128 x 128."""
    upload = api.upload(picture()).json()["id"]
    given = {"prompt": "a red house", "image": {"upload": upload}}
    job = api.http.post("/v1/jobs", json={"kind": "edit", "input": given}).json()
    api.publish(api.claim("edit.toyworld"))
    return str(job["id"])


def newest(api: Api) -> dict[str, Any]:
    return dict(api.http.get("/v1/jobs").json()["jobs"][0])


def test_an_edit_can_be_wiped_back_to_the_picture_before(api: Api, page: Any) -> None:
    page.goto(f"/jobs/{an_edit(api)}")
    until(page, "document.querySelector('.after').naturalWidth === 128")
    until(page, "document.querySelector('.given img').naturalWidth === 48")
    clip = "(name) => getComputedStyle(document.querySelector(name)).clipPath"
    assert page.evaluate(clip, ".before") == "inset(0px 100% 0px 0px)", "nothing of it at first"
    page.locator("#wipe").fill("40")
    assert page.evaluate(clip, ".before") == "inset(0px 60% 0px 0px)"
    assert page.evaluate(clip, ".after") == "inset(0px 0px 0px 40%)"


def test_a_picture_is_drawn_anew_from_its_page(api: Api, page: Any) -> None:
    job_id = an_edit(api)
    page.goto(f"/jobs/{job_id}")
    page.fill("#anew [name=prompt]", "a blue house")
    page.locator("#anew [name=strength]").fill("0.8")
    page.press("#anew [name=prompt]", "Enter")
    page.wait_for_url(lambda url: job_id not in url)
    made = newest(api)
    assert (made["kind"], made["input"]["prompt"], made["input"]["strength"]) == ("edit", "a blue house", 0.8)
    assert made["input"]["image"] == {"job": job_id, "role": "image", "index": 0}


def test_after_a_depth_map_one_goes_on_with_the_picture_itself(api: Api, page: Any) -> None:
    upload = api.upload(picture(40, 30)).json()["id"]
    body = {"kind": "depth", "input": {"image": {"upload": upload}}}
    job_id = api.http.post("/v1/jobs", json=body).json()["id"]
    api.publish(api.claim("depth.toyworld-depth"), role=Role.PREVIEW)
    page.goto(f"/jobs/{job_id}")
    page.click("[data-next=stereo]")
    page.wait_for_url(lambda url: job_id not in url)
    assert (newest(api)["kind"], newest(api)["input"]["image"]["width"]) == ("stereo", 40)


def test_a_picture_to_draw_anew_waits_for_its_words(api: Api, page: Any) -> None:
    page.goto("/")
    assert page.is_hidden("#cut [name=anew]")
    page.select_option("#cut select", "edit")
    assert page.is_disabled("#cut [name=file]")
    page.fill("#cut [name=anew]", "a tree")
    page.set_input_files("#cut [name=file]", {"name": "a.png", "mimeType": "image/png", "buffer": picture()})
    page.wait_for_selector(".card.queued >> text=a tree")
    assert newest(api)["kind"] == "edit"


def test_nothing_is_wider_than_a_telephone(api: Api, page: Any) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    for path in ("/", f"/jobs/{an_edit(api)}"):
        page.goto(path)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, path


def test_the_fleet_is_live_and_a_worker_is_drained_by_hand(api: Api, page: Any) -> None:
    page.goto("/")
    page.click("header .fleet")
    page.wait_for_selector("text=No worker is alive")
    api.serve("generate.toyworld", device_time=DeviceTime(busy_s=3, idle_no_work_s=1))
    page.wait_for_selector("#worker-of-tests >> text=75 % busy")
    until(page, "document.querySelector('.bar .busy').getBoundingClientRect().width > 100")
    api.submit("a red house")
    page.wait_for_selector(".lanes td >> text=toyworld")
    page.on("dialog", lambda asked: asked.accept())
    page.click("#worker-of-tests [data-drain]")
    page.wait_for_selector("text=It drains")
    assert Fleet(api.redis).unwanted("worker-of-tests")
