"""What a picture shows: by a network's own classes, and by labels given in words."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pixelkiln_shared.errors import InvalidInput, ModelUnavailable
from pixelkiln_shared.kinds import Kind
from pixelkiln_worker.families import classification
from pixelkiln_worker.families.classification import Classifier
from pixelkiln_worker.families.contract import Outcome, Pixels, Task
from tests.tiny_models import CPU, Steps, photo_like, segformer
from tests.tiny_vision_models import CLASSES, clip, entry_of, lose, outcome, siglip, spoil, task_of, vit

LABELS = ["a cat", "a red disc", "the sea"]


def load(folder: Path, **fields: Any) -> Classifier:
    return classification.load(entry_of("classification", Kind.CLASSIFY, folder, **fields), CPU)


def ask(image: Pixels | None, **fields: Any) -> Task:
    return task_of(Kind.CLASSIFY, image, **fields)


def scores(found: Outcome | Exception) -> dict[str, float]:
    return {line["label"]: line["score"] for line in outcome(found).detail["classes"]}


def pictures() -> list[Pixels]:
    image = photo_like()[0]
    return [image, image[:120], image[:, :90].copy(), 255 - image, image[::-1].copy()]


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> Classifier:
    return load(vit(tmp_path_factory.mktemp("vit") / "model"), world="toyland")


@pytest.fixture(scope="module", params=[clip, siglip])
def words(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Classifier:
    save: Callable[[Path], Path] = request.param
    return load(save(tmp_path_factory.mktemp("words") / "model"), phrases=True)


def test_a_batch_gives_the_classes_of_single_runs(closed: Classifier) -> None:
    together = closed.run([ask(image) for image in pictures()], Steps())
    for image, found in zip(pictures(), together, strict=True):
        alone = scores(closed.run([ask(image)], Steps())[0])
        assert scores(found) == pytest.approx(alone, abs=2e-4)
        assert sum(alone.values()) == pytest.approx(1, abs=1e-3)
        assert list(alone.values()) == sorted(alone.values(), reverse=True)
        assert not outcome(found).pictures


def test_only_the_best_are_named(closed: Classifier) -> None:
    everything = scores(closed.run([ask(pictures()[0])], Steps())[0])
    best = scores(closed.run([ask(pictures()[0], top=1)], Steps())[0])
    assert set(everything) == set(CLASSES)
    assert list(best.items()) == list(everything.items())[:1]


def test_labels_choose_among_the_models_own_and_unknown_ones_are_told(closed: Classifier) -> None:
    found = outcome(closed.run([ask(pictures()[0], labels=["Grass", "unicorn"])], Steps())[0])
    assert [line["label"] for line in found.detail["classes"]] == ["grass"]
    (warning,) = found.warnings
    assert (warning["code"], "'unicorn'" in warning["message"]) == ("unknown_label", True)
    assert "toyland" in found.detail["note"]


def test_labels_in_words_are_scored_each_job_by_its_own(words: Classifier) -> None:
    wishes = [LABELS, LABELS[:2], [*LABELS, "a house"], ["snow", LABELS[0]], LABELS]
    tasks = [ask(image, labels=wish) for image, wish in zip(pictures(), wishes, strict=True)]
    for task, wish, found in zip(tasks, wishes, words.run(tasks, Steps()), strict=True):
        alone = scores(words.run([task], Steps())[0])
        assert set(alone) == set(wish)
        assert scores(found) == pytest.approx(alone, abs=3e-4)
        assert all(0 <= score <= 1 for score in alone.values())


def test_clip_shares_out_one_and_siglip_judges_each_alone(tmp_path: Path) -> None:
    for save, shared in ((clip, True), (siglip, False)):
        model = load(save(tmp_path / save.__name__), phrases=True)
        few, many = (
            scores(model.run([ask(pictures()[0], labels=wish)], Steps())[0]) for wish in (LABELS[:2], LABELS)
        )
        assert (sum(many.values()) == pytest.approx(1, abs=1e-3)) is shared
        assert (few[LABELS[0]] == pytest.approx(many[LABELS[0]], abs=1e-4)) is not shared


def test_a_job_without_labels_or_picture_fails_alone(words: Classifier) -> None:
    image = pictures()[0]
    tasks = [ask(image), ask(None, labels=LABELS), ask(image, labels=LABELS)]
    without, missing, found = words.run(tasks, Steps())
    assert isinstance(without, InvalidInput)
    assert without.pointer == "/input/labels"
    assert isinstance(missing, InvalidInput)
    assert set(scores(found)) == set(LABELS)
    (alone,) = words.run([ask(image)], Steps())
    assert isinstance(alone, InvalidInput)


def test_the_template_is_the_catalogues(tmp_path: Path) -> None:
    folder = clip(tmp_path / "model")
    plain = load(folder, phrases=True, defaults={"template": "{label}"})
    framed = load(folder, phrases=True, defaults={"template": "a drawing of {label} with {braces}"})
    task = ask(pictures()[0], labels=LABELS)
    full = ask(pictures()[0], labels=[f"a drawing of {label} with {{braces}}" for label in LABELS])
    assert scores(framed.run([task], Steps())[0]).values() != scores(plain.run([task], Steps())[0]).values()
    assert list(scores(framed.run([task], Steps())[0]).values()) == pytest.approx(
        list(scores(plain.run([full], Steps())[0]).values()), abs=1e-4
    )
    with pytest.raises(ModelUnavailable, match="template"):
        load(folder, phrases=True, defaults={"template": "a photo"})


def test_damaged_weights_are_refused(tmp_path: Path) -> None:
    broken, short = vit(tmp_path / "broken"), clip(tmp_path / "short")
    spoil(broken, "classifier.weight")
    lose(short, "visual_projection")
    with pytest.raises(ModelUnavailable, match="not finite"):
        load(broken)
    with pytest.raises(ModelUnavailable, match="incomplete"):
        load(short, phrases=True)
    towers = clip(tmp_path / "towers")
    spoil(towers, "text_projection")
    with pytest.raises(ModelUnavailable, match="not finite"):
        load(towers, phrases=True)


def test_another_kind_of_network_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailable, match="model tiny"):
        load(vit(tmp_path / "vit"), phrases=True)
    with pytest.raises(ModelUnavailable, match="model tiny"):
        load(segformer(tmp_path / "classes"), phrases=True)


def test_a_catalogue_that_names_too_few_classes_is_refused_at_load(tmp_path: Path) -> None:
    folder = vit(tmp_path / "vit")
    with pytest.raises(ModelUnavailable, match=f"names 1 classes, and the network has {len(CLASSES)}"):
        load(folder, classes=("sky",))
