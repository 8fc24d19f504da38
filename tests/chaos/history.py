"""What the clients of a run asked and heard, and which faults struck: lines of JSON, only ever appended.

Each operation leaves an `invoke` line when it is sent and one more line when it ended: `ok` (an answer of the
2xx kind), `fail` (a refusal: it certainly did nothing) or `unknown` (a cut connection, a 5xx: it may have
happened or not). A fault leaves `invoke` when it begins and `ok` when it is over.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

Event = Literal["invoke", "ok", "fail", "unknown"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One line. `at` is Unix seconds, `client` the number of the thread (-1: the hand that does the faults,
    -2: the receiver of webhooks).

    Attributes:
        op: `submit`, `reuse` (a key with another body), `poll`, `cancel`, `cancel_group`, `upload`,
            `fault`, or `told` (a webhook's message arrived).
        key: the idempotency key of a submit, a picture's name, the `webhook-id`, the fault's kind; else the
            id of the job or group.
        status: the HTTP status of an answer; 0 without one.
        took_s: how long the answer took.
        seen: what was answered: `ids` and `group` of a submit, `id`, `status` and `results` (SHA-256 sums) of
            a job, `counts` of a group; or what a message said, and what it was answered.
    """

    at: float
    client: int
    op: str
    event: Event
    key: str
    status: int = 0
    took_s: float = 0.0
    seen: dict[str, Any] = field(default_factory=dict)


class History:
    """An append-only file of entries. Safe for threads; each line is on its way to the disk at once."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("x", encoding="utf-8", buffering=1)
        self._lock = threading.Lock()
        self._entries: list[Entry] = []

    def add(self, client: int, op: str, event: Event, key: str, **more: Any) -> None:
        """Append one line, stamped with the time."""
        with self._lock:
            entry = Entry(at=time.time(), client=client, op=op, event=event, key=key, **more)
            self._entries.append(entry)
            self._file.write(json.dumps(asdict(entry)) + "\n")

    def entries(self) -> list[Entry]:
        """Return what was written so far."""
        with self._lock:
            return list(self._entries)

    def close(self) -> None:
        """Close the file; nothing can be added any more."""
        self._file.close()


def read(lines: Iterable[str]) -> list[Entry]:
    """Return the entries of a history file's lines."""
    return [Entry(**json.loads(line)) for line in lines if line.strip()]
