"""The demo's story: start everything, submit, watch, draw the sheet, stop everything."""

from __future__ import annotations

import argparse
import io
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from pixelkiln.client import Client, Job, Result
from pixelkiln.client.results import write_file
from pixelkiln.demo.more import Extra, shown, submit_extras
from pixelkiln.demo.sheet import Strip, contact_sheet
from pixelkiln.demo.still_life import MUG_BOX, still_life
from pixelkiln.local.stack import Stack
from pixelkiln_shared.errors import Misconfigured, PixelkilnError

SCENES = 8
DEADLINE_S = 900.0
PROMPTS = (
    "a red house in the snow at night with mountains",
    "two white boats on the sea at sunset",
    "three yellow flowers on the meadow at day",
    "a large blue balloon in the desert at dawn",
    "a green tree and a red car on the meadow at sunset",
    "two cacti in the desert at day with mountains",
    "a purple balloon and a yellow house in the snow at day",
    "a red boat on the sea at night",
)
"""For a catalogue whose generator names no examples of its own."""


class Clock:
    """How long each part took, in seconds, in the order of the parts."""

    def __init__(self) -> None:
        self.parts: dict[str, float] = {}
        self._last = time.monotonic()

    def mark(self, part: str) -> None:
        """Say that a part has just ended; it began where the one before ended."""
        now = time.monotonic()
        self.parts[part] = now - self._last
        self._last = now


@dataclass(slots=True)
class Subject:
    """A picture and the job that takes it apart; `source` makes the picture, where it is generated."""

    title: str
    masks: Job
    source: Job | None = None
    picture: Image.Image | None = None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo; returns 0 only if every job succeeded."""
    parser = argparse.ArgumentParser(prog="python -m pixelkiln.demo", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("demo-out"), help="where the contact sheet goes")
    out = parser.parse_args(arguments).out
    signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGINT))
    data = Path(tempfile.mkdtemp(prefix="pixelkiln-demo-"))
    try:
        path, good = tell(data, out)
    except KeyboardInterrupt:
        print("interrupted; everything is stopped", file=sys.stderr)
        shutil.rmtree(data, ignore_errors=True)
        return 130
    except (Misconfigured, PixelkilnError) as error:
        print(f"Error: {error.message}\nThe logs are in {data / 'logs'}.", file=sys.stderr)
        return 1
    if good:
        shutil.rmtree(data, ignore_errors=True)
    else:
        print(f"Some jobs failed. The logs are in {data / 'logs'}.", file=sys.stderr)
    print(f"contact sheet: {path}")
    return 0 if good else 1


def tell(data: Path, out: Path) -> tuple[Path, bool]:
    """Run the whole story and return where the sheet is, and whether every job succeeded."""
    clock = Clock()
    environment = {name: value for name, value in os.environ.items() if not configures(name)}
    stack = Stack(data, environment=environment, say=lambda line: print(f"  {line}"))
    print("starting Redis, the API and a worker (the first start reads the model libraries)", flush=True)
    with stack.running(), Client(stack.url) as client:
        print(f"  ready at {stack.url}")
        clock.mark("start")
        subjects, extras = submit(client)
        jobs = [job for s in subjects for job in (s.source, s.masks) if job is not None]
        jobs += [extra.job for extra in extras]
        good = watch(jobs)
        clock.mark("jobs")
        path = draw(subjects, extras, out, clock.parts["jobs"])
        clock.mark("contact sheet")
    clock.mark("stop")
    report(clock, jobs)
    return path, good


def configures(name: str) -> bool:
    """Tell whether an environment variable would point the demo at somebody's real Redis or server."""
    return name.startswith("PIXELKILN_") or name == "REDIS_URL"


def submit(client: Client) -> tuple[list[Subject], list[Extra]]:
    """Submit every job at once: scenes, their masks (which wait for them), the photograph, and the extras."""
    generator = next(model for model in client.models() if "generate" in model.default_for)
    prompts = (generator.example_prompts or list(PROMPTS))[:SCENES]
    scenes = [
        client.generate(prompt, model=generator.id, seed=seed) for seed, prompt in enumerate(prompts, 1)
    ]
    subjects = [
        Subject(title=prompt, source=scene, masks=client.segment(scene))
        for prompt, scene in zip(prompts, scenes, strict=True)
    ]
    photograph = still_life()
    buffer = io.BytesIO()
    photograph.save(buffer, "PNG")
    stored = client.upload(buffer.getvalue())
    box = dict(zip(("x0", "y0", "x1", "y1"), map(float, MUG_BOX), strict=True))
    subjects.append(Subject("a photograph, in regions", client.segment(stored), picture=photograph))
    subjects.append(
        Subject("a photograph, the thing in a box", client.segment(stored, boxes=[box]), picture=photograph)
    )
    return subjects, submit_extras(client, scenes[0], stored)


