"""Command line: one subcommand for each part, all resumable, each paid in minutes."""

import argparse
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from training.dataset import Split, build, write_json
from training.loop import Metrics, Plan
from training.parts import PARTS, part
from training.tokenizer import SKIPPED, SYNONYMS, spellings
from training.world.grammar import VOCABULARY

DEFAULT_OUT = Path("build/training")
EXAMPLE_PROMPTS = (
    "a red house on the left and two green trees in a meadow by day",
    "a large yellow balloon on the right over the sea at sunset",
    "three white boats on the sea with mountains at dawn",
    "a blue car in the middle in the snow at night",
    "two cacti and a red car on the right in the desert at sunset",
    "three red flowers in a meadow with mountains by day",
    "a large pink tree in the middle in a meadow at dawn",
    "a yellow house on the right in the snow with mountains at night",
    "two purple balloons over the desert by day",
    "a red boat on the left and a yellow balloon on the right on the sea by day",
    "an orange tree on the left and a white house on the right in a meadow at sunset",
    "two blue houses in the snow with mountains at dawn",
)
_SHARES = {
    "text-encoder": 0.02,
    "autoencoder": 0.1,
    "large-decoder": 0.08,
    "generator": 0.45,
    "crisp-decoder": 0.08,
}
"""Of the budget of `all`; the rest is shared by the parts in proportion to their own `SHARE`."""


