"""torchvision's detectors and semantic networks, built by name and filled from safetensors.

torchvision is an optional extra for machines with a GPU (`pixelkiln[torchvision]`); it must be the build for
the installed torch. Where it is missing or does not load, this family says so and every other one works on.
A folder holds `model.safetensors` (the state dict) and `config.json`: `architecture`, one of the names below,
and `id2label`, class 0 being the background.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the field's name for it
from safetensors.torch import load_file

from pixelkiln_shared.catalogue import ModelEntry
from pixelkiln_shared.errors import ModelUnavailable
from pixelkiln_shared.kinds import Kind
from pixelkiln_worker import weights
from pixelkiln_worker.device import Device
from pixelkiln_worker.families import queries
from pixelkiln_worker.families.contract import Outcome, Pixels, Segmentation, Task
from pixelkiln_worker.families.networks import Network, PictureModel, probe
from pixelkiln_worker.families.queries import Naming, Queries
from pixelkiln_worker.families.segmentation import WORK_PX, ClassTable, instances
from pixelkiln_worker.families.segments import assemble, enlarge, keep, shrink

MASKED = ("maskrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn_v2")
BOXED = (
    "fasterrcnn_mobilenet_v3_large_fpn",
    "fasterrcnn_resnet50_fpn",
    "fasterrcnn_resnet50_fpn_v2",
    "fcos_resnet50_fpn",
    "retinanet_resnet50_fpn",
    "retinanet_resnet50_fpn_v2",
)
SEMANTIC = (
    "deeplabv3_mobilenet_v3_large",
    "deeplabv3_resnet50",
    "deeplabv3_resnet101",
    "fcn_resnet50",
    "fcn_resnet101",
    "lraspp_mobilenet_v3_large",
)
ARCHITECTURES = MASKED + BOXED + SEMANTIC

_THRESHOLD = 0.5
_SHORT_PX = 520  # what torchvision's semantic weights were trained at
_MEAN = np.array((0.485, 0.456, 0.406), np.float32)
_DEVIATION = np.array((0.229, 0.224, 0.225), np.float32)
_BROKEN = "torchvision was built for another torch; install the one for this torch, or uninstall it"


class TorchvisionModel(PictureModel):
    """A network of torchvision, loaded."""

    def __init__(self, entry: ModelEntry, network: Network, config: Any) -> None:
        super().__init__(entry, network)
        self.classes = ClassTable.of(entry, config)
        self._defaults = entry.defaults

    @abstractmethod
    def found(self, task: Task, image: Pixels, answer: Any) -> tuple[Segmentation, dict[str, Any]]:
        """Return the segments of a picture as seen at working size, and what else is to be said of it.

        Raises:
            ModelUnavailable: the numbers are not finite.
        """

    @abstractmethod
    def forward(self, images: Sequence[Pixels]) -> list[Any]:
        """Return the network's answer for each picture."""

    def answer(self, tasks: Sequence[Task], images: Sequence[Pixels]) -> list[Outcome | Exception]:
        """Segment the pictures."""
        small = [shrink(image, WORK_PX) for image in images]
        answers = self.forward(small)
        return [self._outcome(*one) for one in zip(tasks, images, small, answers, strict=True)]

    def _outcome(self, task: Task, image: Pixels, small: Pixels, answer: Any) -> Outcome | Exception:
        try:
            segments, more = self.found(task, small, answer)
        except ModelUnavailable as error:
            return error
        ids = enlarge(segments.ids, image.shape[0], image.shape[1])
        segments = Segmentation(ids=np.asarray(ids, np.uint16), segments=segments.segments)
        known = tuple(name for i, name in enumerate(self.classes.names) if i not in self.classes.nothing)
        segments, warnings = keep(segments, task.spec.input.get("labels") or (), known)
        if not segments.segments:
            warnings += ({"code": "nothing_found", "message": "no part of the picture was found"},)
        labels = sorted({segment.label for segment in segments.segments})
        detail = {"labels": labels} | more | self.world_note()
        return Outcome(segmentation=segments, detail=detail, warnings=warnings)


