"""Where a model's weights are, and whether they are the ones the catalogue means.

Nothing is loaded here: files are found or fetched, hashed and measured. Whatever is missing, damaged or of
another hash becomes `ModelUnavailable`, so that a broken file never turns into a garbage picture. Weights are
safetensors only; pickles are never read.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from safetensors import SafetensorError

from pixelkiln_shared.catalogue import ModelEntry
from pixelkiln_shared.errors import ModelUnavailable
from pixelkiln_shared.settings import settings
from pixelkiln_worker.device import is_out_of_memory, is_poisoned
from pixelkiln_worker.digests import sha256_of

if TYPE_CHECKING:
    import torch

_WANTED = (".json", ".txt", ".model", ".safetensors")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
SUMS = "SHA256SUMS"
_MAX_HEADER_BYTES = 100_000_000  # the format's own limit
_HUB = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)@(?P<revision>[\w.-]+)")


@dataclass(frozen=True, kw_only=True, slots=True)
class Weights:
    """A model's folder, found and checked.

    Attributes:
        folder: a library-native directory on this machine.
        revision: the pinned revision, where the source has one.
        sha256: hash of each configuration and weight file, by relative path.
        variant: the infix of the weight files (`fp16`) where only such files are there, else None.
    """

    folder: Path
    revision: str
    sha256: Mapping[str, str]
    variant: str | None

    @property
    def identity(self) -> dict[str, str]:
        """What a manifest says of these weights: the revision, and one hash over all files."""
        lines = "".join(f"{digest}  {path}\n" for path, digest in sorted(self.sha256.items()))
        combined = hashlib.sha256(lines.encode()).hexdigest()
        return {"sha256": combined} | ({"revision": self.revision} if self.revision else {})

    def files(self, component: str = "") -> list[Path]:
        """Return the weight files of one component (a sub-folder), or of all."""
        found = sorted(
            (self.folder / component).glob("**/*.safetensors" if not component else "*.safetensors")
        )
        infix = re.compile(r"\.(fp16|bf16|fp32)\.")
        return [path for path in found if bool(infix.search(path.name)) == (self.variant is not None)]

    def footprint_bytes(self, element_bytes: int) -> int:
        """Return what the weights take in memory at `element_bytes` a number, from the headers alone."""
        return sum(
            math.prod(tensor["shape"]) * element_bytes if is_float(tensor) else span(tensor)
            for path in self.files()
            for tensor in header(path).values()
        )

    def check_complete(self, module: torch.nn.Module, component: str = "") -> None:
        """Refuse a module that holds more numbers than its files: libraries fill such gaps with noise.

        Raises:
            ModelUnavailable: the files of the component lack tensors.
        """
        stored = sum(
            math.prod(tensor["shape"])
            for path in self.files(component)
            for tensor in header(path).values()
            if is_float(tensor)
        )
        unique = {id(tensor): tensor for tensor in module.state_dict(keep_vars=True).values()}
        needed = sum(tensor.numel() for tensor in unique.values() if tensor.is_floating_point())
        if stored < needed:
            raise ModelUnavailable(
                f"the weights of {component or 'the model'} are incomplete: {stored:,} of {needed:,} numbers"
            )


def resolve(entry: ModelEntry) -> Weights:
    """Find the weights of a catalogue entry, fetch them where they are remote, and check every file.

    Raises:
        ModelUnavailable: missing, truncated, damaged, of another hash, or not safetensors.
    """
    folder, revision = _find(entry)
    if not folder.is_dir():
        raise _unavailable(entry, f"there is no folder {folder}")
    _refuse_code_and_pickles(entry, folder)
    weight_files = sorted(folder.rglob("*.safetensors"))
    if not weight_files:
        raise _unavailable(entry, f"{folder} holds no .safetensors file")
    for path in weight_files:
        try:
            header(path)
        except (OSError, ValueError) as error:
            raise _unavailable(entry, f"{path.relative_to(folder)}: {error}") from error
    hashes = _hashes(folder)
    _compare(entry, hashes, _expected(entry, folder))
    plain = [path for path in weight_files if not re.search(r"\.(fp16|bf16)\.", path.name)]
    variant = None if plain else "fp16" if ".fp16." in weight_files[0].name else "bf16"
    return Weights(folder=folder, revision=revision, sha256=hashes, variant=variant)


@contextmanager
def loading(entry: ModelEntry) -> Iterator[None]:
    """Turn whatever a library raises over a bad model folder into `ModelUnavailable`.

    Running out of memory and a broken device pass: those are not the folder's fault.
    """
    try:
        yield
    except ModelUnavailable as error:
        raise _unavailable(entry, error.message) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError, RuntimeError) as error:
        if is_out_of_memory(error) or is_poisoned(error):
            raise
        if "torchvision::nms" in str(error):
            raise _unavailable(entry, "torchvision was built for another torch; uninstall it") from error
        first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise _unavailable(entry, first_line) from error
    except SafetensorError as error:
        if is_out_of_memory(error):
            raise
        raise _unavailable(entry, str(error)) from error


def not_finite() -> ModelUnavailable:
    """Return the error of a model whose results hold NaN or infinities."""
    return ModelUnavailable(
        "the model gives numbers that are not finite: damaged weights, or too small a dtype"
    )


# ------------------------------------------------------------------------------------------------ sources


def _find(entry: ModelEntry) -> tuple[Path, str]:
    """Return the folder and the revision of the entry's source."""
    scheme, _, rest = entry.source.partition(":")
    if scheme == "embedded" and re.fullmatch(r"[a-z0-9-]+", rest):
        return Path(str(resources.files("pixelkiln_worker") / "embedded" / rest)), ""
    if scheme == "s3":
        return _from_bucket(entry), ""
    if scheme == "hub" and (match := _HUB.fullmatch(rest)):
        return _from_hub(entry, match["repo"], match["revision"]), match["revision"]
    if scheme in {"embedded", "hub"} or not entry.source:
        raise _unavailable(
            entry, "its source is not `embedded:NAME`, a folder, `s3://...` or `hub:owner/name@revision`"
        )
    return Path(entry.source).expanduser(), ""


