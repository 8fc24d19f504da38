"""The catalogue: the only place model ids come from. A TOML table gives each a family, a source, limits.

The embedded catalogue (`catalogue.toml` beside this file) is always there; `PIXELKILN_CATALOGUE` adds to it.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pixelkiln_shared.errors import Misconfigured, UnknownModel
from pixelkiln_shared.kinds import Kind

# What follows from a family, so that an entry that does not say it is no trap: a job's points or prompt would
# be called unused, or asked for where nobody reads them.
_IMPLIED: Mapping[str, Mapping[str, Any]] = {
    "grounded": {"phrases": True},
    "phrases": {"phrases": True},
    "promptable": {"marks": "optional"},
    "resampling": {"prompt": "ignored"},
    "samplers": {"prompt": "ignored"},
    "unconditional": {"prompt": "ignored"},
    "upscaling": {"prompt": "optional"},
}
_ID = r"^[a-z0-9][a-z0-9._-]{0,63}$"


class Limits(BaseModel):
    """What one job of a model may ask for. Sizes are pixels."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_batch: int = Field(8, ge=1, description="Rows in one forward pass")
    min_side: int = 64
    max_side: int = 1_024
    max_pixels: int = 1_048_576
    max_steps: int = 100


class Weights(BaseModel):
    """Where further weights are, and the hash of each file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: str = Field(description="As a model's own `source`")
    sha256: Mapping[str, str] = Field(default_factory=dict)


class ModelEntry(BaseModel):
    """One model: where its weights are, which family runs it, what it may be asked."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str = Field(pattern=_ID)
    family: str = Field(description="Module of pixelkiln_worker.families")
    kinds: tuple[Kind, ...]
    title: str
    description: str = ""
    source: str = Field("", description="`embedded:NAME`, a folder, `s3://...` or `hub:owner/name@revision`")
    sha256: Mapping[str, str] = Field(
        default_factory=dict, description="Hash of each weight file, by relative path"
    )
    licence: str = ""
    method: str = Field("", description="For families with several algorithms")
    world: str = Field("", description="The closed world the model knows; empty: any picture")
    prompt: Literal["needed", "optional", "ignored"] = Field(
        "needed", description="Of models that draw: whether a job may leave it out"
    )
    marks: Literal["needed", "optional", "ignored"] = Field(
        "ignored", description="Of models that segment: what points and boxes are to it"
    )
    phrases: bool = Field(False, description="Its labels are free phrases, and at least one is needed")
    default_for: tuple[Kind, ...] = ()
    defaults: Mapping[str, Any] = Field(default_factory=dict)
    options: Mapping[str, tuple[str | int | float | bool, ...]] = Field(
        default_factory=dict, description="Further input options, each with its allowed values"
    )
    limits: Limits = Limits()
    classes: tuple[str, ...] = ()
    things: tuple[str, ...] = Field((), description="Classes that can be counted: split into instances")
    vocabulary: tuple[str, ...] = ()
    synonyms: Mapping[str, tuple[str, ...]] = Field(
        default_factory=dict,
        description="Per word of the vocabulary, the words and phrases that mean the same",
    )
    example_prompts: tuple[str, ...] = ()
    dtype: Literal["", "float32", "bfloat16", "float16"] = Field("", description="Empty: the device's own")
    attention: Literal["", "eager", "sdpa", "flash_attention_2"] = Field(
        "", description="Of transformers models; empty: the library's choice"
    )
    offload: Literal["auto", "never", "always"] = Field(
        "auto", description="Keep on an accelerator only the component that works; auto: when all do not fit"
    )
    companions: Mapping[str, Weights] = Field(
        default_factory=dict, description="Further networks the family needs, by their part in it"
    )
    loras: Mapping[str, Weights] = Field(default_factory=dict, description="Adapters that jobs may name")
    test_only: bool = False

    @model_validator(mode="before")
    @classmethod
    def _implied(cls, given: Any) -> Any:
        family = given.get("family") if isinstance(given, dict) else None
        return {**_IMPLIED.get(family, {}), **given} if isinstance(family, str) else given

    def companion(self, part: str) -> ModelEntry:
        """Return the entry of a companion or LoRA, whose weights are found and checked like a model's own.

        Raises:
            KeyError: the entry has none of this name.
        """
        found = self.companions.get(part) or self.loras[part]
        return self.model_copy(update={"source": found.source, "sha256": found.sha256})


