"""arq: 100 jobs side by side in one event loop, uvloop, results kept only where they are waited for.

It polls, every 0.5 s by default; here every 10 ms, worker and waiter alike, which its arguments allow.
"""

import asyncio
import os
from typing import Any

import uvloop
import work
from arq import create_pool, func
from arq.connections import ArqRedis, RedisSettings
from arq.jobs import Job

asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
POLL_S = 0.01
VERB = os.environ.get("BENCH_VERB", "submit")


async def empty(_: dict[str, Any]) -> None:
    """See `work.empty`."""
    work.empty()


async def long_job(_: dict[str, Any]) -> None:
    """See `work.long_job_async`."""
    await work.long_job_async()


class WorkerSettings:
    """What `arq` reads."""

    functions = (func(empty, keep_result=60 if VERB == "latency" else 0), func(long_job, keep_result=0))
    redis_settings = RedisSettings.from_dsn(work.redis_url())
    poll_delay = POLL_S
    max_jobs = 1 if VERB == "cancel" else 100
    allow_abort_jobs = VERB == "cancel"
    log_results = False


def serve(_: str) -> None:
    """Start the worker."""
    work.run("arq", "arq_.WorkerSettings")


def submit(count: int) -> None:
    """Put empty jobs into the queue, a hundred calls in flight."""

    async def all_of_them() -> None:
        pool = await create_pool(WorkerSettings.redis_settings)
        for start in range(0, count, 100):
            await asyncio.gather(*(pool.enqueue_job("empty") for _ in range(min(100, count - start))))

    asyncio.run(all_of_them())


def latency(count: int) -> list[float]:
    """Submit and wait, one by one."""
    with asyncio.Runner() as runner:
        pool = runner.run(create_pool(WorkerSettings.redis_settings))

        async def once() -> None:
            job = await _enqueue(pool, "empty")
            await job.result(timeout=60, poll_delay=POLL_S)

        return work.latencies(lambda: runner.run(once()), count)


def cancel(*steps: int) -> list[float]:
    """Abort the running job; its own poll tells when, so nobody waits for the answer."""
    with asyncio.Runner() as runner:
        pool = runner.run(create_pool(WorkerSettings.redis_settings))
        return work.cancels(
            steps,
            lambda: runner.run(_enqueue(pool, "long_job")),
            lambda: runner.run(_enqueue(pool, "empty")),
            lambda job: runner.run(job.abort(timeout=60, poll_delay=POLL_S)),
        )


async def _enqueue(pool: ArqRedis, name: str) -> Job:
    job = await pool.enqueue_job(name)
    if job is None:
        raise RuntimeError("arq refused the job")
    return job


if __name__ == "__main__":
    work.main(serve=serve, submit=submit, latency=latency, cancel=cancel)
