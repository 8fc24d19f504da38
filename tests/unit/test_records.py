"""Records that a later version wrote, as this one reads them."""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

import pytest

from pixelkiln.records import result_of, spec_of
from pixelkiln_shared.fleet import WorkerInfo
from pixelkiln_shared.jobs import Priority, Status
from pixelkiln_shared.kinds import Kind, Role
from pixelkiln_shared.ledger.contract import Record

IMAGE = {
    "role": "image", "index": 0, "key": "t/0.png", "media_type": "image/png", "size_bytes": 1, "sha256": "00",
}  # fmt: skip

REPORT = WorkerInfo(
    id="w",
    host="h",
    pid=1,
    device="cpu",
    state="ready",
    running=("job_1",),
    started_at=datetime(2026, 1, 1, tzinfo=UTC),
    version="1",
).model_dump_json()


def record(**fields: Any) -> Record:
    defaults = {
        "id": "job_1",
        "kind": Kind.GENERATE,
        "lane": "generate.stub@2",
        "tenant": "anna",
        "priority": Priority.BULK,
        "batch_key": "k",
        "rows": 1,
        "work": 1,
        "spec": "{}",
        "status": Status.SUCCEEDED,
        "sequence": 1,
    }
    return Record(**{**defaults, **fields})


def test_a_job_of_a_later_form_is_shown_by_what_its_record_says() -> None:
    found = spec_of(record(spec=json.dumps({"v": 2, "id": "job_1", "kind": "dream", "input": "elsewhere"})))
    assert (found.id, found.kind, found.model, found.tenant) == ("job_1", Kind.GENERATE, "stub", "anna")
    assert (found.priority, found.input, found.labels) == (Priority.BULK, {}, {})


def test_a_field_that_came_later_is_passed_over() -> None:
    spec = {"v": 2, "id": "job_1", "kind": "generate", "model": "m", "tenant": "anna", "input": {}, "mood": 1}
    assert spec_of(record(spec=json.dumps(spec))).model == "m"
    assert result_of(record(result=json.dumps({"artifacts": [{**IMAGE, "mood": 1}], "moon": 1}))).artifacts


def test_a_file_of_a_later_role_hides_no_other() -> None:
    result = json.dumps({"artifacts": [IMAGE, {**IMAGE, "role": "hologram"}], "metrics": {"run_ms": 1}})
    assert [artifact.role for artifact in result_of(record(result=result)).artifacts] == [Role.IMAGE]


@pytest.mark.parametrize("result", [None, "", "[]", "7", "no", '{"artifacts": 7}', '{"artifacts": [7]}'])
def test_what_is_no_result_is_an_empty_one(result: str | None) -> None:
    assert result_of(record(result=result)).artifacts == []


def test_reading_records_keeps_nothing_of_them() -> None:
    look_at(range(100))
    gc.collect()
    before = sys.getallocatedblocks()
    look_at(range(100, 3_000))
    gc.collect()
    assert sys.getallocatedblocks() - before < 1_000


def look_at(numbers: Iterable[int]) -> None:
    """Read a record, and the report of a worker that holds its job, for each number."""
    for number in numbers:
        image = IMAGE | {"key": f"t/{number}.png", "sha256": f"{number:064x}"}
        head = {"id": f"job_{number}", "kind": "generate", "model": "stub", "tenant": "anna"}
        spec = json.dumps({**head, "input": {"prompt": f"hill {number}"}})
        read = record(spec=spec, result=json.dumps({"artifacts": [image]}))
        assert spec_of(read).id == head["id"]
        assert result_of(read).artifacts[0].key == image["key"]
        assert WorkerInfo.model_validate_json(REPORT.replace("job_1", head["id"])).running == (head["id"],)
