"""Who is struck in `crashes`: each system with its workers running, a way to feed it, and what it shows."""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from bench.killing import Command, Keeper
from bench.peers.field import RAY_SAFE, Peer
from bench.peers.running import Ground, ground
from bench.stage import Stage, stage, stub_specs, worker_environment
from pixelkiln_shared.errors import NotFound
from pixelkiln_shared.jobs import Result, Status
from pixelkiln_shared.storage import open_storage
from pixelkiln_shared.storage.contract import Storage

WORKERS, JOB_MS = 4, 100
_ROOT = Path(__file__).parents[1]


class Side(Protocol):
    """One system with its workers running. `whole`: they have more than the process that runs a job."""

    folder: Path
    keeper: Keeper
    whole: bool

    def feed(self, first: int, jobs: int, per_s: int) -> None:
        """Send jobs at a rate, and write down in `accepted` which were taken."""
        ...

    def fates(self) -> tuple[set[int], set[int]]:
        """Return which jobs show a result, and which are still held."""
        ...


@dataclass(slots=True)
class OurSide:
    """Us, as we come: launchers with a worker each, the stub's batches of up to eight."""

    ready: Stage
    folder: Path
    keeper: Keeper
    storage: Storage
    whole: bool = True

    def feed(self, first: int, jobs: int, per_s: int) -> None:
        """See `Side.feed`."""
        options = {"device_ms": 0.0, "per_item_ms": float(JOB_MS)}
        specs, began = stub_specs(jobs, size_px=8, options=options), time.monotonic()
        with (self.folder / "accepted").open("a", encoding="ascii") as file:
            for index, spec in enumerate(specs):
                time.sleep(max(0.0, began + index / per_s - time.monotonic()))
                numbered = spec.model_copy(update={"input": {**spec.input, "seed": first + index}})
                self.ready.bells.ring(self.ready.submit([numbered]).waiting)
                file.write(f"{first + index} {spec.id} {time.time():.6f}\n")
                file.flush()

    def fates(self) -> tuple[set[int], set[int]]:
        """See `Side.fates`. A result is shown when the record names a file and the store has its bytes."""
        lines = (self.folder / "accepted").read_text("ascii").splitlines()
        jobs = {name: int(job) for job, name, _ in map(str.split, lines)}
        shown, kept = set(), set()
        for record in self.ready.ledger.get_many(list(jobs)):
            if record is None:
                continue
            if record.status is Status.SUCCEEDED and stored(record.result or "", self.storage):
                shown.add(jobs[record.id])
            elif not record.status.terminal:
                kept.add(jobs[record.id])
        return shown, kept


def stored(result: str, storage: Storage) -> bool:
    """Return whether the store has every file a result names, with the bytes it promised."""
    artifacts = Result.model_validate_json(result).artifacts
    try:
        return bool(artifacts) and all(
            hashlib.sha256(storage.get(one.key)).hexdigest() == one.sha256 for one in artifacts
        )
    except NotFound:
        return False


@dataclass(slots=True)
class PeerSide:
    """A peer on its ground."""

    place: Ground
    folder: Path
    keeper: Keeper
    whole: bool

    def feed(self, first: int, jobs: int, per_s: int) -> None:
        """See `Side.feed`."""
        limit_s = 60.0 + 2 * jobs / per_s
        replace(self.place, verb="feed").drive(first, jobs, per_s, JOB_MS, limit_s=limit_s)

    def fates(self) -> tuple[set[int], set[int]]:
        """See `Side.fates`."""
        found = replace(self.place, verb="fates").drive()
        return set(found["shown"]), set(found["kept"])


@contextmanager
def our_side() -> Iterator[OurSide]:
    """Have our workers running inside the block."""
    with stage(workers=0) as ready:
        folder = Path(ready.settings.storage_url.removeprefix("file://")).parent
        chosen = {"PIXELKILN_WORKER_MODELS": "stub", "BENCH_FOLDER": str(folder)}
        environment = worker_environment(ready.settings, chosen)
        line = (sys.executable, "-W", "ignore", "-m", "bench.stamped")
        keeper = Keeper([_command(line, environment, _ROOT, folder, n) for n in range(WORKERS)])
        with _kept(keeper):
            yield OurSide(ready, folder, keeper, open_storage(ready.settings))


@contextmanager
def peer_side(peer: Peer) -> Iterator[PeerSide]:
    """Have a peer's workers running inside the block.

    Raises:
        CannotInstall: its environment cannot be made.
    """
    with ground(peer, "feed") as place:
        scripts, servers = Path(__file__).parent / "peers", 1 if peer is RAY_SAFE else WORKERS
        commands = [
            _command(
                (str(place.python), peer.script, "serve", str(n)), place.environment, scripts, place.folder, n
            )
            for n in range(servers)
        ]
        keeper = Keeper(commands)
        with _kept(keeper):
            yield PeerSide(place, place.folder, keeper, whole=peer is not RAY_SAFE)


def _command(
    line: Sequence[str], environment: dict[str, str], folder: Path, logs: Path, number: int
) -> Command:
    return Command(line=line, environment=environment, folder=folder, log=logs / f"kept-{number}.log")


@contextmanager
def _kept(keeper: Keeper) -> Iterator[None]:
    keeper.start()
    try:
        yield
    finally:
        keeper.close()
