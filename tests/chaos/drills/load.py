"""`python -m tests.chaos.drills.load URL RATE SECONDS CLIENTS`: sends jobs whatever it hears.

A process of its own, so that it can have the lowest priority: it shares the processors with what it tries.
"""

from __future__ import annotations

import itertools
import json
import sys
import threading
import time
from collections import Counter

import httpx2

from tests.chaos.drills.traffic import TIMEOUT_S, stub_job

ROW_MS = 800


def main() -> int:
    """Send `RATE` jobs a second from `CLIENTS` clients; prints JSON: `accepted`, `answers`, and the rest."""
    url, rate, seconds, clients = sys.argv[1], float(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4])
    numbers, began = itertools.count(), time.monotonic()
    accepted: list[str] = []
    answers: Counter[str] = Counter()
    impolite: list[str] = []
    took_s: list[float] = []

    def send() -> None:
        with httpx2.Client(base_url=url, timeout=TIMEOUT_S, trust_env=False) as http:
            while True:
                number = next(numbers)
                due_s = number / rate
                if due_s > seconds:
                    return
                time.sleep(max(0.0, began + due_s - time.monotonic()))
                if time.monotonic() > began + seconds:
                    return
                asked = time.monotonic()
                try:
                    answer = http.post(
                        "/v1/jobs", json=stub_job(f"{number}", device_ms=0, per_item_ms=ROW_MS)
                    )
                except httpx2.HTTPError as error:
                    answers[type(error).__name__] += 1
                    continue
                took_s.append(time.monotonic() - asked)
                answers[str(answer.status_code)] += 1
                if answer.status_code == 202:
                    accepted.append(answer.json()["id"])
                elif answer.status_code not in (429, 503) or "retry-after" not in answer.headers:
                    impolite.append(f"{answer.status_code} {answer.text[:200]}")

    threads = [threading.Thread(target=send) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(
        json.dumps(
            {
                "accepted": accepted,
                "answers": answers,
                "impolite": impolite,
                "took_s": took_s,
                "seconds": time.monotonic() - began,
            }
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
