"""`python -m pixelkiln_worker.models`, which `pixelkiln models` starts: verify, pull, bench."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from pixelkiln_shared.catalogue import Catalogue, ModelEntry
from pixelkiln_shared.kinds import Kind
from pixelkiln_worker.families.contract import Task
from pixelkiln_worker.models.__main__ import main
from pixelkiln_worker.models.bench import task_of
from tests.tiny_models import segformer


@pytest.fixture(autouse=True)
def catalogue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The operator's catalogue: one model in a folder of its own."""
    folder = tmp_path / "model"
    (folder / "unet").mkdir(parents=True)
    (folder / "model_index.json").write_text('{"unet": ["diffusers", "X"], "safety_checker": ["a", "b"]}')
    save_file({"a": np.ones((10, 10), np.float32)}, folder / "unet/model.safetensors")
    file = tmp_path / "models.toml"
    file.write_text(
        '[models.tiny]\ntitle = "Tiny"\nfamily = "diffusion"\nkinds = ["generate"]\n'
        f'source = "{folder}"  # ours\n'
    )
    monkeypatch.setenv("PIXELKILN_CATALOGUE", str(file))
    monkeypatch.setenv("PIXELKILN_DEVICE", "cpu")
    monkeypatch.setenv("PIXELKILN_TORCH_THREADS", "1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return file


def lines(capsys: pytest.CaptureFixture[str]) -> dict[str, tuple[str, str]]:
    """Return what was printed of each model: `ok` or `bad`, and the rest."""
    rows = [line.split(None, 2) for line in capsys.readouterr().out.splitlines()]
    return {name: (state, rest) for state, name, rest in rows}


def test_every_shipped_model_is_whole(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify"]) == 0
    told = lines(capsys)
    assert {state for state, _ in told.values()} == {"ok"}
    assert "as listed" in told["toyworld"][1]
    assert "no weights needed" in told["classical-otsu"][1]
    assert "no hashes are listed" in told["tiny"][1]


def test_a_damaged_model_is_named_and_the_others_are_looked_at(
    catalogue: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = catalogue.with_name("model") / "unet/model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    assert main(["verify", "tiny", "toyworld-classes"]) == 1
    told = lines(capsys)
    assert told["tiny"] == (
        "bad",
        "unet/model.safetensors: 471 bytes long instead of 472: cut short or damaged",
    )
    assert told["toyworld-classes"][0] == "ok"


@pytest.mark.parametrize(
    ("index", "names", "lacking"),
    [
        ("model_index.json", {"vae": ["diffusers", "V"], "none": [None, None]}, "vae"),
        ("unet/model.safetensors.index.json", {"weight_map": {"a": "2.safetensors"}}, "unet/2.safetensors"),
    ],
)
def test_what_an_index_names_must_be_there(
    catalogue: Path, capsys: pytest.CaptureFixture[str], index: str, names: object, lacking: str
) -> None:
    (catalogue.with_name("model") / index).write_text(json.dumps(names))
    assert main(["verify", "tiny"]) == 1
    assert lines(capsys)["tiny"] == ("bad", f"{lacking} is missing")


@pytest.mark.parametrize("content", ["{", "[]"])
def test_a_damaged_index_is_named(catalogue: Path, capsys: pytest.CaptureFixture[str], content: str) -> None:
    (catalogue.with_name("model") / "model_index.json").write_text(content)
    assert main(["verify", "tiny", "classical-otsu"]) == 1
    told = lines(capsys)
    assert told["tiny"][1].startswith("model_index.json is damaged")
    assert told["classical-otsu"][0] == "ok"


def test_a_list_of_hashes_that_is_none_is_one_line(
    catalogue: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (catalogue.with_name("model") / "SHA256SUMS").write_text("nonsense\n")
    assert main(["verify", "tiny"]) == 1
    assert lines(capsys)["tiny"][0] == "bad"


def test_a_family_that_no_worker_has_is_told(catalogue: Path, capsys: pytest.CaptureFixture[str]) -> None:
    catalogue.write_text(catalogue.read_text().replace('"diffusion"', '"difusion"'))
    assert main(["verify", "tiny"]) == 1
    assert lines(capsys)["tiny"] == ("bad", "no worker knows the family 'difusion'")


def test_verifying_needs_no_torch() -> None:
    program = (
        "import sys; from pixelkiln_worker.models.__main__ import main; main(['verify', 'toyworld-classes']);"
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False, capture_output=True).returncode == 0


def test_loading_finds_what_hashes_cannot(catalogue: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "--load", "tiny", "classical-otsu"]) == 1
    told = lines(capsys)
    assert told["tiny"][0] == "bad"  # whole, and still no pipeline that a library knows
    assert told["classical-otsu"][0] == "ok"
    assert "loads on cpu in" in told["classical-otsu"][1]


def test_unknown_models_and_wrong_settings_are_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["verify", "nobody"]) == 2
    monkeypatch.setenv("PIXELKILN_CATALOGUE", "/none")
    assert main(["verify"]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert errors == [
        "Error: 'nobody' is not in the catalogue",
        "Error: PIXELKILN_CATALOGUE: cannot read /none: No such file or directory",
    ]


def test_a_pull_prints_the_hashes_and_writes_them(
    catalogue: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = (catalogue.with_name("model") / "unet/model.safetensors").read_bytes()
    assert main(["pull", "tiny", "--write", str(catalogue)]) == 0
    printed = tomllib.loads(capsys.readouterr().out)["models"]["tiny"]["sha256"]
    written = Catalogue.load(catalogue).get("tiny").sha256
    assert printed == written
    assert written["unet/model.safetensors"] == hashlib.sha256(weights).hexdigest()
    assert main(["verify", "tiny"]) == 0
    assert "as listed" in lines(capsys)["tiny"][1]
    (catalogue.with_name("model") / "model_index.json").write_text("{}")
    assert main(["verify", "tiny"]) == 1


def test_a_file_without_the_model_is_left_alone(
    catalogue: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other.toml"
    other.write_text("[models.another]\n")
    assert main(["pull", "tiny", "--write", str(other)]) == 2
    assert "has no [models.tiny]" in capsys.readouterr().err
    assert other.read_text() == "[models.another]\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "models.toml", "other.toml"]


def test_the_hub_out_of_reach_is_one_line(
    catalogue: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    catalogue.write_text(
        catalogue.read_text().replace(str(catalogue.with_name("model")), "hub:nobody/none@v1")
    )
    assert main(["verify", "tiny"]) == 1
    assert "the hub is off (HF_HUB_OFFLINE=0 lifts that)" in lines(capsys)["tiny"][1]
    monkeypatch.setattr("huggingface_hub.snapshot_download", _no_network)
    assert main(["pull", "tiny"]) == 1
    assert (
        capsys.readouterr().err
        == "Error: model tiny: nobody/none@v1: ConnectionError; the hub does not answer\n"
    )


def _no_network(*_: object, **__: object) -> str:
    raise ConnectionError("no route")


def test_a_branch_of_the_hub_is_pinned_to_the_commit_it_meant(
    catalogue: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = "ab" * 20
    snapshot = shutil.copytree(catalogue.with_name("model"), catalogue.parent / commit)
    catalogue.write_text(
        catalogue.read_text().replace(str(catalogue.with_name("model")), "hub:some/one@main")
    )
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(snapshot))
    assert main(["pull", "tiny", "--write", str(catalogue)]) == 0
    assert Catalogue.load(catalogue).get("tiny").source == f"hub:some/one@{commit}"


def test_a_bench_tells_load_time_memory_and_seconds_a_picture(
    catalogue: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = segformer(tmp_path / "segformer")
    catalogue.write_text(
        f'[models.small]\ntitle = ""\nfamily = "segmentation"\nkinds = ["segment"]\nsource = "{folder}"\n'
        "limits = { max_side = 64, max_pixels = 4096, max_batch = 2 }\n"
    )
    assert main(["bench", "small", "--batch", "1,3", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert set(told["seconds"]) == {"1", "3"}
    assert told["failed"] == {}
    assert told["load_s"] > 0
    assert told["peak_bytes"] > told["footprint_bytes"] > 0


def test_a_batch_size_that_fails_is_told_and_the_others_measured(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIXELKILN_STUB", "1")

    def hungry(entry: object, number: int, steps: int | None = None) -> Task:
        task = task_of(Catalogue.load(stub=True).get("stub"), number, steps)
        task.spec.input["options"] |= {"fail": "oom", "device_ms": 1, "per_item_ms": 1}
        return task

    monkeypatch.setattr("pixelkiln_worker.models.bench.task_of", hungry)
    assert main(["bench", "stub", "--batch", "1,2"]) == 0
    table = capsys.readouterr().out.splitlines()[-2:]
    assert table[0].split()[0] == "1"
    assert table[1].split() == ["2", "out", "of", "memory"]


@pytest.mark.parametrize("entry", list(Catalogue.load()), ids=lambda entry: entry.id)
def test_every_model_of_the_catalogue_has_a_job_to_be_measured_with(entry: ModelEntry) -> None:
    task = task_of(entry, 3)
    kind = entry.kinds[0]
    assert (task.image is None) is (kind is Kind.GENERATE)
    if kind is Kind.GENERATE:
        assert task.spec.input["steps"] == entry.defaults["steps"]
        assert task.spec.input["seed"] == 3
