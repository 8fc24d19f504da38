"""A phrase means exactly the pixels it says, and the text model's tokenizer knows every word of it."""

from collections.abc import Callable

import numpy as np
import pytest

from training.dataset import colour_ids, draw_scene
from training.phrases import ABSENT_TYPES, PRESENT_TYPES, Phrase, Teller
from training.text import build_phrase_tokenizer, phrase_ids
from training.world.grammar import CLASSES, COLOURS

SCENES = range(40)


def teller(index: int, *, flip: bool = False) -> Teller:
    spec, scene, _ = draw_scene("validation", index)
    step = -1 if flip else 1
    maps = (scene.classes[:, ::step], scene.instances[:, ::step])
    return Teller(*maps, colour_ids(spec), np.random.default_rng(index))


def told(wanted: str) -> list[Phrase]:
    return [phrase for index in SCENES if (phrase := teller(index).phrase(wanted)).type == wanted]


@pytest.mark.parametrize("wanted", PRESENT_TYPES)
def test_phrases_about_what_is_there_mean_pixels(wanted: str) -> None:
    phrases = told(wanted)
    assert len(phrases) > 10
    assert all(phrase.mask.any() for phrase in phrases)


@pytest.mark.parametrize("wanted", ABSENT_TYPES)
def test_phrases_about_what_is_absent_mean_nothing(wanted: str) -> None:
    phrases = told(wanted)
    assert len(phrases) > 10
    assert not any(phrase.mask.any() for phrase in phrases)


def test_a_colour_picks_the_kind_that_has_it() -> None:
    for index in SCENES:
        spec, scene, _ = draw_scene("validation", index)
        phrase = teller(index).phrase("colour")
        meant = [group.kind for group in spec.groups if (group.colour or "green") in phrase.text.split()]
        masks = [scene.classes == CLASSES.index(kind) for kind in meant]
        assert any(np.array_equal(phrase.mask, mask) for mask in masks)


@pytest.mark.parametrize(
    ("side", "holds"), [("left", lambda x: x < 0.4), ("right", lambda x: x > 0.6)], ids=["left", "right"]
)
@pytest.mark.parametrize("flip", [False, True], ids=["as drawn", "mirrored"])
def test_sides_are_those_one_sees(side: str, holds: Callable[[float], bool], flip: bool) -> None:
    seen = 0
    for index in SCENES:
        phrase = teller(index, flip=flip).phrase("position")
        if side in phrase.text and phrase.type == "position":
            seen += 1
            assert holds(float(np.nonzero(phrase.mask)[1].mean()) / phrase.mask.shape[1])
    assert seen


def test_the_phrase_tokenizer_knows_sky_sun_and_moon() -> None:
    tokenizer = build_phrase_tokenizer()
    words = [
        tokenizer.convert_ids_to_tokens(tokenizer(text)["input_ids"])[1:-1] for text in ("sky", "the moon")
    ]
    assert words == [["sky"], ["moon"]]


def test_the_phrase_tokenizer_keeps_the_worlds_synonyms() -> None:
    tokenizer = build_phrase_tokenizer()
    words = tokenizer.convert_ids_to_tokens(tokenizer("the huge crimson cottage by midnight")["input_ids"])
    assert words[1:-1] == ["large", "red", "house", "night"]


def test_a_phrase_ends_in_its_highest_token() -> None:
    """Where CLIPSeg looks for the meaning of a phrase, whichever way it is asked to find the end."""
    ids, attention = phrase_ids([f"the {colour} house on the left" for colour in COLOURS] + ["sky"])
    ends = attention.sum(1) - 1
    assert ids.argmax(1).tolist() == ends.tolist()
    assert (ids.max(1).values == build_phrase_tokenizer().eos_token_id).all()
