"""Results into files: what is there already stays, and the work is not lost."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import pytest

from pixelkiln.cli.saving import save_result


def existing(path: Path, *, overwrite: bool) -> None:
    raise FileExistsError(path)


def test_a_file_that_exists_stays_and_the_result_can_still_be_had(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    artifact = SimpleNamespace(media_type="image/png", filename=lambda stem: f"{stem}_0.png", save=existing)
    result: Any = SimpleNamespace(job=SimpleNamespace(id="job_1"), artifacts=[artifact])
    with pytest.raises(click.exceptions.Exit) as caught:
        save_result(result, tmp_path, "house")
    assert caught.value.exit_code == 1
    told = capsys.readouterr().err
    assert "house_0.png exists" in told
    assert "pixelkiln download job_1 -o FOLDER" in told
