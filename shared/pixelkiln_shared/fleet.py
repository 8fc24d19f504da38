"""Who works: each worker process reports itself every few seconds; a silent one is gone after a while."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any, Literal, cast

import redis
from pydantic import BaseModel, ConfigDict, ValidationError

from pixelkiln_shared import keys
from pixelkiln_shared.errors import NotFound, RedisUnavailable
from pixelkiln_shared.jobs import model_of

State = Literal["starting", "ready", "refusing", "draining"]


class LoadedModel(BaseModel):
    """A model that a worker has loaded: what it took of the device, how long that was, its weights' hash."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    id: str
    footprint_bytes: int
    load_s: float
    sha256: str = ""


class DeviceTime(BaseModel):
    """How the device of a worker spent its time since it was ready, in seconds; the four add up to that time.

    `busy_s` ran models, `load_s` loaded them; `idle_waiting_s` stood still although this worker held jobs for
    it, `idle_no_work_s` because there were none.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    busy_s: float = 0.0
    load_s: float = 0.0
    idle_waiting_s: float = 0.0
    idle_no_work_s: float = 0.0


class Histogram(BaseModel):
    """Observations since the process started: how many were at most each of `bounds`, and their sum.

    `counts` are not cumulative; the last one, beyond the bounds, is the rest. All in seconds.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    sum: float = 0.0


class ModelTally(BaseModel):
    """What a worker did with one model since it started.

    `switches` counts the loads that made another model leave. `rows` per batch tells how full batches were.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    loads: int = 0
    switches: int = 0
    batches: int = 0
    rows: int = 0
    succeeded: int = 0
    failed: int = 0
    pictures: int = 0
    run_s: float = 0.0
    max_batch: int = 0
    queue_wait: Histogram | None = None
    duration: Histogram | None = None
    load: Histogram | None = None
    upload: Histogram | None = None


class WorkerInfo(BaseModel):
    """One worker process as it reports itself.

    A worker in the state `refusing` is well but takes no jobs for now; `reason` says why. In other states
    `reason` tells what may lead to that; it is mostly empty.
    `models` and `lanes` are what it serves, `resident` the models loaded now and `loaded` what they cost,
    `unavailable` those that did not load when they were last tried, with the reason, `running` the jobs it
    holds. `memory_bytes` is its budget for loaded models. `tallies` are by model id. `longest_lane_wait_s`
    bounds how long it passes over a lane with waiting jobs, by the loads and runs it knows so far.
    """

    model_config = ConfigDict(extra="ignore", frozen=True, cache_strings="keys")  # as in `jobs`

    id: str
    host: str
    pid: int
    device: str
    state: State
    reason: str = ""
    models: tuple[str, ...] = ()
    lanes: tuple[str, ...] = ()
    resident: tuple[str, ...] = ()
    loaded: tuple[LoadedModel, ...] = ()
    unavailable: dict[str, str] = {}
    memory_bytes: int = 0
    longest_lane_wait_s: float = 0.0
    running: tuple[str, ...] = ()
    jobs_done: int = 0
    busy_share: float = 0.0
    device_time: DeviceTime = DeviceTime()
    tallies: dict[str, ModelTally] = {}
    started_at: datetime
    version: str


def unavailable(workers: Iterable[WorkerInfo], model: str) -> str | None:
    """Return why no worker can load a model; None when one can, may, or none serves it at all."""
    reasons = [info.unavailable.get(model) for info in workers if model in info.models]
    return reasons[0] if reasons and all(reasons) else None


def serves(info: WorkerInfo, lane: str) -> bool:
    """Whether a worker is ready, serves this lane, and could load its model when it last tried."""
    return info.state == "ready" and lane in info.lanes and model_of(lane) not in info.unavailable


def served_lanes(workers: Iterable[WorkerInfo]) -> frozenset[str]:
    """Return the lanes that at least one of these workers takes or will take, its model available or not.

    A model that did not load is tried again only when a job asks for it, and a worker that refuses takes jobs
    again as soon as it can: no job must be refused for that.
    """
    willing = ("ready", "refusing")
    return frozenset(lane for info in workers if info.state in willing for lane in info.lanes)


class Fleet:
    """The live workers. Every method raises `RedisUnavailable` when Redis does not answer."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client

    def report(self, info: WorkerInfo) -> bool:
        """Say that this worker lives, well within every `keys.WORKER_S`; return whether it shall drain."""
        with self._client.pipeline(transaction=True) as pipe:
            pipe.sadd(keys.WORKERS, info.id)
            pipe.set(keys.worker(info.id), info.model_dump_json(), ex=keys.WORKER_S)
            pipe.exists(keys.drain(info.id))
            return bool(self._execute(pipe)[-1])

    def drain(self, worker_id: str) -> WorkerInfo:
        """Ask a worker to end what it runs, claim no more and stay down; asking again changes nothing.

        It hears within a second, and with its next report at the latest.

        Raises:
            NotFound: no such worker is alive.
        """
        info = next((one for one in self.workers() if one.id == worker_id), None)
        if info is None:
            raise NotFound("no such worker is alive")
        with self._client.pipeline(transaction=True) as pipe:
            pipe.set(keys.drain(worker_id), "1", ex=keys.DRAIN_S)
            pipe.publish(keys.DRAINS, worker_id)
            self._execute(pipe)
        return info

    def unwanted(self, worker_id: str) -> bool:
        """Return whether this worker was asked to drain."""
        try:
            return bool(self._client.exists(keys.drain(worker_id)))
        except redis.RedisError as error:
            raise RedisUnavailable("Redis does not answer") from error

    def leave(self, worker_id: str) -> None:
        """Say that this worker has ended; unknown ids are no error."""
        with self._client.pipeline(transaction=True) as pipe:
            pipe.srem(keys.WORKERS, worker_id)
            pipe.delete(keys.worker(worker_id), keys.drain(worker_id))
            self._execute(pipe)

    def workers(self) -> list[WorkerInfo]:
        """Return the live workers, oldest first."""
        try:
            ids = sorted(_text(name) for name in cast(set[Any], self._client.smembers(keys.WORKERS)))
            if not ids:
                return []
            reports = cast(list[Any], self._client.mget([keys.worker(name) for name in ids]))
            silent = [name for name, report in zip(ids, reports, strict=True) if report is None]
            if silent:  # one that is only slow adds itself again with its next report
                self._client.srem(keys.WORKERS, *silent)
        except redis.RedisError as error:
            raise RedisUnavailable("Redis does not answer") from error
        alive = [info for report in reports if report is not None and (info := _parse(report)) is not None]
        return sorted(alive, key=lambda info: (info.started_at, info.id))

    def served_lanes(self) -> frozenset[str]:
        """Return the lanes that at least one ready worker serves."""
        return served_lanes(self.workers())

    def _execute(self, pipe: Any) -> list[Any]:
        try:
            return cast(list[Any], pipe.execute())
        except redis.RedisError as error:
            raise RedisUnavailable("Redis does not answer") from error


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _parse(report: bytes | str) -> WorkerInfo | None:
    try:
        return WorkerInfo.model_validate_json(report)
    except ValidationError:  # a report of another version is no reason to hide the others
        return None
