"""RQ: `SimpleWorker`, which runs jobs in its own process, for empty jobs; the forking `Worker` for
cancelling, because only a work horse can be stopped. Results are kept only where they are waited for.
"""

import work
from redis import Redis
from rq import Queue
from rq.command import send_stop_job_command
from rq.worker import SimpleWorker, Worker

connection = Redis.from_url(work.redis_url())
queue = Queue("jobs", connection=connection)


def serve(verb: str) -> None:
    """Start the worker."""
    kind = Worker if verb == "cancel" else SimpleWorker
    kind([queue], connection=connection, log_job_description=False).work(logging_level="ERROR")


def submit(count: int) -> None:
    """Put empty jobs into the queue, pipelined by RQ's own bulk call."""
    prepared = [Queue.prepare_data(work.empty, result_ttl=0) for _ in range(count)]
    queue.enqueue_many(prepared)


def latency(count: int) -> list[float]:
    """Submit and wait for the result's stream, one by one."""
    return work.latencies(lambda: queue.enqueue(work.empty, result_ttl=60).latest_result(timeout=60), count)


def cancel(*steps: int) -> list[float]:
    """Stop the work horse."""
    return work.cancels(
        steps,
        lambda: queue.enqueue(work.long_job, result_ttl=0),
        lambda: queue.enqueue(work.empty, result_ttl=0),
        lambda job: send_stop_job_command(connection, job.id),
    )


if __name__ == "__main__":
    work.main(serve=serve, submit=submit, latency=latency, cancel=cancel)
