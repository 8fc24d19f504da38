"""Embeddings: whose they are, how many are held, and what becomes of damaged ones."""

from __future__ import annotations

import re

import numpy as np
import safetensors.torch
import torch

from pixelkiln_worker.families.embeddings import Embeddings, Levels, pack, size_bytes

IDENTITY = {"sha256": "a" * 64, "dtype": "float32"}
PICTURE = np.arange(60, dtype=np.uint8).reshape(4, 5, 3)
SHAPES = [(2, 4, 4), (3, 2, 2)]


def levels(value: float = 1.0) -> Levels:
    return tuple(torch.full(shape, value, dtype=torch.float16) for shape in SHAPES)


def embeddings(held_bytes: int = 1_000) -> Embeddings:
    return Embeddings(IDENTITY, torch.float16, held_bytes)


def test_the_key_names_tenant_picture_weights_and_number_format() -> None:
    key = embeddings().key("t", PICTURE)
    others = [
        embeddings().key("u", PICTURE),
        embeddings().key("t", PICTURE[::-1]),
        embeddings().key("t", PICTURE.reshape(5, 4, 3)),
        Embeddings(IDENTITY | {"sha256": "b" * 64}, torch.float16).key("t", PICTURE),
        Embeddings(IDENTITY | {"dtype": "float16"}, torch.float16).key("t", PICTURE),
        Embeddings(IDENTITY, torch.bfloat16).key("t", PICTURE),
    ]
    assert len({key, *others}) == 7
    assert key == embeddings().key("t", PICTURE.copy())
    assert re.fullmatch(r"[0-9a-f]{32}-[0-9a-f]{64}", key)
    assert [embeddings().made(one) for one in (key, others[0], others[3])] == [True, True, False]


def test_the_least_recently_used_make_room() -> None:
    held = embeddings(held_bytes=2 * size_bytes(levels()))
    held.hold("a", levels())
    held.hold("b", levels())
    assert held.get("a") is not None
    held.hold("c", levels())
    assert ("a" in held, "b" in held, "c" in held) == (True, False, True)


def test_one_is_held_even_if_it_is_larger_than_the_limit() -> None:
    held = embeddings(held_bytes=1)
    held.hold("a", levels())
    held.hold("b", levels())
    assert ("a" in held, "b" in held) == (False, True)


def test_a_packed_embedding_comes_back_as_it_was() -> None:
    back = embeddings().unpack(pack(levels(0.5)), SHAPES)
    assert back is not None
    assert all(torch.equal(one, two) for one, two in zip(back, levels(0.5), strict=True))


def test_damaged_or_foreign_embeddings_are_not_believed() -> None:
    held, good = embeddings(), pack(levels())
    assert held.unpack(good[:-1], SHAPES) is None
    assert held.unpack(b"", SHAPES) is None
    assert held.unpack(good, [*SHAPES[:1], (3, 2, 1)]) is None
    assert held.unpack(good, []) is None
    assert held.unpack(safetensors.torch.save({"0": levels()[0]}), SHAPES) is None
    assert held.unpack(pack(tuple(level.float() for level in levels())), SHAPES) is None
    assert held.unpack(pack(levels(float("nan"))), SHAPES) is None
