"""`python -m bench.embedded`: one table of what the embedded models measured, from their own metrics.

Nothing is measured here: `training` scores what it ships and writes `metrics.json` beside the weights. This
sets those figures beside their goals and writes `bench/results/embedded-models.json`; a test keeps it true.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any

TABLE = Path(__file__).parent / "results" / "embedded-models.json"
_DRAWN, _UNSEEN = "generated", "generated_unseen_combinations"


@dataclass(frozen=True, kw_only=True, slots=True)
class Figure:
    """A figure to look up: `path` leads to it in the scores of `model`; None as goal: told, not judged."""

    model: str
    what: str
    path: tuple[str, ...]
    goal: float | None = None
    most: bool = False  # whether the goal is an upper bound


FIGURES = (
    *(
        Figure(model="toyworld", what=f"{aspect} right", path=(_DRAWN, aspect), goal=goal)
        for aspect, goal in (
            ("terrain", 0.99),
            ("time", 0.99),
            ("object", 0.97),
            ("colour", 0.95),
            ("position", 0.92),
            ("count", 0.82),
        )
    ),
    Figure(model="toyworld", what="everything right", path=(_DRAWN, "all_right"), goal=0.72),
    Figure(
        model="toyworld",
        what="everything right, combinations no training scene has",
        path=(_UNSEEN, "all_right"),
        goal=0.65,
    ),
    Figure(model="toyworld-classes", what="mean IoU", path=("mean_iou",), goal=0.94),
    Figure(model="toyworld-instances", what="AP50", path=("ap50",)),
    Figure(model="toyworld-instances", what="AP50:95", path=("ap",)),
    Figure(model="toyworld-instances", what="panoptic quality", path=("panoptic_quality",)),
    Figure(model="toyworld-text", what="IoU, kind", path=("iou", "kind")),
    Figure(model="toyworld-text", what="IoU, colour and kind", path=("iou", "colour")),
    Figure(model="toyworld-text", what="IoU, kind and side", path=("iou", "position")),
    Figure(
        model="toyworld-text",
        what="answers to kinds that are not there",
        path=("false_positives", "absent_kind"),
        most=True,
    ),
    Figure(model="toyworld-points", what="IoU from a click in the middle", path=("objects_centre_iou",)),
    Figure(model="toyworld-points", what="IoU from a box", path=("objects_box_iou",)),
    Figure(model="toyworld-depth", what="mean absolute error", path=("absolute_error",), most=True),
    Figure(model="toyworld-depth", what="within a factor of 1.25", path=("within_quarter",)),
    *(
        Figure(model=model, what=what, path=(name,))
        for model in ("toyworld-gan", "toyworld-vae")
        for what, name in (
            ("sky, ground and an object", "whole_scenes"),
            ("variety, true scenes being 1", "variety"),
        )
    ),
)


def table(folder: Path) -> list[dict[str, Any]]:
    """Return a row for each figure: model, what, value, standard error and the judge's ceiling, goal, met."""
    return [
        _row(figure, json.loads((folder / figure.model / "metrics.json").read_text())) for figure in FIGURES
    ]


def _row(figure: Figure, metrics: dict[str, Any]) -> dict[str, Any]:
    scores, found = metrics["scores"], metrics["scores"]
    for name in figure.path:
        found = found[name]
    row: dict[str, Any] = asdict(figure) | {"path": "/".join(figure.path)}
    if isinstance(found, dict):
        row |= {"value": found["right"], "standard_error": found["standard_error"], "n": found["n"]}
        row["ceiling"] = scores["ceiling"][figure.path[-1]]["right"]
    else:
        row["value"] = found
    if figure.goal is not None:
        row["met"] = row["value"] <= figure.goal if figure.most else row["value"] >= figure.goal
    return row


def main() -> int:
    """Write the table and print it; exit status 1 when a goal was missed."""
    rows = table(Path(str(resources.files("pixelkiln_worker") / "embedded")))
    TABLE.write_text(json.dumps(rows, indent=2) + "\n", "utf-8")
    for row in rows:
        error = f" +- {row['standard_error']:.3f} (n={row['n']})" if "n" in row else ""
        goal = "" if row["goal"] is None else f", goal {row['goal']}: {'met' if row['met'] else 'missed'}"
        print(f"{row['model']:20} {row['what']}: {row['value']:.3f}{error}{goal}")
    return 0 if all(row.get("met", True) for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
