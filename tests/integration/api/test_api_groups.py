"""Groups and pipelines: many jobs in one request, all or none."""

from __future__ import annotations

from typing import Any

import pytest

from tests.integration.api.conftest import Api


def row(prompt: str = "a red house", **fields: Any) -> dict[str, Any]:
    return {"kind": "generate", "input": {"prompt": prompt, **fields}}


def test_a_group_counts_its_jobs_and_can_grow(api: Api) -> None:
    first = api.http.post("/v1/groups", json={"jobs": [row(), row("two trees")]})
    assert first.status_code == 202
    group = first.json()["group"]
    more = api.http.post("/v1/groups", json={"jobs": [row()], "group": group}).json()
    assert more["group"] == group
    found = api.http.get(f"/v1/groups/{group}").json()
    assert (found["total"], found["counts"]["queued"], found["done"]) == (3, 3, False)
    listed = api.http.get("/v1/jobs", params={"group": group}).json()["jobs"]
    assert [job["id"] for job in listed] == (first.json()["ids"] + more["ids"])[::-1]


def test_one_wrong_row_refuses_the_whole_group_and_is_named(api: Api) -> None:
    rows = [row(), row(count=0), row(), row(""), {"kind": "generate"}]
    answer = api.http.post("/v1/groups", json={"jobs": rows})
    assert answer.status_code == 422
    assert [(error["pointer"], error["code"]) for error in answer.json()["errors"]] == [
        ("/jobs/1/input/count", "out_of_range"),
        ("/jobs/3/input/prompt", "invalid_prompt"),
        ("/jobs/4/input", "missing_field"),
    ]
    assert api.http.get("/v1/jobs").json()["jobs"] == []


def test_too_many_rows_are_refused_with_the_limit(api: Api) -> None:
    answer = api.http.post("/v1/groups", json={"jobs": [row()] * 1_001})
    assert (answer.status_code, answer.json()["code"]) == (413, "batch_too_large")
    assert answer.json()["errors"][0]["max"] == 1_000


def test_shapes_that_are_no_group_are_refused(api: Api) -> None:
    for body, code in [
        ({"jobs": []}, "too_short"),
        ({}, "missing_field"),
        ({"jobs": [1]}, "invalid_type"),
        ({"jobs": [row()], "name": "x"}, "unknown_field"),
        ([], "invalid_type"),
    ]:
        answer = api.http.post("/v1/groups", json=body)
        assert (answer.status_code, answer.json()["code"]) == (422, code), body


def test_a_group_submitted_twice_with_one_key_is_one_group(api: Api) -> None:
    body, headers = {"jobs": [row(), row()]}, {"Idempotency-Key": "batch"}
    first = api.http.post("/v1/groups", json=body, headers=headers)
    again = api.http.post("/v1/groups", json=body, headers=headers)
    assert again.json() == first.json()
    assert again.headers["idempotency-replayed"] == "true"
    assert api.http.get(f"/v1/groups/{first.json()['group']}").json()["total"] == 2


def test_canceling_a_group_ends_what_has_not_begun(api: Api) -> None:
    group = api.http.post("/v1/groups", json={"jobs": [row()] * 3}).json()["group"]
    api.publish(api.claim())
    found = api.http.post(f"/v1/groups/{group}/cancel").json()
    assert found["counts"]["canceled"] == 2
    assert found["counts"]["succeeded"] == 1
    assert found["done"] is True


def test_a_large_group_is_canceled_some_at_a_time(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pixelkiln.api.groups.CANCELED_AT_ONCE", 300)
    group = api.http.post("/v1/groups", json={"jobs": [row()] * 700}).json()["group"]
    api.claim()
    first = api.http.post(f"/v1/groups/{group}/cancel")
    assert first.status_code == 202
    assert first.json()["counts"]["canceled"] == 500, "two calls of the ledger, 250 each"
    second = api.http.post(f"/v1/groups/{group}/cancel")
    assert second.status_code == 200
    assert (second.json()["counts"]["canceled"], second.json()["counts"]["canceling"]) == (699, 1)


def test_groups_of_others_cannot_be_seen_or_joined(api: Api) -> None:
    from pixelkiln.producer import Producer

    theirs, _ = Producer(api.settings).submit_many([row()], tenant="somebody-else")
    assert api.http.get(f"/v1/groups/{theirs}").status_code == 404
    assert api.http.post(f"/v1/groups/{theirs}/cancel").status_code == 404
    assert api.http.post("/v1/groups", json={"jobs": [row()], "group": theirs}).status_code == 404
    assert api.http.post("/v1/jobs", json={**row(), "group": theirs}).status_code == 404


# ------------------------------------------------------------------------------------------------ pipelines

STEPS = [
    {"id": "scene", **row()},
    {"id": "masks", "kind": "segment", "input": {"image": "$scene.image"}},
    {"id": "again", "kind": "segment", "model": "classical-otsu", "input": {"image": "$masks.overlay.0"}},
]


def test_a_pipeline_runs_each_step_when_its_picture_is_there(api: Api) -> None:
    answer = api.http.post("/v1/pipelines", json={"steps": STEPS})
    assert answer.status_code == 202, answer.text
    made = answer.json()
    assert list(made["steps"]) == ["scene", "masks", "again"]
    assert [job["status"] for job in made["jobs"]] == ["queued", "blocked", "blocked"]
    masks = made["jobs"][1]
    assert masks["model"] == "toyworld-classes", "the segmenter of the world the scene comes from"
    assert masks["input"]["image"] == {"job": made["steps"]["scene"], "role": "image", "index": 0}
    api.publish(api.claim())
    assert api.http.get(f"/v1/jobs/{masks['id']}").json()["status"] == "queued"
    assert api.http.get(f"/v1/groups/{made['group']}").json()["total"] == 3


def test_pipelines_that_cannot_be_are_refused_whole(api: Api) -> None:
    scene, masks, _ = STEPS
    for steps, code, pointer in [
        ([masks, scene], "invalid_step", "/steps/0/input/image"),
        ([scene, scene], "invalid_step", "/steps/1/id"),
        ([{**scene, "id": "1"}], "invalid_step", "/steps/0/id"),
        ([row()], "invalid_step", "/steps/0/id"),
        ([scene, {**masks, "input": {"image": "$scene.cake"}}], "invalid_step", "/steps/1/input/image"),
        ([scene, {**masks, "input": {"image": "scene"}}], "invalid_step", "/steps/1/input/image"),
        (
            [scene, {**masks, "input": {"image": "$scene.mask"}}],
            "invalid_reference",
            "/steps/1/input/image/role",
        ),
        (
            [scene, {**masks, "input": {"image": "$scene.image.3"}}],
            "out_of_range",
            "/steps/1/input/image/index",
        ),
        ([scene, {**masks, "model": "toyworld"}], "unknown_model", "/steps/1/model"),
        ([], "too_short", "/steps"),
    ]:
        answer = api.http.post("/v1/pipelines", json={"steps": steps})
        assert (answer.status_code, answer.json()["code"]) == (422, code), steps
        assert answer.json()["errors"][0]["pointer"] == pointer
    assert api.http.get("/v1/jobs").json()["jobs"] == []


def test_a_prompt_may_begin_with_a_dollar(api: Api) -> None:
    answer = api.http.post("/v1/pipelines", json={"steps": [{"id": "a", **row("$scene.image")}]})
    assert answer.json()["jobs"][0]["input"]["prompt"] == "$scene.image"
