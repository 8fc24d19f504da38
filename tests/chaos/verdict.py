"""What a judge may say: the kinds of breach, one finding, and the verdict over a run.

Also what the labels of a job tell the judge about it; clients put them there (`orders`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from pixelkiln_shared.ledger.contract import Record
from tests.chaos.history import Entry

KEY_LABEL = "chaos"  # carries a job's idempotency key; `key/row` where one request makes several jobs
POISON_LABEL = "poison"  # of a job that kills whoever runs it
ROWS_LABEL = "rows"  # how many jobs the request makes: all or none
TOLD_LABEL = "told"  # of a job whose end a webhook tells
REUSED = "-reused"  # ends the key label of a body that came with a key used before
DEADLINE_LABEL = "deadline"  # seconds within which the job may have to start


class Breach(StrEnum):
    """What may be wrong, in the order of the result table."""

    LOST = "lost"
    UNFINISHED = "unfinished"
    FAILED = "failed though innocent"
    BLAMED = "blamed though innocent"
    POISON = "poison not ended"
    DOUBLED = "two visible results"
    CORRUPT = "result differs from its record"
    INCOMPLETE = "succeeded with files missing"
    INPUT = "input picture gone or changed"
    IDEMPOTENCY = "one key, two jobs"
    REUSED = "one key, another body"
    TORN = "part of a request accepted"
    CHILD = "child not as its parent"
    COUNTERS = "group's counters differ"
    EXPIRY = "expired out of turn"
    CANCEL = "cancel did not hold"
    CANCELED_SHOWN = "canceled, yet a result"
    UNTOLD = "webhook that never came"
    MISTOLD = "webhook that says otherwise"
    UNFENCED = "published by an old attempt"
    UNCOUNTED = "run that no attempt counts"
    LEFTOVER = "left over after the sweep"
    UNEXPLAINED = "attempt that no fault explains"
    ANSWER = "answer that must not be"
    HUNG = "answer that hung"


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One breach."""

    breach: Breach
    subject: str
    says: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """The findings, and figures that are neither right nor wrong: name -> value."""

    findings: tuple[Finding, ...]
    figures: Mapping[str, float]

    @property
    def clean(self) -> bool:
        """Whether nothing was found."""
        return not self.findings

    def count(self, breach: Breach) -> int:
        """How often a rule was broken."""
        return sum(finding.breach is breach for finding in self.findings)


def found(breach: Breach, subject: str, says: str) -> Finding:
    """Return a finding."""
    return Finding(breach=breach, subject=subject, says=says)


def ended(entries: Sequence[Entry], op: str, event: str) -> Iterator[Entry]:
    """Yield the operations of one name that ended so."""
    return (entry for entry in entries if entry.op == op and entry.event == event)


def artifacts(record: Record) -> list[dict[str, Any]]:
    """Return the files that a record shows."""
    return list(json.loads(record.result)["artifacts"]) if record.result else []


def error_code(record: Record) -> str:
    """Return why a job failed, "" when it did not."""
    return str(json.loads(record.error)["code"]) if record.error else ""


def label(record: Record, name: str) -> str:
    """Return a label of a job, "" without one."""
    return str(json.loads(record.spec).get("labels", {}).get(name, ""))


def request_key(record: Record) -> str:
    """Return the idempotency key of the request that made a job."""
    return label(record, KEY_LABEL).partition("/")[0]
