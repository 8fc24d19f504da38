"""LitServe: requests over HTTP, batches of up to 8 gathered while the batch before computes.

There is no queue that survives, and no job to ask for: a request is held open until its answer. Pictures are
stored by the worker, one after the other, because a LitServe worker does nothing while it encodes answers.
"""

from collections.abc import Sequence
from typing import Any

import litserve
import work

PATH = "/predict"
BATCH = 8
CLIENTS = 32


class Empty(litserve.LitAPI):
    """Empty jobs."""

    def setup(self, device: str) -> None:
        """Nothing to load."""

    def predict(self, x: Any) -> Any:
        """Do nothing, counted."""
        work.empty()
        return {}


class Pictures(litserve.LitAPI):
    """Pictures in batches."""

    def setup(self, device: str) -> None:
        """Nothing to load."""

    def decode_request(self, request: dict[str, int]) -> int:
        """Return the seed."""
        return request["seed"]

    def predict(self, seeds: Sequence[int]) -> list[str]:
        """Run the batch, then store every picture."""
        work.tally().began()
        work.device(len(seeds))
        names = [work.store(seed) for seed in seeds]
        work.tally().done(len(seeds))
        return names

    def encode_response(self, output: str) -> dict[str, str]:
        """Tell where the picture is."""
        return {"name": output}


def serve(verb: str) -> None:
    """Start the server with one worker."""
    api = Pictures(max_batch_size=BATCH, batch_timeout=0.01) if verb == "pictures" else Empty()
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1, timeout=120, fast_queue=True)
    server.run(host="127.0.0.1", port=work.port(), log_level="error", generate_client_file=False)


def submit(count: int) -> None:
    """Ask for empty jobs as 32 clients would."""
    work.until_up(lambda: work.post(PATH, {}))
    work.tally().reset()
    work.side_by_side(lambda _: work.post(PATH, {}), count, threads=CLIENTS)


def latency(count: int) -> list[float]:
    """Ask and wait, one by one, over one kept connection."""
    work.until_up(lambda: work.post(PATH, {}))
    return work.latencies(lambda: work.post(PATH, {}), count)


def pictures(first: int, count: int) -> None:
    """Ask for pictures as 32 clients would."""
    work.until_up(lambda: work.post("/health", method="GET"))
    work.side_by_side(lambda at: work.post(PATH, {"seed": first + at}), count, threads=CLIENTS)


if __name__ == "__main__":
    work.main(serve=serve, submit=submit, latency=latency, pictures=pictures)
