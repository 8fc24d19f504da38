"""Fields of OpenAI's forms, which are texts."""

from __future__ import annotations

import pytest

from pixelkiln.api.facades import batch_lines
from pixelkiln.api.facades.openai_fields import job_of, parsed
from pixelkiln_shared.errors import InvalidInput
from pixelkiln_shared.kinds import Kind


def test_texts_become_what_json_would_have_said() -> None:
    form = {
        "n": "2",
        "strength": "0.5",
        "stream": "true",
        "prompt": "12",
        "size": "64x96",
        "model": "toyworld",
    }
    fields = parsed(form)
    assert fields == form | {"n": 2, "strength": 0.5, "stream": True}
    assert job_of(Kind.EDIT, fields) == {
        "kind": "edit",
        "model": "toyworld",
        "input": {"count": 2, "strength": 0.5, "prompt": "12", "width": 64, "height": 96},
    }


@pytest.mark.parametrize("form", [{"n": "two"}, {"seed": ""}, {"strength": "a"}, {"stream": "yes"}])
def test_a_number_that_is_none_is_named(form: dict[str, str]) -> None:
    with pytest.raises(InvalidInput) as refused:
        parsed(form)
    assert refused.value.pointer == f"/{next(iter(form))}"


def test_a_batch_has_so_many_lines_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_lines, "MAX_LINES", 3)
    file = batch_lines.BatchLines("/v1/images/generations")
    row = (
        '{"custom_id": "%d", "method": "POST", "url": "/v1/images/generations", "body": {"prompt": "a hill"}}'
    )
    file.read([(row % number).encode() for number in range(3)])
    assert (len(file.lines), file.faults) == (3, [])
    file.read([b"", (row % 3).encode()])
    assert [fault.code for fault in file.faults] == ["too_many_lines"]


def test_null_is_left_out() -> None:
    fields = {"prompt": "a hill", "n": None, "size": None, "user": None, "background": None}
    assert job_of(Kind.GENERATE, fields) == {"kind": "generate", "input": {"prompt": "a hill"}}
