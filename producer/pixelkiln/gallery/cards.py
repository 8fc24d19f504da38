"""What a template shows of a job: its title, its pictures, and words instead of numbers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from pixelkiln.resources import ArtifactResource, JobResource
from pixelkiln_shared.jobs import Status
from pixelkiln_shared.kinds import INPUTS, PICTURE_FIELDS, Kind, Role
from pixelkiln_shared.ledger.outbox import Delivery

MOSAIC = 4  # pictures on one card
PICTURES = frozenset({Role.IMAGE, Role.OVERLAY, Role.CUTOUT, Role.MASK, Role.PREVIEW})
TO_DO = {
    Kind.SEGMENT: "Take apart",
    Kind.CUTOUT: "Cut out",
    Kind.DEPTH: "Depth",
    Kind.STEREO: "For two eyes",
    Kind.UPSCALE: "Enlarge",
    Kind.CLASSIFY: "Name it",
}
"""What can be done with a picture that is there, as its button says it."""
DRAWN = frozenset({Kind.GENERATE, Kind.EDIT, Kind.UPSCALE})
"""Kinds whose pictures one goes on with; after any other kind it is the picture that was given."""

_TITLES = {
    Kind.GENERATE: "From noise",
    Kind.EDIT: "A picture drawn anew",
    Kind.UPSCALE: "A picture made larger",
    Kind.SEGMENT: "A picture taken apart",
    Kind.CUTOUT: "A foreground cut out",
    Kind.DEPTH: "A picture's depth",
    Kind.STEREO: "A picture for two eyes",
    Kind.CLASSIFY: "A picture named",
}
_NAMED = 6
_NUMBERED = re.compile(r"\d$")


@dataclass(frozen=True, slots=True)
class Card:
    """A job on the grid, or at the top of its page."""

    job: JobResource

    @property
    def title(self) -> str:
        """The prompt, or what was found."""
        return str(self.job.input.get("prompt") or _found(self.job) or _TITLES[self.job.kind])

    @property
    def faces(self) -> list[str]:
        """Addresses of the thumbnails that stand for the job."""
        most = MOSAIC if self.job.kind in DRAWN else 1
        made = [address(self.job, one, "thumb") for one in self.shown]
        return made[:most] or ([self.input_thumb] if self.input_thumb else [])

    @property
    def shown(self) -> list[ArtifactResource]:
        """The pictures that stand for the job."""
        return [one for one in self.job.artifacts if one.role is INPUTS[self.job.kind].face]

    @property
    def input_thumb(self) -> str | None:
        """The address of the input picture's thumbnail."""
        return f"{self.input}?small=1" if self.input else None

    @property
    def input(self) -> str | None:
        """The address of the input picture; None where there is none, or not yet."""
        return self.given.get("image")

    @property
    def given(self) -> dict[str, str]:
        """The addresses of the pictures the job works on, by input field, as far as they are there."""
        fields = INPUTS[self.job.kind].pictures
        there = {name: image for name in fields if (image := self.job.input.get(name))}
        unsure = self.job.status in {Status.BLOCKED, Status.FAILED, Status.CANCELED}
        return {
            name: f"/jobs/{self.job.id}/input/{name}"
            for name, image in there.items()
            if not ("job" in image and unsure)
        }

    @property
    def ready(self) -> bool:
        """Whether there is a picture to go on with."""
        return bool(self.shown if self.goes_on_with_result else self.input and not self.active)

    @property
    def goes_on_with_result(self) -> bool:
        """Whether what comes next takes what was made, not what was given."""
        return self.job.kind in DRAWN

    @property
    def active(self) -> bool:
        """Whether it will change by itself."""
        return not self.job.status.terminal

    @property
    def version(self) -> str:
        """Changes whenever the card looks different."""
        progress = self.job.progress
        return f"{self.job.status}.{self.job.attempts}.{progress.step}.{self.coming}"

    @property
    def coming(self) -> str:
        """How many jobs are before it, and when it will be there, or that nobody serves it; else empty."""
        if any(warning.get("code") == "no_worker_for_model" for warning in self.job.warnings):
            return "no worker serves its model"
        place, eta = self.job.queue_position, self.job.eta
        words = [f"{place} before it"] if place else []
        return ", ".join(words + ([f"ready {soon(eta)}"] if eta else []))

    @property
    def age(self) -> str:
        """How long ago it was submitted."""
        return ago(self.job.created_at)


