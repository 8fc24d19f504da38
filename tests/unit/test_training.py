"""The drawn world is exact and repeatable, and every part learns from its first steps."""

import json
import re
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation

from pixelkiln_worker.models.bench import Measured
from training.autoencoder import cache_latents, load_autoencoder, train_autoencoder
from training.borders import train_borders
from training.cards import history, write_part_card
from training.crisp_decoder import train_crisp_decoder
from training.dataset import Split, build, draw_scene, write_json
from training.generator import train_generator
from training.large_decoder import train_large_decoder
from training.loop import Plan, Trainer, learning_rate_factor
from training.muon import orthogonalize
from training.package import load_packaged, package, package_part
from training.parts import PARTS, part
from training.peers import Peers, run_together
from training.speed import note
from training.text_encoder import train_text_encoder
from training.tokenizer import MAX_TOKENS, UNKNOWN, build_tokenizer, encode, sprinkle_unknown
from training.world import CLASSES, KINDS, caption, sample_spec
from training.world.grammar import FILLERS, HELD_OUT, KIND_COLOURS, TERRAIN_KINDS, TERRAINS, TIMES, VOCABULARY

SCENES = range(200)
EMBEDDED = Path("worker/pixelkiln_worker/embedded")


def plan(max_steps: int, batch_size: int) -> Plan:
    """A few steps at a nearly constant rate."""
    return Plan(budget_s=600, batch_size=batch_size, warmup_steps=2, max_steps=max_steps, ema_decay=0.5)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A handful of scenes in each split."""
    folder = tmp_path_factory.mktemp("data")
    build(folder / "train", "train", 60, processes=1)
    build(folder / "validation", "validation", 16, processes=1)
    build(folder / "held-out", "held-out", 16, processes=1)
    return folder


def test_scenes_depend_on_seed_alone() -> None:
    spec, scene, texts = draw_scene("train", 7)
    again_spec, again, again_texts = draw_scene("train", 7)
    assert (spec, texts) == (again_spec, again_texts)
    assert np.array_equal(scene.image, again.image)
    assert np.array_equal(scene.instances, again.instances)


def test_captions_use_the_right_article() -> None:
    rng = np.random.default_rng(1)
    texts = [caption(sample_spec(rng), rng, complete=True).text for _ in SCENES]
    assert any("an orange" in text for text in texts)
    assert not any("a orange" in text for text in texts)


def test_splits_hold_different_scenes() -> None:
    assert not np.array_equal(draw_scene("train", 7)[1].image, draw_scene("validation", 7)[1].image)


def test_training_never_shows_held_out_combinations() -> None:
    for index in SCENES:
        spec, _, _ = draw_scene("train", index)
        assert not spec.held_out
        seen = {(g.kind, g.colour, where) for g in spec.groups for where in (spec.terrain, spec.time)}
        assert not seen & HELD_OUT


def test_held_out_combinations_can_be_asked_for() -> None:
    rng = np.random.default_rng(0)
    assert all(sample_spec(rng, held_out=True).held_out for _ in range(20))


def test_held_out_pairs_occur_in_training() -> None:
    """Only whole combinations are new: each colour of a kind remains somewhere, and each place."""
    for kind, colour, _ in HELD_OUT:
        places = [terrain for terrain in TERRAINS if kind in TERRAIN_KINDS[terrain]]
        allowed = {
            (terrain, time)
            for terrain in places
            for time in TIMES
            if not {(kind, colour, terrain), (kind, colour, time)} & HELD_OUT
        }
        assert colour in KIND_COLOURS[kind]
        assert allowed


def test_captions_speak_the_vocabulary() -> None:
    known = set(VOCABULARY) | FILLERS | {"an"}
    for index in SCENES:
        for text in draw_scene("train", index)[2]:
            assert set(re.findall(r"[a-z]+", text)) <= known


def test_maps_agree_with_each_other() -> None:
    for index in range(30):
        spec, scene, _ = draw_scene("train", index)
        assert len(scene.objects) == sum(group.count for group in spec.groups)
        for number, item in enumerate(scene.objects, start=1):
            kinds = np.unique(scene.classes[scene.instances == number])
            assert [CLASSES[k] for k in kinds] == [item.kind]
        assert not scene.instances[scene.classes < len(CLASSES) - len(KINDS)].any()
        assert scene.depth[scene.classes == CLASSES.index("sky")].max() == 0
        assert 0 <= scene.depth.min() <= scene.depth.max() <= 1


def test_complete_captions_say_every_attribute() -> None:
    rng = np.random.default_rng(3)
    for _ in range(50):
        spec = sample_spec(rng)
        text = caption(spec, rng, complete=True).text
        for group in spec.groups:
            assert group.colour in text
            assert group.position in text


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("A HUGE crimson house!", "a large red house"),
        ("2 cactuses at sundown in the Sahara", "two cacti sunset desert"),
        ("an orange tree beside a lake", "a orange tree and sea"),
        ("a photo of three hot-air balloons over the ocean", "three balloons sea"),
        ("a boat in the centre, without mountains", "a boat middle"),
    ],
)
def test_tokenizer_understands_synonyms(said: str, meant: str) -> None:
    tokenizer = build_tokenizer()
    assert tokenizer.convert_ids_to_tokens(tokenizer(said)["input_ids"])[1:-1] == meant.split()


def test_tokenizer_marks_unknown_words() -> None:
    assert encode(build_tokenizer(), ["a red zeppelin"])[0, 3] == UNKNOWN


def test_unknown_words_are_inserted_before_the_end() -> None:
    ids = encode(build_tokenizer(), ["a red house by day"] * 64)
    sprinkled = sprinkle_unknown(ids, 1.0)
    assert ((sprinkled == UNKNOWN).sum(1) == 1).all()
    assert sprinkled.shape == (64, MAX_TOKENS)
    for row, known in zip(sprinkled, ids, strict=True):
        assert row[row != UNKNOWN][:7].tolist() == known[:7].tolist()


def test_muon_levels_singular_values() -> None:
    torch.manual_seed(0)
    matrices = torch.randn(3, 24, 96) * torch.logspace(0, -2, 96)
    values = torch.linalg.svdvals(orthogonalize(matrices))
    assert values.min() > 0.3
    assert values.max() < 1.5


def test_rate_warms_up_and_anneals() -> None:
    assert learning_rate_factor(0.0, 0, 100) < 0.02
    assert learning_rate_factor(0.0, 99, 100) == pytest.approx(1.0)
    assert learning_rate_factor(1.0, 999, 100) == pytest.approx(0.01)


SLOWER = {"gan": 4}
"""How many times as many steps show a trend above the noise of the batches."""


def train_all(out: Path, data: Path, max_steps: int) -> None:
    """Bring every part under `out` to `max_steps`."""
    train_text_encoder(out / "text-encoder", plan(max_steps, 32), captions=200)
    train_autoencoder(out / "autoencoder", data, plan(max_steps, 4))
    train_large_decoder(out / "large-decoder", data, out / "autoencoder", plan(max_steps, 2))
    for name in PARTS:
        part(name).train(out / name, data, plan(max_steps * SLOWER.get(name, 1), 4))
    autoencoder = load_autoencoder(out / "autoencoder")
    cache_latents(autoencoder, Split.open(data / "train"), out / "latents.npy")
    generator_plan = plan(max_steps, 8)
    train_generator(
        out / "generator", data / "train", out / "latents.npy", out / "text-encoder", generator_plan
    )


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every part after a few steps, stopped and taken up again on the way."""
    out = tmp_path_factory.mktemp("runs")
    (out / "data").symlink_to(data)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    numbers, fresh = count(), np.random.default_rng
    with pytest.MonkeyPatch.context() as patch:  # runs draw anew each time; here they draw the same each time
        patch.setattr(np.random, "default_rng", lambda *seed: fresh(*(seed or (next(numbers),))))
        train_all(out, data, 3)
        train_all(out, data, 9)
    torch.set_num_threads(threads)
    return out


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", ["text-encoder", "autoencoder", "large-decoder", "generator", *PARTS])
def test_loss_falls_across_a_stop(trained: Path, name: str) -> None:
    reports = [json.loads(line) for line in (trained / name / "log.jsonl").read_text().splitlines()]
    assert [report["steps"] for report in reports] == [n * SLOWER.get(name, 1) for n in (3, 9)]
    if name == "inpainting":  # it starts as a trained network: its batches differ more than six steps teach
        assert max(report["loss"] for report in reports) < 1  # untrained it is 2
    else:
        assert reports[1]["loss"] < reports[0]["loss"]


