"""What `pixelkiln classify --wait` prints."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from pixelkiln.cli.make import deliver
from pixelkiln_shared.jobs import Status


def job_about(name: str, **labels: str) -> Any:
    classes = [{"label": "a cat", "score": 0.75}, {"label": "a dog", "score": 0.25}]
    manifest = SimpleNamespace(url=f"/v1/objects/{name}/manifest.json")
    resource = SimpleNamespace(artifacts=[manifest], detail={"classes": classes}, labels=labels)
    return SimpleNamespace(id=name, status=Status.SUCCEEDED, resource=resource, warnings=[])


def test_each_class_is_a_line_that_names_its_picture(capsys: pytest.CaptureFixture[str]) -> None:
    jobs = {"job_1": job_about("job_1", file="one.png"), "job_2": job_about("job_2")}
    client: Any = SimpleNamespace(url="http://127.0.0.1:9", job=jobs.__getitem__)
    deliver(
        client,
        list(jobs.values()),
        [None, None],
        wait=True,
        timeout=None,
        output=None,
        force=False,
        as_json=False,
        quiet=False,
    )
    assert capsys.readouterr().out.splitlines() == [
        "0.750  a cat  one.png",
        "0.250  a dog  one.png",
        "0.750  a cat  job_2",
        "0.250  a dog  job_2",
    ]
