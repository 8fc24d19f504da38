"""`python -m bench.stamped`: the launcher; its children load `bench.stamped.app` for the worker's app."""

from __future__ import annotations

import sys

from pixelkiln_shared.settings import Settings
from pixelkiln_worker import launcher

_plain = launcher.command


def _stamped(settings: Settings, index: int) -> list[str]:
    line = _plain(settings, index)
    line[line.index("pixelkiln_worker.app")] = "bench.stamped.app"
    return line


if __name__ == "__main__":
    launcher.command = _stamped
    sys.exit(launcher.main())
