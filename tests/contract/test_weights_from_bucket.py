"""Weights that live in a bucket come whole, once, and are checked like any others."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from pixelkiln_shared.catalogue import Catalogue, ModelEntry
from pixelkiln_shared.errors import ModelUnavailable
from pixelkiln_shared.kinds import Kind
from pixelkiln_shared.settings import settings
from pixelkiln_shared.storage.s3 import S3Storage
from pixelkiln_worker import weights
from pixelkiln_worker.models.__main__ import main

pytestmark = pytest.mark.s3


@pytest.fixture
def bucket(
    s3_server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[S3Storage, str]]:
    """A prefix of the test server's bucket, reached as a worker reaches it: by settings and boto3's chain."""
    monkeypatch.setenv("PIXELKILN_S3_ENDPOINT_URL", s3_server.endpoint_url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3_server.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3_server.secret_key)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    settings.cache_clear()
    prefix = f"models/{secrets.token_hex(6)}"
    yield s3_server.storage(prefix=prefix), f"s3://{s3_server.bucket}/{prefix}"
    settings.cache_clear()


def entry_of(source: str) -> ModelEntry:
    return ModelEntry(id="far", family="diffusion", kinds=(Kind.GENERATE,), title="", source=source)


def put_model(storage: S3Storage, value: float) -> None:
    data = save({"a": np.full(9, value, np.float32)})
    storage.put("unet/model.safetensors", data, media_type="application/octet-stream")
    storage.put("model_index.json", b"{}", media_type="application/json")
    storage.put("unet/other.bin", b"a pickle nobody fetches", media_type="application/octet-stream")


def test_weights_of_a_bucket_are_fetched_once_and_again_when_they_change(
    bucket: tuple[S3Storage, str],
) -> None:
    storage, source = bucket
    put_model(storage, 1.0)
    first = weights.resolve(entry_of(source))
    assert set(first.sha256) == {"model_index.json", "unet/model.safetensors"}
    stamp = (first.folder / "model_index.json").stat().st_mtime_ns
    again = weights.resolve(entry_of(source))
    assert again.identity == first.identity
    assert (again.folder / "model_index.json").stat().st_mtime_ns == stamp
    put_model(storage, 2.0)
    assert weights.resolve(entry_of(source)).identity != first.identity


@pytest.mark.parametrize("tail", ["/none", "-no-such-bucket"])
def test_a_bucket_without_the_model_is_unavailable(bucket: tuple[S3Storage, str], tail: str) -> None:
    _, source = bucket
    wrong = source + tail if tail.startswith("/") else f"s3://pixelkiln{tail}/x"
    with pytest.raises(ModelUnavailable, match="model far: s3://"):
        weights.resolve(entry_of(wrong))


def test_a_pull_fetches_a_bucket_into_the_cache_and_pins_its_bytes(
    bucket: tuple[S3Storage, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage, source = bucket
    put_model(storage, 1.0)
    file = tmp_path / "models.toml"
    file.write_text(
        f'[models.far]\ntitle = ""\nfamily = "diffusion"\nkinds = ["generate"]\nsource = "{source}"\n'
    )
    monkeypatch.setenv("PIXELKILN_CATALOGUE", str(file))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert main(["pull", "far", "--write", str(file)]) == 0
    assert set(Catalogue.load(file).get("far").sha256) == {"model_index.json", "unet/model.safetensors"}
    assert list((tmp_path / "pixelkiln/weights").glob("*/unet/model.safetensors"))
    put_model(storage, 2.0)  # somebody changed the bucket
    assert main(["verify", "far"]) == 1
