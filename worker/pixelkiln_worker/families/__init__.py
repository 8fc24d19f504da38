"""Everything a worker can do, one module a family.

The registry is a dict; a module is imported when first needed.
"""

from __future__ import annotations

from importlib import import_module

from pixelkiln_shared.catalogue import Catalogue, ModelEntry
from pixelkiln_shared.errors import Misconfigured, ModelUnavailable
from pixelkiln_worker.device import Device
from pixelkiln_worker.families.contract import Model

FAMILIES: dict[str, str] = {
    "classical": "pixelkiln_worker.families.classical",
    "diffusion": "pixelkiln_worker.families.diffusion",
    "grounded": "pixelkiln_worker.families.grounded",
    "phrases": "pixelkiln_worker.families.phrases",
    "promptable": "pixelkiln_worker.families.promptable",
    "samplers": "pixelkiln_worker.families.samplers",
    "segmentation": "pixelkiln_worker.families.segmentation",
    "stub": "pixelkiln_worker.families.stub",
}


def load(entry: ModelEntry, device: Device) -> Model:
    """Load the model of a catalogue entry; call on the device thread.

    Raises:
        ModelUnavailable: no such family here, or the weights are missing, corrupt or not the named ones.
    """
    name = FAMILIES.get(entry.family)
    if name is None:
        raise ModelUnavailable(f"{entry.id}: this worker knows no family {entry.family!r}")
    module = import_module(name)
    device.settle()
    model: Model = module.load(entry, device)
    return model


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
