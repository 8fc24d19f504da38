"""The judge's rules on webhooks: each end is told at least once, signed, under one id, and as it was."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

from pixelkiln_shared.ledger.contract import Record
from tests.chaos.history import Entry
from tests.chaos.verdict import TOLD_LABEL, Breach, Finding, found, label

OP = "told"  # a message that the receiver got: `ok` when its signature is right, `fail` when it is not


def webhooks(entries: Sequence[Entry], by_id: Mapping[str, Record]) -> Iterator[Finding]:
    """Judge the messages. Doubled ones are right, as long as they are one message."""
    ids: dict[str, set[str]] = defaultdict(set)
    for entry in entries:
        if entry.op != OP:
            continue
        if entry.event != "ok":
            yield found(Breach.MISTOLD, entry.key, "its signature is not valid")
            continue
        ids[entry.seen["id"]].add(entry.key)
        record = by_id.get(entry.seen["id"])
        if record is None or not label(record, TOLD_LABEL):
            yield found(Breach.MISTOLD, entry.key, f"about {entry.seen['id']}, which asked for none")
        elif {entry.seen["type"], f"job.{entry.seen['status']}"} != {f"job.{record.status}"}:
            says = f"{entry.seen['type']}, {entry.seen['status']}, and {record.id} {record.status}"
            yield found(Breach.MISTOLD, entry.key, says)
    for job_id, messages in ids.items():
        if len(messages) > 1:
            yield found(Breach.MISTOLD, job_id, f"told as {', '.join(sorted(messages))}")
    for job_id in untold(entries, by_id.values()):
        yield found(Breach.UNTOLD, job_id, f"{by_id[job_id].status}, and nobody was told")


def untold(entries: Sequence[Entry], records: Iterable[Record]) -> list[str]:
    """Return the jobs that ended, asked for a webhook, and of which no message was taken."""
    taken = {entry.seen["id"] for entry in entries if entry.op == OP and entry.seen.get("answered") == 200}
    return [
        record.id
        for record in records
        if record.status.terminal and label(record, TOLD_LABEL) and record.id not in taken
    ]


def figures(entries: Sequence[Entry]) -> dict[str, float]:
    """Return the rows of the result table."""
    got = [entry for entry in entries if entry.op == OP]
    return {
        "webhook messages": len({entry.key for entry in got}),
        "of them taken again": sum(entry.seen.get("answered") == 200 for entry in got)
        - len({entry.key for entry in got if entry.seen.get("answered") == 200}),
        "refused by the receiver": sum(entry.seen.get("answered") != 200 for entry in got),
    }
