"""Ray Serve's asynchronous inference: a task consumer on its Celery adapter, one replica, Redis as broker.

The adapter stores every result, acknowledges late and runs Celery's thread pool inside the replica; the
waiter asks for the status, every 2 ms. Cancelling is Celery's revoke without terminate: it stops what waits.
"""

import time
from typing import Any

import work
from ray import serve as ray_serve
from ray.serve.schema import CeleryAdapterConfig, TaskProcessorConfig
from ray.serve.task_consumer import instantiate_adapter_from_config, task_consumer, task_handler

config = TaskProcessorConfig(
    queue_name="jobs",
    adapter="ray.serve.task_processor.CeleryTaskProcessorAdapter",
    adapter_config=CeleryAdapterConfig(broker_url=work.redis_url(), backend_url=work.redis_url()),
)


@ray_serve.deployment(num_replicas=1, max_ongoing_requests=8)
@task_consumer(task_processor_config=config)
class Consumer:
    """The empty job."""

    @task_handler(name="empty")
    def empty(self) -> None:
        """See `work.empty`."""
        work.empty()


def serve(_: str) -> None:
    """Start Ray with one replica."""
    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    ray_serve.start(http_options={"port": work.port()})
    ray_serve.run(Consumer.bind(), blocking=True)


def submit(count: int) -> None:
    """Put empty jobs into the queue."""
    adapter = instantiate_adapter_from_config(config)
    for _ in range(count):
        adapter.enqueue_task_sync("empty")


def latency(count: int) -> list[float]:
    """Submit and ask for the status until it is done, one by one."""
    adapter = instantiate_adapter_from_config(config)
    return work.latencies(lambda: _once(adapter), count)


def _once(adapter: Any) -> None:
    job = adapter.enqueue_task_sync("empty")
    while adapter.get_task_status_sync(job.id).status != "SUCCESS":
        time.sleep(0.002)


if __name__ == "__main__":
    work.main(serve=serve, submit=submit, latency=latency)
