"""Ray Serve's asynchronous inference, four replicas, with what it offers to keep jobs.

Its Celery adapter acknowledges late and rejects what a lost worker had, and lets nobody change that; the
rest is as in `celery_safe.py`. A replica is one process, which Serve starts again when it dies; its health is
looked at every second instead of every ten.
"""

import stamps
import work
from ray import serve as ray_serve
from ray.serve.schema import CeleryAdapterConfig, TaskProcessorConfig
from ray.serve.task_consumer import instantiate_adapter_from_config, task_consumer, task_handler

REPLICAS = 4
config = TaskProcessorConfig(
    queue_name="jobs",
    adapter="ray.serve.task_processor.CeleryTaskProcessorAdapter",
    adapter_config=CeleryAdapterConfig(
        broker_url=work.redis_url(),
        backend_url=work.redis_url(),
        app_custom_config={"worker_prefetch_multiplier": 1, "result_backend_always_retry": True},
        broker_transport_options=stamps.TRANSPORT,
    ),
)


@ray_serve.deployment(
    num_replicas=REPLICAS,
    max_ongoing_requests=1,
    health_check_period_s=1,
    ray_actor_options={"num_cpus": 0.1},
)
@task_consumer(task_processor_config=config)
class Consumer:
    """The job."""

    @task_handler(name="job")
    def job(self, number: int, job_ms: int) -> int:
        """See `stamps.run`."""
        stamps.run(number, job_ms)
        return number


def serve(_: int) -> None:
    """Start Ray with all replicas."""
    import ray

    ray.init(num_cpus=REPLICAS, include_dashboard=False, log_to_driver=False)
    ray_serve.start(http_options={"port": work.port()})
    ray_serve.run(Consumer.bind(), blocking=True)


def feed(first: int, count: int, per_s: int, job_ms: int) -> None:
    """See `stamps.feed`."""
    adapter = instantiate_adapter_from_config(config)
    stamps.feed(
        lambda number: str(adapter.enqueue_task_sync("job", args=[number, job_ms]).id), first, count, per_s
    )


def fates() -> dict[str, list[int]]:
    """See `stamps.fates`."""
    adapter = instantiate_adapter_from_config(config)
    return stamps.fates(lambda name: adapter.get_task_status_sync(name).status == "SUCCESS", "jobs")


if __name__ == "__main__":
    work.main(serve=serve, feed=feed, fates=fates)
