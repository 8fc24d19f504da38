"""A worker process gives a sign of life each second, and its launcher listens.

What watches over a model inside the process are threads, and each needs Python's global lock. Native code
that hangs while it holds the lock stops them all, so somebody outside must see it.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress

PERIOD_S = 1.0
LONGEST_LOOK_S = 1.0  # what is counted at most between two looks; see `SignsOfLife`
_DESCRIPTOR = "_PIXELKILN_SIGNS"  # variable: where a child writes; no setting, hence the underscore


class SignsOfLife:
    """A launcher's end of the pipe from one child.

    Silence is added up look by look. After a pause of the whole machine or container, in which nobody looked,
    a child is therefore not taken for silent.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.heard = False  # before the first sign there is no model, and nothing to judge
        self.silent_s = 0.0  # since the last one
        self._ours, self._theirs = os.pipe()
        os.set_blocking(self._ours, False)
        os.set_blocking(self._theirs, False)
        self._clock = clock
        self._looked_at = clock()

    @property
    def descriptor(self) -> int:
        """What the child must inherit."""
        return self._theirs

    @property
    def environment(self) -> dict[str, str]:
        """What the child must be told."""
        return {_DESCRIPTOR: str(self._theirs)}

    def handed_over(self) -> None:
        """Close the child's end here, once the child has it."""
        os.close(self._theirs)

    def look(self) -> None:
        """Hear what has come, or count the silence; call often."""
        now = self._clock()
        passed_s, self._looked_at = min(now - self._looked_at, LONGEST_LOOK_S), now
        try:
            self.heard = bool(os.read(self._ours, 4_096))  # nothing: closed, and nothing to judge either
            self.silent_s = 0.0
        except BlockingIOError:
            if self.heard:
                self.silent_s += passed_s

    def close(self) -> None:
        """Listen no longer."""
        os.close(self._ours)


def give() -> None:
    """Give signs until this process ends, if a launcher listens."""
    descriptor = os.environ.pop(_DESCRIPTOR, None)
    if descriptor is not None:
        threading.Thread(target=_go_on, args=(int(descriptor),), name="signs of life", daemon=True).start()


def _go_on(descriptor: int) -> None:
    with suppress(BrokenPipeError):  # the launcher is dead
        while True:
            with suppress(BlockingIOError):  # it is frozen, and the pipe full
                os.write(descriptor, b".")
            time.sleep(PERIOD_S)