class Catalogue:
    """An immutable table of models; the operator's come before the embedded ones, so their defaults count."""

    def __init__(self, entries: Mapping[str, ModelEntry]) -> None:
        self._entries = dict(entries)

    @classmethod
    def load(cls, extra: Path | None = None, *, stub: bool = False) -> Catalogue:
        """Read the embedded catalogue, then `extra` on top of it.

        Args:
            extra: a TOML file in the same form; its entries win over embedded ones of the same id.
            stub: whether entries marked `test_only` are served.

        Raises:
            Misconfigured: the file is missing, is not TOML or has a wrong entry; the message names it.
        """
        embedded = resources.files("pixelkiln_shared").joinpath("catalogue.toml").read_text("utf-8")
        entries = _parse(embedded, "the embedded catalogue")
        if extra is not None:
            try:
                text = extra.read_text("utf-8")
            except OSError as error:
                raise Misconfigured(f"PIXELKILN_CATALOGUE: cannot read {extra}: {error.strerror}") from error
            except UnicodeDecodeError as error:
                raise Misconfigured(f"PIXELKILN_CATALOGUE: {extra} is not UTF-8") from error
            own = _parse(text, str(extra))
            entries = own | {name: entry for name, entry in entries.items() if name not in own}
        return cls({name: entry for name, entry in entries.items() if stub or not entry.test_only})

    def __iter__(self) -> Iterator[ModelEntry]:
        return iter(self._entries.values())

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, model: str, kind: Kind | None = None) -> ModelEntry:
        """Return the entry of `model`.

        Raises:
            UnknownModel: no such id, or the model does not do `kind`; `detail["models"]` lists those that do.
        """
        entry = self._entries.get(model)
        if entry is None or (kind is not None and kind not in entry.kinds):
            usable = [e.id for e in self if kind is None or kind in e.kinds]
            why = "is not in the catalogue" if entry is None else f"does not do {kind}"
            shown = model[:64] if model.isprintable() else "that name"
            raise UnknownModel(f"{shown!r} {why}", pointer="/model", detail={"models": usable})
        return entry

    def default(
        self, kind: Kind, *, world: str = "", marks: bool = False, labels: Sequence[str] = ()
    ) -> ModelEntry:
        """Pick the model of a job that names none.

        A model that knows the very world its picture was generated in comes first, then those of any picture,
        then those of other worlds. Marks (points, boxes) go to a model that uses them; labels that are no
        classes of the model go to one that reads phrases.

        Args:
            kind: what to do.
            world: the closed world the input picture comes from; empty when it is from anywhere.
            marks: whether points or boxes are given.
            labels: classes to keep, or phrases to find.

        Raises:
            UnknownModel: the catalogue has no default for this kind.
        """
        fitting = [e for e in self if kind in e.default_for and _answers(e, kind, marks, labels)]
        fitting.sort(key=lambda e: (e.world != world, e.world != ""))
        if not fitting:
            usable = [e.id for e in self if kind in e.kinds]
            why = f"name a model: the catalogue has no default for {kind}"
            why = why if usable else f"no model of the catalogue does {kind}"
            raise UnknownModel(why, pointer="/model", detail={"models": usable})
        return fitting[0]

    @cached_property
    def lanes(self) -> dict[str, ModelEntry]:
        """Every lane the catalogue can serve, `{kind}.{model}`, with its entry."""
        return {f"{kind}.{entry.id}": entry for entry in self for kind in entry.kinds}


def _answers(entry: ModelEntry, kind: Kind, marks: bool, labels: Sequence[str]) -> bool:
    """Whether a default model can do what a job asks beside its picture."""
    if kind is not Kind.SEGMENT:
        return True
    if marks or entry.marks == "needed":
        return marks and entry.marks != "ignored"
    known = {name.casefold() for name in entry.classes}
    named = bool(labels) and not entry.phrases and bool(known)
    if named:
        return all(label.strip().casefold() in known for label in labels)
    return entry.phrases == bool(labels) or not entry.phrases


def _parse(text: str, where: str) -> dict[str, ModelEntry]:
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise Misconfigured(f"{where}: {error}") from error
    models = table.get("models", {})
    if not isinstance(models, dict):
        raise Misconfigured(f"{where}: models is not a table")
    entries = {}
    for name, fields in models.items():
        try:
            entries[name] = ModelEntry(id=name, **fields)
        except (ValidationError, TypeError) as error:
            first = (
                error.errors()[0] if isinstance(error, ValidationError) else {"loc": (), "msg": str(error)}
            )
            field = ".".join(str(part) for part in first["loc"])
            raise Misconfigured(f"{where}: models.{name}.{field}: {first['msg']}") from error
    return entries
