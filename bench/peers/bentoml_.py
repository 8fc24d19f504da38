"""BentoML tasks: submit over HTTP, ask for the status, get the result; batches of up to 8 for pictures.

The development server keeps tasks in SQLite, for a day, but what waits in it does not survive the server. Its
client asks for the status again and again; so does this, every 2 ms.
"""

import os
import time

import bentoml
import work

CLIENTS = 32


@bentoml.service(workers=1, traffic={"timeout": 120, "concurrency": 1_000})
class Bench:
    """The two jobs it can do."""

    @bentoml.task
    def empty(self) -> str:
        """See `work.empty`."""
        work.empty()
        return ""

    @bentoml.task(batchable=True, max_batch_size=8, max_latency_ms=60_000)
    def picture(self, seeds: list[int]) -> list[str]:
        """Run the batch, then store every picture."""
        work.tally().began()
        work.device(len(seeds))
        names = [work.store(seed) for seed in seeds]
        work.tally().done(len(seeds))
        return names


def serve(_: str) -> None:
    """Start the server with one worker; its database lies where everything of this run does."""
    os.environ |= {"BENTOML_HOME": str(work.folder()), "BENTOML_DO_NOT_TRACK": "true"}
    work.run("bentoml", "serve", "bentoml_:Bench", "--host", "127.0.0.1", "--port", str(work.port()))


def submit(count: int) -> None:
    """Submit empty jobs as 32 clients would."""
    work.until_up(lambda: work.post("/readyz", method="GET"))
    work.side_by_side(lambda _: work.post("/empty/submit", {}), count, threads=CLIENTS)


def latency(count: int) -> list[float]:
    """Submit, ask for the status until it is done, get the result; one by one."""
    work.until_up(lambda: work.post("/readyz", method="GET"))
    return work.latencies(_once, count)


def pictures(first: int, count: int) -> None:
    """Submit pictures as 32 clients would."""
    work.until_up(lambda: work.post("/readyz", method="GET"))
    body = [{"seeds": [first + at]} for at in range(count)]
    work.side_by_side(lambda at: work.post("/picture/submit", body[at]), count, threads=CLIENTS)


def _once() -> None:
    name = work.post("/empty/submit", {})["task_id"]
    while work.post(f"/empty/status?task_id={name}", method="GET")["status"] not in ("success", "completed"):
        time.sleep(0.002)


if __name__ == "__main__":
    work.main(serve=serve, submit=submit, latency=latency, pictures=pictures)
