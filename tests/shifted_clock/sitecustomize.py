"""Python imports this when it starts with this folder on its path: its wall clock is wrong.

`SHIFTED_CLOCK_S` says by how many seconds. Monotonic time goes on as it does, as on a machine whose clock was
set wrong.
"""

from __future__ import annotations

import datetime
import os
import time
from typing import Any

_SHIFT_S = float(os.environ.get("SHIFTED_CLOCK_S", "0"))
_time, _time_ns = time.time, time.time_ns


class _Shifted(datetime.datetime):
    @classmethod
    def now(cls, tz: Any = None) -> Any:
        """Return the wrong time."""
        return cls.fromtimestamp(time.time(), tz)

    @classmethod
    def utcnow(cls) -> Any:
        """Return the wrong time, as old code asks for it."""
        return cls.now(datetime.UTC).replace(tzinfo=None)


if _SHIFT_S:
    time.time = lambda: _time() + _SHIFT_S
    time.time_ns = lambda: _time_ns() + int(_SHIFT_S * 1e9)
    datetime.datetime = _Shifted  # type: ignore[misc]
