"""Weights are found, measured and checked before anything is loaded."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from pixelkiln_shared.catalogue import ModelEntry
from pixelkiln_shared.errors import ModelUnavailable
from pixelkiln_shared.kinds import Kind
from pixelkiln_shared.settings import settings
from pixelkiln_worker import weights

WEIGHT_FILE = "unet/model.safetensors"


def entry_of(source: Path | str, **fields: object) -> ModelEntry:
    return ModelEntry(
        id="tiny", family="diffusion", kinds=(Kind.GENERATE,), title="", source=str(source), **fields
    )


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "model"
    (root / "unet").mkdir(parents=True)
    (root / "model_index.json").write_text("{}")
    tensors = {"a": np.ones((10, 10), np.float16), "places": np.arange(5, dtype=np.int64)}
    save_file(tensors, root / WEIGHT_FILE)
    return root


def test_a_good_folder_is_measured_and_named_by_its_bytes(folder: Path, tmp_path: Path) -> None:
    found = weights.resolve(entry_of(folder))
    assert found.footprint_bytes(4) == 10 * 10 * 4 + 5 * 8
    copy = shutil.copytree(folder, tmp_path / "copy")
    assert weights.resolve(entry_of(copy)).identity == found.identity
    (copy / "model_index.json").write_text('{"other": 1}')
    assert weights.resolve(entry_of(copy)).identity != found.identity


def test_the_hash_of_the_catalogue_is_held_to(folder: Path) -> None:
    right = {WEIGHT_FILE: digest(folder / WEIGHT_FILE)}
    assert weights.resolve(entry_of(folder, sha256=right)).folder == folder
    with pytest.raises(ModelUnavailable, match=r"tiny: unet/model\.safetensors has the SHA-256"):
        weights.resolve(entry_of(folder, sha256={WEIGHT_FILE: "0" * 64}))
    with pytest.raises(ModelUnavailable, match=r"vae/model\.safetensors is missing"):
        weights.resolve(entry_of(folder, sha256=right | {"vae/model.safetensors": "0" * 64}))


def test_a_weight_file_without_a_listed_hash_is_refused(folder: Path) -> None:
    right = {WEIGHT_FILE: digest(folder / WEIGHT_FILE)}
    shutil.copy(folder / WEIGHT_FILE, folder / "unet/other.safetensors")
    with pytest.raises(ModelUnavailable, match=r"no hash is listed for unet/other\.safetensors"):
        weights.resolve(entry_of(folder, sha256=right))


def test_a_flipped_byte_is_found_by_the_sums_beside_the_files(folder: Path) -> None:
    path = folder / WEIGHT_FILE
    (folder / "SHA256SUMS").write_text(f"{digest(path)}  ./{WEIGHT_FILE}\n")
    weights.resolve(entry_of(folder))
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    with pytest.raises(ModelUnavailable, match="has the SHA-256"):
        weights.resolve(entry_of(folder))


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def _cut_in_header(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:20])


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _text(path: Path) -> None:
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n")


def _break_header(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[8:12] = b"!!!!"
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [_cut, _cut_in_header, _empty, _text, _break_header])
def test_a_damaged_file_is_refused(folder: Path, damage: Callable[[Path], None]) -> None:
    damage(folder / WEIGHT_FILE)
    with pytest.raises(ModelUnavailable, match=r"model tiny: unet/model\.safetensors: "):
        weights.resolve(entry_of(folder))


def test_pickles_are_refused_where_they_are_the_weights(folder: Path) -> None:
    (folder / "unet/pytorch_model.bin").write_bytes(b"never read: safetensors stand beside it")
    weights.resolve(entry_of(folder))
    (folder / "vae").mkdir()
    (folder / "vae/pytorch_model.bin").write_bytes(b"\x80\x04")
    with pytest.raises(ModelUnavailable, match=r"vae/pytorch_model\.bin is a pickle"):
        weights.resolve(entry_of(folder))


def test_code_in_a_model_folder_is_refused(folder: Path) -> None:
    (folder / "pipeline.py").write_text("raise SystemExit")
    with pytest.raises(ModelUnavailable, match=r"pipeline\.py is code"):
        weights.resolve(entry_of(folder))


def test_a_variant_is_seen_when_it_is_all_there_is(folder: Path) -> None:
    assert weights.resolve(entry_of(folder)).variant is None
    (folder / WEIGHT_FILE).rename(folder / "unet/model.fp16.safetensors")
    found = weights.resolve(entry_of(folder))
    assert found.variant == "fp16"
    assert [path.name for path in found.files()] == ["model.fp16.safetensors"]


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("/no/such/folder", "there is no folder"),
        ("embedded:no-such-model", "there is no folder"),
        ("embedded:../../etc", "its source is not"),
        ("hub:owner/name", "its source is not"),
        ("", "its source is not"),
    ],
)
def test_a_source_that_leads_nowhere_is_named(source: str, why: str) -> None:
    with pytest.raises(ModelUnavailable, match=why):
        weights.resolve(entry_of(source))


def test_the_hub_is_off_unless_the_operator_lifts_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    with pytest.raises(ModelUnavailable, match="the hub is off"):
        weights.resolve(entry_of("hub:nobody-here/no-such-model@0123456789"))


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailable, match=r"holds no \.safetensors"):
        weights.resolve(entry_of(tmp_path))


def test_fetched_weights_appear_whole_or_not_at_all(folder: Path, tmp_path: Path) -> None:
    def get(name: str, path: Path) -> None:
        shutil.copy(folder / name, path)

    sizes = {name: (folder / name).stat().st_size for name in (WEIGHT_FILE, "model_index.json")}
    target = tmp_path / "cache" / "abc"
    with pytest.raises(OSError, match="came with"):
        weights._fetch(target, sizes | {WEIGHT_FILE: 10_000_000}, get)
    assert list(target.parent.iterdir()) == []
    weights._fetch(target, sizes, get)
    weights._fetch(target, sizes, get)  # a second worker, a moment later
    assert weights.resolve(entry_of(target)).identity == weights.resolve(entry_of(folder)).identity
    assert [path.name for path in target.parent.iterdir()] == ["abc"]


def test_header_lists_tensors_without_reading_them(folder: Path) -> None:
    tensors = weights.header(folder / WEIGHT_FILE)
    assert {name: tensor["shape"] for name, tensor in tensors.items()} == {"a": [10, 10], "places": [5]}
    assert json.dumps(tensors)


def test_an_unreachable_store_is_not_told_by_its_address(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "PIXELKILN_S3_ENDPOINT_URL": "http://127.0.0.1:9",  # the discard port: nobody listens
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
    }.items():
        monkeypatch.setenv(name, value)
    settings.cache_clear()
    entry = ModelEntry(id="far", family="diffusion", kinds=(Kind.GENERATE,), title="", source="s3://bucket/m")
    try:
        with pytest.raises(ModelUnavailable, match="EndpointConnectionError") as caught:
            weights.resolve(entry)
    finally:
        settings.cache_clear()
    assert "127.0.0.1" not in caught.value.message