def watch(jobs: Sequence[Job]) -> bool:
    """Print each job as it ends; returns whether all succeeded.

    Raises:
        Misconfigured: some have not ended within a quarter of an hour.
    """
    waiting = list(jobs)
    good = True
    deadline = time.monotonic() + DEADLINE_S
    while waiting:
        for job in list(waiting):
            if not job.refresh().status.terminal:
                continue
            waiting.remove(job)
            good &= job.status == "succeeded"
            batch = f"{job.resource.metrics.get('batch_size', 1):.0f} at once"
            took_s = job.resource.metrics.get("run_ms", 0.0) / 1_000
            why = f": {job.error.message}" if job.error else ""
            print(f"  [{len(jobs) - len(waiting):2}/{len(jobs)}] {job.kind} with {job.model} {job.status}"
                  f"{why or f' ({took_s:.1f} s, {batch})'}", flush=True)  # fmt: skip
        if time.monotonic() > deadline:
            raise Misconfigured(f"{len(waiting)} jobs did not end within {DEADLINE_S:.0f} s")
        time.sleep(0.1)
    return good


def draw(subjects: Sequence[Subject], extras: Sequence[Extra], out: Path, seconds: float) -> Path:
    """Write the contact sheet and return its path."""
    strips = [strip for subject in subjects if (strip := strip_of(subject)) is not None]
    subtitle = f"{len(strips)} pictures, generated and taken apart on this machine in {seconds:.0f} s"
    buffer = io.BytesIO()
    contact_sheet(strips, shown(extras), subtitle=subtitle).save(buffer, "PNG")
    out.mkdir(parents=True, exist_ok=True)
    return write_file(out / "contact-sheet.png", buffer.getvalue(), overwrite=True)


def strip_of(subject: Subject) -> Strip | None:
    """Return what to show of a subject; None when its picture was never made."""
    picture = subject.picture
    note = []
    if subject.source is not None:
        if subject.source.status != "succeeded":
            return None
        made = subject.source.result()
        picture = made.images[0].pil()
        note.append(f"{subject.source.model}, seed {made.seed}")
    if picture is None:
        return None
    note.append(subject.masks.model)
    if subject.masks.status != "succeeded":
        return Strip(
            title=subject.title, note="failed", picture=picture, masks=None, overlay=None, cutout=None
        )
    found = subject.masks.result()
    names = names_of(found)
    note.append(f"{len(names)} regions" if len(names) > 8 else ", ".join(names))
    return Strip(
        title=subject.title,
        note="  ·  ".join(part for part in note if part),
        picture=picture,
        masks=found.masks[0].pil() if found.masks else None,
        overlay=found.overlays[0].pil() if found.overlays else None,
        cutout=found.cutouts[0].pil() if found.cutouts else None,
    )


def names_of(found: Result) -> list[str]:
    """Return what was found, by name, largest first, each name once."""
    if not found.annotations:
        return []
    document = found.annotations[0].json()
    names = {category["id"]: category["name"] for category in document["categories"]}
    by_area = sorted(document["annotations"], key=lambda each: -each["area"])
    return list(dict.fromkeys(names[each["category_id"]] for each in by_area))


def report(clock: Clock, jobs: Sequence[Job]) -> None:
    """Print how long each part took."""
    busy: dict[str, float] = {}
    for job in jobs:
        busy[job.model] = busy.get(job.model, 0.0) + share_s(job)
    print("how long each part took:")
    for name, seconds in (*clock.parts.items(), ("in all", sum(clock.parts.values()))):
        print(f"  {name:14} {seconds:6.1f} s")
    shared = ", ".join(f"{model} {seconds:.1f} s" for model, seconds in busy.items())
    print(f"  of the jobs, the models alone: {shared}")


def share_s(job: Job) -> float:
    """Return how long a model worked for a job, in seconds: its share of the batch it ran in."""
    metrics = job.resource.metrics
    return metrics.get("run_ms", 0.0) / 1_000 / max(1.0, metrics.get("batch_size", 1.0))