def minutes(text: str) -> float:
    """Seconds of a duration like ``90s``, ``25m`` or ``2h``."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a duration such as 90s, 25m or 2h")
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600}[match[2]]


def _data(args: argparse.Namespace) -> None:
    build(args.out / "data" / "validation", "validation", 1024, args.threads)
    build(args.out / "data" / "train", "train", args.scenes, args.threads)
    build(args.out / "data" / "held-out", "held-out", args.scenes // 5, args.threads)


def _tokenizer(args: argparse.Namespace) -> None:
    from training.tokenizer import build_tokenizer

    build_tokenizer().save_pretrained(args.out / "tokenizer")


def _plan(
    args: argparse.Namespace, batch_size: int, warmup_steps: int = 60, ema_decay: float = 0.995
) -> Plan:
    return Plan(
        budget_s=args.budget,
        batch_size=batch_size,
        warmup_steps=warmup_steps,
        ema_decay=ema_decay,
        slice_s=args.slice,
        report_every_s=args.report_every,
    )


def _text_encoder(args: argparse.Namespace) -> Metrics:
    from training.text_encoder import train_text_encoder

    return train_text_encoder(args.out / "text-encoder", _plan(args, 128, warmup_steps=100))


def _autoencoder(args: argparse.Namespace) -> Metrics:
    from training.autoencoder import train_autoencoder

    return train_autoencoder(args.out / "autoencoder", args.out / "data", _plan(args, 8))


def _large_decoder(args: argparse.Namespace) -> Metrics:
    from training.large_decoder import train_large_decoder

    plan = _plan(args, 6)
    return train_large_decoder(args.out / "large-decoder", args.out / "data", args.out / "autoencoder", plan)


def _part(name: str) -> Callable[[argparse.Namespace], Metrics]:
    """The command that trains a part."""

    def train(args: argparse.Namespace) -> Metrics:
        module = part(name)
        return module.train(args.out / name, args.out / "data", _plan(args, module.BATCH_SIZE))

    return train


def _generator(args: argparse.Namespace) -> Metrics | None:
    from training.autoencoder import cache_latents, load_autoencoder
    from training.generator import train_generator
    from training.peers import run_together

    folder = args.out / "generator"
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "latents.json").exists():
        split = Split.open(args.out / "data" / "train")
        scale = cache_latents(load_autoencoder(args.out / "autoencoder"), split, folder / "latents.npy")
        write_json(folder / "latents.json", {"scale": scale})
    plan = _plan(args, 24, warmup_steps=150, ema_decay=0.998)
    work = (folder, args.out / "data" / "train", folder / "latents.npy", args.out / "text-encoder", plan)
    if args.peers == 1:
        return train_generator(*work)
    run_together(args.peers, train_generator, *work)
    return None


def _packaged(args: argparse.Namespace) -> Any:
    """The packaged pipeline; packaged first where it is not yet."""
    from training.package import load_packaged, package

    if not (args.out / "packaged" / "toyworld").exists():
        package(args.out, args.ship)
    return load_packaged(args.out)


def _crisp_decoder(args: argparse.Namespace) -> Metrics:
    from training.crisp_decoder import train_crisp_decoder

    plan = _plan(args, 6, 100, 0.998)
    return train_crisp_decoder(args.out / "crisp-decoder", args.out / "data", _packaged(args), plan)


def _borders(args: argparse.Namespace) -> None:
    from training.borders import train_borders

    train_borders(args.out / "borders", args.out / "data", _packaged(args).vae)


def _judge(args: argparse.Namespace) -> None:
    """Score true renders through the segmenter: what the generator is measured against."""
    from training.evaluate import ceilings
    from training.judge import Judge
    from training.package import load_packaged
    from training.segmenter import load_segmenter

    judge = Judge(load_segmenter(args.out / "segmenter"))
    bounds = ceilings(judge, load_packaged(args.out).vae, args.prompts)
    write_json(args.out / "evaluation" / "ceilings.json", bounds)
    _print_scores(bounds)


def _evaluate(args: argparse.Namespace) -> None:
    from training.evaluate import contact_sheet, evaluate, generate
    from training.judge import Judge
    from training.package import load_packaged
    from training.segmenter import load_segmenter

    folder = args.out / "evaluation"
    pipeline = load_packaged(args.out)
    scores, asked, pictures = evaluate(pipeline, Judge(load_segmenter(args.out / "segmenter")), args.prompts)
    write_json(folder / "generator.json", scores)
    _print_scores(scores)
    contact_sheet(pictures[:48], [question.prompt for question in asked[:48]], folder / "questions.webp")
    examples = generate(pipeline, list(EXAMPLE_PROMPTS), list(range(len(EXAMPLE_PROMPTS))))
    contact_sheet(examples, list(EXAMPLE_PROMPTS), folder / "examples.webp")


def _print_scores(scores: dict[str, Any]) -> None:
    for subset, table in scores.items():
        if isinstance(table, dict):
            print(subset, {aspect: cell["right"] for aspect, cell in table.items()})


def _package(args: argparse.Namespace) -> None:
    from training.package import package, package_part

    if "generator" in args.names:
        package(args.out, args.ship)
    for name in _parts(args):
        package_part(name, args.out)


def _score(args: argparse.Namespace) -> None:
    """Measure the packaged models of the parts."""
    for name in _parts(args):
        scores = part(name).score(args.out / "packaged" / part(name).MODEL, args.out / "data")
        write_json(args.out / "evaluation" / f"{name}.json", scores)
        print(name, json.dumps(scores))


def _ship(args: argparse.Namespace) -> None:
    from training.package import ship, ship_part

    if "generator" in args.names:
        ship(args.out, args.ship)
    for name in _parts(args):
        ship_part(name, args.out, args.ship)


def _speed(args: argparse.Namespace) -> None:
    from training.speed import time_shipped

    time_shipped(args.ship)


def _parts(args: argparse.Namespace) -> list[str]:
    return [name for name in PARTS if name in args.names]


def _vocabulary(args: argparse.Namespace) -> None:
    print(f"vocabulary = {json.dumps(list(VOCABULARY))}")
    print(f"example_prompts = {json.dumps(list(EXAMPLE_PROMPTS), indent=4)}")
    print(f"skipped_words = {json.dumps(sorted(SKIPPED))}")
    print("\n[synonyms]")
    for word, alternatives in SYNONYMS.items():
        print(f"{word} = {json.dumps(spellings(alternatives))}")


_COMMANDS: dict[str, Callable[[argparse.Namespace], Metrics | None]] = {
    "data": _data,
    "tokenizer": _tokenizer,
    "text-encoder": _text_encoder,
    "autoencoder": _autoencoder,
    "large-decoder": _large_decoder,
    "generator": _generator,
    "crisp-decoder": _crisp_decoder,
    "borders": _borders,
    **{name: _part(name) for name in PARTS},
    "package": _package,
    "score": _score,
    "judge": _judge,
    "evaluate": _evaluate,
    "ship": _ship,
    "speed": _speed,
    "vocabulary": _vocabulary,
}


def _all(args: argparse.Namespace) -> None:
    whole, left = args.budget, 1 - sum(_SHARES.values())
    asked = {name: part(name).SHARE for name in PARTS}
    shares = _SHARES | {name: left * share / sum(asked.values()) for name, share in asked.items()}
    before = ("text-encoder", "autoencoder", "large-decoder", "generator", "package", "borders", "package")
    after = ("package", "score", "judge", "evaluate", "ship", "speed")
    for name in ("data", "tokenizer", *before, "crisp-decoder", *PARTS, *after):
        args.budget = whole * shares.get(name, 0)
        _run(name, args)


def _run(name: str, args: argparse.Namespace) -> None:
    metrics = _COMMANDS[name](args)
    if metrics:
        print(name, json.dumps(metrics))


def main() -> None:
    """Run one part, or all of them."""
    parser = argparse.ArgumentParser(prog="python -m training", description=__doc__)
    parser.add_argument("part", choices=[*_COMMANDS, "all"])
    parser.add_argument(
        "names", nargs="*", default=["generator", *PARTS], help="what to package, score or ship; default: all"
    )
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT, help="where data, checkpoints and logs go")
    parser.add_argument(
        "--budget", type=minutes, default="25m", help="training time in all, as 90s, 25m or 2h"
    )
    parser.add_argument("--slice", type=minutes, default="1000h", help="stop after this much, to go on later")
    parser.add_argument("--report-every", type=minutes, default="2m", help="time between validations")
    parser.add_argument("--threads", type=int, default=2, help="threads, or processes that draw")
    parser.add_argument("--peers", type=int, default=1, help="processes that train the generator together")
    parser.add_argument("--scenes", type=int, default=40_000, help="scenes to draw for training")
    parser.add_argument("--prompts", type=int, default=512, help="prompts to judge")
    parser.add_argument(
        "--ship", type=Path, default=Path("worker/pixelkiln_worker/embedded"), help="shipped models"
    )
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.part == "all":
        _all(args)
    else:
        _run(args.part, args)


if __name__ == "__main__":
    main()
