"""Holes are what people draw, requests name what is in them, and the widened U-Net begins as it was."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel

from training.dataset import Split, build, draw_scene
from training.generator import build_unet
from training.holes import around, draw_hole, inside, request
from training.inpainting import CHANNELS, FACTOR, HoledScenes, generator_folder, widen
from training.matching import visible_objects
from training.package import open_pipeline
from training.refilled import cut, seam
from training.world.grammar import KINDS, PLURALS, Group, Spec

SIDE_PX = 128


def test_holes_take_a_tenth_to_seven_tenths_or_all() -> None:
    rng = np.random.default_rng(0)
    _, scene, _ = draw_scene("train", 3)
    objects = visible_objects(scene.classes, scene.instances)
    shares = np.array([draw_hole(objects, SIDE_PX, rng).mean() for _ in range(400)])
    assert shares.min() > 0.04  # of what reaches over the edges less is left
    assert 0.01 < (shares == 1).mean() < 0.1
    assert np.quantile(shares[shares < 1], 0.99) < 0.75


def test_half_of_the_holes_hold_a_whole_thing() -> None:
    rng = np.random.default_rng(1)
    whole = []
    for number in range(60):
        _, scene, _ = draw_scene("train", number)
        objects = visible_objects(scene.classes, scene.instances)
        hole = draw_hole(objects, SIDE_PX, rng)
        whole.append(any(hole[mask].all() for _, mask in objects))
    assert np.mean(whole) > 0.5


def test_a_request_names_what_is_in_the_hole_and_nothing_else() -> None:
    rng = np.random.default_rng(2)
    for number in range(60):
        spec, scene, _ = draw_scene("train", number)
        objects = visible_objects(scene.classes, scene.instances)
        name, mask = objects[0]
        counts = inside(around(mask, 2), objects)
        assert counts[KINDS[name - 8]] >= 1
        words = set(request(spec, counts, rng).replace(",", "").split())
        for kind in KINDS:
            assert bool({kind, PLURALS[kind]} & words) == (counts[kind] > 0)


def test_an_empty_hole_is_asked_for_by_the_place_alone() -> None:
    spec = Spec(terrain="sea", time="dawn", mountains=True, groups=(Group(kind="boat", count=1),))
    texts = {request(spec, Counter(), np.random.default_rng(seed)) for seed in range(20)}
    assert "on the sea with mountains at dawn" in texts
    assert not any("boat" in text for text in texts)


def test_a_part_of_a_group_is_asked_for_by_its_own_number() -> None:
    group = Group(kind="car", count=3, colour="red")
    spec = Spec(terrain="snow", time="day", mountains=False, groups=(group,))
    texts = [request(spec, Counter(car=2), np.random.default_rng(seed)) for seed in range(20)]
    assert all("two" in text and "cars" in text for text in texts)


@torch.no_grad()
def test_the_widened_unet_begins_as_the_generator() -> None:
    torch.manual_seed(0)
    unet: UNet2DConditionModel = build_unet().eval()
    wide = widen(unet).eval()
    latents, beside = torch.randn(2, 4, 16, 16), torch.randn(2, CHANNELS - 4, 16, 16)
    hidden = torch.randn(2, 7, unet.config["cross_attention_dim"])
    before = unet(latents, 500, hidden, added_cond_kwargs={}).sample
    after = wide(torch.cat([latents, beside], 1), 500, hidden, added_cond_kwargs={}).sample
    assert torch.allclose(before, after, atol=1e-5)


def test_holes_reach_the_unet_as_the_pipeline_gives_them(tmp_path: Path) -> None:
    """Mask at every eighth pixel; the picture's latents with the hole grey, by the shipped encoder."""
    build(tmp_path / "train", "train", 4, processes=1)
    split = Split.open(tmp_path / "train")
    pipeline = open_pipeline(generator_folder(tmp_path))
    scenes = HoledScenes(pipeline, split, np.zeros((4, 4, 16, 16), np.float16))
    holed = scenes.draw(np.arange(4), np.random.default_rng(5))
    holes = [scenes.hole(number, rng)[0] for rng in [np.random.default_rng(5)] for number in range(4)]
    for number, hole in enumerate(holes):
        mask = torch.from_numpy(hole)[None, None].float()
        nearest = torch.nn.functional.interpolate(mask, size=(16, 16))
        assert torch.equal(holed.beside[number, :1], nearest[0])
        assert hole[::FACTOR, ::FACTOR].any()


def test_a_thing_in_the_middle_of_its_hole_is_not_cut() -> None:
    hole, mask = np.zeros((64, 64), np.bool_), np.zeros((64, 64), np.bool_)
    hole[10:50, 10:50] = True
    mask[20:40, 20:40] = True
    assert cut(mask, hole) == 0
    mask[20:40, 20:50] = True
    assert 0.15 < cut(mask, hole) < 0.4


def test_the_edge_of_the_picture_cuts_nothing() -> None:
    hole, mask = np.zeros((64, 64), np.bool_), np.zeros((64, 64), np.bool_)
    hole[:40, 10:50] = True
    mask[:20, 20:40] = True
    assert cut(mask, hole) == 0


def test_a_seam_is_the_step_across_the_edge_of_the_hole() -> None:
    hole = np.zeros((32, 32), np.bool_)
    hole[:, 16:] = True
    image = np.zeros((32, 32, 3), np.uint8)
    image[:, 16:] = 40
    assert seam(image, hole) == pytest.approx(40)
    assert seam(np.full_like(image, 9), hole) == 0
