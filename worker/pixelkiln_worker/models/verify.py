"""Are a model's weights all there, whole, and the ones that are meant? And do they load?"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

from pixelkiln_shared.catalogue import ModelEntry
from pixelkiln_shared.errors import ModelUnavailable
from pixelkiln_shared.settings import Settings
from pixelkiln_worker import device, families, weights
from pixelkiln_worker.residency import Residency


def parts_of(entry: ModelEntry) -> Iterator[tuple[str, ModelEntry]]:
    """Yield what the entry needs weights for: itself (""), and its `companions.NAME` and `loras.NAME`."""
    if entry.source:
        yield "", entry
    for name in entry.companions:
        yield f"companions.{name}", entry.companion(name)
    for name in entry.loras:
        yield f"loras.{name}", entry.companion(name)


def verify(entries: Iterable[ModelEntry], settings: Settings | None) -> bool:
    """Print one line a model; return whether all are good.

    Args:
        settings: given, the models are also loaded, on the device that these choose.
    """
    loader = _Loader(settings) if settings is not None else None
    good = True
    for entry in entries:
        try:
            if entry.family not in families.FAMILIES:
                raise ModelUnavailable(f"no worker knows the family {entry.family!r}")
            facts = [_checked(part) for _, part in parts_of(entry)]
            facts += [loader.load(entry)] if loader is not None else []
        except (ModelUnavailable, device.Poisoned) as error:
            print(f"bad   {entry.id:24} {str(error).removeprefix(f'model {entry.id}: ')}", flush=True)
            good = False
        else:
            print(f"ok    {entry.id:24} {'; '.join(facts) or 'no weights needed'}", flush=True)
    return good


def _checked(entry: ModelEntry) -> str:
    with weights.loading(entry):
        found = weights.resolve(entry)
        if lacking := missing(found.folder):
            raise ModelUnavailable(f"{lacking[0]} is missing")
    size_bytes = sum((found.folder / path).stat().st_size for path in found.sha256)
    listed = bool(entry.sha256) or (found.folder / weights.SUMS).is_file()
    compared = "as listed" if listed else "no hashes are listed to compare with"
    return (
        f"{len(found.sha256)} files, {size_bytes / 1e6:.1f} MB, sha256 {found.identity['sha256']}, {compared}"
    )


def missing(folder: Path) -> list[str]:
    """Return the files and components that the folder's own indexes name but that are not there.

    Raises:
        ModelUnavailable: an index is damaged.
    """
    lacking = []
    for index in sorted(folder.rglob("*.safetensors.index.json")):
        shards = set(weights.json_of(index).get("weight_map", {}).values())
        lacking += [str((index.parent / name).relative_to(folder)) for name in sorted(shards)
                    if not (index.parent / name).is_file()]  # fmt: skip
    pipeline = folder / "model_index.json"
    if pipeline.is_file():
        parts = weights.json_of(pipeline).items()
        named = [name for name, value in parts if isinstance(value, list) and value and value[0] is not None]
        optional = {"safety_checker", "feature_extractor"}  # never loaded
        lacking += [name for name in named if name not in optional and not (folder / name).is_dir()]
    return lacking


class _Loader:
    """Loads one model after the other on this machine's device."""

    def __init__(self, settings: Settings) -> None:
        self._device = device.pick(settings)
        self._thread = device.DeviceThread()
        self._residency = Residency(self._device)

    def load(self, entry: ModelEntry) -> str:
        """Load a model, forget it, and say what it took.

        Raises:
            ModelUnavailable: it does not load.
            Poisoned: the device broke; no other model will load either.
        """
        self._thread.run(partial(families.family, entry))
        self._thread.run(partial(self._residency.use, entry))
        [told] = self._residency.residents
        self._thread.run(self._residency.close)
        return (
            f"loads on {self._device.name} in {told.load_s:.1f} s, {told.footprint_bytes / 1e6:.1f} MB there"
        )
