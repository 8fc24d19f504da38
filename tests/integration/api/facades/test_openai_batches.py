"""OpenAI's batch API by OpenAI's own client."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Literal

import openai
import pytest

from tests.integration.api.facades.conftest import Service, opened
from tests.worker_processes import wait_for

URL: Literal["/v1/images/generations"] = "/v1/images/generations"


def row(custom_id: str, **body: Any) -> dict[str, Any]:
    """One line of a file."""
    fields = {"model": "stub", "prompt": "a hill", "size": "64x64", **body}
    return {"custom_id": custom_id, "method": "POST", "url": URL, "body": fields}


def sent(service: Service, rows: Sequence[Any]) -> str:
    """Upload lines as a file; returns its id."""
    text = "".join(f"{one if isinstance(one, str) else json.dumps(one)}\n" for one in rows)
    return service.openai.files.create(file=("rows.jsonl", text.encode()), purpose="batch").id


def begun(service: Service, rows: Sequence[Any], **more: Any) -> Any:
    """Begin a batch of lines."""
    return service.openai.batches.create(
        input_file_id=sent(service, rows), endpoint=URL, completion_window="24h", **more
    )


def ended(service: Service, batch_id: str) -> Any:
    """Wait until a batch has ended."""

    def over() -> Any:
        batch = service.openai.batches.retrieve(batch_id)
        return batch if batch.status in {"completed", "cancelled", "failed"} else None

    return wait_for(over, 30, "the batch did not end")


def lines(service: Service, file_id: str | None) -> dict[str, Any]:
    """The lines of a file by their custom ids."""
    assert file_id
    text = service.openai.files.content(file_id).text
    return {line["custom_id"]: line for line in map(json.loads, text.splitlines())}


def test_a_file_of_requests_becomes_a_file_of_answers(service: Service) -> None:
    rows = [row(f"row-{number}", seed=number) for number in range(120)]
    rows[7]["body"]["response_format"] = "url"
    rows[8]["body"]["options"] = {"fail": "error"}
    rows[9]["body"]["size"] = "33x33"
    batch = begun(service, rows, metadata={"set": "a"})
    assert (batch.object, batch.endpoint, batch.metadata) == ("batch", URL, {"set": "a"})
    assert batch.request_counts.total == 120
    batch = ended(service, batch.id)
    assert batch.status == "completed"
    counts = batch.request_counts
    assert (counts.total, counts.completed, counts.failed) == (120, 118, 2)

    made = lines(service, batch.output_file_id)
    assert set(made) == {one["custom_id"] for one in rows} - {"row-8", "row-9"}
    for number in (0, 119):
        answer = made[f"row-{number}"]["response"]
        assert answer["status_code"] == 200
        assert answer["body"]["data"][0]["seed"] == number
        assert opened(answer["body"]["data"][0]["b64_json"]).size == (64, 64)
    assert made["row-7"]["response"]["body"]["data"][0]["url"].startswith(service.url)

    wrong = lines(service, batch.error_file_id)
    assert {name: line["error"]["code"] for name, line in wrong.items()} == {
        "row-8": "job_failed",
        "row-9": "invalid_size",
    }
    assert wrong["row-9"]["error"]["param"] == "size"
    job = service.jobs(kind="generate")[0]
    assert job["priority"] == "bulk"
    assert job["labels"]["custom_id"].startswith("row-")
    output = service.openai.files.retrieve(batch.output_file_id)
    assert output.purpose == "batch_output"


@pytest.mark.parametrize(
    ("rows", "code", "line"),
    [
        (["{"], "malformed_json", 1),
        (["[]"], "invalid_type", 1),
        ([""], "empty_file", 1),
        ([row("a"), "", row("a")], "duplicate_custom_id", 3),
        ([{**row("a"), "url": "/v1/chat/completions"}], "invalid_url", 1),
        ([{**row("a"), "method": "GET"}], "invalid_url", 1),
        ([{**row("a"), "body": "none"}], "invalid_type", 1),
        ([row("")], "invalid_custom_id", 1),
    ],
)
def test_a_file_that_is_none_fails_as_a_whole(
    service: Service, rows: list[Any], code: str, line: int
) -> None:
    before = len(service.jobs())
    batch = begun(service, rows)
    assert batch.status == "failed"
    assert [(one.code, one.line) for one in batch.errors.data] == [(code, line)]
    assert len(service.jobs()) == before


def test_a_file_of_nothing_but_wrong_requests_is_a_batch_of_errors(service: Service) -> None:
    batch = begun(
        service, [row("a", n=0), row("b", stream=True), row("c", model="nobody"), row("d", labels="x")]
    )
    assert batch.status == "completed"
    assert batch.output_file_id is None
    wrong = lines(service, batch.error_file_id)
    assert {name: line["error"]["param"] for name, line in wrong.items()} == {
        "a": "n",
        "b": "stream",
        "c": "model",
        "d": "labels",
    }


def test_a_batch_is_canceled(service: Service) -> None:
    slow = {"options": {"device_ms": 500}, "deterministic": True}
    batch = begun(service, [row(f"row-{number}", **slow) for number in range(60)])
    assert batch.status == "in_progress"
    asked = service.openai.batches.cancel(batch.id)
    assert asked.status in {"cancelling", "cancelled"}
    batch = ended(service, batch.id)
    assert batch.status == "cancelled"
    assert batch.request_counts.completed < 60
    wrong = lines(service, batch.error_file_id)
    assert {line["error"]["code"] for line in wrong.values()} == {"job_canceled"}
    assert len(wrong) + batch.request_counts.completed == 60


def test_files_and_batches_are_listed_newest_first_and_files_removed(service: Service) -> None:
    made = [begun(service, [row("a", n=0)]).id for _ in range(3)]
    page = service.openai.batches.list(limit=2)
    assert [one.id for one in page.data] == made[:0:-1]
    assert page.has_more
    assert page.get_next_page().data[0].id == made[0]
    file_id = sent(service, [row("a")])
    file = service.openai.files.list().data[0]
    assert (file.id, file.filename, file.purpose) == (file_id, "rows.jsonl", "batch")
    assert service.openai.files.content(file_id).text == json.dumps(row("a")) + "\n"
    assert service.openai.files.delete(file_id).deleted
    with pytest.raises(openai.NotFoundError) as gone:
        service.openai.files.retrieve(file_id)
    assert gone.value.code == "not_found"


def test_what_a_batch_cannot_be_is_said(service: Service) -> None:
    def refused(**fields: Any) -> tuple[str | None, str | None]:
        wanted = {"input_file_id": "file_none", "endpoint": URL, "completion_window": "24h", **fields}
        with pytest.raises(openai.APIStatusError) as error:
            service.openai.batches.create(**wanted)
        return error.value.code, error.value.param

    assert refused() == ("not_found", None)
    assert refused(endpoint="/v1/embeddings") == ("unknown_option", "endpoint")
    assert refused(completion_window="1h") == ("unknown_option", "completion_window")
    with pytest.raises(openai.UnprocessableEntityError) as error:
        service.openai.files.create(file=("rows.jsonl", b"{}"), purpose="fine-tune")
    assert (error.value.code, error.value.param) == ("unknown_option", "purpose")
    with pytest.raises(openai.NotFoundError):
        service.openai.batches.retrieve("batch_nobodys")
    no_form = service.http.post("/v1/files", json={})
    assert (no_form.status_code, no_form.json()["error"]["code"]) == (415, "unsupported_media_type")
