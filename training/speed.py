"""How long a picture takes each shipped model on this machine, written into its card and its metrics."""

import json
import re
from pathlib import Path

from pixelkiln_shared.catalogue import Catalogue
from pixelkiln_shared.settings import settings
from pixelkiln_worker.models.bench import Measured, bench
from training.dataset import write_json

BATCHES = (1, 8)
_PARAGRAPH = re.compile(r"\*\*Speed\.\*\*.*?\n\n", re.DOTALL)
_NEXT = "**Limits.**"


def time_shipped(target: Path) -> None:
    """Measure every embedded model of the catalogue whose card lies under `target`."""
    for entry in Catalogue.load():
        folder = target / entry.source.removeprefix("embedded:")
        if entry.source.startswith("embedded:") and folder.name == entry.id:
            measured = bench(entry, settings(), BATCHES, None)
            note(folder, measured)
            print(f"{entry.id}: {sentence(measured)}")


def sentence(measured: Measured) -> str:
    """What the card says."""
    steps = f" in {measured.steps} steps" if measured.steps and measured.steps > 1 else ""
    alone, together = (_duration(measured.seconds[size]) for size in BATCHES)
    return (
        f"A picture takes {alone}{steps}, or {together} in a batch of {BATCHES[-1]}, on {measured.device}; "
        f"loading takes {_duration(measured.load_s)}. Not measured on a GPU."
    )


def note(folder: Path, measured: Measured) -> None:
    """Write or replace the card's paragraph on speed, and `speed` in metrics.json."""
    card = folder / "README.md"
    text = _PARAGRAPH.sub("", card.read_text())
    card.write_text(text.replace(_NEXT, f"**Speed.** {sentence(measured)}\n\n{_NEXT}", 1))
    metrics = json.loads((folder / "metrics.json").read_text())
    seconds = {str(size): round(value, 4) for size, value in measured.seconds.items()}
    speed = {"device": measured.device, "load_s": round(measured.load_s, 3), "seconds_per_picture": seconds}
    write_json(folder / "metrics.json", metrics | {"speed": speed})


def _duration(seconds: float) -> str:
    return f"{seconds * 1_000:.0f} ms" if seconds < 0.1 else f"{seconds:.2f} s"
