"""`pixelkiln up`: the stack in the foreground of a terminal or a service manager."""

from __future__ import annotations

import signal
import sys
import threading
import time
from pathlib import Path
from types import FrameType

import click

from pixelkiln.local.stack import AlreadyRunning, Stack
from pixelkiln_shared.errors import Misconfigured

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stop(Exception):
    """A signal asked for the end."""


def run_until_signal(data: Path, *, port: int, workers: int) -> int:
    """Start the stack, print `ready: URL` on stdout, and keep it running until a signal.

    A second signal while it stops makes it stop at once. Returns 0 after a signal, 1 when another stack holds
    the folder, 2 when it cannot start.
    """
    hurry = threading.Event()

    def first(_number: int, _frame: FrameType | None) -> None:
        for name in SIGNALS:
            signal.signal(name, second)
        raise Stop

    def second(_number: int, _frame: FrameType | None) -> None:
        hurry.set()

    before = {name: signal.signal(name, first) for name in SIGNALS}
    stack = Stack(data, port=port, workers=workers, say=say)
    try:
        stack.start()
        click.echo(f"ready: {stack.url}")
        sys.stdout.flush()
        say(f"data and logs are in {data}; Ctrl-C stops everything")
        while True:
            stack.tend()
            time.sleep(0.2)
    except Stop:
        say("stopping")
        return 0
    except AlreadyRunning as error:
        say(f"Error: {error.message}")
        return 1
    except Misconfigured as error:
        say(f"Error: {error.message}")
        return 2
    finally:
        for name in SIGNALS:
            signal.signal(name, second)
        stack.stop(hurry)
        for name, handler in before.items():
            signal.signal(name, handler)


def say(line: str) -> None:
    """Say something on stderr."""
    click.echo(line, err=True)
