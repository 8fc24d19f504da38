"""What a made picture says of itself, in the forms that other programs read, and the manifest beside it.

- `parameters`, the text that AUTOMATIC1111's web UI writes and most tools read: in a PNG's text chunk, in the
  EXIF UserComment of JPEG and WebP;
- XMP `DigitalSourceType` = trained algorithmic media (IPTC), which search engines and shops read;
- the manifest beside the files: the whole request, what ran it, and the hash of each file.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from PIL import Image

from pixelkiln_shared import __version__, png
from pixelkiln_shared.jobs import JobSpec
from pixelkiln_shared.manifest import MANIFEST_FORMAT
from pixelkiln_worker.families.contract import Outcome

SOFTWARE = f"Pixelkiln {__version__}"

_EXIF_POINTER, _USER_COMMENT, _SOFTWARE_TAG = 0x8769, 0x9286, 0x0131
_TRAINED = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
_XMP = f"""<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
 xmlns:xmp="http://ns.adobe.com/xap/1.0/" xmp:CreatorTool="{SOFTWARE}"
 Iptc4xmpExt:DigitalSourceType="{_TRAINED}"/>
</rdf:RDF></x:xmpmeta>
<?xpacket end="r"?>"""
_LIBRARIES = ("numpy", "pillow")


def parameters(job: JobSpec, *, seed: int | None, width: int, height: int, model: Mapping[str, Any]) -> str:
    """Return the settings of one generated picture in the A1111 form.

    Args:
        job: a generate job.
        seed: the one that made just this picture.
        width: pixels.
        height: pixels.
        model: the model's identity; `scheduler` and `sha256` are used where present.
    """
    given = job.input
    facts = {
        "Steps": given.get("steps"),
        "Sampler": str(model.get("scheduler", "")).removesuffix("Scheduler"),
        "CFG scale": given.get("guidance"),
        "Seed": seed,
        "Size": f"{width}x{height}",
        "Model hash": str(model.get("sha256", ""))[:10],
        "Model": job.model,
        "Version": SOFTWARE,
    }
    lines = [str(given.get("prompt") or "")]
    if given.get("negative_prompt"):
        lines.append(f"Negative prompt: {given['negative_prompt']}")
    known = {name: value for name, value in facts.items() if value not in (None, "")}
    lines.append(", ".join(f"{name}: {_quoted(str(value))}" for name, value in known.items()))
    return "\n".join(lines)


def _quoted(value: str) -> str:
    return json.dumps(value, ensure_ascii=False) if set(value) & set(',:\n"') else value


def png_chunks(text: str) -> list[png.Chunk]:
    """Return the PNG chunks that carry the settings and the XMP packet."""
    packet = b"XML:com.adobe.xmp\0\0\0\0\0" + xmp()
    return [png.text_chunk("parameters", text), png.text_chunk("Software", SOFTWARE), (b"iTXt", packet)]


def exif(text: str) -> bytes:
    """Return an EXIF block whose UserComment is the text, UTF-16 big-endian as Exif 2.3 readers expect."""
    block = Image.Exif()
    block[_SOFTWARE_TAG] = SOFTWARE
    block.get_ifd(_EXIF_POINTER)[_USER_COMMENT] = b"UNICODE\0" + text.encode("utf-16-be", "replace")
    return block.tobytes()


def xmp() -> bytes:
    """Return the XMP packet of a generated picture."""
    return _XMP.encode()


def manifest(
    job: JobSpec, outcome: Outcome, *, facts: Mapping[str, Any], files: list[dict[str, Any]]
) -> dict[str, Any]:
    """Return the durable record of an attempt: what was asked, what ran, what came out.

    Args:
        job: the whole request, with everything resolved.
        outcome: its detail and warnings are kept.
        facts: what the firing knows: `model` (the identity), attempt, device, batch, two moments, timings in
            milliseconds.
        files: role, name, size and SHA-256 of each other file of the attempt.
    """
    rest = {name: value for name, value in facts.items() if name != "model"}
    return {
        "format": MANIFEST_FORMAT,
        "job": job.model_dump(mode="json"),
        "seed": job.input.get("seed"),
        "model": {"id": job.model, **facts.get("model", {})},
        "run": rest,
        "software": {"pixelkiln": __version__, **_versions()},
        "detail": outcome.detail,
        "warnings": [*job.warnings, *outcome.warnings],
        "files": files,
    }


@cache
def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
