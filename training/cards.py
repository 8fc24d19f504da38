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


def _milestones(log: list[dict[str, float]], columns: tuple[str, ...], rows: int = 10) -> list[list[float]]:
    """A few reports evenly over a run: presentations, then the values of `columns`."""
    seen = np.array([line["presentations"] for line in log])
    wanted = seen[-1] * np.arange(1, rows + 1) / rows
    chosen = sorted({int(np.abs(seen - count).argmin()) for count in wanted})
    return [[log[index]["presentations"], *(log[index][name] for name in columns)] for index in chosen]


def _curve(milestones: list[list[float]]) -> str:
    """The rows of a card's table."""
    lines = [
        f"| {presentations:,.0f} | {' | '.join(f'{value:.3f}' for value in values)} |"
        for presentations, *values in milestones
    ]
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


def history(out: Path) -> dict[str, Any]:
    """How the generator was made: from its runs under `out`, or where they are gone from its metrics.json."""
    made: dict[str, Any] = {}
    if (out / "frozen").exists():
        log = read_log(out / "frozen")
        autoencoder, decoder = read_log(out / "autoencoder")[-1], read_log(out / "large-decoder")[-1]
        made = {
            "scenes": json.loads((out / "data" / "train" / "split.json").read_text())["count"],
            "minutes": log[-1]["seconds"] / 60,
            "presentations": log[-1]["presentations"],
            "autoencoder_minutes": autoencoder["seconds"] / 60,
            "object_psnr": autoencoder["object_psnr_db"],
            "decoder_minutes": decoder["seconds"] / 60,
            "decoder_psnr": decoder["object_psnr_db"],
            "curve": _milestones(log, ("validation_loss", "object_loss", "prompt_gain")),
        }
    else:
        made = json.loads((out / "packaged" / "toyworld" / "metrics.json").read_text())["made"]
    crisp = read_log(out / "crisp-decoder")[-1] if (out / "crisp-decoder").exists() else None
    if crisp is not None:
        made |= {
            "crisp_minutes": crisp["seconds"] / 60,
            "crisp_psnr": crisp["object_psnr_db"],
            "sharpness": crisp["sharpness"],
        }
    return made


def write_generator_card(out: Path, folder: Path, scores: Scores) -> None:
    """README.md and metrics.json of the generator: how it was made, and what was measured."""
    made = history(out)
    card = _fill(
        "toyworld",
        size_mb=_size_mb(folder),
        vocabulary=", ".join(VOCABULARY),
        held_out=len(HELD_OUT),
        prompts=scores["prompts"],
        sampling_steps=scores["steps"],
        guidance=scores["guidance_scale"],
        scores=_score_rows(scores),
        **(made | {"curve": _curve(made["curve"])}),
    )
    (folder / "README.md").write_text(card)
    write_json(folder / "metrics.json", {"scores": scores, "made": made})


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
        curve=_curve(_milestones(log, module.CURVE)),
        **module.facts(scores),
    )
    (folder / "README.md").write_text(card)
    write_json(folder / "metrics.json", {"scores": scores, "training": log[-1]})
