"""Celery with every option that keeps a job when whoever runs it is killed.

Acknowledged late; given back when the child that ran it is lost, after one second instead of ten; one message
at a time; what is not acknowledged within `stamps.VISIBILITY_S` is handed out again, looked for every second
instead of every hundred; results are kept, and both connections tried for ever. Its pool is prefork: with
another, a kill always takes the whole worker.
"""

import stamps
import work
from celery import Celery

app = Celery("celery_safe", broker=work.redis_url(), backend=work.redis_url())
app.conf.update(
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    worker_lost_wait=1.0,
    worker_prefetch_multiplier=1,
    worker_cancel_long_running_tasks_on_connection_loss=True,
    broker_transport_options=stamps.TRANSPORT,
    broker_connection_retry_on_startup=True,
    broker_connection_max_retries=None,
    result_backend_always_retry=True,
)


@app.task(name="job")
def job(number: int, job_ms: int) -> int:
    """See `stamps.run`."""
    stamps.run(number, job_ms)
    return number


def serve(number: int) -> None:
    """Start one worker of one child."""
    name = f"--hostname=safe{number}@%h"
    quiet = ("--without-gossip", "--without-mingle", "--loglevel=WARNING")
    work.run("celery", "-A", "celery_safe", "worker", "--pool=prefork", "--concurrency=1", name, *quiet)


def feed(first: int, count: int, per_s: int, job_ms: int) -> None:
    """See `stamps.feed`."""
    stamps.feed(lambda number: str(job.delay(number, job_ms).id), first, count, per_s)


def fates() -> dict[str, list[int]]:
    """See `stamps.fates`."""
    return stamps.fates(lambda name: bool(app.AsyncResult(name).state == "SUCCESS"), "celery")


if __name__ == "__main__":
    work.main(serve=serve, feed=feed, fates=fates)
