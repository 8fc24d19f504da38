"""What a launcher does for a worker that it did not start, or cannot reach Redis for."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import redis

from pixelkiln_shared import keys
from pixelkiln_shared.fleet import Fleet, WorkerInfo
from pixelkiln_shared.settings import Settings
from pixelkiln_worker.burials import Burials
from pixelkiln_worker.presence import Presence


def dead(settings: Settings, name: str) -> Path:
    assert settings.spool_dir is not None
    path = settings.spool_dir / f"{name}{Presence(settings.spool_dir, settings.redis_url)._ending}"
    path.touch()  # and nobody locks it
    return path


def report(fleet: Fleet, name: str) -> None:
    fleet.report(
        WorkerInfo(
            id=name, host="h", pid=1, device="cpu", state="ready", started_at=datetime.now(UTC), version="0"
        )
    )


def test_the_dead_wait_until_redis_is_back(tmp_path: Path) -> None:
    settings = Settings(redis_url="redis://127.0.0.1:1/0", spool_dir=tmp_path)
    path = dead(settings, "w1")
    Burials(settings).look(at_once=True)
    assert path.exists()


def test_whether_a_stranger_was_asked_to_drain_is_left_for_its_own_launcher(
    redis_url: str, tmp_path: Path
) -> None:
    settings = Settings(redis_url=redis_url, spool_dir=tmp_path)
    burials = Burials(settings)
    with redis.Redis.from_url(redis_url) as client:
        fleet = Fleet(client)
        for name in ("asked", "other"):
            report(fleet, name)
        client.set(keys.drain("asked"), "1", ex=60)
        paths = [dead(settings, name) for name in ("asked", "other")]
        burials.look()
        assert not any(path.exists() for path in paths)
        assert [info.id for info in fleet.workers()] == ["asked"]
        assert burials.bury("asked")
        assert fleet.workers() == []


def test_looks_in_quick_succession_are_one(tmp_path: Path) -> None:
    settings = Settings(redis_url="redis://127.0.0.1:1/0", spool_dir=tmp_path)
    burials = Burials(settings)
    burials.look()
    dead(settings, "w1")
    began = burials._next_at
    burials.look()
    assert burials._next_at == began
