"""OpenAI's images API by OpenAI's own client."""

from __future__ import annotations

import base64
import json
import time
from http.client import HTTPConnection
from typing import Any

import httpx2
import numpy as np
import openai
import pytest
from PIL import Image

from pixelkiln_shared.jobs import Status
from pixelkiln_shared.previews import Previews
from tests.integration.api.facades.conftest import SCENE, Service, opened
from tests.picture_files import saved
from tests.worker_processes import wait_for


def test_a_picture_is_generated(service: Service, scene: bytes) -> None:
    picture = opened(scene)
    assert picture.format == "PNG"
    assert len(picture.convert("RGB").getcolors(2**24) or []) > 100
    job = service.jobs(kind="generate")[0]
    assert job["priority"] == "interactive"
    assert (job["input"]["prompt"], job["seed"]) == (SCENE, 3)


def test_the_fields_of_a_generation_are_honoured(service: Service) -> None:
    made = service.openai.images.generate(
        model="stub",
        prompt="a hill",
        n=3,
        size="96x64",
        output_format="webp",
        quality="high",
        style="vivid",
        user="somebody",
        moderation="low",
        background="opaque",
        extra_body={"seed": 5, "steps": 2, "negative_prompt": "fog", "labels": {"set": "a"}},
    )
    assert made.data is not None
    pictures = [opened(one.b64_json) for one in made.data]
    assert [(one.format, one.size) for one in pictures] == [("WEBP", (96, 64))] * 3
    assert (made.size, made.output_format) == ("96x64", "webp")
    assert [one.seed for one in made.data] == [5, 6, 7]  # type: ignore[attr-defined]
    assert abs(made.created - time.time()) < 60
    job = service.http.get(f"/v1/jobs/{made.job}").json()  # type: ignore[attr-defined]
    assert job["labels"] == {"set": "a"}
    assert (job["input"]["steps"], job["input"]["negative_prompt"]) == (2, "fog")


def test_a_job_that_makes_no_picture_is_answered_with_none(service: Service) -> None:
    for form in ("url", "b64_json"):
        made = service.http.post(
            "/v1/images/generations",
            json={"model": "stub", "prompt": "a hill", "response_format": form, "options": {"empty": True}},
        )
        assert (made.status_code, made.json()["data"]) == (200, [])


def test_links_are_answered_where_they_are_asked_for(service: Service) -> None:
    made = service.openai.images.generate(model="stub", prompt="a hill", response_format="url", size="64x64")
    assert made.data
    assert made.data[0].b64_json is None
    assert opened(httpx2.get(made.data[0].url or "", trust_env=False).content).size == (64, 64)


def test_a_key_sent_twice_is_one_job(service: Service) -> None:
    def ask(prompt: str) -> Any:
        return service.openai.images.generate(
            model="stub", prompt=prompt, size="64x64", extra_headers={"Idempotency-Key": "one-key"}
        )

    first, again = ask("a hill"), ask("a hill")
    assert first.job == again.job
    assert first.data == again.data
    with pytest.raises(openai.UnprocessableEntityError) as refused:
        ask("another hill")
    assert refused.value.code == "idempotency_key_reused"


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"prompt": ""}, "invalid_prompt", "prompt"),
        ({"n": 0}, "out_of_range", "n"),
        ({"n": "two"}, "invalid_type", "n"),
        ({"size": "big"}, "invalid_size", "size"),
        ({"size": "33x64"}, "invalid_size", "size"),
        ({"output_format": "svg"}, "unknown_option", "output_format"),
        ({"response_format": "file"}, "unknown_option", "response_format"),
        ({"background": "transparent"}, "unknown_option", "background"),
        ({"partial_images": 9}, "out_of_range", "partial_images"),
        ({"stream": "yes"}, "invalid_type", "stream"),
        ({"model": "gpt-image-1"}, "unknown_model", "model"),
        ({"extra_body": {"sead": 1}}, "unknown_field", "sead"),
        ({"extra_body": {"seed": -1}}, "invalid_seed", "seed"),
    ],
)
def test_what_is_wrong_is_named_as_that_client_names_it(
    service: Service, fields: dict[str, Any], code: str, param: str
) -> None:
    with pytest.raises(openai.UnprocessableEntityError) as refused:
        service.openai.images.generate(**{"model": "stub", "prompt": "a hill", **fields})
    assert (refused.value.code, refused.value.param) == (code, param)
    assert refused.value.type == "invalid_request_error"
    assert refused.value.request_id


def test_a_body_that_is_no_json_and_an_address_that_is_none_are_told_alike(service: Service) -> None:
    broken = service.http.post(
        "/v1/images/generations", content=b"{", headers={"content-type": "application/json"}
    )
    assert (broken.status_code, broken.json()["error"]["code"]) == (400, "malformed_json")
    assert service.http.post("/v1/images/generations", json=[]).json()["error"]["code"] == "invalid_type"
    assert service.http.post("/v1/images/generations", json={}).json()["error"]["param"] == "prompt"
    assert service.http.post("/v1/images/variations").json()["error"]["code"] == "not_found"
    assert service.http.get("/v1/images/edits").json()["error"]["code"] == "method_not_allowed"


def test_a_job_that_fails_is_not_sent_again(service: Service) -> None:
    client = service.openai.with_options(max_retries=2)
    before = len(service.jobs(status="failed"))
    with pytest.raises(openai.InternalServerError) as failed:
        client.images.generate(model="stub", prompt="a hill", extra_body={"options": {"fail": "error"}})
    assert failed.value.code == "job_failed"
    assert len(service.jobs(status="failed")) == before + 1


