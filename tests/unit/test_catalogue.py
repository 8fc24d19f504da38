"""The catalogue: which model a job gets that names none, and what is said of a file with a mistake."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pixelkiln_shared.catalogue import Catalogue
from pixelkiln_shared.errors import Misconfigured
from pixelkiln_shared.kinds import Kind

OWN = """
[models.ours]
title = "Ours"
family = "diffusion"
kinds = ["generate"]
default_for = ["generate"]
source = "/srv/models/ours"
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "catalogue.toml"


def test_the_operators_default_comes_before_the_embedded_one(file: Path) -> None:
    file.write_text(OWN)
    catalogue = Catalogue.load(file)
    assert catalogue.default(Kind.GENERATE).id == "ours"
    assert catalogue.get("toyworld").id == "toyworld"
    assert Catalogue.load().default(Kind.GENERATE).id == "toyworld"


def test_an_entry_of_the_same_id_takes_the_embedded_ones_place(file: Path) -> None:
    file.write_text(OWN.replace("models.ours", "models.toyworld"))
    assert Catalogue.load(file).get("toyworld").title == "Ours"
    assert len(Catalogue.load(file)) == len(Catalogue.load())


@pytest.mark.parametrize(
    ("family", "field", "implied", "said"),
    [
        ("promptable", "marks", "optional", "needed"),
        ("phrases", "phrases", True, False),
        ("grounded", "phrases", True, False),
        ("unconditional", "prompt", "ignored", "optional"),
        ("resampling", "prompt", "ignored", "optional"),
        ("upscaling", "prompt", "optional", "needed"),
        ("diffusion", "prompt", "needed", "optional"),
    ],
)
def test_what_follows_from_a_family_need_not_be_said(
    file: Path, family: str, field: str, implied: object, said: object
) -> None:
    text = OWN.replace('"diffusion"', f'"{family}"')
    file.write_text(text)
    assert getattr(Catalogue.load(file).get("ours"), field) == implied
    file.write_text(f"{text}{field} = {json.dumps(said)}\n")
    assert getattr(Catalogue.load(file).get("ours"), field) == said


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"models = 3", "models"),
        (b"[models]\nours = 3", "models.ours"),
        (b"[models.ours]\ntitle = 3", "models.ours"),
        (b"[models", "catalogue.toml"),
        (b"\xff\xfe", "catalogue.toml"),
    ],
)
def test_a_mistake_in_the_file_is_one_clear_line(file: Path, content: bytes, said: str) -> None:
    file.write_bytes(content)
    with pytest.raises(Misconfigured, match=said) as caught:
        Catalogue.load(file)
    assert "\n" not in str(caught.value)
