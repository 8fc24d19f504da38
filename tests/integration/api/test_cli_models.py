"""`pixelkiln models` and `workers` against the real API; the test plays the worker."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pixelkiln_shared.fleet import LoadedModel
from tests.integration.api.conftest import Api

pytestmark = pytest.mark.usefixtures("quiet_server")


def test_a_model_is_shown_with_all_that_is_known_of_it(api: Api, pixelkiln: Callable[..., Any]) -> None:
    api.serve(
        "generate.toyworld", loaded=(LoadedModel(id="toyworld", footprint_bytes=25_300_000, load_s=1.25),)
    )
    shown = pixelkiln("models", "show", "toyworld").stdout
    assert "limit        max_side = 256" in shown
    assert "default for  generate" in shown
    assert "vocabulary   a two three" in shown
    assert "loaded       worker-of-tests on cpu: 25.3 MB in 1.2 s" in shown
    assert json.loads(pixelkiln("models", "show", "toyworld", "--json").stdout)["licence"] == "Apache-2.0"
    assert pixelkiln("models", "list", "-q").stdout == pixelkiln("models", "-q").stdout
    assert pixelkiln("models", "show", "nobody").exit_code == 2
    assert "toyworld (25 MB, 1.2 s)" in pixelkiln("workers").stdout


def test_a_model_that_no_worker_can_load_is_told_everywhere(
    api: Api, pixelkiln: Callable[..., Any], tmp_path: Path
) -> None:
    why = "model toyworld: unet/x.safetensors is missing"
    api.serve("generate.toyworld", unavailable={"toyworld": why})
    facts = api.http.get("/v1/models/toyworld").json()
    assert (facts["unavailable"], facts["ready_workers"]) == (why, 0)
    assert api.http.get("/v1/models/toyworld-classes").json()["unavailable"] is None
    assert why in pixelkiln("models").stderr
    assert why in pixelkiln("workers").stderr
    assert why in pixelkiln("models", "show", "toyworld").stdout
    found = json.loads(pixelkiln("doctor", "--json", "--data", tmp_path / "none").stdout)
    assert {"check": "models", "state": "fail", "detail": why} in found


def test_weights_without_the_workers_libraries_are_one_line(
    pixelkiln: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pixelkiln.cli.models.find_spec", lambda name: None)
    for arguments in (["verify"], ["pull", "toyworld"], ["bench", "toyworld"]):
        refused = pixelkiln("models", *arguments)
        assert refused.exit_code == 2
        assert "pip install 'pixelkiln[worker]'" in refused.stderr


def test_weights_are_verified_by_the_workers_own_code(
    pixelkiln: Callable[..., Any], capfd: pytest.CaptureFixture[str]
) -> None:
    assert pixelkiln("models", "verify", "toyworld-classes").exit_code == 0
    assert capfd.readouterr().out.startswith("ok    toyworld-classes")
    assert pixelkiln("models", "verify", "nobody").exit_code == 2
