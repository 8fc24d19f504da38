"""A virtual environment for each peer, made on first use: their pins conflict, with ours and each other's.

They lie under `build/bench-peers/`, or where `BENCH_PEERS` says. A stamp holds what was asked for,
so that each is made once, and again when the table changes.
"""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

REQUIREMENTS = {
    "celery": ("celery[redis]==5.7.0", "hiredis==3.5.0", "numpy==2.4.6", "pillow==13.0.0"),
    "dramatiq": ("dramatiq[redis]==2.2.1", "dramatiq-abort[redis]==1.2.1", "hiredis==3.5.0"),
    "rq": ("rq==3.0.0", "hiredis==3.5.0"),
    "arq": ("arq==0.28.0", "uvloop==0.23.0"),
    "taskiq": ("taskiq[orjson,uv]==0.13.0", "taskiq-redis==1.2.4", "hiredis==3.5.0"),
    "litserve": ("litserve==0.2.19", "numpy==2.4.6", "pillow==13.0.0"),
    "bentoml": ("bentoml==1.4.40", "numpy==2.4.6", "pillow==13.0.0"),
    "pycocotools": ("pycocotools==2.0.11",),
    "ray": ("ray[serve]==2.60.0", "celery[redis]==5.7.0"),  # 500 MB
}
FOLDER = Path(os.environ.get("BENCH_PEERS") or Path(__file__).parents[2] / "build" / "bench-peers")
_INSTALL_LIMIT_S = 900.0
_STAMP = "pixelkiln-bench.txt"


class CannotInstall(Exception):
    """pip could not make a peer's environment; the message says what it said last."""


def python(name: str, folder: Path | None = None) -> Path:
    """Return the Python of an environment, made now if need be: seconds, for `ray` a minute.

    Raises:
        CannotInstall: there is no network, or no such version for this machine.
    """
    wanted = "\n".join(REQUIREMENTS[name]) + "\n"
    place = (folder or FOLDER) / name
    binary, stamp = place / "bin" / "python", place / _STAMP
    if not (binary.exists() and stamp.exists() and stamp.read_text("utf-8") == wanted):
        print(f"bench: making the environment of {name} in {place}", file=sys.stderr)
        venv.create(place, with_pip=True, clear=True, symlinks=True)
        _install(binary, REQUIREMENTS[name])
        stamp.write_text(wanted, "utf-8")
    return binary


def _install(binary: Path, requirements: tuple[str, ...]) -> None:
    command = [str(binary), "-m", "pip", "--disable-pip-version-check", "--quiet", "install", *requirements]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_INSTALL_LIMIT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CannotInstall(f"pip did not finish: {type(error).__name__}") from error
    if done.returncode != 0:
        said = [line for line in done.stderr.splitlines() if line.startswith("ERROR:")]
        raise CannotInstall(
            f"pip cannot install {', '.join(requirements)}: {(said or ['no reason given'])[-1]}"
        )
