"""Model cards: what each shipped model is, how it was made, what was measured; from the runs' records."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from training.dataset import write_json
from training.parts import part
from training.world.grammar import HELD_OUT, VOCABULARY

Scores = dict[str, Any]

_TEMPLATES = Path(__file__).with_name("templates")


def read_log(run: Path) -> list[dict[str, float]]:
    """The reports of a run, oldest first."""
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def _curve(log: list[dict[str, float]], columns: tuple[str, ...], rows: int = 10) -> str:
    seen = np.array([line["presentations"] for line in log])
    wanted = seen[-1] * np.arange(1, rows + 1) / rows
    chosen = sorted({int(np.abs(seen - count).argmin()) for count in wanted})
    lines = []
    for index in chosen:
        values = " | ".join(f"{log[index][name]:.3f}" for name in columns)
        lines.append(f"| {log[index]['presentations']:,} | {values} |")
    return "\n".join(lines)


def _score_rows(scores: Scores) -> str:
    subsets = ("generated", "generated_seen_combinations", "generated_unseen_combinations")
    columns = (*subsets, "ceiling", "ceiling_through_code", "chance")
    lines = []
    for aspect in scores["generated"]:
        cells = [scores[column][aspect] for column in columns]
        shown = [f"{cell['right']:.3f} ± {cell['standard_error']:.3f} (n={cell['n']})" for cell in cells]
        lines.append(f"| {aspect.replace('_', ' ')} | {' | '.join(shown)} |")
    return "\n".join(lines)


def _fill(template: str, **facts: object) -> str:
    return (_TEMPLATES / f"{template}.md").read_text().format(**facts)


def _size_mb(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6


def write_generator_card(out: Path, folder: Path, scores: Scores) -> None:
    """README.md and metrics.json of the generator, from the runs under `out`."""
    log = read_log(out / "frozen")
    last, autoencoder, decoder = (
        log[-1],
        read_log(out / "autoencoder")[-1],
        read_log(out / "large-decoder")[-1],
    )
    scenes = json.loads((out / "data" / "train" / "split.json").read_text())["count"]
    card = _fill(
        "toyworld",
        size_mb=_size_mb(folder),
        vocabulary=", ".join(VOCABULARY),
        scenes=scenes,
        held_out=len(HELD_OUT),
        minutes=last["seconds"] / 60,
        presentations=last["presentations"],
        autoencoder_minutes=autoencoder["seconds"] / 60,
        object_psnr=autoencoder["object_psnr_db"],
        decoder_minutes=decoder["seconds"] / 60,
        decoder_psnr=decoder["object_psnr_db"],
        curve=_curve(log, ("validation_loss", "object_loss", "prompt_gain")),
        prompts=scores["prompts"],
        sampling_steps=scores["steps"],
        guidance=scores["guidance_scale"],
        scores=_score_rows(scores),
    )
    (folder / "README.md").write_text(card)
    write_json(folder / "metrics.json", {"scores": scores, "training": last, "large_decoder": decoder})


def write_part_card(name: str, out: Path, folder: Path, scores: Scores) -> None:
    """README.md and metrics.json of a part's packaged model in `folder`, from its run under `out`."""
    module = part(name)
    log = read_log(out / name)
    drawn = [out / "data" / split / "split.json" for split in ("train", "held-out")]
    card = _fill(
        module.MODEL,
        size_mb=_size_mb(folder),
        scenes=sum(json.loads(path.read_text())["count"] for path in drawn),
        minutes=log[-1]["seconds"] / 60,
        presentations=log[-1]["presentations"],
        curve=_curve(log, module.CURVE),
        **module.facts(scores),
    )
    (folder / "README.md").write_text(card)
    write_json(folder / "metrics.json", {"scores": scores, "training": log[-1]})
