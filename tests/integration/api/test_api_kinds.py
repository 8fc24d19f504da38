"""Every kind of job at the door: what is wrong is named, what is odd warned of, and nothing stays behind."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import pytest
from PIL import Image

from pixelkiln.producer import Producer
from pixelkiln_shared.kinds import Role
from tests.integration.api.conftest import Api, picture
from tests.integration.api.test_api_pictures import animated, png_of_size

BEYOND = {"job": "job_00000000000000000000000000"}


def inline(data: bytes) -> dict[str, str]:
    return {"base64": base64.b64encode(data).decode()}


def file_of(mode: str, colour: Any, form: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new(mode, (128, 128), colour).save(file, form)
    return file.getvalue()


SCENE = inline(picture(128, 128))
EDIT: dict[str, Any] = {"image": SCENE, "prompt": "a red house"}
PHRASES = {"kind": "segment", "model": "toyworld-text"}


def send(api: Api, kind: str, given: dict[str, Any], **envelope: Any) -> httpx2.Response:
    return api.http.post("/v1/jobs", json={"kind": kind, "input": given, **envelope})


@pytest.fixture
def empty(api: Api) -> Iterator[Api]:
    """An API whose store must still be empty at the end."""
    yield api
    assert list(api.storage.list("")) == []


WRONG: list[tuple[str, dict[str, Any], str, str]] = [
    ("edit", {"mask": "white"}, "invalid_type", "/mask"),
    ("edit", {"mask": []}, "invalid_type", "/mask"),
    ("edit", {"mask": {"file": "x"}}, "invalid_reference", "/mask"),
    ("edit", {"mask": BEYOND}, "not_found", "/mask/job"),
    ("edit", {"mask": inline(picture(64, 64))}, "mask_mismatch", "/mask"),
    ("edit", {"mask": inline(picture(1, 1))}, "image_too_small", "/mask/base64"),
    ("edit", {"mask": inline(animated())}, "animated_image", "/mask/base64"),
    ("edit", {"mask": inline(b"black")}, "invalid_image", "/mask/base64"),
    ("edit", {"image": None}, "invalid_type", "/image"),
    ("edit", {"image": inline(picture(1, 1))}, "image_too_small", "/image/base64"),
    ("edit", {"image": inline(png_of_size(8_200, 16))}, "image_too_large", "/image/base64"),
    ("edit", {"strength": 0}, "out_of_range", "/strength"),
    ("edit", {"strength": 2}, "out_of_range", "/strength"),
    ("edit", {"strength": True}, "invalid_type", "/strength"),
    ("edit", {"strength": "0.5"}, "invalid_type", "/strength"),
    ("edit", {"count": 17}, "out_of_range", "/count"),
    ("edit", {"width": 512}, "invalid_size", "/width"),
    ("edit", {"width": 256, "height": 264}, "invalid_size", "/height"),
    ("edit", {"prompt": " "}, "invalid_prompt", "/prompt"),
    ("edit", {"scale": 2}, "unknown_field", "/scale"),
    ("upscale", {"scale": 5}, "unknown_option", "/scale"),
    ("upscale", {"scale": "2"}, "unknown_option", "/scale"),
    ("upscale", {"scale": True}, "unknown_option", "/scale"),
    ("upscale", {"image": inline(png_of_size(4_104, 1_024))}, "image_too_large", "/image"),
    ("cutout", {"format": "jpeg"}, "unknown_option", "/format"),
    ("cutout", {"mask": SCENE}, "unknown_field", "/mask"),
    ("depth", {"image": inline(png_of_size(2_048, 2_048))}, "image_too_large", "/image"),
    ("depth", {"options": {"colour": "red"}}, "unknown_option", "/options/colour"),
    ("stereo", {"disparity": 0}, "out_of_range", "/disparity"),
    ("stereo", {"disparity": 0.21}, "out_of_range", "/disparity"),
    ("stereo", {"disparity": None}, "invalid_type", "/disparity"),
    ("segment", {"threshold": 1.1}, "out_of_range", "/threshold"),
    ("segment", {"threshold": -0.1}, "out_of_range", "/threshold"),
    ("segment", {"labels": "house"}, "invalid_type", "/labels"),
    ("segment", {"labels": ["house"] * 65}, "too_long", "/labels"),
    ("classify", {"labels": ["x"] * 257}, "too_long", "/labels"),
    ("classify", {"top": 0}, "out_of_range", "/top"),
    ("classify", {"top": 101}, "out_of_range", "/top"),
    ("classify", {"top": 5.5}, "invalid_type", "/top"),
]


@pytest.mark.parametrize(("kind", "fields", "code", "pointer"), WRONG)
def test_what_is_wrong_is_named_by_its_field(
    shared: Api, kind: str, fields: dict[str, Any], code: str, pointer: str
) -> None:
    answer = send(shared, kind, {"image": SCENE, **({"prompt": "a"} if kind == "edit" else {}), **fields})
    problem = answer.json()
    assert (answer.status_code, problem["code"]) == (404 if code == "not_found" else 422, code)
    assert problem["errors"][0]["pointer"] == f"/input{pointer}"
    assert list(shared.storage.list("")) == []


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-1e999"])
@pytest.mark.parametrize(("kind", "field"), [("edit", "strength"), ("stereo", "disparity")])
def test_what_is_no_number_in_json_is_refused(shared: Api, kind: str, field: str, number: str) -> None:
    body = f'{{"kind": "{kind}", "input": {{"image": {{"upload": "x"}}, "{field}": {number}}}}}'
    answer = shared.http.post("/v1/jobs", content=body, headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_number")


LABELS: list[tuple[str, str]] = [
    ('""', "invalid_prompt"),
    ('"  "', "invalid_prompt"),
    ('"a\\u0007house"', "invalid_prompt"),
    ('"\\u0000"', "invalid_prompt"),
    ('"\\u001b[31mhouse"', "invalid_prompt"),
    ('"\\ud800"', "invalid_prompt"),
    (f'"{"x" * 201}"', "too_long"),
    ("7", "invalid_type"),
]


@pytest.mark.parametrize("kind", ["segment", "classify"])
@pytest.mark.parametrize(("label", "code"), LABELS)
def test_labels_are_looked_at_as_closely_as_prompts(shared: Api, kind: str, label: str, code: str) -> None:
    body = f'{{"kind": "{kind}", "input": {{"image": {{"upload": "x"}}, "labels": ["house", {label}]}}}}'
    answer = shared.http.post("/v1/jobs", content=body, headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["code"]) == (422, code), answer.text
    assert answer.json()["errors"][0]["pointer"] == "/input/labels/1"


def test_a_kind_without_a_model_says_so(shared: Api) -> None:
    problem = send(shared, "classify", {"image": SCENE}).json()
    assert (problem["code"], problem["errors"][0]["pointer"]) == ("unknown_model", "/model")
    assert "no model" in problem["detail"]
    wrong = send(shared, "edit", EDIT, model="toyworld-gan").json()
    assert wrong["errors"][0]["models"] == ["toyworld"]


# ------------------------------------------------------------------------------------------------ accepted


@pytest.mark.parametrize(
    ("size", "made"), [((8_192, 8), (256, 64)), ((8_192, 3_900), (256, 120)), ((8, 8), (64, 64))]
)
def test_an_edit_of_any_size_is_drawn_within_the_models_limits(
    api: Api, size: tuple[int, int], made: tuple[int, int]
) -> None:
    job = send(api, "edit", EDIT | {"image": inline(png_of_size(*size))}).json()
    assert (job["input"]["width"], job["input"]["height"]) == made


@pytest.mark.parametrize(
    "mask", [file_of("CMYK", 0, "JPEG"), file_of("I;16", 65_535), file_of("1", 1), file_of("LA", (0, 0))]
)
def test_masks_of_every_mode_are_taken(api: Api, mask: bytes) -> None:
    job = send(api, "edit", EDIT | {"mask": inline(mask)}).json()
    with Image.open(io.BytesIO(api.http.get(job["input"]["mask"]["url"]).content)) as kept:
        assert kept.convert("RGB").getpixel((64, 64)) == (255, 255, 255), "white: all of it is drawn anew"


def test_what_a_model_does_not_use_is_warned_of(api: Api) -> None:
    def warned(kind: str, given: dict[str, Any], **envelope: Any) -> list[str]:
        warnings = send(api, kind, given, **envelope).json()["warnings"]
        return [one["message"].partition("use ")[2] for one in warnings if one["code"] == "ignored_field"]

    sampling = {"image": SCENE, "prompt": "a", "negative_prompt": "b", "seed": 1, "steps": 9}
    assert warned("upscale", sampling) == ["prompt", "negative_prompt", "seed", "steps"]
    assert warned("upscale", {"image": SCENE, "prompt": None, "scale": 3}) == []
    otsu = {"model": "classical-otsu"}
    assert warned("segment", {"image": SCENE, "threshold": 0.5}, **otsu) == ["threshold"]
    assert warned("segment", {"image": SCENE, "threshold": None}, **otsu) == []


def test_a_picture_enlarged_without_sampling_has_no_seed(api: Api) -> None:
    job = send(api, "upscale", {"image": SCENE}).json()
    assert job["seed"] is None
    assert (job["input"]["scale"], job["input"]["steps"], job["input"]["guidance"]) == (2, None, None)


# ------------------------------------------------------------------------------------------------ other jobs


def test_only_pictures_that_a_job_has_are_taken_from_it(api: Api) -> None:
    drawn = api.submit(input={"count": 2})["id"]
    edited = send(api, "edit", EDIT | {"mask": SCENE}).json()["id"]
    wide = send(api, "stereo", {"image": {"job": drawn}}).json()["id"]
    for reference, code, pointer in [
        ({"job": drawn, "role": "depth"}, "invalid_reference", "/role"),
        ({"job": drawn, "role": "manifest"}, "invalid_reference", "/role"),
        ({"job": drawn, "index": 2}, "out_of_range", "/index"),
        ({"job": drawn, "input": "image"}, "invalid_reference", "/input"),
        ({"job": edited, "input": "depth"}, "invalid_reference", "/input"),
        ({"job": edited, "input": "mask", "role": "depth"}, "invalid_reference", "/role"),
        ({"job": edited, "input": "mask", "index": 3}, "invalid_reference", "/index"),
        ({"job": wide, "role": "cutout"}, "invalid_reference", "/role"),
    ]:
        problem = send(api, "cutout", {"image": reference}).json()
        assert (problem["code"], problem["errors"][0]["pointer"]) == (code, f"/input/image{pointer}")
    for reference in [{"job": edited, "input": "mask"}, {"job": wide, "role": "preview"}, {"job": wide}]:
        assert send(api, "cutout", {"image": reference}).status_code == 202, reference


def test_nothing_of_another_tenants_job_is_taken(empty: Api) -> None:
    theirs = Producer(empty.settings).submit(
        {"kind": "generate", "input": {"prompt": "a"}}, tenant="somebody-else"
    )
    for more in ({}, {"role": "image"}, {"input": "image"}):
        reference = {"job": theirs.id, **more}
        for fields in ({"image": reference}, {"mask": reference}):
            answer = send(empty, "edit", EDIT | fields)
            assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


# ------------------------------------------------------------------------------------------------ all or none


def test_a_refused_step_leaves_nothing_of_the_steps_before_it(empty: Api) -> None:
    steps: list[dict[str, Any]] = [
        {"id": "cut", "kind": "cutout", "input": {"image": SCENE}},
        {"id": "large", "kind": "upscale", "input": {"image": "$cut.cutout"}},
        {"id": "new", "kind": "edit", "input": EDIT | {"mask": "$cut.mask"}},
        {"id": "deep", "kind": "depth", "input": {"image": "$new.image"}},
        {"id": "last", "kind": "stereo", "input": {"image": SCENE, "disparity": 1}},
    ]
    problem = empty.http.post("/v1/pipelines", json={"steps": steps}).json()
    assert problem["errors"][0]["pointer"] == "/steps/4/input/disparity"
    assert empty.http.get("/v1/jobs").json()["jobs"] == []


def test_what_fails_in_the_middle_ends_what_waits_for_it(api: Api) -> None:
    steps: list[dict[str, Any]] = [
        {"id": "scene", "kind": "generate", "input": {"prompt": "a red house"}},
        {"id": "cut", "kind": "cutout", "input": {"image": "$scene.image"}},
        {"id": "new", "kind": "edit", "input": EDIT | {"image": "$scene.image", "mask": "$cut.mask"}},
        {"id": "deep", "kind": "depth", "input": {"image": "$new.image"}},
        {"id": "wide", "kind": "stereo", "input": {"image": "$scene.image"}},
    ]
    made = api.http.post("/v1/pipelines", json={"steps": steps}).json()
    assert [job["status"] for job in made["jobs"]] == ["queued"] + ["blocked"] * 4
    api.publish(api.claim())
    claimed = api.claim("cutout.toyworld-cutout")
    api.ledger.fail(claimed.id, claimed.attempt, '{"code": "out_of_memory", "message": "too large"}')
    jobs = {name: api.http.get(f"/v1/jobs/{made['steps'][name]}").json() for name in made["steps"]}
    assert [job["status"] for job in jobs.values()] == ["succeeded", "failed", "failed", "failed", "queued"]
    assert jobs["deep"]["error"]["code"] == jobs["new"]["error"]["code"] == "parent_failed"
    api.publish(api.claim("stereo.toyworld-depth"), role=Role.IMAGE)


def test_a_full_queue_keeps_no_pictures(start_api: Callable[..., Api]) -> None:
    api = start_api(max_queue=1)
    api.submit()
    answer = send(api, "edit", EDIT | {"mask": SCENE})
    assert (answer.status_code, answer.json()["code"]) == (429, "queue_full")
    rows = [{"kind": "edit", "input": EDIT | {"mask": SCENE}}] * 3
    assert api.http.post("/v1/groups", json={"jobs": rows}).status_code == 429
    assert list(api.storage.list("")) == []


def test_a_replayed_edit_keeps_its_pictures_once(api: Api) -> None:
    body = {"kind": "edit", "input": EDIT | {"mask": SCENE}}
    answers = [api.http.post("/v1/jobs", json=body, headers={"Idempotency-Key": "k"}) for _ in range(3)]
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert len(list(api.storage.list(""))) == 2


def test_a_deleted_edit_takes_its_pictures_with_it(empty: Api) -> None:
    job_id = send(empty, "edit", EDIT | {"mask": SCENE}).json()["id"]
    empty.http.post(f"/v1/jobs/{job_id}/cancel")
    assert empty.http.delete(f"/v1/jobs/{job_id}").status_code == 204
