"""From an outcome to files: what they hold, what they are called, and that every value survives."""

from __future__ import annotations

import hashlib
import io
import json
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pixelkiln_shared.jobs import JobSpec
from pixelkiln_shared.kinds import Kind, Role
from pixelkiln_worker import masks
from pixelkiln_worker.annotations import regions
from pixelkiln_worker.encode import EncodedFile, encode
from pixelkiln_worker.families.contract import Outcome, Picture, Pixels, Segment, Segmentation

FACTS = {"model": {"sha256": "ab" * 32, "scheduler": "DDIMScheduler"}, "attempt": 2, "batch_size": 4}
TRAINED = b"digitalsourcetype/trainedAlgorithmicMedia"


def noise(height: int = 40, width: int = 56, channels: int = 3, seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)


def generate_job(**given: Any) -> JobSpec:
    settings = {"prompt": "a red fox", "negative_prompt": "", "seed": 7, "steps": 14, "guidance": 3.0}
    return JobSpec(
        id="job_1", kind=Kind.GENERATE, model="toyworld", tenant="acme", input={**settings, **given}
    )


def segment_job(**given: Any) -> JobSpec:
    return JobSpec(id="job_1", kind=Kind.SEGMENT, model="stub", tenant="acme", input={"image": {}, **given})


def scene() -> tuple[Pixels, Segmentation]:
    """Sky, ground, two trees of one class and a speck of a bird, in a picture of 120 x 80."""
    ids = np.ones((80, 120), np.uint16)
    ids[50:] = 2
    ids[20:60, 10:30] = 3
    ids[30:60, 70:90] = 4
    ids[5:6, 60:62] = 5
    names = [(1, "sky", 1), (2, "ground", 2), (3, "tree", 3), (4, "tree", 3), (5, "bird", 4)]
    segments = tuple(Segment(id=i, label=name, category=c, score=0.5) for i, name, c in names)
    return noise(80, 120), Segmentation(ids=ids, segments=segments)


def opened(file: EncodedFile) -> Image.Image:
    image = Image.open(io.BytesIO(file.data))
    image.load()
    return image


def by_name(files: list[EncodedFile]) -> dict[str, EncodedFile]:
    return {file.name: file for file in files}


# ------------------------------------------------------------------------------------------------ generate


def test_a_job_of_two_pictures_gives_two_images_and_a_manifest() -> None:
    pictures = (Picture(pixels=noise(seed=1), seed=7), Picture(pixels=noise(seed=2), seed=8))

    files = encode(generate_job(count=2), Outcome(pictures=pictures), facts=FACTS)

    assert [(f.role, f.index, f.name) for f in files] == [
        (Role.IMAGE, 0, "0.png"),
        (Role.IMAGE, 1, "1.png"),
        (Role.MANIFEST, 0, "manifest.json"),
    ]
    for file, picture in zip(files, pictures, strict=False):
        assert (file.media_type, file.width, file.height) == ("image/png", 56, 40)
        assert np.array_equal(np.asarray(opened(file)), picture.pixels)


@pytest.mark.parametrize(
    ("form", "name", "pillow"),
    [("webp", "0.webp", "WEBP"), ("jpeg", "0.jpg", "JPEG"), ("png", "0.png", "PNG")],
)
def test_the_format_is_the_one_asked_for(form: str, name: str, pillow: str) -> None:
    smooth = np.dstack([np.linspace(0, 255, 64, dtype=np.uint8).reshape(1, 64).repeat(64, 0)] * 3)

    file = encode(generate_job(format=form), Outcome(pictures=(Picture(pixels=smooth, seed=7),)), facts={})[0]

    assert (file.name, file.media_type, opened(file).format) == (name, f"image/{form}", pillow)
    found = np.asarray(opened(file).convert("RGB")).astype(int)
    assert np.abs(found - smooth).mean() < 2


def test_transparency_in_a_jpeg_is_laid_on_white() -> None:
    pixels = np.zeros((16, 16, 4), np.uint8)
    pixels[..., 3] = 51  # a fifth of black

    file = encode(generate_job(format="jpeg"), Outcome(pictures=(Picture(pixels=pixels, seed=7),)), facts={})[
        0
    ]

    assert abs(int(np.asarray(opened(file)).mean()) - 204) <= 1


def test_the_same_outcome_gives_the_same_bytes() -> None:
    image, found = scene()
    outcome = Outcome(pictures=(Picture(pixels=noise(), seed=7),), segmentation=found)

    first = encode(segment_job(), outcome, image=image, facts=FACTS)

    assert encode(segment_job(), outcome, image=image, facts=FACTS) == first


# ------------------------------------------------------------------------------------------------ metadata


