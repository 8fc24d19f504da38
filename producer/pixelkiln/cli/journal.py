"""What a bulk submit has done, on disk, so that one that was cut off can go on without doubling a job.

A chunk is written down before it is sent, with its Idempotency-Key. If the process dies before it hears the
answer, `--resume` sends the very same bytes under the same key: the server answers with the jobs it already
made, or makes them now.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pixelkiln.cli.faults import Refused


def journal_path(source: str, url: str, name: str) -> Path:
    """Return where the journal of a file, a server and a group name is kept."""
    home = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    identity = "\n".join([str(Path(source).resolve()), url, name])
    return home / "pixelkiln" / "submits" / f"{hashlib.sha256(identity.encode()).hexdigest()[:32]}.jsonl"


@dataclass(slots=True)
class Journal:
    """The rows accepted so far, the group they went into, and the chunk whose answer was never heard."""

    path: Path
    group: str | None = None
    accepted: dict[str, str] = field(default_factory=dict)
    pending: dict[str, Any] | None = None
    complete: bool = False

    @classmethod
    def load(cls, path: Path) -> Journal:
        """Read a journal; a missing one is empty, and a last line cut off by a crash is left out.

        Raises:
            Refused: the file cannot be read.
        """
        journal = cls(path)
        try:
            lines = path.read_text("utf-8").splitlines() if path.exists() else []
        except OSError as error:
            raise Refused(f"{path}: {error.strerror}") from error
        for line in lines:
            try:
                journal._apply(json.loads(line))
            except json.JSONDecodeError:
                break
        return journal

    def start(self) -> None:
        """Begin anew, forgetting what was.

        Raises:
            OSError: the folder cannot be written.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text("", "utf-8")
        self.group, self.accepted, self.pending, self.complete = None, {}, None, False

    def send(
        self,
        key: str,
        rows: Sequence[str],
        requests: list[dict[str, Any]],
        webhook: dict[str, str] | None = None,
    ) -> None:
        """Write down a chunk that is about to be sent, and whom to tell when the whole group has ended."""
        chunk = {"key": key, "rows": list(rows), "requests": requests, "group": self.group}
        self._write({"pending": {**chunk, "webhook": webhook} if webhook else chunk})

    def answered(self, group: str, ids: Sequence[str]) -> None:
        """Write down the answer to the pending chunk."""
        assert self.pending is not None  # noqa: S101  `send` came before
        self._write({"accepted": dict(zip(self.pending["rows"], ids, strict=True)), "group": group})

    def refused(self) -> None:
        """Write down that the pending chunk was refused as wrong: it made no job."""
        self._write({"refused": True})

    def end(self) -> None:
        """Write down that the whole file was sent."""
        self._write({"complete": True})

    def _write(self, entry: dict[str, Any]) -> None:
        self._apply(entry)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def _apply(self, entry: dict[str, Any]) -> None:
        if "pending" in entry:
            self.pending = entry["pending"]
        if "accepted" in entry:
            self.accepted |= entry["accepted"]
            self.group, self.pending = entry["group"], None
        if "refused" in entry:
            self.pending = None
        if "complete" in entry:
            self.complete = True
