"""The judge of chaos runs on chains, groups, pictures, reused keys and webhooks: each rule can be broken."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from pixelkiln_shared.jobs import Priority, Status
from pixelkiln_shared.keys import attempt_prefix, input_key, new_id, upload_key
from pixelkiln_shared.kinds import Kind
from pixelkiln_shared.ledger.contract import Group, Record
from tests.chaos.checker import check
from tests.chaos.history import Entry, Event
from tests.chaos.orders import SHARES, Shape, other, plan
from tests.chaos.schedule import CUT, FULL, PROOF, Size
from tests.chaos.verdict import Breach, Verdict

SUM, OTHER = "a" * 64, "b" * 64
BEGAN = 1_000.0
JOB, CHILD, GROUP = new_id("job"), new_id("job"), new_id("grp")
INPUT = input_key("default", JOB)
UPLOAD = upload_key("default", new_id("upl"))
MESSAGE = "msg_1"
PARENT_FAILED = '{"code":"parent_failed","message":""}'
ROLES = {Kind.GENERATE: ("image",), Kind.SEGMENT: ("mask", "overlay")}


def entry(op: str, event: Event, key: str, **more: Any) -> Entry:
    return Entry(at=BEGAN, client=0, op=op, event=event, key=key, **more)


def told(job_id: str = JOB, status: str = "succeeded", message: str = MESSAGE, **more: Any) -> Entry:
    seen = {"id": job_id, "status": status, "type": f"job.{status}", "answered": 200} | more
    return entry("told", "ok", message, seen=seen)


def record(job_id: str = JOB, status: Status = Status.SUCCEEDED, **more: Any) -> Record:
    """A record as it should be, which ran from the first to the tenth second."""
    kind, image = more.pop("kind", Kind.GENERATE), more.pop("image", None)
    labels = {"chaos": more.pop("key", job_id), **more.pop("labels", {})}
    attempt = more.pop("attempt", 1 if status is Status.SUCCEEDED else 0)
    prefix = attempt_prefix("default", job_id, attempt)
    shown = [{"key": f"{prefix}{role}.png", "sha256": SUM, "role": role} for role in ROLES[kind]]
    made = Record(
        id=job_id,
        kind=kind,
        lane="generate.stub",
        tenant="default",
        priority=Priority.STANDARD,
        batch_key="stub",
        rows=1,
        work=1,
        spec=json.dumps({"labels": labels, "input": {"image": image} if image else {}}),
        status=status,
        sequence=1,
        attempt=attempt,
        created_at=BEGAN,
        started_at=BEGAN + 1 if attempt else None,
        completed_at=BEGAN + 10 if status.terminal else None,
        result=json.dumps({"artifacts": shown}) if status is Status.SUCCEEDED else None,
    )
    return replace(made, **more)


def judged(records: list[Record], history: list[Entry] | None = None, **more: Any) -> Verdict:
    """The verdict where the bucket holds what the records show, and what `objects` adds."""
    shown = [one for made in records if made.result for one in json.loads(made.result)["artifacts"]]
    objects = {one["key"]: one["sha256"] for one in shown} | more.pop("objects", {})
    if "swept" in more:
        more["swept"] = [*(one["key"] for one in shown), *more["swept"]]
    return check(history or [], records, objects, **more)


def breaches(*given: Any, **more: Any) -> set[Breach]:
    return {finding.breach for finding in judged(*given, **more).findings}


# ------------------------------------------------------------------------------------------------ files


def test_a_success_lacks_none_of_its_files() -> None:
    masks = record(kind=Kind.SEGMENT)

    assert breaches([masks]) == set()
    assert breaches([replace(masks, kind=Kind.GENERATE)]) == {Breach.INCOMPLETE}
    assert breaches([replace(record(), rows=2)]) == {Breach.INCOMPLETE}


def test_the_picture_of_a_job_stays_as_it_was_accepted() -> None:
    records = [record(kind=Kind.SEGMENT, image={"object": INPUT, "sha256": SUM})]

    assert breaches(records, objects={INPUT: SUM}, swept=[INPUT]) == set()
    assert breaches(records, objects={INPUT: OTHER}) == {Breach.INPUT}
    assert breaches(records) == {Breach.INPUT}
    assert breaches(records, objects={INPUT: SUM}, swept=[]) == {Breach.INPUT}


def test_an_upload_goes_after_its_time() -> None:
    assert breaches([record()], objects={UPLOAD: SUM}, swept=[]) == set()
    assert breaches([record()], objects={UPLOAD: SUM}, swept=[UPLOAD]) == {Breach.LEFTOVER}


def test_a_job_that_came_too_late_for_a_batch_was_given_back() -> None:
    again = record(attempt=2)

    assert breaches([again], given_back={JOB: 1}) == set()
    assert breaches([again]) == {Breach.UNEXPLAINED}


# ------------------------------------------------------------------------------------- parents and children


def test_a_child_starts_after_its_parent_succeeded() -> None:
    child = record(CHILD, kind=Kind.SEGMENT, waits_for=(JOB,), started_at=BEGAN + 11)

    assert breaches([record(), child]) == set()
    assert breaches([record(), replace(child, started_at=BEGAN + 9)]) == {Breach.CHILD}
    assert breaches([record(status=Status.CANCELED), child]) == {Breach.CHILD}


@pytest.mark.parametrize("status", [Status.CANCELED, Status.EXPIRED])
def test_a_child_ends_with_a_parent_that_did_not_succeed(status: Status) -> None:
    parent = record(status=status, labels={"deadline": "1"})
    child = record(CHILD, Status.FAILED, error=PARENT_FAILED, waits_for=(JOB,))

    assert breaches([parent, child]) == set()
    assert breaches([parent, record(CHILD, Status.CANCELED, waits_for=(JOB,))]) == set()
    assert breaches([record(), child]) == {Breach.CHILD}
    still = record(CHILD, Status.BLOCKED, waits_for=(JOB,))
    assert breaches([parent, still]) == {Breach.CHILD, Breach.UNFINISHED}


# ------------------------------------------------------------------------------------------------- requests


def rows(count: int) -> list[Record]:
    """So many of the three rows of one request."""
    labels = {"rows": "3"}
    return [record(new_id("job"), key=f"k/{row}", labels=labels, group=GROUP) for row in range(count)]


def group(**counts: int) -> dict[str, Group]:
    known = {Status(status): count for status, count in counts.items()}
    total = sum(counts.values())
    return {GROUP: Group(id=GROUP, tenant="default", total=total, counts=known, created_at=BEGAN)}


def test_a_request_makes_all_of_its_jobs_or_none() -> None:
    assert breaches(rows(3), groups=group(succeeded=3)) == set()
    assert breaches(rows(2), groups=group(succeeded=2)) == {Breach.TORN}
    apart = [*rows(2), replace(rows(3)[2], group=None)]
    assert breaches(apart, groups=group(succeeded=2)) == {Breach.TORN}


def test_a_row_made_twice_is_one_key_with_two_jobs() -> None:
    twice = [*rows(3), *rows(3)]

    assert breaches(twice, groups=group(succeeded=6)) == {Breach.IDEMPOTENCY}


def test_a_group_counts_its_members_as_they_are() -> None:
    assert breaches(rows(3), groups=group(succeeded=3, failed=0)) == set()
    assert breaches(rows(3), groups=group(succeeded=2, running=1)) == {Breach.COUNTERS}
    assert breaches(rows(3), groups=group(succeeded=4)) == {Breach.COUNTERS}
    assert breaches(rows(3)) == {Breach.COUNTERS}


def test_what_a_group_counted_as_canceled_stays_canceled() -> None:
    counts = {"succeeded": 1, "canceling": 1, "canceled": 1}
    history = [entry("cancel_group", "ok", GROUP, status=200, seen={"id": GROUP, "counts": counts})]
    done, *others = rows(3)
    canceled = [replace(one, status=Status.CANCELED, result=None) for one in others]

    assert breaches([done, *canceled], history, groups=group(succeeded=1, canceled=2)) == set()
    assert breaches(rows(3), history, groups=group(succeeded=3)) == {Breach.CANCEL}


def test_only_what_had_to_start_and_did_not_expires() -> None:
    expired = record(status=Status.EXPIRED, labels={"deadline": "5.0"})

    assert breaches([expired]) == set()
    assert breaches([replace(expired, completed_at=BEGAN + 4)]) == {Breach.EXPIRY}
    assert breaches([replace(expired, attempt=1)]) == {Breach.EXPIRY}
    assert breaches([record(status=Status.EXPIRED)]) == {Breach.EXPIRY}


# ---------------------------------------------------------------------------------------------- reused keys


def refused(status: int, code: str) -> Entry:
    return entry("reuse", "fail", "k", status=status, seen={"code": code})


def test_a_key_takes_no_other_body() -> None:
    answered = entry("reuse", "ok", "k", status=202, seen={"ids": [JOB], "group": ""})

    assert breaches([record()], [refused(422, "idempotency_key_reused")]) == set()
    assert breaches([record()], [entry("reuse", "unknown", "k", status=503)]) == set()
    assert breaches([record()], [answered]) == {Breach.REUSED}
    assert breaches([record()], [refused(422, "missing_field")]) == {Breach.REUSED}
    assert breaches([record()], [refused(404, "not_found")]) == {Breach.ANSWER}


def test_only_a_reused_key_is_refused_as_wrong() -> None:
    wrong = entry("submit", "fail", "k", status=422, seen={"code": "idempotency_key_reused"})

    assert breaches([record()], [wrong]) == {Breach.ANSWER}


def test_a_job_of_another_body_is_seen_in_the_ledger() -> None:
    assert breaches([record(), record(CHILD, key="k-reused")]) == {Breach.REUSED}


# ------------------------------------------------------------------------------------------------- webhooks


ASKED = {"told": "1"}


def test_an_end_is_told_at_least_once_under_one_id() -> None:
    records = [record(labels=ASKED)]

    assert breaches(records, [told()]) == set()
    assert breaches(records, [told(), told()]) == set()
    assert breaches(records, [told(), told(message="msg_2")]) == {Breach.MISTOLD}
    assert breaches(records) == {Breach.UNTOLD}
    assert breaches(records, [told(answered=500)]) == {Breach.UNTOLD}
    assert breaches(records, [told(answered=500), told()]) == set()


def test_a_message_says_what_the_record_says() -> None:
    records = [record(labels=ASKED)]

    assert breaches(records, [told(status="failed")]) == {Breach.MISTOLD}
    assert breaches(records, [told(type="job.failed")]) == {Breach.MISTOLD}
    assert breaches([record()], [told()]) == {Breach.MISTOLD}


def test_a_message_is_signed() -> None:
    unsigned = entry("told", "fail", MESSAGE)

    assert breaches([record(labels=ASKED)], [told(), unsigned]) == {Breach.MISTOLD}


# -------------------------------------------------------------------------------------------- what is asked


@pytest.mark.parametrize("size", [FULL, CUT, PROOF], ids=["full", "cut", "proof"])
def test_clients_send_as_many_jobs_as_asked_in_all_shapes(size: Size) -> None:
    orders = [one for number in range(4) for one in plan(number, 75, size, 7, "http://x/hook")]
    jobs = Counter({shape: sum(one.jobs for one in orders if one.shape is shape) for shape in Shape})

    assert jobs.total() == 300
    assert all(abs(jobs[shape] / 300 - share) < 0.04 for shape, share in SHARES.items())


def test_a_seed_gives_the_same_requests_again() -> None:
    assert plan(1, 75, CUT, 7) == plan(1, 75, CUT, 7) != plan(1, 75, CUT, 8)


def test_another_body_is_another_and_of_the_same_form() -> None:
    for order in plan(1, 75, CUT, 7):
        for post in order.posts:
            assert other(post) != post.body
            assert other(post).keys() - {"priority"} <= post.body.keys()
