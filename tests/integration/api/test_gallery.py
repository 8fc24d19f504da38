"""The gallery: pages that show every job, hold their tongue to strangers, and load nothing from elsewhere."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from pixelkiln.gallery import pages
from pixelkiln_shared import keys
from pixelkiln_shared.jobs import Result
from pixelkiln_shared.kinds import Role
from tests.integration.api.conftest import Api, picture
from tests.integration.api.test_api_webhooks import ended
from tests.receivers import OK, receiving, status

KEY = "correct-horse-battery-staple"
HTML = {"Accept": "text/html"}
ATTACK = "<script>alert(1)</script> \"'&"


def test_the_front_page_shows_each_job_with_its_picture(api: Api) -> None:
    done, waiting = api.submit("a red house")["id"], api.submit("two trees")["id"]
    api.publish(api.claim())
    page = api.http.get("/", headers=HTML)
    assert page.status_code == 200
    assert "a red house" in page.text
    assert "two trees" in page.text
    thumb = re.search(rf"/jobs/{done}/thumb/image/0\?v=\w+", page.text)
    assert thumb
    shown = api.http.get(thumb[0])
    assert shown.headers["content-type"] == "image/webp"
    assert "immutable" in shown.headers["cache-control"]
    only = api.http.get("/cards?status=queued").text
    assert waiting in only
    assert done not in only


def test_a_job_page_has_the_picture_the_settings_and_the_commands(api: Api) -> None:
    job_id = api.submit("a red house", input={"seed": 7})["id"]
    data = api.publish(api.claim())
    page = api.http.get(f"/jobs/{job_id}").text
    address = re.search(rf"/jobs/{job_id}/files/image/0\?v=\w+", page)
    assert address
    assert api.http.get(address[0]).content == data
    saved = api.http.get(address[0] + "&name=1")
    assert saved.headers["content-disposition"] == f'attachment; filename="{job_id}-image-0.png"'
    assert "pixelkiln generate" in page
    assert "--seed 7" in page
    assert "curl -s" in page


def test_what_users_write_is_text_and_never_markup(api: Api) -> None:
    job_id = api.submit(ATTACK, labels={"note": ATTACK})["id"]
    for path in ("/", f"/jobs/{job_id}", "/cards"):
        page = api.http.get(path)
        assert "<script>alert" not in page.text
        assert "script-src 'self';" in page.headers["content-security-policy"]


def test_pages_refer_to_no_other_server_and_hold_no_inline_script() -> None:
    for file in [*pages.STATIC.iterdir(), *(Path(pages.STATIC).parent / "templates").iterdir()]:
        text = file.read_text().replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"(?:https?:)?//[a-z]+\.[a-z]", text), file.name
        assert not re.search(r"\son\w+=|<script>|style=", text), file.name


def test_a_picture_that_was_given_is_shown_too(api: Api) -> None:
    upload = api.upload(picture(40, 30)).json()["id"]
    job_id = api.segment({"upload": upload}).json()["id"]
    assert api.http.get(f"/jobs/{job_id}/input/image").headers["content-type"] == "image/png"
    assert api.http.get(f"/jobs/{job_id}/input/image?small=1").headers["content-type"] == "image/webp"
    scene = api.submit()["id"]
    child = api.segment({"job": scene}).json()["id"]
    assert api.http.get(f"/jobs/{child}/input/image", follow_redirects=True).status_code == 404, "not yet"
    api.publish(api.claim())
    assert api.http.get(f"/jobs/{child}/input/image", follow_redirects=True).status_code == 200


def edited(api: Api) -> str:
    """An edit of an uploaded picture within a mask, done."""
    image, mask = (api.upload(picture(128, 128)).json()["id"] for _ in range(2))
    given = {"prompt": "a red house", "image": {"upload": image}, "mask": {"upload": mask}}
    job = api.http.post("/v1/jobs", json={"kind": "edit", "input": given}).json()
    api.publish(api.claim("edit.toyworld"))
    return str(job["id"])


def test_an_edit_shows_what_it_was_made_from(api: Api) -> None:
    job_id = edited(api)
    page = api.http.get(f"/jobs/{job_id}").text
    for field in ("image", "mask"):
        assert f'href="/jobs/{job_id}/input/{field}"' in page
        assert api.http.get(f"/jobs/{job_id}/input/{field}").headers["content-type"] == "image/png"
    assert 'id="wipe"' in page, "before and after can be compared"
    assert f"{job_id}.input.image --mask {job_id}.input.mask" in page, "the command has the same pictures"
    assert '"input": "mask"' in page.replace("&#34;", '"')


@pytest.mark.parametrize(
    ("kind", "role", "own"), [("cutout", Role.CUTOUT, "cutout"), ("depth", Role.PREVIEW, "depth")]
)
def test_what_is_no_picture_of_a_scene_is_not_gone_on_with(api: Api, kind: str, role: Role, own: str) -> None:
    scene = api.submit()["id"]
    job_id = api.http.post("/v1/jobs", json={"kind": kind, "input": {"image": {"job": scene}}}).json()["id"]
    api.publish(api.claim())
    api.publish(api.claim(f"{kind}.toyworld-{kind}"), role=role)
    page = api.http.get(f"/jobs/{job_id}").text
    assert "data-given" in page
    assert "Go on with the picture it was given" in page
    assert f'data-next="{own}"' not in page
    assert 'data-next="segment"' in page
    assert ("checker" in page) is (kind == "cutout")
    assert "data-given" not in api.http.get(f"/jobs/{scene}").text


def test_only_kinds_that_a_model_does_are_offered(api: Api) -> None:
    page = api.http.get("/").text
    assert "kind=stereo" in page
    assert "kind=classify" not in page


def test_a_classification_lists_names_with_their_scores(
    start_api: Callable[..., Api], tmp_path: Path
) -> None:
    names = tmp_path / "models.toml"
    names.write_text('[models.names]\nfamily = "classification"\nkinds = ["classify"]\ntitle = "Names"\n')
    api = start_api(catalogue=names)
    upload = api.upload(picture(96, 64)).json()["id"]
    body = {"kind": "classify", "model": "names", "input": {"image": {"upload": upload}}}
    job_id = api.http.post("/v1/jobs", json=body).json()["id"]
    claimed = api.claim("classify.names")
    found = [{"label": "a <cat>", "score": 0.875}, {"label": "a dog", "score": 0.125}]
    result = Result(artifacts=[], detail={"classes": found})
    api.ledger.publish(claimed.id, claimed.attempt, result.model_dump_json())
    page = api.http.get(f"/jobs/{job_id}").text
    assert "<h1>a &lt;cat&gt;</h1>" in page
    assert "87.5 %" in page
    assert f'src="/jobs/{job_id}/input/image"' in page
    assert "kind=classify" in api.http.get("/").text


def test_what_is_not_there_is_said_kindly(api: Api) -> None:
    page = api.http.get(f"/jobs/{keys.new_id('job')}", headers=HTML)
    assert (page.status_code, "No such job" in page.text) == (404, True)
    job_id = api.submit()["id"]
    for path in (
        "files/image/0",
        "thumb/image/0",
        "files/image/99",
        "input/image",
        "input/mask",
        "input/prompt",
    ):
        assert api.http.get(f"/jobs/{job_id}/{path}").status_code == 404
    for path in ("files/cake/0", "files/image/x"):
        assert api.http.get(f"/jobs/{job_id}/{path}").status_code == 422


@pytest.mark.parametrize(
    "query", ["status=nonsense", "kind=x", "cursor=forged", "group=*", "status=failed&group=x"]
)
def test_odd_filters_show_a_page_all_the_same(api: Api, query: str) -> None:
    assert api.http.get(f"/?{query}").status_code == 200


# ---------------------------------------------------------------------------------------------- behind a key


@pytest.fixture
def locked(start_api: Callable[..., Api]) -> Api:
    """An API that asks for a key."""
    return start_api(api_key=KEY)


def test_people_are_led_to_the_login_and_back(locked: Api) -> None:
    turned = locked.http.get("/jobs/job_1", headers=HTML)
    assert (turned.status_code, turned.headers["location"]) == (303, "/login?next=/jobs/job_1")
    assert locked.http.get(turned.headers["location"]).status_code == 200
    assert locked.http.get("/static/gallery.css").status_code == 200
    wrong = locked.http.post("/login", data={"key": "wrong"})
    assert wrong.status_code == 401
    assert "set-cookie" not in wrong.headers
    right = locked.http.post("/login", data={"key": KEY, "next": "/jobs/job_1"})
    assert (right.status_code, right.headers["location"]) == (303, "/jobs/job_1")
    cookie = right.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert KEY not in cookie
    assert locked.http.get("/", headers=HTML).status_code == 200, "the cookie opens the gallery"
    assert locked.http.get("/v1/jobs").status_code == 200, "and the API behind it"
    locked.http.post("/logout")
    assert locked.http.get("/v1/jobs").status_code == 401


@pytest.mark.parametrize(
    "goal", ["//evil.example", "https://evil.example", "/\\evil.example", "javascript:1"]
)
def test_the_login_sends_nobody_elsewhere(locked: Api, goal: str) -> None:
    assert locked.http.post("/login", data={"key": KEY, "next": goal}).headers["location"] == "/"


def test_a_session_moves_nothing_for_another_site(locked: Api) -> None:
    locked.http.post("/login", data={"key": KEY})
    job_id = locked.submit()["id"]
    for headers in ({"Origin": "http://127.0.0.1:1"}, {"Sec-Fetch-Site": "same-site"}):
        answer = locked.http.post(f"/v1/jobs/{job_id}/cancel", headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (403, "cross_origin")
    own = locked.http.post(
        f"/v1/jobs/{job_id}/cancel", headers={"Origin": locked.url, "Sec-Fetch-Site": "same-origin"}
    )
    assert own.status_code == 200


def test_the_key_is_never_part_of_a_page(locked: Api) -> None:
    locked.http.post("/login", data={"key": KEY})
    job_id = locked.submit()["id"]
    page = locked.http.get(f"/jobs/{job_id}").text
    assert KEY not in page
    assert "$PIXELKILN_API_KEY" in page


def test_a_job_page_shows_whom_it_told_and_offers_to_send_it_again(told: Api) -> None:
    with receiving(status(410), OK) as receiver:
        job_id = told.submit(webhook={"url": f"{receiver.url}?order=<b>"})["id"]
        assert "Webhooks" not in told.http.get(f"/jobs/{job_id}").text
        told.http.post(f"/v1/jobs/{job_id}/cancel")
        for answer, shown in (
            ("1 try, last answer: 410 gone", "failed"),
            ("2 tries, last answer: 200", "delivered"),
        ):
            ended(told, f"/v1/jobs/{job_id}/webhooks")
            text = told.http.get(f"/jobs/{job_id}").text
            assert f"{receiver.url}?order=&lt;b&gt;" in text
            assert answer in text
            assert f'<li class="{shown}">' in text
            again = re.search(r'data-post="(/v1/webhooks/[^"]*)"', text)
            assert again is not None
            told.http.post(again[1])