def cache_folder() -> Path:
    """Where fetched weights are kept: `$XDG_CACHE_HOME/pixelkiln/weights`."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "pixelkiln" / "weights"


def _from_hub(entry: ModelEntry, repo: str, revision: str) -> Path:
    """Return a snapshot; without `HF_HUB_OFFLINE=0` only one that is already in the hub's own cache."""
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    online = os.environ.get("HF_HUB_OFFLINE", "").lower() in {"0", "false", "no", "off"}
    try:
        path = huggingface_hub.snapshot_download(
            repo,
            revision=revision,
            allow_patterns=[f"*{ending}" for ending in _WANTED],
            local_files_only=not online,
        )
    except Exception as error:
        advice = "; it is not in the local cache, and the hub is off (HF_HUB_OFFLINE=0 lifts that)"
        if online:
            silent = isinstance(error, LocalEntryNotFoundError | OSError) and not isinstance(
                error, HfHubHTTPError
            )
            advice = "; the hub does not answer" if silent else ""
        raise _unavailable(entry, f"{repo}@{revision}: {type(error).__name__}{advice}") from error
    return Path(path)


def _from_bucket(entry: ModelEntry) -> Path:
    """Fetch the objects under an `s3://bucket/prefix` once; a changed listing is another folder."""
    from botocore.exceptions import BotoCoreError

    from pixelkiln_shared.storage.s3 import s3_client

    url, config = urlsplit(entry.source), settings()
    folder = url.path.strip("/")
    prefix = f"{folder}/" if folder else ""
    try:
        client = s3_client(
            endpoint_url=config.s3_endpoint_url,
            region=config.s3_region,
            checksums=config.s3_checksums,
            tries=4,  # a store that is busy for a moment must not fail the jobs that wait for the model
        )
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=url.netloc, Prefix=prefix)
        listing = {
            item["Key"].removeprefix(prefix): item for page in pages for item in page.get("Contents", ())
        }
        wanted = {
            name: item for name, item in listing.items() if name.endswith((*_WANTED, SUMS)) and _plain(name)
        }
        facts = [(name, item["Size"], item["ETag"]) for name, item in sorted(wanted.items())]
        digest = hashlib.sha256(json.dumps([entry.source, facts]).encode()).hexdigest()[:32]
        target = cache_folder() / digest
        if wanted and not target.is_dir():
            _fetch(
                target,
                {name: item["Size"] for name, item in wanted.items()},
                _getter(client, url.netloc, prefix),
            )
    except BotoCoreError as error:  # its text names the server's address, which is nobody's business
        raise _unavailable(entry, f"{entry.source}: {type(error).__name__}") from error
    except Exception as error:
        raise _unavailable(entry, f"{entry.source}: {type(error).__name__}: {error}") from error
    if not wanted:
        raise _unavailable(entry, f"{entry.source} holds no model files")
    return target


def _plain(name: str) -> bool:
    """Whether a key is a relative path that stays inside its folder."""
    return ".." not in PurePosixPath(name).parts and not name.startswith("/") and "\\" not in name


