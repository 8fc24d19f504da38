"""LoRA adapters of a catalogue entry: loaded when first asked for, active for one batch at a time.

LoRA: Hu et al., arXiv 2106.09685. An adapter that is not active leaves no trace: its layers hand the input to
the network's own, so that pictures without it are the same bytes as before it was loaded.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pixelkiln_shared.catalogue import ModelEntry
from pixelkiln_shared.errors import ModelUnavailable
from pixelkiln_worker import weights


class Loras:
    """The adapters over one pipeline's networks, which all pipelines derived from it share."""

    def __init__(self, entry: ModelEntry) -> None:
        self._entry = entry
        self._loaded: dict[str, dict[str, str]] = {}  # by name: what a manifest says of its weights

    @contextmanager
    def active(self, pipe: Any, name: str, scale: float) -> Iterator[dict[str, Any]]:
        """Let an adapter work while the block runs; an empty name means none.

        Args:
            pipe: whose networks it changes.
            name: one of the entry's `loras`.
            scale: how strongly; 1 is as trained, 0 not at all.

        Yields:
            what a result says of it: name, scale, hash and revision.

        Raises:
            ModelUnavailable: there is no such adapter, its file is damaged, or it fits no layer of the model.
        """
        if not name:
            yield {}
            return
        try:
            if name not in self._loaded:
                self._load(pipe, name)
            pipe.enable_lora()
            pipe.set_adapters([_adapter(name)], [scale])
            yield {"name": name, "scale": scale, **self._loaded[name]}
        finally:
            if self._loaded:  # one that does not load may leave another active
                pipe.disable_lora()

    def _load(self, pipe: Any, name: str) -> None:
        if name not in self._entry.loras:
            raise ModelUnavailable(f"model {self._entry.id}: the catalogue gives it no LoRA {name!r}")
        entry = self._entry.companion(name)
        found = weights.resolve(entry)
        files = sorted(found.folder.glob("*.safetensors"))
        if len(files) != 1:
            raise ModelUnavailable(
                f"LoRA {name}: {found.folder.name} holds {len(files)} weight files, not one"
            )
        with weights.loading(entry):
            try:
                pipe.load_lora_weights(
                    str(found.folder),
                    weight_name=files[0].name,
                    adapter_name=_adapter(name),
                    local_files_only=True,
                    use_safetensors=True,
                )
            except (ValueError, KeyError) as error:  # the first lists every layer, the second none
                raise ModelUnavailable(f"LoRA {name} is not made for the layers of this model") from error
            if not any(_adapter(name) in adapters for adapters in pipe.get_list_adapters().values()):
                raise ModelUnavailable(f"LoRA {name} changes no layer of this model")
        self._loaded[name] = found.identity


def _adapter(name: str) -> str:
    return "lora_" + name.replace(".", "_")  # the library makes it part of a module's name
