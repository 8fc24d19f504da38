"""dramatiq with its Redis broker: one process, eight threads (its default), only the middleware it needs.

Results and abortion by the middleware made for them (`Results`, and `dramatiq-abort`, a package of its own),
only where they are measured. Cancelling raises in the thread that runs the job.
"""

import os

import dramatiq
import work
from dramatiq.brokers.redis import RedisBroker
from dramatiq.middleware import AgeLimit, Retries, ShutdownNotifications
from dramatiq.results import Results
from dramatiq.results.backends import RedisBackend

VERB = os.environ.get("BENCH_VERB", "submit")

broker = RedisBroker(url=work.redis_url(), middleware=[AgeLimit(), ShutdownNotifications(), Retries()])
if VERB == "latency":
    broker.add_middleware(Results(backend=RedisBackend(url=work.redis_url())))
if VERB == "cancel":
    from dramatiq_abort import Abortable, abort
    from dramatiq_abort.backends import RedisBackend as Aborts

    broker.add_middleware(Abortable(backend=Aborts.from_url(work.redis_url())))
dramatiq.set_broker(broker)


@dramatiq.actor(max_retries=0, **({"store_results": True} if VERB == "latency" else {}))
def empty() -> None:
    """See `work.empty`."""
    work.empty()


@dramatiq.actor(max_retries=0)
def long_job() -> None:
    """See `work.long_job`."""
    work.long_job()


def serve(verb: str) -> None:
    """Start the worker; one thread where jobs shall run one after the other."""
    threads = "1" if verb == "cancel" else "8"
    work.run("dramatiq", "dramatiq_", "--processes", "1", "--threads", threads)


def submit(count: int) -> None:
    """Put empty jobs into the queue."""
    for _ in range(count):
        empty.send()


def latency(count: int) -> list[float]:
    """Submit and wait, one by one."""
    return work.latencies(lambda: empty.send().get_result(block=True, timeout=60_000), count)


def cancel(*steps: int) -> list[float]:
    """Abort the running job."""
    return work.cancels(steps, long_job.send, empty.send, lambda job: abort(job.message_id))


if __name__ == "__main__":
    from dramatiq_ import cancel, latency, serve, submit  # one broker and one set of actors: the module's

    work.main(serve=serve, submit=submit, latency=latency, cancel=cancel)