def test_a_model_that_no_worker_serves_is_refused_and_not_sent_again(service: Service) -> None:
    client = service.openai.with_options(max_retries=2)
    began = time.monotonic()
    with pytest.raises(openai.InternalServerError) as refused:
        client.images.generate(model="toyworld-gan", prompt="a hill")
    assert (refused.value.status_code, refused.value.code) == (503, "no_worker_for_model")
    assert time.monotonic() - began < 5


def test_a_stream_shows_rough_pictures_and_then_its_own(service: Service) -> None:
    previews = Previews(service.stack.client)
    rough = saved(Image.new("RGB", (32, 32), "navy"), "WEBP")
    told = []
    with service.openai.images.generate(
        model="stub",
        prompt="a slow hill",
        size="64x64",
        n=2,
        stream=True,
        partial_images=2,
        extra_body={"steps": 10, "options": {"device_ms": 2_000}},
    ) as stream:
        job = wait_for(lambda: next(iter(service.jobs(status="running")), None), 20, "it did not start")
        for step in range(4):
            previews.put(job["id"], rough, step=step, steps=10)
        told = list(stream)
    assert [event.type for event in told] == ["image_generation.partial_image"] * 2 + [
        "image_generation.completed"
    ] * 2
    partial = told[:2]
    assert [event.partial_image_index for event in partial] == [0, 1]  # type: ignore[union-attr]
    assert base64.b64decode(partial[0].b64_json) == rough
    assert partial[0].output_format == "webp"
    assert [opened(event.b64_json).size for event in told[2:]] == [(64, 64)] * 2
    assert told[-1].usage.total_tokens == 0  # type: ignore[union-attr]


def test_a_stream_tells_of_a_failure(service: Service) -> None:
    with (
        pytest.raises(openai.APIError, match="job_"),
        service.openai.images.generate(
            model="stub", prompt="a hill", stream=True, extra_body={"options": {"fail": "error"}}
        ) as stream,
    ):
        list(stream)


@pytest.mark.parametrize(
    ("stream", "headers", "end"),
    [
        (False, {}, Status.CANCELED),
        (True, {}, Status.CANCELED),
        (False, {"Idempotency-Key": "to come back"}, Status.SUCCEEDED),
    ],
)
def test_the_job_of_a_client_that_leaves_is_canceled_unless_it_has_a_key(
    service: Service, stream: bool, headers: dict[str, str], end: Status
) -> None:
    slow = {"model": "stub", "prompt": "a slow hill", "options": {"device_ms": 5_000}, "steps": 40}
    job = _left_alone(service, {**slow, "stream": stream}, headers)
    assert service.stack.until([job], seconds=30)[0].status is end


def _left_alone(service: Service, body: dict[str, Any], headers: dict[str, str]) -> str:
    """Ask, and hang up once the job runs; returns its id."""
    wire = HTTPConnection(service.url.removeprefix("http://"), timeout=60)
    wire.request(
        "POST", "/v1/images/generations", json.dumps(body), {"content-type": "application/json", **headers}
    )
    job = wait_for(lambda: next(iter(service.jobs(status="running")), None), 20, "it did not start")
    wire.close()
    return str(job["id"])


def test_a_picture_is_drawn_anew_where_the_mask_is_transparent(service: Service, scene: bytes) -> None:
    size = opened(scene).size
    mask = Image.new("RGBA", size, (0, 0, 0, 255))
    mask.paste((0, 0, 0, 0), (0, 0, size[0], size[1] // 2))
    made = service.openai.images.edit(
        model="toyworld",
        image=("scene.png", scene, "image/png"),
        mask=("mask.png", saved(mask, "PNG"), "image/png"),
        prompt="a red house under a night sky",
        n=1,
        extra_body={"seed": 4},
    )
    assert made.data
    before, after = (
        np.asarray(opened(one).convert("RGB"), np.int16) for one in (scene, made.data[0].b64_json)
    )
    assert after.shape == before.shape
    changed = np.abs(after - before).mean(axis=(1, 2))
    half = len(changed) // 2
    assert changed[half + 8 :].max() == 0
    assert changed[: half - 8].mean() > 10


def test_an_edit_is_streamed(service: Service, scene: bytes) -> None:
    with service.openai.images.edit(
        image=[("scene.png", scene, "image/png")], prompt="a blue house", stream=True
    ) as stream:
        told = list(stream)
    assert told[-1].type == "image_edit.completed"
    assert opened(told[-1].b64_json).size == opened(scene).size


def test_what_an_edit_cannot_be_is_said(service: Service, scene: bytes) -> None:
    def refused(**fields: Any) -> tuple[str | None, str | None]:
        with pytest.raises(openai.UnprocessableEntityError) as error:
            service.openai.images.edit(**{"image": scene, "prompt": "a blue house", **fields})
        return error.value.code, error.value.param

    opaque = saved(Image.new("RGBA", opened(scene).size, "white"), "PNG")
    small = saved(Image.new("RGBA", (64, 64)), "PNG")
    assert refused(image=[scene, scene]) == ("invalid_reference", "image")
    assert refused(image=b"no picture") == ("invalid_image", "image")
    assert refused(mask=opaque) == ("invalid_image", "mask")
    assert refused(mask=small)[1] == "mask"
    assert refused(n=0) == ("out_of_range", "n")
    no_form = service.http.post("/v1/images/edits", json={})
    assert (no_form.status_code, no_form.json()["error"]["code"]) == (415, "unsupported_media_type")


def test_models_are_listed(service: Service) -> None:
    assert {"stub", "toyworld"} <= {model.id for model in service.openai.models.list()}
    assert service.openai.models.retrieve("toyworld").object == "model"