def test_checkpoints_package_as_plain_models(trained: Path) -> None:
    write_json(trained / "generator" / "latents.json", {"scale": 1.0})
    package(trained, EMBEDDED)
    packaged = trained / "packaged"
    pipeline = load_packaged(trained)
    picture = pipeline("a red house by day", num_inference_steps=2, guidance_scale=3.0).images[0]
    assert picture.size == (128, 128)
    index = json.loads((packaged / "toyworld" / "model_index.json").read_text())
    assert index["tokenizer"] == ["transformers", "PreTrainedTokenizerFast"]


def test_the_shipped_code_can_be_taught_further(data: Path, tmp_path: Path) -> None:
    package(tmp_path, EMBEDDED)
    before = load_packaged(tmp_path)
    weights = before.vae.decoder.layers[0].weight.clone()
    metrics = train_crisp_decoder(tmp_path / "crisp-decoder", data, before, plan(3, 2), drawn=2)
    assert 0.2 < metrics["sharpness"] < 3
    train_borders(tmp_path / "borders", data, load_packaged(tmp_path).vae)
    package(tmp_path, EMBEDDED)
    after = load_packaged(tmp_path)
    assert not torch.equal(after.vae.decoder.layers[0].weight, weights)
    assert not torch.equal(after.vae.encoder.layers[0].weight, before.vae.encoder.layers[0].weight)
    assert history(tmp_path)["crisp_minutes"] > 0
    files = (tmp_path / "packaged").rglob("*.json")
    assert not any("_name_or_path" in path.read_text() for path in files)


