"""The field: every peer, what it was set to, and what it cannot do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from bench.peers.environments import REQUIREMENTS


@dataclass(frozen=True, kw_only=True, slots=True)
class Peer:
    """One peer.

    Attributes:
        script: its file beside this one.
        environment: in whose environment it runs.
        setting: how it was set, for the caveat of its rows.
        cannot: verb to reason, for what it does not offer.
        keeps: whether its queue outlives its server: then jobs are submitted first and served afterwards.
        slow: whether it takes tens of seconds to start; a short run measures it once.
    """

    name: str
    script: str
    environment: str
    setting: str
    cannot: Mapping[str, str] = field(default_factory=dict)
    keeps: bool = True
    slow: bool = False

    @property
    def versions(self) -> dict[str, str]:
        """The libraries it was measured with."""
        return dict(one.partition("==")[::2] for one in REQUIREMENTS[self.environment])


_ONE_A_JOB = "one job a task: it never batches, so it repeats what plain Celery shows"
_NO_STOP = "it has no means to stop a job that runs"

CELERY = Peer(
    name="Celery, plain",
    script="celery_plain.py",
    environment="celery",
    setting="as its tutorial shows: result backend, prefork pool of one child, all defaults",
)
TUNED = Peer(
    name="Celery, tuned",
    script="celery_tuned.py",
    environment="celery",
    setting="no events, gossip, mingle, heartbeat, results or rate limits; hiredis; prefetch 1,000; for "
    "empty jobs the solo pool, the fastest of solo, threads and prefork at one process",
)
LITSERVE = Peer(
    name="LitServe",
    script="litserve_.py",
    environment="litserve",
    setting="one worker, batches of 8, fast queue, 32 clients over kept connections",
    cannot={"cancel": f"{_NO_STOP}: a client that leaves is not noticed before the answer"},
    keeps=False,
)
BENTOML = Peer(
    name="BentoML tasks",
    script="bentoml_.py",
    environment="bentoml",
    setting="one worker, 32 clients over kept connections; status asked for every 2 ms",
    cannot={"cancel": "its server answers that cancelling is not supported outside its cloud"},
    keeps=False,
)
QUEUES = (
    CELERY,
    TUNED,
    Peer(
        name="dramatiq",
        script="dramatiq_.py",
        environment="dramatiq",
        setting="one process, eight threads, only age limit, retries and shutdown as middleware; waits by "
        "the blocking result backend; aborts with dramatiq-abort",
        cannot={"pictures": _ONE_A_JOB},
    ),
    Peer(
        name="RQ",
        script="rq_.py",
        environment="rq",
        setting="SimpleWorker (no fork a job), bulk enqueue; the forking Worker for cancelling",
        cannot={"pictures": _ONE_A_JOB},
    ),
    Peer(
        name="arq",
        script="arq_.py",
        environment="arq",
        setting="uvloop, 100 jobs side by side, polling every 10 ms instead of 500; its long job sleeps in "
        "the event loop, so that a cancel need not wait for a step's end",
        cannot={"pictures": _ONE_A_JOB},
    ),
    Peer(
        name="taskiq",
        script="taskiq_.py",
        environment="taskiq",
        setting="list broker (no acknowledgements), uvloop, orjson, 100 jobs side by side; waits asking "
        "every 2 ms instead of 200",
        cannot={"pictures": _ONE_A_JOB, "cancel": _NO_STOP},
    ),
)
SERVERS = (
    LITSERVE,
    BENTOML,
    Peer(
        name="Ray Serve, async inference",
        script="ray_serve.py",
        environment="ray",
        setting="one replica, its Celery adapter on Redis, which keeps every result",
        cannot={
            "pictures": "its task consumer takes jobs one by one; batching is for its HTTP requests",
            "cancel": f"{_NO_STOP}: its adapter revokes only what waits",
        },
        slow=True,
    ),
)
EVERYONE = (*QUEUES, *SERVERS)
CELERY_SAFE = Peer(
    name="Celery, every safe option",
    script="celery_safe.py",
    environment="celery",
    setting="late acknowledgement, rejected when its child is lost (after 1 s, not 10), prefetch 1, "
    "visibility timeout 15 s looked for every second (defaults: an hour, 100 s), prefork pool of one child",
)
RAY_SAFE = Peer(
    name="Ray Serve, async inference",
    script="ray_safe.py",
    environment="ray",
    setting="its Celery adapter (late acknowledgement, rejection when lost) with the same visibility "
    "timeout, prefetch 1, health looked at every second",
)
