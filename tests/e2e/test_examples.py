"""The examples run as they stand, against a real stack."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a stack with the embedded models."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("PIXELKILN_") and k != "REDIS_URL"}
    data = tmp_path_factory.mktemp("examples") / "data"
    process = subprocess.Popen(
        [sys.executable, "-m", "pixelkiln", "up", "--data", str(data), "--port", "0"],
        stdout=subprocess.PIPE,
        text=True,
        env=kept,
    )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert line.startswith("ready: ")
        yield line.removeprefix("ready: ").strip()
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)
        process.stdout.close()


def run(name: str, *arguments: object, url: str) -> list[str]:
    told = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PIXELKILN_URL": url},
    )
    return told.stdout.splitlines()


@pytest.mark.slow
def test_a_scene_is_made_and_taken_apart(url: str, tmp_path: Path) -> None:
    lines = run("generate_and_segment.py", "a red house on the meadow at day", tmp_path, url=url)
    with Image.open(tmp_path / "scene.png") as scene:
        assert scene.size == (128, 128)
    assert (tmp_path / "scene_overlay.webp").exists()
    assert any(" at [" in line for line in lines)


@pytest.mark.slow
def test_a_file_of_prompts_becomes_a_folder_of_pictures(url: str, tmp_path: Path) -> None:
    lines = run("bulk.py", EXAMPLES / "prompts.jsonl", tmp_path, url=url)
    assert len(lines) == 7  # one row asks for two pictures
    assert len(list(tmp_path.glob("*.png"))) == 7
