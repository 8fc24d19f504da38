"""The facades where no worker's own work is needed: limits, keys, errors and answers in their shapes."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import openai
import pytest
from huggingface_hub import InferenceClient, close_session
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pixelkiln.api.facades import running
from pixelkiln.api.facades.batch_lines import BatchLines
from pixelkiln_shared.errors import InvalidRequest
from pixelkiln_shared.jobs import Result
from pixelkiln_shared.kinds import Kind
from tests.integration.api.conftest import Api, picture
from tests.worker_processes import wait_for

SCENE = {"model": "toyworld", "prompt": "a red house"}
CLASSES = """
[models.tiny-classes]
title = "Classes"
family = "classification"
kinds = ["classify"]
source = "nowhere"
"""


@pytest.fixture
def client_of() -> Iterator[Callable[..., openai.OpenAI]]:
    """Makes OpenAI's clients for an API, with a key."""
    with ExitStack() as opened:
        yield lambda api, key="any": opened.enter_context(
            openai.OpenAI(base_url=f"{api.url}/v1", api_key=key, max_retries=0)
        )


def test_an_answer_that_takes_too_long_is_given_up_and_the_job_goes_on(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "PATIENCE_S", 0.5)
    api.serve("generate.toyworld")
    answer = api.http.post("/v1/images/generations", json=SCENE)
    assert (answer.status_code, answer.json()["error"]["code"]) == (504, "timeout")
    assert answer.headers["x-should-retry"] == "false"
    (job,) = api.http.get("/v1/jobs").json()["jobs"]
    assert job["status"] == "queued"
    assert job["id"] in answer.json()["error"]["message"]


FIELDS = [
    *("model", "prompt", "n", "size", "stream", "partial_images", "response_format", "background", "user"),
    *("output_format", "seed", "labels", "priority", "options", "webhook", "group", "inputs", "parameters"),
]
PATHS = ("/v1/images/generations", "/v1/batches", "/hf/text-to-image/toyworld", "/hf/object-detection")
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=st.dictionaries(st.sampled_from(FIELDS), VALUES) | VALUES)
def test_whatever_is_sent_is_refused_and_never_a_mistake_of_ours(shared: Api, body: Any) -> None:
    sent = json.dumps(body)
    for path in PATHS:
        answer = shared.http.post(path, content=sent, headers={"content-type": "application/json"})
        assert answer.status_code in {400, 404, 422, 503}, answer.text
        assert answer.status_code != 503 or "no_worker_for_model" in answer.text
    line = json.dumps({"custom_id": "a", "method": "POST", "url": "/v1/images/generations", "body": body})
    file = BatchLines("/v1/images/generations")
    file.read([line.encode()])
    for one in file.lines:
        with suppress(InvalidRequest):
            one.job(Kind.GENERATE)


def test_a_key_is_asked_for_in_each_facades_own_words(
    start_api: Callable[..., Api], client_of: Callable[..., openai.OpenAI]
) -> None:
    api = start_api(api_key="k" * 40)
    with pytest.raises(openai.AuthenticationError) as refused:
        client_of(api).images.generate(model="toyworld", prompt="a red house")
    assert (refused.value.type, refused.value.code) == ("authentication_error", "unauthorized")
    for path in ("/v1/files/file_none/content", "/v1/files", "/v1/batches"):
        answer = api.http.get(path)
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "unauthorized")
    told = api.http.post("/hf/text-to-image/toyworld", json={"inputs": "a red house"})
    assert (told.status_code, told.json()["code"]) == (401, "unauthorized")
    with pytest.raises(openai.InternalServerError) as nobody:
        client_of(api, "k" * 40).images.generate(model="toyworld", prompt="a red house")
    assert nobody.value.code == "no_worker_for_model"


def test_a_full_queue_is_a_429_that_client_waits_for(
    start_api: Callable[..., Api], client_of: Callable[..., openai.OpenAI]
) -> None:
    api = start_api(max_queue=1)
    api.serve("generate.toyworld")
    api.submit()
    with pytest.raises(openai.RateLimitError) as refused:
        client_of(api).images.generate(model="toyworld", prompt="a red house")
    assert (refused.value.type, refused.value.code) == ("rate_limit_error", "queue_full")
    assert int(refused.value.response.headers["retry-after"]) > 0


def test_a_batch_that_finds_the_queue_full_is_refused_whole(
    start_api: Callable[..., Api], client_of: Callable[..., openai.OpenAI]
) -> None:
    api = start_api(max_queue=1)
    row = '{"custom_id": "%s", "method": "POST", "url": "/v1/images/generations", "body": {"prompt": "a"}}\n'
    data = "".join(row % number for number in range(3)).encode()
    client = client_of(api)
    file = client.files.create(file=("rows.jsonl", data), purpose="batch")
    with pytest.raises(openai.RateLimitError):
        client.batches.create(
            input_file_id=file.id, endpoint="/v1/images/generations", completion_window="24h"
        )
    (batch,) = client.batches.list().data
    assert batch.cancelling_at is not None
    assert {job["status"] for job in api.http.get("/v1/jobs").json()["jobs"]} <= {"canceled"}


def test_a_picture_is_classified(start_api: Callable[..., Api], tmp_path: Path) -> None:
    catalogue = tmp_path / "catalogue.toml"
    catalogue.write_text(CLASSES)
    api = start_api(catalogue=str(catalogue))
    api.serve("classify.tiny-classes")
    best = [{"label": "house", "score": 0.75}, {"label": "tree", "score": 0.25}]
    asked: list[dict[str, Any]] = []

    def work() -> None:
        wait_for(lambda: api.http.get("/v1/jobs").json()["jobs"] or None, 20, "no job came")
        claimed = api.claim("classify.tiny-classes")
        asked.append(api.http.get(f"/v1/jobs/{claimed.id}").json()["input"])
        result = Result(artifacts=[], detail={"classes": best})
        api.ledger.publish(claimed.id, claimed.attempt, result.model_dump_json())

    worker = threading.Thread(target=work)
    worker.start()
    client = InferenceClient(model=f"{api.url}/hf/image-classification/tiny-classes", token="any")
    found = client.image_classification(picture(96, 64), top_k=2)
    close_session()
    worker.join()
    assert [(one.label, one.score) for one in found] == [("house", 0.75), ("tree", 0.25)]
    assert asked[0]["top"] == 2


def test_a_prompt_that_is_a_picture_is_refused(api: Api) -> None:
    answer = api.http.post(
        "/hf/text-to-image/toyworld", content=picture(), headers={"content-type": "image/png"}
    )
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_type")
    assert answer.json()["error"].startswith("inputs: ")
