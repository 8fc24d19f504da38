"""Celery as an expert sets it for many short jobs: nothing sent or stored that nobody reads.

No events, gossip, mingle, heartbeat or rate limits; results ignored but where they are waited for; hiredis;
messages fetched 1,000 ahead; one connection for all submits. Pools: `solo` for empty jobs, the fastest of
solo, threads and prefork at one process (1,870, 1,720 and 1,570 a second); four threads for pictures, so that
encoding overlaps the device; prefork for cancelling, because only its children can be ended.
"""

import work
from celery import Celery

app = Celery("celery_tuned", broker=work.redis_url(), backend=work.redis_url())
app.conf.update(
    broker_connection_retry_on_startup=True,
    worker_prefetch_multiplier=1_000,
    worker_disable_rate_limits=True,
    worker_send_task_events=False,
    task_send_sent_event=False,
    task_store_errors_even_if_ignored=False,
    result_expires=600,
)
POOLS = {
    "submit": ("--pool=solo", "--prefetch-multiplier=1000"),
    "latency": ("--pool=solo",),
    "pictures": ("--pool=threads", "--concurrency=4", "--prefetch-multiplier=1"),
    "cancel": ("--pool=prefork", "--concurrency=1", "--prefetch-multiplier=1"),
}
QUIET = ("--without-gossip", "--without-mingle", "--without-heartbeat", "--loglevel=WARNING")


@app.task(name="empty", ignore_result=True)
def empty() -> None:
    """See `work.empty`."""
    work.empty()


@app.task(name="answered")
def answered() -> None:
    """See `work.empty`; somebody waits for it."""
    work.empty()


@app.task(name="picture", ignore_result=True)
def picture(seed: int) -> None:
    """See `work.picture`."""
    work.picture(seed)


@app.task(name="long_job", ignore_result=True)
def long_job() -> None:
    """See `work.long_job`."""
    work.long_job()


def serve(verb: str) -> None:
    """Start the worker with the pool that suits the work."""
    work.run("celery", "-A", "celery_tuned", "worker", *QUIET, *POOLS[verb])


def submit(count: int) -> None:
    """Put empty jobs into the queue, over one connection."""
    with app.producer_pool.acquire(block=True) as producer:
        for _ in range(count):
            empty.apply_async(producer=producer)


def latency(count: int) -> list[float]:
    """Submit and wait, one by one."""
    return work.latencies(lambda: answered.apply_async().get(timeout=60), count)


def pictures(first: int, count: int) -> None:
    """Put jobs that make pictures into the queue."""
    with app.producer_pool.acquire(block=True) as producer:
        for seed in range(first, first + count):
            picture.apply_async((seed,), producer=producer)


def cancel(*steps: int) -> list[float]:
    """Cancel by ending the child that runs the job."""
    return work.cancels(steps, long_job.delay, empty.delay, lambda job: job.revoke(terminate=True))


if __name__ == "__main__":
    work.main(serve=serve, submit=submit, latency=latency, pictures=pictures, cancel=cancel)
