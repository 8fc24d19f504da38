"""Pictures on their way in: uploads, inline pictures, pictures of other jobs; and files on their way out."""

from __future__ import annotations

import base64
import io
import struct
import zipfile
import zlib
from typing import Any

import pytest
from PIL import Image, PngImagePlugin

from pixelkiln_shared import keys
from pixelkiln_shared.jobs import JobSpec
from tests.integration.api.conftest import Api, picture


def png_of_size(width: int, height: int) -> bytes:
    """A PNG of one colour whose pixels take almost no bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    rows = zlib.compress(bytes((width // 8 + 1) * height), 9)
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def zipped() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.png", "x")
    return file.getvalue()


def animated() -> bytes:
    file = io.BytesIO()
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    frames[0].save(file, "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    return file.getvalue()


BAD_PICTURES: list[tuple[str, bytes, str]] = [
    ("empty", b"", "invalid_image"),
    ("text", b"not a picture", "invalid_image"),
    ("html", b"<html></html>", "invalid_image"),
    ("zip", zipped(), "invalid_image"),
    ("cut short", picture(64, 64)[:-40], "invalid_image"),
    ("cut short jpeg", picture(64, 64, "JPEG")[:200], "invalid_image"),
    ("svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>", "unsupported_format"),
    ("pdf", b"%PDF-1.7\n", "unsupported_format"),
    ("eps", b"%!PS-Adobe-3.0 EPSF-3.0\n", "unsupported_format"),
    ("gif", picture(16, 16, "GIF"), "unsupported_format"),
    ("tiff", picture(16, 16, "TIFF"), "unsupported_format"),
    ("animated", animated(), "animated_image"),
    ("one pixel", picture(1, 1), "image_too_small"),
    ("bomb", png_of_size(13_300, 13_300), "image_too_large"),
    ("big bomb", png_of_size(30_000, 30_000), "image_too_large"),
]


@pytest.mark.parametrize(
    ("data", "code"), [row[1:] for row in BAD_PICTURES], ids=[row[0] for row in BAD_PICTURES]
)
def test_what_is_no_picture_of_ours_is_refused(shared: Api, data: bytes, code: str) -> None:
    for answer in (shared.upload(data), shared.segment({"base64": base64.b64encode(data).decode()})):
        assert (answer.status_code, answer.json()["code"]) == (422, code)


def test_nothing_is_kept_of_refused_pictures(shared: Api) -> None:
    assert list(shared.storage.list("default/")) == []
    assert shared.http.get("/v1/jobs").json()["jobs"] == []


def test_an_upload_becomes_the_input_of_a_job(api: Api) -> None:
    answer = api.upload(picture(64, 40, "JPEG"), "photo.png")
    upload = answer.json()
    assert (answer.status_code, upload["width"], upload["height"]) == (201, 64, 40)
    assert upload["media_type"] == "image/jpeg", "decided by content"
    job = api.segment({"upload": upload["id"]}).json()
    assert job["model"] == "classical-felzenszwalb"
    assert job["warnings"][0]["code"] == "classical_default"
    image = job["input"]["image"]
    assert (image["width"], image["height"], image["sha256"]) == (64, 40, upload["sha256"])
    assert "object" not in image
    shown = api.http.get(image["url"])
    assert shown.headers["content-type"] == "image/jpeg"
    spec = JobSpec.model_validate_json(api.claim("segment.classical-felzenszwalb").spec)
    assert spec.input["image"]["object"].startswith(keys.job_prefix("default", job["id"]))


def test_metadata_never_gets_in_and_pictures_stand_upright(api: Api) -> None:
    file = io.BytesIO()
    image = Image.new("RGB", (60, 30), "red")
    exif = image.getexif()
    exif[0x0112] = 6
    exif[0x010E] = "a place that is nobody's business"
    image.save(file, "JPEG", exif=exif)
    upload = api.upload(file.getvalue()).json()
    assert (upload["width"], upload["height"]) == (30, 60)
    stored = api.storage.get(keys.upload_key("default", upload["id"]))
    assert b"business" not in stored
    info = PngImagePlugin.PngInfo()
    info.add_text("Comment", "business of nobody")
    file = io.BytesIO()
    Image.new("RGB", (16, 16)).save(file, "PNG", pnginfo=info)
    upload = api.upload(file.getvalue()).json()
    assert b"business" not in api.storage.get(keys.upload_key("default", upload["id"]))


@pytest.mark.parametrize(
    "name", ["../../x.png", "C:\\x", "a\x00b", "n" * 4_000, "\u202egnp.x", "CON", "a/b.png"]
)
def test_file_names_are_of_no_consequence(api: Api, name: str) -> None:
    answer = api.upload(picture(), name)
    assert answer.status_code in {201, 400}
    for stored in api.storage.list("default/"):
        assert stored.key.startswith("default/uploads/upl_")


def multipart(*parts: bytes) -> tuple[bytes, dict[str, str]]:
    body = b"".join(b"--b\r\n" + part + b"\r\n" for part in parts) + b"--b--\r\n"
    return body, {"Content-Type": "multipart/form-data; boundary=b"}


FILE = b'Content-Disposition: form-data; name="file"; filename="a.png"\r\n\r\n' + picture()
FORMS: list[tuple[str, bytes, dict[str, str], int, str]] = [
    (
        "no file",
        *multipart(b'Content-Disposition: form-data; name="file"\r\n\r\nx'),
        400,
        "invalid_multipart",
    ),
    ("two files", *multipart(FILE, FILE), 400, "invalid_multipart"),
    ("a thousand files", *multipart(*[FILE] * 1_001), 400, "invalid_multipart"),
    (
        "no name",
        *multipart(b'Content-Disposition: form-data; filename="a"\r\n\r\nx'),
        400,
        "invalid_multipart",
    ),
    ("no boundary", b"x", {"Content-Type": "multipart/form-data"}, 400, "invalid_multipart"),
    ("empty", b"", {"Content-Type": "multipart/form-data; boundary=b"}, 400, "invalid_multipart"),
    ("not multipart", picture(), {"Content-Type": "image/png"}, 415, "unsupported_media_type"),
]


@pytest.mark.parametrize(
    ("body", "headers", "status", "code"), [f[1:] for f in FORMS], ids=[f[0] for f in FORMS]
)
def test_forms_that_are_not_one_file_are_refused(
    shared: Api, body: bytes, headers: dict[str, str], status: int, code: str
) -> None:
    answer = shared.http.post("/v1/uploads", content=body, headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text


URLS = [
    "file:///etc/passwd",
    "ftp://example.com/a.png",
    "//host/a.png",
    "http://127.0.0.1:1/a.png",
    "http://2130706433/",
    "http://[::ffff:127.0.0.1]/",
    "http://169.254.169.254/latest/meta-data",
    "https://example.com/a.png",
]

IMAGES: list[tuple[Any, int, str, str]] = [
    *[({"url": url}, 422, "url_not_allowed", "/input/image/url") for url in URLS],
    ({"base64": "n?t base64"}, 422, "invalid_base64", "/input/image/base64"),
    ({"base64": "data:image/png;base64,AAAA"}, 422, "invalid_base64", "/input/image/base64"),
    ({"base64": "äöü"}, 422, "invalid_base64", "/input/image/base64"),
    ({"upload": "upl_00000000000000000000000000"}, 404, "not_found", "/input/image/upload"),
    ({"upload": "../../etc/passwd"}, 404, "not_found", "/input/image/upload"),
    ({"upload": "x" * 100}, 422, "too_long", "/input/image/upload"),
    ({"upload": 7}, 422, "invalid_type", "/input/image/upload"),
    ({"job": "job_00000000000000000000000000"}, 404, "not_found", "/input/image/job"),
    ({"job": "*"}, 404, "not_found", "/input/image/job"),
    (
        {"object": "default/uploads/x", "sha256": "", "width": 8, "height": 8},
        422,
        "invalid_reference",
        "/input/image",
    ),
    ({"upload": "x", "url": "y"}, 422, "unknown_field", "/input/image/url"),
    ({}, 422, "invalid_reference", "/input/image"),
    ("$scene.image", 422, "invalid_type", "/input/image"),
    (None, 422, "invalid_type", "/input/image"),
]


@pytest.mark.parametrize(("image", "status", "code", "pointer"), IMAGES)
def test_references_that_lead_nowhere_are_named(
    shared: Api, image: Any, status: int, code: str, pointer: str
) -> None:
    answer = shared.segment(image)
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text
    assert answer.json()["errors"][0]["pointer"] == pointer


INSIDE = {"x0": 1, "y0": 1, "x1": 20, "y1": 20}
REGIONS: list[tuple[dict[str, Any], str]] = [
    ({"points": [{"x": 48, "y": 1}]}, "invalid_region"),
    ({"points": [{"x": 1, "y": 32}]}, "invalid_region"),
    ({"points": [{"x": -1, "y": 1}]}, "invalid_region"),
    ({"points": [{"x": 1, "y": 1}] * 10_000}, "invalid_region"),
    ({"points": [{"x": "1", "y": 1}]}, "invalid_type"),
    ({"boxes": [{**INSIDE, "x1": 49}]}, "invalid_region"),
    ({"boxes": [{**INSIDE, "x1": 0}]}, "invalid_region"),
    ({"boxes": [{**INSIDE, "y0": -1}]}, "invalid_region"),
    ({"boxes": [{"x0": 1}]}, "missing_field"),
    ({"regions": 1}, "out_of_range"),
    ({"regions": 10_000}, "out_of_range"),
    ({"options": {"lora": 1}}, "unknown_option"),
]


@pytest.mark.parametrize(("fields", "code"), REGIONS)
def test_marks_outside_the_picture_are_refused(shared: Api, fields: dict[str, Any], code: str) -> None:
    answer = shared.segment({"base64": base64.b64encode(picture()).decode()}, input=fields)
    assert (answer.status_code, answer.json()["code"]) == (422, code)


def test_marks_choose_the_method_that_uses_them(api: Api) -> None:
    image = {"base64": base64.b64encode(picture()).decode()}
    job = api.segment(image, input={"boxes": [INSIDE]}).json()
    assert job["model"] == "classical-grabcut"
    without = api.segment(image, model="classical-grabcut")
    assert (without.status_code, without.json()["code"]) == (422, "invalid_region")
    ignored = api.segment(image, model="classical-otsu", input={"boxes": [INSIDE]}).json()
    assert {"code": "ignored_field", "message": "classical-otsu does not use points and boxes"} in ignored[
        "warnings"
    ]


# ------------------------------------------------------------------------------------------------ other jobs


def test_a_picture_of_a_running_job_is_waited_for(api: Api) -> None:
    parent = api.submit()["id"]
    child = api.segment({"job": parent}).json()
    assert (child["status"], child["model"]) == ("blocked", "toyworld-classes")
    api.publish(api.claim())
    assert api.http.get(f"/v1/jobs/{child['id']}").json()["status"] == "queued"
    late = api.segment({"job": parent}).json()
    assert late["status"] == "queued", "the parent has succeeded already"


def test_pictures_that_no_job_will_make_are_refused(api: Api) -> None:
    parent = api.submit(input={"count": 2})["id"]
    for image, code in [
        ({"job": parent, "index": 2}, "out_of_range"),
        ({"job": parent, "role": "mask"}, "invalid_reference"),
        ({"job": parent, "role": "cake"}, "unknown_option"),
    ]:
        answer = api.segment(image)
        assert (answer.status_code, answer.json()["code"]) == (422, code)
    outside = api.segment({"job": parent}, input={"points": [{"x": 128, "y": 0}]})
    assert outside.json()["code"] == "invalid_region", "the size is known before the picture is"
    api.http.post(f"/v1/jobs/{parent}/cancel")
    assert api.segment({"job": parent}).json()["code"] == "parent_failed"


def test_a_segment_job_can_be_run_again_on_its_own_input(api: Api) -> None:
    first = api.segment({"base64": base64.b64encode(picture()).decode()}).json()
    again = api.segment({"job": first["id"], "role": "image"}, model="classical-otsu").json()
    assert again["input"]["image"]["sha256"] == first["input"]["image"]["sha256"]
    api.http.post(f"/v1/jobs/{first['id']}/cancel")
    api.http.delete(f"/v1/jobs/{first['id']}")
    assert api.http.get(again["input"]["image"]["url"]).status_code == 200, "it has a copy of its own"


# ------------------------------------------------------------------------------------------------ files


def test_altered_and_old_links_are_refused(api: Api) -> None:
    job_id = api.submit()["id"]
    api.publish(api.claim())
    url = api.http.get(f"/v1/jobs/{job_id}").json()["artifacts"][0]["url"]
    good = api.http.get(url)
    assert good.status_code == 200
    assert good.headers["x-content-type-options"] == "nosniff"
    assert "sandbox" in good.headers["content-security-policy"]
    path, _, query = url.partition("?")
    for altered in (
        path,
        path.replace("a1", "a2") + "?" + query,
        url.replace("expires=", "expires=9"),
        url[:-1] + ("0" if url[-1] != "0" else "1"),
        path + "/../../x?" + query,
    ):
        answer = api.http.get(altered)
        assert answer.status_code in {403, 404, 422}, altered
    old = api.storage.link(f"default/uploads/{keys.new_id('upl')}", expires_s=-10)
    assert api.http.get(old).json()["code"] == "link_expired"
    gone = api.storage.link(f"default/uploads/{keys.new_id('upl')}", expires_s=60)
    assert api.http.get(gone).status_code == 404
