"""Rough pictures of jobs that run: by the event, by the address, on the gallery's one stream."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pixelkiln_shared.previews import Previews
from tests.integration.api.conftest import Api, picture
from tests.integration.api.test_api_events import read

WEBP = picture(8, 8, "WEBP")


def test_a_preview_is_announced_and_served(api: Api) -> None:
    job_id = api.submit()["id"]
    with api.http.stream("GET", f"/v1/jobs/{job_id}/events") as answer:
        events = read(answer.iter_lines())
        next(events)  # the snapshot: nothing that happens from here on is missed
        claimed = api.claim()
        Previews(api.redis).put(job_id, WEBP, step=4, steps=14)
        told = next(one for one in events if one.type == "preview")  # before the end, which ends the stream
        api.publish(claimed)
    assert told.data["step"] == 4
    assert told.data["url"].startswith(f"{api.url}/v1/jobs/{job_id}/preview")
    answer = api.http.get(told.data["url"])
    assert (answer.content, answer.headers["content-type"]) == (WEBP, "image/webp")
    assert answer.headers["cache-control"] == "no-store"


def test_a_job_without_a_preview_and_a_job_that_is_not_there_are_404(api: Api) -> None:
    job_id = api.submit()["id"]
    for name in (job_id, "job_00000000000000000000000000"):
        answer = api.http.get(f"/v1/jobs/{name}/preview")
        assert answer.status_code == 404
        assert answer.json()["code"] == "not_found"


def test_a_preview_needs_the_key_where_there_is_one(start_api: Callable[..., Api]) -> None:
    api = start_api(api_key="k" * 40)
    Previews(api.redis).put("job_00000000000000000000000000", WEBP, step=1, steps=2)
    assert api.http.get("/v1/jobs/job_00000000000000000000000000/preview").status_code == 401
    assert api.http.get("/live?jobs=job_00000000000000000000000000").status_code in {303, 401}


def test_one_stream_tells_of_all_the_jobs_on_a_page_and_of_no_other(api: Api) -> None:
    first, second, other = (api.submit()["id"] for _ in range(3))
    previews = Previews(api.redis)
    with api.http.stream("GET", f"/live?jobs={first},{second},job_nobodys") as answer:
        lines = answer.iter_lines()
        assert next(lines).startswith(":")  # from here on nothing is missed
        for name in (other, first, second):
            previews.put(name, WEBP, step=2, steps=5)
        events = read(lines)
        heard = [next(events), next(events)]
    assert {(one.type, one.data["job"]) for one in heard} == {("preview", first), ("preview", second)}


@pytest.mark.parametrize("jobs", ["", "job_nobodys", ",,,"])
def test_a_stream_of_no_jobs_stays_open_and_silent(api: Api, jobs: str) -> None:
    with api.http.stream("GET", f"/live?jobs={jobs}") as answer:
        assert answer.status_code == 200
        assert next(answer.iter_lines()).startswith(":")
