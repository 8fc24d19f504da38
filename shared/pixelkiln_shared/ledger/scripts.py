"""The Lua scripts of the moves: put together once from the files beside this one, run by their SHA-1."""

from __future__ import annotations

import hashlib
from importlib.resources import files
from typing import Any

import redis
from redis.client import Pipeline

from pixelkiln_shared import keys
from pixelkiln_shared.kinds import Kind
from pixelkiln_shared.ledger.contract import MAX_STRIKES

SETTLE_BUDGET = 200  # children told in one move; a sweep goes on with the rest
PROGRESS_MS = 250  # at most four progress events a second and job
SUSPECT_PATIENCE_MS = 1_000  # a suspect nobody could take for so long gets a worker of its own
RESERVATION_MS = 60_000  # time for that worker to finish what it holds
MAX_SPARED = 2  # lapses of one job that a pause of Redis may excuse

_MOVES = ("queue", "outbox", "ending")
_QUESTIONS = dict.fromkeys(("get", "list", "count"), ("reading",))
_OF_THE_OUTBOX = dict.fromkeys(
    ("post_claim", "post_settle", "post_again", "post_list", "post_state"), ("outbox",)
)
_SHARED_PARTS = _QUESTIONS | _OF_THE_OUTBOX


def lua_file(name: str) -> str:
    """Return the text of `lua/{name}.lua`."""
    return (files(__package__) / "lua" / f"{name}.lua").read_text()


def _moves() -> list[str]:
    """Return the name of every file beside this one that is a move, not a part of others."""
    parts = {"clock", "prelude", *_MOVES, *(part for shared in _SHARED_PARTS.values() for part in shared)}
    names = [file.name.removesuffix(".lua") for file in (files(__package__) / "lua").iterdir()]
    return [name for name in names if name not in parts]


class Scripts:
    """Every move as one atomic script. Safe for threads; works on one Redis, not on a Redis Cluster.

    `clock` is Lua source that defines `read_clock()`, milliseconds since 1970. Production leaves it alone:
    Redis's own `TIME`. Tests pass another, so that a lease ends without waiting for it.
    """

    def __init__(self, client: redis.Redis, *, retention_s: int, clock: str | None = None) -> None:
        self._client = client
        self._shared = [_constants(retention_s), clock or lua_file("clock"), lua_file("prelude")]
        self._sources: dict[str, tuple[str, str]] = {}
        for name in _moves():  # now: a process that has run out of file descriptors could not read them later
            self._source(name)

    def run(self, move: str, *arguments: str | int) -> Any:
        """Run a move; its text is sent only when Redis does not know it (a restart, a flush)."""
        sha, source = self._source(move)
        try:
            return self._client.evalsha(sha, 0, *arguments)
        except redis.exceptions.NoScriptError:
            return self._client.eval(source, 0, *arguments)

    def queue(self, pipeline: Pipeline, move: str, *arguments: str | int) -> None:
        """Add a move to a pipeline. Call `load` first: within a pipeline there is no falling back."""
        pipeline.evalsha(self._source(move)[0], 0, *arguments)

    def command(self, move: str, *arguments: str | int) -> list[str | int]:
        """Return a move as a line for a connection. Call `load` first, as for `queue`."""
        return ["EVALSHA", self._source(move)[0], 0, *arguments]

    def load(self, move: str) -> None:
        """Make Redis know a move."""
        self._client.script_load(self._source(move)[1])

    def _source(self, move: str) -> tuple[str, str]:
        if move not in self._sources:
            parts = [*_SHARED_PARTS.get(move, _MOVES), move]
            text = "\n".join([*self._shared, *map(lua_file, parts)])
            self._sources[move] = (hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest(), text)
        return self._sources[move]


def _constants(retention_s: int) -> str:
    """Return the key names and numbers as Lua, so that no list is kept twice."""
    names = ",".join(f'{key.name.lower()}="{key.value}"' for key in keys.LedgerKey)
    kinds = ",".join(f'"{kind}"' for kind in Kind)
    numbers = {
        "MAX_STRIKES": MAX_STRIKES,
        "RETENTION_MS": retention_s * 1_000,
        "IDEMPOTENCY_S": keys.IDEMPOTENCY_S,
        "DELIVERED_MS": keys.DELIVERED_S * 1_000,
        "UNDELIVERED_MS": keys.UNDELIVERED_S * 1_000,
        "GONE_S": keys.GONE_S,
        "FAILING_S": keys.FAILING_S,
        "EVENT_SHARDS": keys.EVENT_SHARDS,
        "EVENTS_KEPT": keys.EVENTS_KEPT,
        "SETTLE_BUDGET": SETTLE_BUDGET,
        "PROGRESS_MS": PROGRESS_MS,
        "SUSPECT_PATIENCE_MS": SUSPECT_PATIENCE_MS,
        "RESERVATION_MS": RESERVATION_MS,
        "MAX_SPARED": MAX_SPARED,
    }
    lines = [f"local K = {{{names}}}", f"local KINDS = {{{kinds}}}", f'local CANCELS = "{keys.CANCELS}"']
    return "\n".join(lines + [f"local {name} = {value}" for name, value in numbers.items()])