def settings_of(file: EncodedFile) -> str:
    image = opened(file)
    if file.media_type == "image/png":
        return str(image.info["parameters"])
    comment = image.getexif().get_ifd(0x8769)[0x9286]
    assert comment.startswith(b"UNICODE\0")
    return str(comment[8:].decode("utf-16-be"))


@pytest.mark.parametrize("form", ["png", "webp", "jpeg"])
@pytest.mark.parametrize(
    "prompt", ["a red fox", "ein Füchschen, 火, 🦊\nin zwei Zeilen", "z\u0351\u036b: \u202eabc"]
)
def test_a_picture_carries_its_settings(form: str, prompt: str) -> None:
    job = generate_job(prompt=prompt, negative_prompt="blurry", format=form)

    file = encode(job, Outcome(pictures=(Picture(pixels=noise(), seed=9),)), facts=FACTS)[0]

    assert settings_of(file) == (
        f"{prompt}\nNegative prompt: blurry\nSteps: 14, Sampler: DDIM, CFG scale: 3.0, Seed: 9, Size: 56x40, "
        "Model hash: ababababab, Model: toyworld, Version: Pixelkiln 0.1.0"
    )
    assert TRAINED in file.data


def test_latin_text_needs_no_itxt() -> None:
    plain = encode(generate_job(), Outcome(pictures=(Picture(pixels=noise(), seed=9),)), facts={})[0]
    wide = encode(generate_job(prompt="火"), Outcome(pictures=(Picture(pixels=noise(), seed=9),)), facts={})[
        0
    ]

    assert b"tEXtparameters\0a red fox" in plain.data
    assert b"iTXtparameters\0" in wide.data


def test_no_other_programs_graph_is_claimed() -> None:
    file = encode(generate_job(), Outcome(pictures=(Picture(pixels=noise(), seed=9),)), facts=FACTS)[0]

    assert not {"workflow", "prompt"} & set(opened(file).info)


def test_the_manifest_tells_the_whole_story() -> None:
    job = generate_job(count=1)
    outcome = Outcome(
        pictures=(Picture(pixels=noise(), seed=7),),
        detail={"note": "é"},
        warnings=({"code": "prompt_truncated", "message": "..."},),
    )

    files = encode(job, outcome, facts=FACTS)
    manifest = json.loads(files[-1].data)

    assert manifest["format"] == "pixelkiln-manifest/1"
    assert JobSpec.model_validate_json(json.dumps(manifest["job"])) == job
    assert manifest["seed"] == 7
    assert manifest["model"] == {"id": "toyworld", "sha256": "ab" * 32, "scheduler": "DDIMScheduler"}
    assert manifest["run"] == {"attempt": 2, "batch_size": 4}
    assert manifest["software"]["pixelkiln"]
    assert manifest["detail"] == {"note": "é"}
    assert manifest["warnings"][0]["code"] == "prompt_truncated"
    (listed,) = manifest["files"]
    assert (listed["role"], listed["name"], listed["seed"]) == ("image", "0.png", 7)
    assert listed["sha256"] == hashlib.sha256(files[0].data).hexdigest()
    assert listed["size_bytes"] == len(files[0].data)


# ------------------------------------------------------------------------------------------------ segment


def test_a_segmentation_gives_mask_classes_overlay_cutout_annotations_and_manifest() -> None:
    image, found = scene()

    files = encode(segment_job(), Outcome(segmentation=found), image=image, facts=FACTS)

    assert [(f.role, f.index, f.name, f.media_type) for f in files] == [
        (Role.MASK, 0, "0.mask.png", "image/png"),
        (Role.MASK, 1, "0.classes.png", "image/png"),
        (Role.OVERLAY, 0, "0.overlay.webp", "image/webp"),
        (Role.CUTOUT, 0, "0.cutout.png", "image/png"),
        (Role.ANNOTATIONS, 0, "annotations.json", "application/json"),
        (Role.MANIFEST, 0, "manifest.json", "application/json"),
    ]
    assert {(f.width, f.height) for f in files[:4]} == {(120, 80)}


def test_masks_hold_ids_and_classes() -> None:
    image, found = scene()

    files = by_name(encode(segment_job(), Outcome(segmentation=found), image=image, facts={}))

    assert np.array_equal(np.asarray(opened(files["0.mask.png"])), found.ids)
    classes = np.array([0, 1, 2, 3, 3, 4])[found.ids]
    assert np.array_equal(np.asarray(opened(files["0.classes.png"])), classes)


def test_classes_of_their_own_need_no_second_mask() -> None:
    image, found = scene()
    alone = Segmentation(ids=np.minimum(found.ids, 3), segments=found.segments[:3])

    files = encode(segment_job(), Outcome(segmentation=alone), image=image, facts={})

    assert "0.classes.png" not in by_name(files)