def _getter(client: Any, bucket: str, prefix: str) -> Callable[[str, Path], None]:
    def get(name: str, path: Path) -> None:
        client.download_file(bucket, prefix + name, str(path))

    return get


def _fetch(target: Path, sizes: Mapping[str, int], get: Callable[[str, Path], None]) -> None:
    """Fill `target` as a whole or not at all; several workers may fetch at once."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".fetching-") as scratch:
        for name, size in sizes.items():
            path = Path(scratch, "model", name)
            path.parent.mkdir(parents=True, exist_ok=True)
            get(name, path)
            if path.stat().st_size != size:
                raise OSError(f"{name} came with {path.stat().st_size} of {size} bytes")
        try:
            Path(scratch, "model").rename(target)
        except OSError:
            if not target.is_dir():  # else another worker was faster, with the same bytes
                shutil.rmtree(target, ignore_errors=True)
                raise


# ------------------------------------------------------------------------------------------------ checks


def _refuse_code_and_pickles(entry: ModelEntry, folder: Path) -> None:
    for path in sorted(folder.rglob("*")):
        if path.suffix == ".py":
            raise _unavailable(
                entry, f"{path.relative_to(folder)} is code; a model folder holds weights only"
            )
        if path.suffix in _PICKLES and not any(path.parent.glob("*.safetensors")):
            raise _unavailable(
                entry,
                f"{path.relative_to(folder)} is a pickle, which may run code; convert it to safetensors",
            )


def _hashes(folder: Path) -> dict[str, str]:
    files = [path for path in sorted(folder.rglob("*")) if path.suffix in _WANTED and path.is_file()]
    names = [path.relative_to(folder).as_posix() for path in files]
    return dict(zip(names, sha256_of(files), strict=True))


def _expected(entry: ModelEntry, folder: Path) -> Mapping[str, str]:
    """Return the hashes to hold the files to: the catalogue's, else those of a SHA256SUMS in the folder."""
    if entry.sha256 or not (folder / SUMS).is_file():
        return entry.sha256
    lines = (folder / SUMS).read_text("utf-8").splitlines()
    return {
        path.strip().removeprefix("*").removeprefix("./"): digest
        for digest, path in (x.split(None, 1) for x in lines if x)
    }


def _compare(entry: ModelEntry, found: Mapping[str, str], expected: Mapping[str, str]) -> None:
    for path, digest in expected.items():
        if path not in found:
            raise _unavailable(entry, f"{path} is missing")
        if found[path] != digest.lower():
            raise _unavailable(entry, f"{path} has the SHA-256 {found[path]}, not {digest.lower()}")
    unlisted = [path for path in found if path.endswith(".safetensors") and expected and path not in expected]
    if unlisted:
        raise _unavailable(entry, f"no hash is listed for {unlisted[0]}")


def header(path: Path) -> dict[str, dict[str, Any]]:
    """Return the tensors of a safetensors file, by name: `dtype`, `shape`, `data_offsets`.

    Raises:
        ValueError: the file is not safetensors, or its length is not the one its header says.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(_MAX_HEADER_BYTES, size - 8):
            raise ValueError("not a safetensors file, or cut short")
        try:
            tensors = json.loads(file.read(length))
            tensors.pop("__metadata__", None)
            end = max((tensor["data_offsets"][1] for tensor in tensors.values()), default=0)
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise ValueError("the safetensors header is damaged") from error
    if size != 8 + length + end:
        raise ValueError(f"{size:,} bytes long instead of {8 + length + end:,}: cut short or damaged")
    return dict(tensors)


def json_of(path: Path) -> dict[str, Any]:
    """Return what a JSON file of a model folder holds.

    Raises:
        ModelUnavailable: it is damaged; the libraries' own errors do not say which file it was.
    """
    try:
        found = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ModelUnavailable(f"{path.name} is damaged: it is not JSON") from error
    if not isinstance(found, dict):
        raise ModelUnavailable(f"{path.name} is damaged: it holds no object")
    return found


def is_float(tensor: Mapping[str, Any]) -> bool:
    """Whether a tensor of a header holds floating-point numbers, which are cast to the run's dtype."""
    return str(tensor["dtype"]).startswith(("F", "BF"))


def span(tensor: Mapping[str, Any]) -> int:
    """Return how many bytes a tensor of a header takes in its file."""
    begin, end = tensor["data_offsets"]
    return int(end - begin)


def _unavailable(entry: ModelEntry, why: str) -> ModelUnavailable:
    prefix = f"model {entry.id}: "
    return ModelUnavailable(why if why.startswith(prefix) else prefix + why)
