"""What an API shows of jobs that only later versions read whole."""

from __future__ import annotations

import json

from pixelkiln_shared import keys
from tests.integration.api.conftest import Api


def test_a_job_of_a_later_version_says_what_it_waits_for(api: Api) -> None:
    api.serve("generate.toyworld")
    job_id = api.submit()["id"]
    claimed = api.claim()
    api.ledger.release(job_id, claimed.attempt, version=2)
    shown = api.http.get(f"/v1/jobs/{job_id}").json()
    assert shown["status"] == "queued"
    assert "no live worker reads jobs of version 2 for toyworld" in str(shown["warnings"])


def test_jobs_of_a_later_form_hide_no_others(api: Api) -> None:
    mine, later, unknown = (api.submit()["id"] for _ in range(3))
    api.redis.set(f"{keys.LedgerKey.SPEC}{later}", json.dumps({"v": 2, "id": later, "kind": "dream"}))
    api.redis.hset(f"{keys.LedgerKey.JOB}{unknown}", "kind", "dream")
    assert {job["id"] for job in api.http.get("/v1/jobs").json()["jobs"]} == {mine, later}
    assert api.http.get(f"/v1/jobs/{later}").json()["model"] == "toyworld"
    assert api.http.get(f"/v1/jobs/{unknown}").status_code == 404
    assert api.http.get("/").status_code == api.http.get(f"/jobs/{later}").status_code == 200
