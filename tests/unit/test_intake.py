"""Intake: what a request is settled to, and what its user is warned of."""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from PIL import Image

from pixelkiln.api.facades.batch_store import Batch, BatchStore
from pixelkiln.inputs import Order
from pixelkiln.leftovers import sweep_uploads
from pixelkiln.producer import Producer
from pixelkiln_shared import keys
from pixelkiln_shared.catalogue import Catalogue
from pixelkiln_shared.errors import (
    InvalidInput,
    NotFound,
    QueueFull,
    RedisUnavailable,
    StorageUnavailable,
    Unavailable,
    UnknownModel,
)
from pixelkiln_shared.jobs import JobRequest, JobSpec, Status
from pixelkiln_shared.kinds import Kind
from pixelkiln_shared.ledger.contract import Idempotency, LaneOffer, Record
from pixelkiln_shared.settings import Settings
from pixelkiln_shared.storage.contract import StoredObject
from pixelkiln_shared.testing.bells import MemoryBells
from pixelkiln_shared.testing.ledger import MemoryLedger
from pixelkiln_shared.testing.storage import MemoryStorage


@dataclass
class House:
    """A producer over in-memory twins."""

    producer: Producer
    ledger: MemoryLedger
    storage: MemoryStorage
    bells: MemoryBells

    def generate(self, prompt: str = "a red house", **fields: Any) -> JobSpec:
        return spec(self.producer.submit({"kind": "generate", "input": {"prompt": prompt, **fields}}))

    def segment(self, image: Any, model: str | None = None, **fields: Any) -> JobSpec:
        request = {"kind": "segment", "model": model, "input": {"image": image, **fields}}
        return spec(self.producer.submit(request))

    def stored(self) -> list[str]:
        return [one.key for one in self.storage.list("")]


def spec(record: Record) -> JobSpec:
    return JobSpec.model_validate_json(record.spec)


def codes(found: JobSpec) -> list[str]:
    return [warning["code"] for warning in found.warnings]


def inline(width: int = 40, height: int = 30) -> dict[str, str]:
    file = io.BytesIO()
    Image.new("RGB", (width, height), "teal").save(file, "PNG")
    return {"base64": base64.b64encode(file.getvalue()).decode()}


@pytest.fixture
def house() -> House:
    ledger, storage, bells = MemoryLedger(), MemoryStorage(), MemoryBells()
    catalogue = Catalogue.load()
    producer = Producer(
        Settings(max_queue=5), ledger=ledger, storage=storage, bells=bells, catalogue=catalogue
    )
    return House(producer, ledger, storage, bells)


# ------------------------------------------------------------------------------------------------ generate


def test_what_is_left_out_comes_from_the_model(house: House) -> None:
    found = house.generate()
    entry = Catalogue.load().get("toyworld")
    assert found.model == "toyworld"
    for name in ("width", "height", "steps", "guidance"):
        assert found.input[name] == entry.defaults[name]
    assert 0 <= found.input["seed"] < 2**32


def test_what_is_said_stays_as_it_is(house: House) -> None:
    fields: dict[str, Any] = {"width": 64, "height": 192, "steps": 3, "guidance": 0}
    fields |= {"seed": 0, "count": 2, "format": "webp"}
    found = house.generate(**fields)
    assert {name: found.input[name] for name in fields} == fields
    assert found.rows == 2


def test_two_jobs_without_a_seed_get_different_ones(house: House) -> None:
    assert house.generate().input["seed"] != house.generate().input["seed"]


