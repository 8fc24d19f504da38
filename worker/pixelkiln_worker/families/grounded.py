"""Phrases to masks in one job: a detector finds boxes (`source`), a SAM cuts them out (`segmenter`).

Importing this module imports torch and transformers: workers do it at boot.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from pixelkiln_shared.catalogue import ModelEntry
from pixelkiln_shared.errors import ModelUnavailable
from pixelkiln_shared.kinds import Kind
from pixelkiln_worker import weights
from pixelkiln_worker.device import Device
from pixelkiln_worker.families.contract import Memory, Outcome, Pixels, Segmentation, Task
from pixelkiln_worker.families.everything import apart
from pixelkiln_worker.families.grounding import MOST, Answers, Detection, Detector, choose, open_detector
from pixelkiln_worker.families.marks import Marks
from pixelkiln_worker.families.networks import PictureModel, probe
from pixelkiln_worker.families.phrases import missing, no_phrases, phrases_of
from pixelkiln_worker.families.promptable import at_size, painted
from pixelkiln_worker.families.sam import Encoded, Sam
from pixelkiln_worker.families.segments import Part, assemble

SEGMENTER = "segmenter"
OVERLAP = 0.7
"""Highest IoU of two masks; of those that share more, the one of lower score goes."""


class GroundedSegmenter(PictureModel):
    """A detector and a SAM, loaded."""

    def __init__(self, entry: ModelEntry, detector: Detector, sam: Sam) -> None:
        super().__init__(entry, detector.network)
        self.footprint_bytes += sam.network.footprint_bytes
        self.identity = self.identity | {SEGMENTER: sam.network.identity}
        self.detector = detector
        self.sam = sam
        self._threshold = float(entry.defaults.get("threshold", detector.threshold))

    def memory_key(self, task: Task) -> str:
        """See `contract.Remembers`."""
        return self.sam.memory_key(task)

    def at_hand(self, key: str) -> bool:
        """See `contract.Remembers`."""
        return self.sam.at_hand(key)

    def close(self) -> None:
        """Drop both networks."""
        self.sam.close()
        super().close()

    def answer(self, tasks: Sequence[Task], images: Sequence[Pixels]) -> list[Outcome | Exception]:
        """Detect in all pictures, those with the same phrases in one pass; then cut out what was found."""
        outcomes: list[Outcome | Exception] = [no_phrases()] * len(tasks)
        alike: dict[tuple[str, ...], list[int]] = {}
        for place, task in enumerate(tasks):
            alike.setdefault(tuple(phrases_of(task)), []).append(place)
        alike.pop((), None)
        for phrases, places in alike.items():
            shown = [images[place] for place in places]
            answers = self.detector.ask(shown, phrases)
            found = self._cut([tasks[place] for place in places], shown, phrases, answers)
            for place, outcome in zip(places, found, strict=True):
                outcomes[place] = outcome
        return outcomes

    def _cut(
        self,
        tasks: Sequence[Task],
        images: Sequence[Pixels],
        phrases: Sequence[str],
        answers: Sequence[Answers],
    ) -> list[Outcome | Exception]:
        """Return the outcomes of pictures in which the same phrases were looked for."""
        found = [
            choose(answer, image, self._least(task))
            for answer, image, task in zip(answers, images, tasks, strict=True)
        ]
        places = [place for place, detections in enumerate(found) if detections]
        encoded = self.sam.encode([tasks[place] for place in places], [images[place] for place in places])
        pictures = dict(zip(places, encoded, strict=True))
        return [
            self._outcome(task, image, phrases, answers[place], found[place], pictures.get(place))
            for place, (task, image) in enumerate(zip(tasks, images, strict=True))
        ]

    def _least(self, task: Task) -> float:
        asked = task.spec.input.get("threshold")
        return self._threshold if asked is None else float(asked)

    def _outcome(
        self,
        task: Task,
        image: Pixels,
        phrases: Sequence[str],
        answers: Answers,
        found: Sequence[Detection],
        encoded: Encoded | ModelUnavailable | None,
    ) -> Outcome | Exception:
        if not all(torch.isfinite(part).all() for part in answers):
            return weights.not_finite()
        if isinstance(encoded, Exception):
            return encoded
        segmentation = Segmentation(ids=np.zeros(image.shape[:2], np.uint16), segments=())
        memory: Memory | None = None
        if encoded is not None:
            memory = encoded.memory
            try:
                segmentation = self._segmentation(image, phrases, found, encoded)
            except ModelUnavailable as error:
                return error
        warnings = missing(phrases, segmentation, answers[0].amax(0).tolist(), self._least(task))
        detail: dict[str, Any] = {"labels": sorted({segment.label for segment in segmentation.segments})}
        return Outcome(
            segmentation=segmentation, detail=detail | self.world_note(), warnings=warnings, memory=memory
        )

    def _segmentation(
        self, image: Pixels, phrases: Sequence[str], found: Sequence[Detection], encoded: Encoded
    ) -> Segmentation:
        logits, _ = self.sam.propose(encoded, [Marks(box=one.box) for one in found]).best()
        sure = torch.tensor([one.score for one in found])
        kept = apart(encoded.frame.crop(logits) > 0, sure, OVERLAP, MOST)
        ids = painted(encoded.frame, logits[kept], np.arange(1, len(kept) + 1), image)
        parts = {
            number: Part(
                label=phrases[found[index].phrase],
                category=found[index].phrase + 1,
                score=round(found[index].score, 4),
            )
            for number, index in enumerate(kept.tolist(), start=1)
        }
        return at_size(assemble(ids, parts), image)


def load(entry: ModelEntry, device: Device) -> GroundedSegmenter:
    """Open the detector and its companion on the device and run each once to warm it.

    Raises:
        ModelUnavailable: weights are missing, damaged or of another kind, or the entry names no `segmenter`.
    """
    if SEGMENTER not in entry.companions:
        raise ModelUnavailable(f"model {entry.id}: it needs a companion `{SEGMENTER}`: the folder of a SAM")
    detector = open_detector(entry, device)
    sam = Sam.open(entry.companion(SEGMENTER), device)
    with weights.loading(entry):
        model = GroundedSegmenter(entry, detector, sam)
        sam.warm_up(entry)
        model.warm_up(Task(spec=probe(Kind.SEGMENT, entry, labels=["a house"])))
    return model
