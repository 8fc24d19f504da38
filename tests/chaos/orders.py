"""What the clients will ask for: drawn from a seed beforehand, so that a run's requests can be had again.

Pictures and earlier jobs have no ids yet: a body says `UPLOAD` or `PARENT` where the client puts one.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from tests.chaos.schedule import Size
from tests.chaos.verdict import DEADLINE_LABEL, KEY_LABEL, POISON_LABEL, REUSED, ROWS_LABEL, TOLD_LABEL

DEVICE_MS = (20, 100, 300, 500, 500)
ROWS = 4  # of a group
CANCELED_SHARE = 0.03
CANCELED_TOGETHER = 0.2  # of the parents, whose children are seen to end with them, and of the groups
TOLD_SHARE = 0.1
QUIET_S = 15.0  # before the end no job asks to be told of: a message that a kill cuts off comes 30 s later
TWIN_SHARE = 0.05
REUSE_SHARE = 0.05
FRESH_SHARE = 0.5  # of the pictures; the others have been sent before
UPLOAD: Mapping[str, Any] = {"upload": "picture"}
PARENT: Mapping[str, Any] = {"job": "parent"}


class Shape(StrEnum):
    """What one order asks for."""

    GENERATE = "generate"
    SEGMENT = "segment"  # masks of an uploaded picture
    PARENT = "parent"  # a picture, and in a request of its own the masks of it
    PIPELINE = "pipeline"  # the same in one request
    GROUP = "group"  # several pictures in one request
    COUNT = "count"  # several pictures of one job
    DEADLINE = "deadline"  # a picture that must be begun soon


JOBS = {Shape.PARENT: 2, Shape.PIPELINE: 2, Shape.GROUP: ROWS}  # the others are one job
# By jobs: 60 % generate, 15 % segment, 10 % chains, 10 % in groups, 5 % the rest.
SHARES = {
    Shape.GENERATE: 0.6,
    Shape.SEGMENT: 0.15,
    Shape.PARENT: 0.05,
    Shape.PIPELINE: 0.05,
    Shape.GROUP: 0.10,
    Shape.COUNT: 0.025,
    Shape.DEADLINE: 0.025,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Post:
    """One POST with its idempotency key, and the body that the same key must not take."""

    key: str
    path: str
    body: dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Order:
    """Requests that are sent one behind the other, and what is done to them.

    Attributes:
        twin: each is sent twice at the same moment.
        reuse: afterwards the first key is sent with another body.
        cancel_s: after how many seconds the first job, or the whole group, is canceled; None: never.
        fresh: a picture is uploaded for it; else one that was sent before is named again.
    """

    shape: Shape
    posts: tuple[Post, ...]
    twin: bool = False
    reuse: bool = False
    cancel_s: float | None = None
    fresh: bool = False

    @property
    def jobs(self) -> int:
        """How many jobs it makes."""
        return JOBS.get(self.shape, 1)


def plan(number: int, count: int, size: Size, seed: int, hook_url: str = "") -> list[Order]:
    """Return what one client sends: exactly `count` jobs.

    Args:
        hook_url: who is told of some jobs' ends; empty: nobody.
    """
    told_until = count * max(0.0, 1 - QUIET_S / size.seconds)
    draw = _Draw(f"{seed}-{number}", hook_url, told_until)
    poison = _poison(number, count, size)
    orders: list[Order] = []
    sent = 0
    shapes = draw.shapes(count)
    while sent < count:
        jobs = JOBS.get(shapes[-1], 1) if shapes else count
        if sent + jobs > count or not poison.isdisjoint(range(sent, sent + jobs)):
            order = draw.single(sent, poison=sent in poison)
        else:
            order = draw.order(shapes.pop(), sent)
        orders.append(order)
        sent += order.jobs
    return orders


def _poison(number: int, count: int, size: Size) -> set[int]:
    """The first client sends the poison, in the first half: it takes several lives, and time, to end."""
    if not size.poison or number:
        return set()
    spacing = max(1, count // (2 * size.poison))
    return {index for index in range(count // 2) if index % spacing == min(1, spacing - 1)}


class _Draw:
    def __init__(self, name: str, hook_url: str, told_until: float) -> None:
        self._dice = random.Random(f"pixelkiln-client-{name}")
        self._named = name
        self._hook_url = hook_url
        self._told_until = told_until

    def shapes(self, count: int) -> list[Shape]:
        """Return the shapes of so many jobs, about, each at least once, shuffled."""
        orders = {shape: round(share * count / JOBS.get(shape, 1)) for shape, share in SHARES.items()}
        made = [shape for shape, times in orders.items() for _ in range(max(1, times))]
        self._dice.shuffle(made)
        return made

    def order(self, shape: Shape, index: int) -> Order:
        """Return an order whose first job is the client's job number `index`."""
        canceled = self._dice.random() < (CANCELED_TOGETHER if shape in JOBS else CANCELED_SHARE)
        return Order(
            shape=shape,
            posts=self._posts(shape, index),
            twin=self._dice.random() < TWIN_SHARE,
            reuse=self._dice.random() < REUSE_SHARE,
            cancel_s=self._dice.uniform(0, 0.3) if canceled else None,
            fresh=self._dice.random() < FRESH_SHARE,
        )

    def single(self, index: int, *, poison: bool) -> Order:
        """Return one picture, to which nothing is done; or the poison."""
        key = f"{self._named}-{index}"
        marks = {POISON_LABEL: "1"} if poison else {}
        body = self._drawn(key, index, f"{key} [crash]" if poison else key, **marks)
        return Order(shape=Shape.GENERATE, posts=(Post(key=key, path="/v1/jobs", body=body),))

    def _posts(self, shape: Shape, index: int) -> tuple[Post, ...]:
        key = f"{self._named}-{index}"
        if shape is Shape.PARENT:
            first = Post(key=key, path="/v1/jobs", body=self._drawn(key, index))
            child = self._masks(f"{key}-child", index, PARENT)
            return first, Post(key=f"{key}-child", path="/v1/jobs", body=child)
        if shape is Shape.PIPELINE:
            marks = {ROWS_LABEL: "2"}
            scene = self._drawn(f"{key}/0", index, **marks)
            masks = self._masks(f"{key}/1", index, "$scene.image", **marks)
            steps = [{"id": "scene", **scene}, {"id": "masks", **masks}]
            return (Post(key=key, path="/v1/pipelines", body={"steps": steps}),)
        if shape is Shape.GROUP:
            rows = [self._drawn(f"{key}/{row}", index, **{ROWS_LABEL: str(ROWS)}) for row in range(ROWS)]
            return (Post(key=key, path="/v1/groups", body={"jobs": rows}),)
        return (Post(key=key, path="/v1/jobs", body=self._alone(shape, key, index)),)

    def _alone(self, shape: Shape, key: str, index: int) -> dict[str, Any]:
        if shape is Shape.SEGMENT:
            return self._masks(key, index, UPLOAD)
        if shape is Shape.COUNT:
            body = self._drawn(key, index)
            body["input"]["count"] = self._dice.choice((2, 3))
            return body
        if shape is Shape.DEADLINE:
            deadline_s = self._dice.choice((0.05, 1.0, 20.0))
            return self._drawn(key, index, **{DEADLINE_LABEL: str(deadline_s)}) | {
                "start_deadline_s": deadline_s
            }
        return self._drawn(key, index)

    def _drawn(self, key: str, index: int, prompt: str = "", **marks: str) -> dict[str, Any]:
        options = {"device_ms": self._dice.choice(DEVICE_MS), "per_item_ms": 0}
        given = {"prompt": prompt or key, "seed": 1, "width": 64, "height": 64}
        given |= {"steps": self._dice.choice((1, 2)), "options": options}
        return self._job({"kind": "generate", "model": "stub", "input": given}, key, index, marks)

    def _masks(self, key: str, index: int, image: Mapping[str, Any] | str, **marks: str) -> dict[str, Any]:
        body = {"kind": "segment", "model": "classical-otsu", "input": {"image": image}}
        return self._job(body, key, index, marks)

    def _job(self, body: dict[str, Any], key: str, index: int, marks: dict[str, str]) -> dict[str, Any]:
        told = self._dice.random() < TOLD_SHARE and index < self._told_until
        if not told or not self._hook_url:
            return body | {"labels": {KEY_LABEL: key, **marks}}
        labels = {KEY_LABEL: key, TOLD_LABEL: "1", **marks}
        return body | {"labels": labels, "webhook": {"url": self._hook_url}}


def other(post: Post) -> dict[str, Any]:
    """Return a body that is right, and not the one of this POST."""
    first = (post.body.get("jobs") or post.body.get("steps") or [post.body])[0]
    body = {**first, "labels": {KEY_LABEL: post.key + REUSED}, "priority": "bulk"}
    if "jobs" in post.body:
        return {"jobs": [body]}
    return {"steps": [body]} if "steps" in post.body else body