def test_annotations_agree_with_the_mask() -> None:
    image, found = scene()

    files = by_name(encode(segment_job(), Outcome(segmentation=found), image=image, facts={}))
    document = json.loads(files["annotations.json"].data)

    assert [a["area"] for a in document["annotations"]] == np.bincount(found.ids.ravel())[1:].tolist()
    assert [c["name"] for c in document["categories"]] == ["sky", "ground", "tree", "bird"]
    assert document["images"][0]["file_name"] == "job_1.png"


def test_the_cutout_shows_what_stays_clear_of_the_frame() -> None:
    image, found = scene()

    file = by_name(encode(segment_job(), Outcome(segmentation=found), image=image, facts={}))["0.cutout.png"]

    cut = np.asarray(opened(file))
    assert cut.shape == (80, 120, 4)
    assert np.array_equal(cut[..., 3] > 0, (found.ids == 3) | (found.ids == 4))
    assert np.array_equal(cut[25:55, 13:27, :3], image[25:55, 13:27])
    assert (cut[25:55, 13:27, 3] == 255).all()
    assert not cut[cut[..., 3] == 0].any()
    assert file.label == "foreground"


def test_a_thing_that_grazes_the_frame_is_still_foreground() -> None:
    _, found = scene()
    ids = found.ids.copy()
    ids[40:44, 0:10] = 3

    foreground, *_ = masks.selected(Segmentation(ids=ids, segments=found.segments), regions(ids), asked=False)

    assert [segment.id for segment in foreground] == [3, 4]


def test_what_was_asked_for_is_cut_out_piece_by_piece() -> None:
    image, found = scene()
    job = segment_job(labels=["tree", "sky", "ground", "bird"])

    files = encode(job, Outcome(segmentation=found), image=image, facts={})

    cut = [f for f in files if f.role is Role.CUTOUT]
    assert [(f.index, f.name, f.label) for f in cut] == [
        (0, "0.cutout.png", "sky"),
        (1, "1.cutout.png", "ground"),
        (2, "2.cutout.png", "tree"),
        (3, "3.cutout.png", "tree"),
        (4, "4.cutout.png", "bird"),
    ]
    assert cut[0].score == 0.5


def test_many_pieces_give_a_handful_of_cutouts() -> None:
    ids = np.arange(100, dtype=np.uint16).reshape(10, 10).repeat(8, 0).repeat(8, 1) + 1
    segments = tuple(Segment(id=n, label="object", category=1) for n in range(1, 101))
    job = segment_job(points=[{"x": 1.0, "y": 1.0}])

    outcome = Outcome(segmentation=Segmentation(ids=ids, segments=segments))
    files = encode(job, outcome, image=noise(80, 80), facts={})

    assert len([f for f in files if f.role is Role.CUTOUT]) == masks.MAX_CUTOUTS


def test_a_picture_of_one_segment_has_no_cutout() -> None:
    found = Segmentation(ids=np.ones((40, 40), np.uint16), segments=(Segment(id=1, label="sky", category=1),))

    files = encode(segment_job(), Outcome(segmentation=found), image=noise(40, 40), facts={})

    assert Role.CUTOUT not in {f.role for f in files}


def test_regions_at_the_frame_only_give_the_most_central() -> None:
    ids = np.ones((80, 120), np.uint16)
    ids[20:80, 40:80] = 2
    found = Segmentation(
        ids=ids, segments=tuple(Segment(id=n, label=f"region {n}", category=n) for n in (1, 2))
    )

    ((only,),) = masks.selected(found, regions(ids), asked=False)

    assert only.id == 2


def test_nothing_found_is_still_a_result() -> None:
    found = Segmentation(ids=np.zeros((40, 40), np.uint16), segments=())

    files = encode(segment_job(), Outcome(segmentation=found), image=noise(40, 40), facts={})

    assert [f.name for f in files] == ["0.mask.png", "0.overlay.webp", "annotations.json", "manifest.json"]
    assert json.loads(files[2].data)["annotations"] == []


def test_more_segments_than_colours_still_come_out() -> None:
    ids = np.arange(400, dtype=np.uint16).reshape(20, 20).repeat(4, 0).repeat(4, 1) + 1
    segments = tuple(Segment(id=n, label="cell", category=1) for n in range(1, 401))

    outcome = Outcome(segmentation=Segmentation(ids=ids, segments=segments))
    files = by_name(encode(segment_job(), outcome, image=noise(80, 80), facts={}))

    assert np.array_equal(np.asarray(opened(files["0.mask.png"])), ids)
    assert len(json.loads(files["annotations.json"].data)["annotations"]) == 400


@pytest.mark.parametrize("image", [None, noise(10, 10)])
def test_a_segmentation_needs_its_own_picture(image: Pixels | None) -> None:
    _, found = scene()

    with pytest.raises(ValueError, match="its own picture"):
        encode(segment_job(), Outcome(segmentation=found), image=image, facts={})