@pytest.mark.parametrize(
    ("fields", "code", "pointer"),
    [
        ({"width": 512}, "invalid_size", "/input/width"),
        ({"height": 8}, "invalid_size", "/input/height"),
        ({"steps": 101}, "out_of_range", "/input/steps"),
        ({"options": {"scheduler": "euler"}}, "unknown_option", "/input/options/scheduler"),
        ({"guidance": float("nan")}, "invalid_number", "/input/guidance"),
        ({"guidance": float("inf")}, "invalid_number", "/input/guidance"),
        ({"prompt": "\ud800"}, "invalid_prompt", "/input/prompt"),
    ],
)
def test_the_models_own_limits_hold(house: House, fields: dict[str, Any], code: str, pointer: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        house.generate(**fields)
    assert (caught.value.code, caught.value.pointer) == (code, pointer)


@pytest.mark.parametrize(
    ("prompt", "unknown"),
    [
        ("a red house on the left and two green trees in a meadow by day", None),
        ("A picture of two hot-air balloons beside a Crimson sailing boat", None),
        ("an astronaut riding a horse on the sea", "astronaut, riding, horse"),
        ("ein rotes Haus", "ein, rotes, haus"),
        ("2 cars, 3 boats!", None),
        ("赤い家", "赤い家"),
    ],
)
def test_words_the_model_was_never_taught_are_named(house: House, prompt: str, unknown: str | None) -> None:
    warnings = house.generate(prompt).warnings
    expected = [] if unknown is None else [f"toyworld was never taught: {unknown}"]
    assert [warning["message"] for warning in warnings if warning["code"] == "unknown_words"] == expected


def test_jobs_that_differ_only_in_words_and_seed_share_a_batch(house: House) -> None:
    one, other, larger = house.generate("a", seed=1), house.generate("b", seed=2), house.generate(width=192)
    assert one.batch_key == other.batch_key != larger.batch_key


# ------------------------------------------------------------------------------------------------ segment


def test_a_photograph_goes_to_a_classical_method_and_the_user_is_told(house: House) -> None:
    found = house.segment(inline())
    assert found.model == "classical-felzenszwalb"
    assert codes(found) == ["classical_default"]


def test_marks_go_to_the_method_that_uses_them(house: House) -> None:
    found = house.segment(inline(), boxes=[{"x0": 1, "y0": 1, "x1": 20, "y1": 20}])
    assert found.model == "classical-grabcut"
    assert codes(found) == ["classical_default"]


def test_a_scene_of_a_known_world_goes_to_the_segmenter_of_that_world(house: House) -> None:
    scene = house.generate()
    found = house.segment({"job": scene.id})
    assert (found.model, found.warnings) == ("toyworld-classes", [])
    assert house.ledger.get(found.id).status is Status.BLOCKED
    assert house.segment({"job": scene.id}, model="classical-otsu").model == "classical-otsu"


def test_a_named_method_is_used_without_a_word(house: House) -> None:
    assert house.segment(inline(), model="classical-kmeans", regions=4).warnings == []


def test_the_picture_is_the_jobs_own(house: House) -> None:
    found = house.segment(inline(40, 30))
    image = found.input["image"]
    assert image["object"] == keys.input_key("default", found.id)
    assert (image["width"], image["height"]) == (40, 30)
    assert house.stored() == [image["object"]]


def test_pictures_beyond_a_models_limits_are_refused(house: House) -> None:
    with pytest.raises(InvalidInput) as caught:
        house.segment(inline(1_100, 16), model="toyworld-classes")
    assert (caught.value.code, caught.value.pointer) == ("image_too_large", "/input/image")


def test_a_segmenter_cannot_generate(house: House) -> None:
    with pytest.raises(UnknownModel):
        house.segment(inline(), model="toyworld")


# ------------------------------------------------------------------------------------------------ the door


def test_typed_requests_are_as_good_as_dictionaries(house: House) -> None:
    record = house.producer.submit(
        JobRequest(kind=Kind.GENERATE, input={"prompt": "a tree"}, labels={"a": "b"})
    )
    assert spec(record).labels == {"a": "b"}


def test_a_submit_rings_for_what_waits(house: House) -> None:
    house.generate()
    house.generate()
    assert house.bells.queues["generate.toyworld"] == 2


def test_a_bell_out_of_order_does_not_undo_a_submit(house: House) -> None:
    house.bells.outage = True
    found = house.generate()
    assert house.ledger.get(found.id).status is Status.QUEUED
    house.bells.outage = False
    house.producer.sweep()
    assert house.bells.queues["generate.toyworld"] == 1


def test_a_full_queue_keeps_no_picture(house: House) -> None:
    for _ in range(5):
        house.generate()
    with pytest.raises(QueueFull):
        house.segment(inline())
    assert house.stored() == []


def test_a_job_refused_for_want_of_a_worker_keeps_no_picture(house: House) -> None:
    producer = Producer(
        Settings(),
        ledger=house.ledger,
        storage=house.storage,
        bells=house.bells,
        catalogue=Catalogue.load(),
        served_lanes=frozenset,
    )
    with pytest.raises(Unavailable, match="no live worker"):
        producer.accept({"kind": "segment", "input": {"image": inline()}}, need_worker=True)
    assert house.stored() == []


@pytest.mark.parametrize("way", ["submit_many", "submit_group", "submit_pipeline"])
def test_jobs_before_an_outage_in_the_middle_keep_no_picture(
    house: House, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    rows = [{"id": f"s{n}", "kind": "segment", "input": {"image": inline()}} for n in range(3)]
    if way != "submit_pipeline":
        rows = [{name: value for name, value in row.items() if name != "id"} for row in rows]
    put = house.storage.put

    def break_down(key: str, data: bytes, *, media_type: str) -> StoredObject:
        if len(house.stored()) == 2:
            raise StorageUnavailable("away for a moment")
        return put(key, data, media_type=media_type)

    monkeypatch.setattr(house.storage, "put", break_down)
    with pytest.raises(StorageUnavailable):
        getattr(house.producer, way)(rows)
    assert house.stored() == []


def test_a_deletion_that_the_store_interrupts_can_be_asked_for_again(house: House) -> None:
    job_id = house.segment(inline()).id
    house.producer.cancel(job_id)
    house.storage.outage = True
    with pytest.raises(StorageUnavailable):
        house.producer.delete(job_id)
    house.storage.outage = False
    house.producer.delete(job_id)
    assert house.stored() == []
    with pytest.raises(NotFound):
        house.producer.get(job_id)


def test_marks_that_show_no_object_are_refused_at_the_door(house: House) -> None:
    away = [{"x": 3.0, "y": 3.0, "positive": False}]
    for model in (None, "classical-grabcut"):
        with pytest.raises(InvalidInput, match="at least one box or point") as caught:
            house.segment(inline(), model, points=away)
        assert caught.value.code == "invalid_region"
    assert house.stored() == []


def test_a_label_to_keep_is_a_short_text(house: House) -> None:
    for label in ("", "x" * 201):
        with pytest.raises(InvalidInput) as caught:
            house.segment(inline(), labels=[label])
        assert caught.value.pointer == "/input/labels/0"


def test_inputs_stay_when_nobody_knows_whether_the_job_was_written(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = house.ledger.submit

    def answer_lost(*jobs: Any, **options: Any) -> None:
        write(*jobs, **options)
        raise RedisUnavailable("the answer was lost")

    monkeypatch.setattr(house.ledger, "submit", answer_lost)
    with pytest.raises(RedisUnavailable):
        house.segment(inline())
    assert len(house.stored()) == 1


def test_a_replay_keeps_one_job_and_one_picture(house: House) -> None:
    request = {"kind": "segment", "input": {"image": inline()}}
    key = Idempotency(scope="me", key="k", fingerprint="f")
    first = house.producer.submit(request, idempotency=key)
    again = house.producer.accept(request, idempotency=key)
    assert (again.ids, again.replayed) == ((first.id,), True)
    assert house.stored() == [keys.input_key("default", first.id)]


def test_a_bulk_submit_says_how_far_it_came(house: House) -> None:
    rows = [{"kind": "generate", "input": {"prompt": f"tree {n}"}} for n in range(4)] + [{"kind": "paint"}]
    with pytest.raises(InvalidInput) as caught:
        house.producer.submit_many(rows, chunk=2)
    assert caught.value.detail["accepted"] == 4
    assert caught.value.pointer == "/4/kind"
    assert house.ledger.group(caught.value.detail["group"]).total == 4


def test_a_bulk_submit_reads_no_further_than_two_chunks_ahead(house: House) -> None:
    read: list[int] = []

    def rows() -> Iterator[dict[str, Any]]:
        for number in range(1_000):
            read.append(number)
            yield {"kind": "generate", "input": {"prompt": f"tree {number}"}}

    with pytest.raises(QueueFull) as caught:
        house.producer.submit_many(rows(), chunk=2)
    assert caught.value.detail["accepted"] == 4
    assert len(read) == 8  # what was refused, and what was prepared meanwhile


def test_group_names_are_ids_of_ours(house: House) -> None:
    for name in ("cats", "grp_*", "pk:job:1"):
        with pytest.raises(NotFound):
            house.producer.submit({"kind": "generate", "group": name, "input": {"prompt": "a tree"}})
    made = keys.new_id("grp")
    assert house.producer.submit({"kind": "generate", "group": made, "input": {"prompt": "a"}}).group == made


def test_a_retried_job_is_rung_for(house: House) -> None:
    found = house.generate()
    claim = house.ledger.claim("w", [LaneOffer(lane="generate.toyworld", max_rows=1)], lease_s=10)
    assert claim is not None
    house.bells.queues.clear()
    house.ledger.fail(found.id, claim.jobs[0].attempt, '{"code": "x", "message": "y"}')
    assert house.producer.retry(found.id).status is Status.QUEUED
    assert house.bells.queues["generate.toyworld"] == 1


def test_uploads_go_after_a_day_and_not_before(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    image = base64.b64decode(inline()["base64"])
    now = time.time_ns()
    old, _, _ = house.producer.upload(image)
    monkeypatch.setattr(time, "time_ns", lambda: now + (keys.UPLOAD_S + 60) * 10**9)
    fresh, _, _ = house.producer.upload(image)
    later = datetime.now(UTC) + timedelta(seconds=keys.UPLOAD_S + 120)
    monkeypatch.setattr(
        "pixelkiln.leftovers.datetime", type("Later", (), {"now": staticmethod(lambda _: later)})
    )
    assert sweep_uploads(house.storage) == 2
    assert {key.partition(".")[0] for key in house.stored()} == {keys.upload_key("default", fresh)}
    assert old != fresh


def test_a_batch_goes_after_a_month_and_its_file_after_a_day(house: House) -> None:
    store = BatchStore(house.storage, "default")
    file = store.keep_file(b"{}", "rows.jsonl")
    batch = Batch(
        id=keys.new_id("batch"), endpoint="/", input_file_id=file.id, completion_window="24h", jobs=0
    )
    store.keep(batch)
    made = keys.id_time(batch.id)
    for seconds, left in ((0, 3), (keys.UPLOAD_S, 1), (keys.BATCH_S - 60, 1), (keys.BATCH_S + 60, 0)):
        sweep_uploads(house.storage, now=made + timedelta(seconds=seconds + (seconds == keys.UPLOAD_S)))
        assert len(list(house.stored())) == left


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"priority": "bulk", "labels": {"a": "b"}, "deterministic": True, "run_timeout_s": 5},
        {"group": keys.new_id("grp"), "input": {"prompt": "a dragon", "count": 3}},
    ],
)
def test_the_stored_spec_says_all_that_is_not_a_default(house: House, more: dict[str, Any]) -> None:
    order = Order(tenant="default")
    prepared = house.producer._intake.prepare(
        {"kind": "generate", "input": {"prompt": "a tree"}} | more, order
    )
    told = JobSpec.model_validate_json(prepared.job.spec)
    assert told == prepared.spec.model_copy(update={"group": None}), "the record has the group"
    assert prepared.job.spec.startswith('{"v":1,')
    assert ("warnings" in prepared.job.spec) == bool(prepared.spec.warnings)
