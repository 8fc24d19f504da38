"""The embedded stack: Redis, the API and workers as children of one command, with all data in one folder."""

from __future__ import annotations

from pathlib import Path


def run(data: Path, *, port: int = 8_700, workers: int = 1) -> int:
    """Run the stack in the foreground until a signal; returns the exit status (see `foreground`)."""
    from pixelkiln.local.foreground import run_until_signal

    return run_until_signal(data, port=port, workers=workers)
