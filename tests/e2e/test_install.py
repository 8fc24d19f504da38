"""Each door carries only its own libraries: what a fresh interpreter has loaded after an import."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODELS = {"torch", "diffusers", "transformers", "cv2", "skimage", "numpy", "accelerate", "safetensors"}
SERVER = {"boto3", "botocore", "celery", "kombu", "redis", "fastapi", "uvicorn", "pydantic_settings", "PIL"}
PROGRAM = """
import importlib, sys
for name in {modules!r}:
    importlib.import_module(name)
print(" ".join(sorted({watched!r} & set(sys.modules))))
"""


def loaded(modules: list[str], watched: set[str]) -> set[str]:
    """Return which of the watched packages a fresh interpreter has loaded after importing modules."""
    program = PROGRAM.format(modules=modules, watched=watched)
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(told.stdout.split())


def modules_of(package: str) -> list[str]:
    """Return every module of a package of the producer's."""
    root = ROOT / "producer"
    files = sorted((root / package).rglob("*.py"))
    names = [".".join(file.relative_to(root).with_suffix("").parts) for file in files]
    return [name.removesuffix(".__init__") for name in names if not name.endswith("__main__")]


def test_the_producer_never_loads_a_model_library() -> None:
    assert loaded(modules_of("pixelkiln"), MODELS) == set()


@pytest.mark.parametrize("package", ["pixelkiln/client", "pixelkiln/cli"])
def test_the_client_and_the_command_line_load_no_server_library(package: str) -> None:
    assert loaded(modules_of(package), MODELS | SERVER) == set()


def test_only_workers_ask_for_torch() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    with_torch = {name for name, needs in extras.items() if any(need.startswith("torch") for need in needs)}
    assert with_torch == {"worker", "torchvision"}, "the second is for workers with a GPU"
    plain = " ".join(project["dependencies"])
    assert not any(name in plain for name in ("torch", "boto3", "celery", "redis"))
    assert all("worker" not in need for need in extras["producer"] + extras["shared"])


@pytest.mark.parametrize("command", [["--help"], ["generate", "--help"]])
def test_help_is_there_in_a_blink(command: list[str]) -> None:
    program = "import time; t = time.perf_counter(); from pixelkiln.cli import main\n"
    program += f"try: main({command!r})\nexcept SystemExit: print('TOOK', time.perf_counter() - t)"
    times = []
    for _ in range(5):
        told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        times.append(float(told.stdout.rpartition("TOOK")[2]))
    assert min(times) < 0.2
