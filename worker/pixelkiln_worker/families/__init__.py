"""Everything a worker can do, one module a family.

The registry is a dict; a module is imported when first needed.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import structlog

from pixelkiln_shared.catalogue import Catalogue, ModelEntry
from pixelkiln_shared.errors import Misconfigured, ModelUnavailable
from pixelkiln_worker.device import Device
from pixelkiln_worker.families.contract import Model

log = structlog.get_logger(__name__)

FAMILIES: dict[str, str] = {
    "classical": "pixelkiln_worker.families.classical",
    "classification": "pixelkiln_worker.families.classification",
    "cutout": "pixelkiln_worker.families.cutout",
    "depth": "pixelkiln_worker.families.depth",
    "diffusion": "pixelkiln_worker.families.diffusion",
    "grounded": "pixelkiln_worker.families.grounded",
    "matting": "pixelkiln_worker.families.matting",
    "phrases": "pixelkiln_worker.families.phrases",
    "promptable": "pixelkiln_worker.families.promptable",
    "resampling": "pixelkiln_worker.families.resampling",
    "samplers": "pixelkiln_worker.families.samplers",
    "segmentation": "pixelkiln_worker.families.segmentation",
    "stub": "pixelkiln_worker.families.stub",
    "torchvision": "pixelkiln_worker.families.torchvision_models",
    "unconditional": "pixelkiln_worker.families.unconditional",
    "universal": "pixelkiln_worker.families.universal",
    "upscaling": "pixelkiln_worker.families.upscaling",
}


def load(entry: ModelEntry, device: Device) -> Model:
    """Load the model of a catalogue entry; call on the device thread.

    Raises:
        ModelUnavailable: no such family here, or the weights are missing, corrupt or not the named ones.
    """
    module = family(entry)
    device.settle()
    model: Model = module.load(entry, device)
    return model


def family(entry: ModelEntry) -> Any:
    """Import and return the module of an entry's family; the libraries of the first one take seconds.

    Raises:
        ModelUnavailable: no such family here.
    """
    name = FAMILIES.get(entry.family)
    if name is None:
        raise ModelUnavailable(f"{entry.id}: this worker knows no family {entry.family!r}")
    _hide_broken_torchvision()
    return import_module(name)


def servable(catalogue: Catalogue, wished: str = "") -> tuple[ModelEntry, ...]:
    """Return the entries a worker serves: those of `wished` (comma-separated ids), or all of known families.

    Raises:
        Misconfigured: an id in `wished` is not in the catalogue, or of a family that no worker has.
    """
    mine = {entry.id: entry for entry in catalogue if entry.family in FAMILIES}
    names = [name.strip() for name in wished.split(",") if name.strip()]
    unknown = [name for name in names if name not in mine]
    if unknown:
        raise Misconfigured(f"PIXELKILN_WORKER_MODELS: {unknown[0]!r} is none of {', '.join(sorted(mine))}")
    return tuple(mine[name] for name in names) if names else tuple(mine.values())


def _hide_broken_torchvision() -> None:
    """Take a torchvision that was built for another torch out of sight.

    transformers and diffusers look for it and fail to import when it is there but does not load; without it
    they work. It is not imported where it is not installed.
    """
    if "torchvision" in sys.modules or find_spec("torchvision") is None:
        return
    try:
        import_module("torchvision")
    except Exception as error:  # noqa: BLE001 - RuntimeError, OSError, ImportError: whatever its loader meets
        log.warning("torchvision was built for another torch and is not used", error=str(error))
        modules: dict[str, Any] = sys.modules
        for name in [name for name in modules if name.partition(".")[0] == "torchvision"]:
            del modules[name]
        modules["torchvision"] = None  # from now on importing it fails as if it were not there
