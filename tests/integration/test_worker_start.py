"""What a worker loads at its start: the libraries of its own families, one model before it is ready."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.worker_processes import Stack, wait_for

BOOT = """
import os, sys
from pixelkiln_shared.settings import settings
from pixelkiln_worker.app import process
from pixelkiln_worker.serving import served
process.boot(settings(), served(settings()))
process.ready()
print(*sorted({"torch", "diffusers", "transformers"} & set(sys.modules)), flush=True)
os._exit(0)
"""


@pytest.fixture
def stack(redis_url: str, tmp_path: Path) -> Iterator[Stack]:
    stack = Stack(redis_url, tmp_path)
    yield stack
    stack.close()


def libraries(redis_url: str, folder: Path, models: str, device: str) -> set[str]:
    environment = {
        **os.environ,
        "PIXELKILN_REDIS_URL": redis_url,
        "PIXELKILN_STORAGE_URL": f"file://{folder / 'objects'}",
        "PIXELKILN_WORKER_MODELS": models,
        "PIXELKILN_DEVICE": device,
    }
    told = subprocess.run(
        [sys.executable, "-c", BOOT], env=environment, capture_output=True, text=True, check=True
    )
    return set(told.stdout.splitlines()[-1].split())


@pytest.mark.parametrize("device", ["auto", "cpu"])
def test_a_worker_without_networks_imports_no_library_of_networks(
    redis_url: str, tmp_path: Path, device: str
) -> None:
    if device == "auto" and Path("/dev/nvidiactl").exists():
        pytest.skip("torch is asked about the card")
    assert (
        libraries(redis_url, tmp_path, "classical-otsu,classical-cutout,classical-lanczos", device) == set()
    )


def test_a_worker_that_segments_by_network_imports_what_that_needs(redis_url: str, tmp_path: Path) -> None:
    found = libraries(redis_url, tmp_path, "toyworld-classes", "cpu")
    assert found == {"torch", "transformers"}


def test_the_rest_is_loaded_once_the_worker_is_ready(stack: Stack) -> None:
    models = ("stub", "classical-otsu", "classical-lanczos")
    worker = stack.start(PIXELKILN_WORKER_MODELS=",".join(models))
    assert "stub" in worker.resident

    def all_there() -> bool | None:
        [info] = stack.fleet.workers()
        return set(info.resident) == set(models) or None

    wait_for(all_there, 15, "the others were not loaded")
