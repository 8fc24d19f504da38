"""Celery as its tutorial shows: an app with a result backend, `delay`, `get`, the worker's own defaults.

One job a task; the prefork pool with one child, because there is one device.
"""

import work
from celery import Celery

app = Celery("celery_plain", broker=work.redis_url(), backend=work.redis_url())
app.conf.broker_connection_retry_on_startup = True


@app.task
def empty() -> None:
    """See `work.empty`."""
    work.empty()


@app.task
def picture(seed: int) -> str:
    """See `work.picture`."""
    return work.picture(seed)


@app.task
def long_job() -> None:
    """See `work.long_job`."""
    work.long_job()


def serve(_: str) -> None:
    """Start the worker."""
    work.run("celery", "-A", "celery_plain", "worker", "--concurrency=1", "--loglevel=WARNING")


def submit(count: int) -> None:
    """Put empty jobs into the queue."""
    for _ in range(count):
        empty.delay()


def latency(count: int) -> list[float]:
    """Submit and wait, one by one."""
    return work.latencies(lambda: empty.delay().get(timeout=60), count)


def pictures(first: int, count: int) -> None:
    """Put jobs that make pictures into the queue."""
    for seed in range(first, first + count):
        picture.delay(seed)


def cancel(*steps: int) -> list[float]:
    """Cancel by ending the child that runs the job, which is what Celery has for it."""
    return work.cancels(steps, long_job.delay, empty.delay, lambda job: job.revoke(terminate=True))


if __name__ == "__main__":
    from celery_plain import cancel, latency, pictures, serve, submit  # the tasks' names follow the module

    work.main(serve=serve, submit=submit, latency=latency, pictures=pictures, cancel=cancel)
