"""taskiq with its Redis list broker, one worker process, uvloop, orjson.

The list broker is the fastest of its three Redis brokers; unlike the stream broker it acknowledges nothing.
Results only where they are waited for; the waiter asks every 2 ms instead of every 200.
"""

import asyncio
import os

import work
from taskiq.serializers import ORJSONSerializer
from taskiq_redis import ListQueueBroker, RedisAsyncResultBackend

VERB = os.environ.get("BENCH_VERB", "submit")

broker = ListQueueBroker(work.redis_url()).with_serializer(ORJSONSerializer())
if VERB == "latency":
    broker = broker.with_result_backend(RedisAsyncResultBackend(work.redis_url(), result_ex_time=60))


@broker.task(task_name="empty")
async def empty() -> None:
    """See `work.empty`."""
    work.empty()


def serve(_: str) -> None:
    """Start the worker."""
    options = ("--workers", "1", "--max-async-tasks", "100", "--max-prefetch", "100", "--log-level", "ERROR")
    work.run("taskiq", "worker", "taskiq_:broker", *options)


def submit(count: int) -> None:
    """Put empty jobs into the queue, a hundred calls in flight."""

    async def all_of_them() -> None:
        await broker.startup()
        for start in range(0, count, 100):
            await asyncio.gather(*(empty.kiq() for _ in range(min(100, count - start))))
        await broker.shutdown()

    asyncio.run(all_of_them())


def latency(count: int) -> list[float]:
    """Submit and wait, one by one."""

    async def once() -> None:
        await (await empty.kiq()).wait_result(check_interval=0.002, timeout=60)

    with asyncio.Runner() as runner:
        runner.run(broker.startup())
        return work.latencies(lambda: runner.run(once()), count)


if __name__ == "__main__":
    work.main(serve=serve, submit=submit, latency=latency)