def _found(job: JobResource) -> str:
    labels = [label for label in job.detail.get("labels", ()) if isinstance(label, str)]
    labels += [str(one["label"]) for one in named(job)[:1]]
    if len(labels) > 1 and all(_NUMBERED.search(label) for label in labels):
        return f"{len(labels)} regions"
    return ", ".join(labels[:_NAMED]) + (", ..." if len(labels) > _NAMED else "")


def named(job: JobResource) -> list[dict[str, Any]]:
    """Return the classes a classification found, best first: `label` and `score` of each."""
    return [dict(one) for one in job.detail.get("classes", ()) if "label" in one]


def address(job: JobResource, artifact: ArtifactResource, verb: str = "files") -> str:
    """Return where this gallery serves an artifact; the hash makes the address as lasting as the content."""
    return f"/jobs/{job.id}/{verb}/{artifact.role}/{artifact.index}?v={artifact.sha256[:12]}"


def caption(job: JobResource, artifact: ArtifactResource) -> str:
    """Return what to call one of several pictures."""
    names = job.detail.get("pictures")
    if isinstance(names, list) and artifact.index < len(names):
        return str(names[artifact.index])
    return artifact.label or f"picture {artifact.index + 1}"


def ago(moment: datetime) -> str:
    """Return a time as people say it."""
    seconds = (datetime.now(UTC) - moment).total_seconds()
    for size, name in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= size:
            return f"{int(seconds // size)} {name} ago"
    return "just now"


def soon(moment: datetime) -> str:
    """Return a time to come as people say it: as exact as a guess can be."""
    seconds = (moment - datetime.now(UTC)).total_seconds()
    if seconds < 10:
        return "in a few seconds"
    for size, name in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= 0.92 * size:  # 55 s are about a minute, not about 60 s
            return f"in about {round(seconds / size)} {name}"
    return f"in about {round(seconds / 10) * 10} s"


def tries(message: Delivery) -> str:
    """Return how often a receiver was told, what it answered last, and when it is told again."""
    times = f"{message.attempts} {'try' if message.attempts == 1 else 'tries'}"
    last = " ".join(str(part) for part in (message.response, message.error) if part is not None)
    coming = f"next {soon(datetime.fromtimestamp(message.due_at, UTC))}" if message.due_at else ""
    return ", ".join(part for part in (times, last and f"last answer: {last}", coming) if part)


def span(milliseconds: float | None) -> str:
    """Return a duration as people say it."""
    if milliseconds is None:
        return "–"
    if milliseconds < 1_000:
        return f"{milliseconds:.0f} ms"
    seconds = milliseconds / 1_000
    return f"{seconds:.1f} s" if seconds < 60 else f"{int(seconds // 60)} min {int(seconds % 60)} s"


def parameters(given: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what was asked for, one line a setting, without what is empty."""
    lines = []
    for name, value in given.items():
        if name in {"prompt", *PICTURE_FIELDS} or value in (None, "", [], {}):
            continue
        text = "; ".join(_plain(one) for one in value) if isinstance(value, list) else _plain(value)
        lines.append((name.replace("_", " "), text))
    return lines


def timeline(job: JobResource) -> list[tuple[str, str]]:
    """Return how long each part took."""
    names = {
        "queue_ms": "waited",
        "load_ms": "loaded the model",
        "run_ms": "ran",
        "encode_ms": "encoded",
        "upload_ms": "stored",
    }
    return [(label, span(job.metrics[name])) for name, label in names.items() if job.metrics.get(name)]


def first(artifacts: Iterable[ArtifactResource], role: Role) -> ArtifactResource | None:
    """Return the first artifact of a role."""
    return next((one for one in artifacts if one.role is role), None)


def stalled(job: JobResource) -> bool:
    """Whether it can be put back into its queue."""
    return job.status in {Status.FAILED, Status.CANCELED, Status.EXPIRED}


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_plain(one)}" for name, one in value.items())
    return f"{value:g}" if isinstance(value, float) else str(value)