class Detector(TorchvisionModel):
    """A network that finds things one by one: masks where it gives them, else boxes."""

    @torch.inference_mode()
    def forward(self, images: Sequence[Pixels]) -> list[dict[str, torch.Tensor]]:
        """See `TorchvisionModel`; boxes are XYXY in pixels of the pictures given.

        Only pictures of one shape share a pass: others would be padded to each other's size.
        """
        found: list[dict[str, torch.Tensor]] = [{} for _ in images]
        for places in _alike([image.shape for image in images]):
            rows = self.network.net([self._sent(images[place]) for place in places])
            for place, row in zip(places, rows, strict=True):
                found[place] = row
        return found

    def _sent(self, image: Pixels) -> torch.Tensor:
        """Return a picture on the device, (3, h, w) in [0, 1]."""
        return torch.from_numpy(image.copy()).permute(2, 0, 1).to(self.network.device.name) / 255

    def found(self, task: Task, image: Pixels, answer: Any) -> tuple[Segmentation, dict[str, Any]]:
        """See `TorchvisionModel`."""
        scores = answer["scores"].float()
        if not (torch.isfinite(scores).all() and torch.isfinite(answer["boxes"]).all()):
            raise weights.not_finite()
        asked = task.spec.input.get("threshold")
        threshold = float(self._defaults.get("threshold", _THRESHOLD) if asked is None else asked)
        kept = (scores >= threshold).nonzero()[:, 0]
        chosen = Queries(
            scores=scores[kept],
            labels=answer["labels"][kept],
            masks=answer["masks"][kept, 0].float()
            if "masks" in answer
            else _filled(answer["boxes"][kept], image.shape[0], image.shape[1]),
        )
        naming = Naming(
            names=self.classes.names,
            categories=tuple(self.classes.category(index) for index in range(len(self.classes.names))),
        )
        # the masks' own certainty would weigh twice: torchvision's scores are already those of whole things
        segments = assemble(*queries.instances(chosen, naming, 0.0))
        shapes = "masks" if "masks" in answer else "boxes, since the model gives no masks"
        return segments, {"shapes": shapes, "boxes": self._boxes(answer, kept, image)}

    def _boxes(self, answer: Any, kept: torch.Tensor, image: Pixels) -> list[dict[str, Any]]:
        """Return what was found as label, score and box: XYXY as shares of the picture's width and height."""
        height, width = image.shape[:2]
        return [
            {
                "label": self.classes.names[int(answer["labels"][index])],
                "score": round(float(answer["scores"][index]), 4),
                "box": [
                    round(float(value) / side, 4)
                    for value, side in zip(answer["boxes"][index], (width, height) * 2, strict=True)
                ],
            }
            for index in kept.tolist()
        ]


class SemanticNetwork(TorchvisionModel):
    """A network that gives a class for each pixel."""

    @torch.inference_mode()
    def forward(self, images: Sequence[Pixels]) -> list[torch.Tensor]:
        """See `TorchvisionModel`: logits, (classes, h, w)."""
        prepared = [_normalised(image) for image in images]
        found: list[torch.Tensor] = [torch.empty(0)] * len(images)
        for places in _alike([one.shape for one in prepared]):
            stack = torch.stack([prepared[place] for place in places])
            rows = self.network.net(stack.to(self.network.device.name))["out"].float()
            for place, row in zip(places, rows, strict=True):
                found[place] = row
        return found

    def found(self, task: Task, image: Pixels, answer: Any) -> tuple[Segmentation, dict[str, Any]]:
        """See `TorchvisionModel`."""
        if not torch.isfinite(answer).all():
            raise weights.not_finite()
        large = F.interpolate(answer[None], image.shape[:2], mode="bilinear", align_corners=False)[0]
        best, winner = torch.softmax(large, 0).max(0)  # (h, w) each
        return assemble(*instances(winner.cpu().numpy(), best.cpu().numpy(), self.classes)), {}


def _alike(shapes: Sequence[tuple[int, ...]]) -> list[list[int]]:
    """Return the places of equal shapes."""
    return [[i for i, one in enumerate(shapes) if one == shape] for shape in dict.fromkeys(shapes)]


