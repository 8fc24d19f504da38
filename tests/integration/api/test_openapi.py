"""The OpenAPI document is true: thousands of made-up requests get only answers that it announces."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.api.conftest import Api

SECONDS = 30
# Not checked: that every request the schema allows is accepted. Models have limits of their own, and ids that
# somebody made up name nothing.
UNCHECKED = "positive_data_acceptance"


@pytest.mark.slow
def test_made_up_requests_get_only_announced_answers(api: Api, tmp_path: Path) -> None:
    for prompt in ("a red house", "two trees"):
        api.submit(prompt)
    api.publish(api.claim())
    tool = Path(sys.executable).with_name("schemathesis")
    arguments = ["--max-time", str(SECONDS), "--exclude-checks", UNCHECKED, "--request-timeout", "10"]
    done = subprocess.run(
        [tool, "run", f"{api.url}/openapi.json", *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=SECONDS * 5,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6_000:]


def test_every_operation_announces_its_problems(shared: Api) -> None:
    document = shared.http.get("/openapi.json").json()
    assert len(document["paths"]) >= 15
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            assert {"401", "404", "422", "503"} <= set(operation["responses"]), f"{method} {path}"


def test_the_document_names_no_shape_that_nobody_answers_with(shared: Api) -> None:
    assert "HTTPValidationError" not in shared.http.get("/openapi.json").text
