"""Work that leaves its trace on disk: who ran which job, from when to when, whoever is killed meanwhile.

Run by a peer's own Python, beside its file, and by our workers; standard library only at import. A job's
start and its end are a line each, `JOB WHAT TIME PID`, written in one call to a file opened for appending:
lines of several processes do not mix, and what was written outlives its writer. Files in `BENCH_FOLDER`:
`trace`, and `accepted`, a line `JOB ID TIME` for each job that the queue took. Times are Unix seconds.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

STARTED, ENDED = "start", "end"
WARM = 1_000_000  # jobs from this number on warm up, and are not counted

# What keeps a job safe on Redis as a broker: who does not acknowledge within this time is taken for dead. No
# job here lasts a second, so it can be as short as our lease.
VISIBILITY_S = 15
TRANSPORT = {
    "visibility_timeout": VISIBILITY_S,
    "unacked_restore_interval": 1,  # look for such messages every second, not every ten
    "unacked_restore_throttle": 1,  # each time, not every tenth time
    "socket_keepalive": True,
    "health_check_interval": 10,
}


def folder() -> Path:
    """Return where this run keeps its files."""
    return Path(os.environ["BENCH_FOLDER"])


def stamp(jobs: Iterable[int], what: str) -> None:
    """Write that these jobs start or end now, in this process."""
    now, pid = time.time(), os.getpid()
    text = "".join(f"{job} {what} {now:.6f} {pid}\n" for job in jobs)
    descriptor = os.open(folder() / "trace", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(descriptor, text.encode("ascii"))
    finally:
        os.close(descriptor)


def run(job: int, job_ms: int) -> None:
    """Do a job: sleep."""
    stamp([job], STARTED)
    time.sleep(job_ms / 1_000)
    stamp([job], ENDED)


def feed(send: Callable[[int], str], first: int, count: int, per_s: int) -> None:
    """Send jobs at an even rate, and write down those that were accepted; `send` returns the queue's id."""
    began = time.monotonic()
    with (folder() / "accepted").open("a", encoding="ascii") as file:
        for index in range(count):
            time.sleep(max(0.0, began + index / per_s - time.monotonic()))
            name = send(first + index)
            file.write(f"{first + index} {name} {time.time():.6f}\n")
            file.flush()


def accepted() -> dict[str, int]:
    """Return the numbers of the accepted jobs by the queue's ids."""
    lines = (folder() / "accepted").read_text("ascii").splitlines()
    return {name: int(job) for job, name, _ in map(str.split, lines)}


def fates(shows: Callable[[str], bool], queue: str) -> dict[str, list[int]]:
    """Return which jobs show a result, and which a Celery broker on Redis still holds, waiting or handed out.

    Args:
        shows: whether the job with this id shows a result.
        queue: the name of its queue, which is that of a list.
    """
    import redis

    with redis.Redis.from_url(os.environ["BENCH_REDIS_URL"], decode_responses=True) as client:
        waiting: list[Any] = [json.loads(one) for one in client.lrange(queue, 0, -1)]
        handed_out: list[Any] = [json.loads(one)[0] for one in client.hvals("unacked")]
    jobs = accepted()
    held = {message["headers"]["id"] for message in waiting + handed_out}
    return {
        "shown": [job for name, job in jobs.items() if shows(name)],
        "kept": [job for name, job in jobs.items() if name in held],
    }
