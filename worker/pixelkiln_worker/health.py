"""`python -m pixelkiln_worker.health`: is a worker process of this machine ready? For container healthchecks.

It asks the fleet in Redis, where every worker process reports at each heartbeat and is forgotten soon after
its last one. So it says "no" when the process died, hangs, drains, takes no jobs for now or cannot reach
Redis, and it imports no torch.
"""

from __future__ import annotations

import socket
import sys

from pixelkiln_shared.errors import PixelkilnError
from pixelkiln_shared.fleet import Fleet, WorkerInfo
from pixelkiln_shared.ledger import redis_client
from pixelkiln_shared.settings import load


def check(fleet: Fleet, host: str) -> tuple[bool, str]:
    """Return whether a process on `host` is ready to run jobs, and one line that says what was found."""
    processes = [worker for worker in fleet.workers() if worker.host == host]
    if not processes:
        return False, f"no worker process of {host} reports"
    ready = sum(worker.state == "ready" for worker in processes)
    states = ", ".join(_told(worker) for worker in processes)
    return ready > 0, f"{ready} of {len(processes)} ready: {states}"


def _told(worker: WorkerInfo) -> str:
    return f"{worker.device} {worker.state}" + (f" ({worker.reason})" if worker.reason else "")


def main() -> int:
    """Print one line; returns 0 when at least one process of this machine is ready, else 1."""
    try:
        healthy, line = check(Fleet(redis_client(load())), socket.gethostname())
    except PixelkilnError as error:
        healthy, line = False, error.message
    print(line)
    return 0 if healthy else 1


if __name__ == "__main__":
    sys.exit(main())