def _normalised(image: Pixels) -> torch.Tensor:
    """Return the picture at the size and scale semantic networks know: (3, h, w)."""
    scale = _SHORT_PX / min(image.shape[:2])
    size = round(image.shape[1] * scale), round(image.shape[0] * scale)
    resized = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    values = (resized.astype(np.float32) / 255 - _MEAN) / _DEVIATION
    return torch.from_numpy(values).permute(2, 0, 1)


def _filled(boxes: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Return boxes (n, 4), XYXY in pixels, as masks (n, h, w) of 0 and 1."""
    masks = torch.zeros((len(boxes), height, width), device=boxes.device)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes.round().long().clamp(min=0).tolist(), strict=True):
        mask[y0:y1, x0:x1] = 1
    return masks


def load(entry: ModelEntry, device: Device) -> TorchvisionModel:
    """Build the network that the entry's `config.json` names, fill it, and run it once to warm it.

    Raises:
        ModelUnavailable: torchvision is missing or was built for another torch; the weights are missing,
            damaged or of another network; or the name is none of `ARCHITECTURES`.
    """
    found = weights.resolve(entry)
    with weights.loading(entry):
        library = _library()
        config = json.loads((found.folder / "config.json").read_text("utf-8"))
        name = str(config.get("architecture"))
        if name not in ARCHITECTURES:
            raise ModelUnavailable(f"`architecture` is none of {', '.join(ARCHITECTURES)}")
        names = {int(index): label for index, label in config["id2label"].items()}
        net = _built(library, name, entry.classes or tuple(names.values()), found)
        net.eval().requires_grad_(False).to(device.name)
        identity = found.identity | {
            "network": name,
            "dtype": "float32",  # detectors compute boxes, which smaller numbers cannot hold
            "device": torch.cuda.get_device_name(device.name) if device.kind == "cuda" else device.name,
            "versions": {part: version(part) for part in ("torch", "safetensors")}
            | {"torchvision": str(library.__version__)},
        }
        known = type("Config", (), {"id2label": names, "things": config.get("things")})
        kind = SemanticNetwork if name in SEMANTIC else Detector
        model = kind(entry, Network(net, None, device, identity), known)
        model.warm_up(Task(spec=probe(Kind.SEGMENT, entry)))
    return model


def _built(library: Any, name: str, names: Sequence[str], found: weights.Weights) -> Any:
    """Return the network with the folder's numbers in it; every one of them, or an error."""
    files = found.files()
    if len(files) != 1:
        raise ModelUnavailable("torchvision's weights are one file, model.safetensors")
    state = load_file(str(files[0]))
    options: dict[str, Any] = {"weights": None, "weights_backbone": None, "num_classes": len(names)}
    if any(key.startswith("aux_classifier.") for key in state):
        options["aux_loss"] = True
    net = library.models.get_model(name, **options)
    try:
        fit = net.load_state_dict(state, strict=False)
    except RuntimeError as error:  # sizes that differ; its first line does not say which
        raise ModelUnavailable(f"the weights do not fit: {str(error).splitlines()[-1].strip()}") from error
    if wrong := [*fit.missing_keys, *fit.unexpected_keys]:
        raise ModelUnavailable(f"the weights do not fit {name}: {wrong[0]}")
    return net.float()


def _library() -> Any:
    """Return torchvision.

    Raises:
        ModelUnavailable: it is missing, or its operators do not load beside this torch.
    """
    try:
        library = import_module("torchvision")
        torch.ops.torchvision.nms  # noqa: B018 - raises where the compiled part did not load
    except ModuleNotFoundError as error:
        if error.name != "torchvision" or _installed():
            raise ModelUnavailable(_BROKEN) from error
        raise ModelUnavailable("torchvision is not installed; it is the extra `torchvision`") from error
    except (ImportError, RuntimeError, AttributeError, OSError) as error:
        raise ModelUnavailable(_BROKEN) from error
    return library


def _installed() -> bool:
    """Whether torchvision is there, though it may not load."""
    try:
        return bool(version("torchvision"))
    except PackageNotFoundError:
        return False
