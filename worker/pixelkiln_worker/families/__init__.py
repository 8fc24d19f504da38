"""Everything a worker can do, one module a family.

The registry is a dict; a module is imported when first needed.
"""

from __future__ import annotations

from importlib import import_module

from pixelkiln_shared.catalogue import ModelEntry
from pixelkiln_shared.errors import ModelUnavailable
from pixelkiln_worker.device import Device
from pixelkiln_worker.families.contract import Model

FAMILIES: dict[str, str] = {
    "classical": "pixelkiln_worker.families.classical",
    "diffusion": "pixelkiln_worker.families.diffusion",
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