@pytest.mark.parametrize("name", PARTS)
def test_parts_package_as_plain_models_with_cards(name: str, trained: Path, data: Path) -> None:
    package_part(name, trained)
    folder = trained / "packaged" / part(name).MODEL
    scores = part(name).score(folder, data)
    write_part_card(name, trained, folder, scores)
    assert (folder / "README.md").read_text().count("{") == 0


def test_the_segmenter_opens_by_the_librarys_auto_classes(trained: Path) -> None:
    package_part("segmenter", trained)
    folder = trained / "packaged" / "toyworld-classes"
    net = AutoModelForSemanticSegmentation.from_pretrained(folder).float()
    processor = AutoImageProcessor.from_pretrained(folder)
    values = processor(images=np.zeros((128, 128, 3), np.uint8), return_tensors="pt")["pixel_values"]
    assert net(values).logits.shape == (1, len(CLASSES), 64, 64)
    assert net.config.id2label[0] == "sky"


def _train_with_peer(folder: Path, peers: Peers) -> None:
    torch.manual_seed(peers.rank)
    model = torch.nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = Trainer(folder, plan(8, 1), {"model": model}, [optimizer], peers)
    trainer.run(lambda fraction: model(torch.randn(8, 4)).square().mean(), dict)
    (folder / f"{peers.rank}.json").write_text(json.dumps(model.weight.tolist()))


def test_peers_leave_with_the_same_weights(tmp_path: Path) -> None:
    run_together(2, _train_with_peer, tmp_path)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert np.allclose(first, second)
    assert json.loads((tmp_path / "state.json").read_text())["presentations"] == 32


def test_a_cards_speed_is_written_once(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("# x\n\n**Measured** well.\n\n**Limits.** Many.\n")
    (tmp_path / "metrics.json").write_text('{"scores": 1}')
    measured = Measured(
        model="x",
        kind="segment",
        device="cpu, 2 threads",
        load_s=0.2,
        footprint_bytes=1,
        peak_bytes=1,
        steps=None,
        seconds={1: 0.05, 8: 0.01},
    )
    note(tmp_path, measured)
    first = (tmp_path / "README.md").read_text()
    note(tmp_path, measured)
    assert (tmp_path / "README.md").read_text() == first
    assert "**Speed.** A picture takes 50 ms, or 10 ms in a batch of 8" in first
    assert first.index("**Speed.**") < first.index("**Limits.**")
    assert json.loads((tmp_path / "metrics.json").read_text())["speed"]["seconds_per_picture"]["8"] == 0.01
