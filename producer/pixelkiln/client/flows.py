"""What the client can do, once, for `Client` and `AsyncClient` alike (see `wire`)."""

from __future__ import annotations

import hashlib
import json
import mimetypes
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, islice
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel

from pixelkiln.client.errors import ApiError, JobCanceled, JobFailed, ServerUnreachable, WaitTimeout
from pixelkiln.client.jobs import JobFacts
from pixelkiln.client.requests import job_request, row_request, without_none
from pixelkiln.client.results import ArtifactFacts
from pixelkiln.client.wire import Call, Emit, Flow, Pause, Retry, below, read, send
from pixelkiln.resources import (
    ArtifactResource,
    BulkResource,
    DeliveryPage,
    DeliveryResource,
    GroupResource,
    JobPage,
    JobResource,
    ModelList,
    StatsResource,
    UploadResource,
    WorkerList,
    WorkerResource,
)
from pixelkiln_shared.jobs import TERMINAL, Status
from pixelkiln_shared.kinds import PICTURE_FIELDS, Kind

CHUNK_ROWS = 500  # jobs in one request: half of the server's default limit, about 100 kB
SOME_LEFT = 202  # the answer of a cancel that has more to do
POLL_FIRST_S, POLL_LAST_S = 0.05, 1.0
Picture = str | Path | bytes | JobFacts | ArtifactFacts | Mapping[str, Any]
M = TypeVar("M", bound=BaseModel)


def new_key() -> str:
    """Return a fresh Idempotency-Key."""
    return str(uuid.uuid4())


class Flows:
    """Every request the client makes, as flows that share one retry policy."""

    def __init__(self, retry: Retry) -> None:
        self._retry = retry

    def get(self, path: str, model: type[M], **params: Any) -> Flow[M]:
        """GET a resource."""
        response = yield from send(Call(method="GET", path=path, params=without_none(params)), self._retry)
        return read(response, model)

    def post(self, path: str, model: type[M], body: Any = None, *, key: str | None = None) -> Flow[M]:
        """POST, under an Idempotency-Key, so that it can be sent again without harm."""
        headers = {"Idempotency-Key": key or new_key()}
        content = None
        if body is not None:
            headers["Content-Type"] = "application/json"
            content = json.dumps(body, ensure_ascii=False).encode("utf-8")
        response = yield from send(
            Call(method="POST", path=path, headers=headers, content=content), self._retry
        )
        return read(response, model)

    # ------------------------------------------------------------------------------------------ jobs

    def submit(self, request: Mapping[str, Any], *, key: str | None = None) -> Flow[JobResource]:
        """Submit one envelope."""
        return (yield from self.post("/v1/jobs", JobResource, dict(request), key=key))

    def job(self, job_id: str) -> Flow[JobResource]:
        """Read a job."""
        return (yield from self.get(below("/v1/jobs", job_id), JobResource))

    def jobs(self, *, seen: set[str] | None = None, whole: bool = True, **filters: Any) -> Flow[None]:
        """Emit the `JobResource`s of a listing, newest first, page after page; those in `seen` only once.

        Unless `whole`, a page without anything new is the last.
        """
        seen = set() if seen is None else seen
        cursor: str | None = None
        while True:
            page = yield from self.get("/v1/jobs", JobPage, **filters, cursor=cursor)
            fresh = [job for job in page.jobs if job.id not in seen]
            for job in fresh:
                seen.add(job.id)
                yield Emit(job)
            cursor = page.next_cursor
            if cursor is None or not (fresh or whole):
                return

    def move(self, job_id: str, verb: str) -> Flow[JobResource]:
        """Cancel or retry a job."""
        return (yield from self.post(below("/v1/jobs", job_id, verb), JobResource))

    def delete(self, job_id: str) -> Flow[None]:
        """Remove a finished job and its artifacts."""
        yield from send(Call(method="DELETE", path=below("/v1/jobs", job_id)), self._retry)

    def wait(self, job_id: str, timeout_s: float | None) -> Flow[JobResource]:
        """Poll until the job has ended.

        Raises:
            WaitTimeout: it has not, after `timeout_s` seconds.
        """
        began = time.monotonic()
        pause_s = POLL_FIRST_S
        while True:
            job = yield from self.job(job_id)
            if job.status.terminal:
                return job
            yield from self._pause(job_id, began, timeout_s, pause_s)
            pause_s = min(pause_s * 1.5, POLL_LAST_S)

    def _pause(self, what: str, began: float, timeout_s: float | None, pause_s: float) -> Flow[None]:
        if timeout_s is not None:
            left_s = began + timeout_s - time.monotonic()
            if left_s <= 0:
                raise WaitTimeout(f"{what} did not end within {timeout_s:g} s; it goes on")
            pause_s = min(pause_s, left_s)
        yield Pause(pause_s)

    def result(self, job_id: str, timeout_s: float | None) -> Flow[JobResource]:
        """Wait for success.

        Raises:
            JobFailed, JobCanceled, WaitTimeout: there is no result.
        """
        job = yield from self.wait(job_id, timeout_s)
        check_succeeded(job)
        return job

    # ------------------------------------------------------------------------------------------ pictures

    def upload(self, data: bytes, filename: str) -> Flow[UploadResource]:
        """Store a picture for later jobs."""
        media_type = mimetypes.guess_type(filename)[0] or "application/octet-stream"
        call = Call(
            method="POST",
            path="/v1/uploads",
            headers={"Idempotency-Key": new_key()},
            files={"file": (filename, data, media_type)},
        )
        response = yield from send(call, self._retry)
        return read(response, UploadResource)

    def reference(self, image: Picture) -> Flow[dict[str, Any]]:
        """Turn what a caller may pass as a picture into an image reference; files and bytes are uploaded.

        Raises:
            OSError: the file cannot be read.
            TypeError: not a path, bytes, a job, an artifact or a reference.
        """
        if isinstance(image, Mapping):
            return dict(image)
        if isinstance(image, JobFacts | ArtifactFacts):
            return image.as_reference()
        if isinstance(image, bytes):
            upload = yield from self.upload(image, "picture")
        elif isinstance(image, str | Path):
            path = Path(image)
            upload = yield from self.upload(path.read_bytes(), path.name)
        else:
            raise TypeError(f"a picture is a path, bytes, a job or an artifact, not {type(image).__name__}")
        return {"upload": upload.id}

    def on_picture(self, kind: Kind, image: Picture, fields: Mapping[str, Any]) -> Flow[JobResource]:
        """Submit a job on a picture; its other pictures, such as a mask, are uploaded as well.

        Raises:
            OSError, TypeError: as `reference`.
        """
        given = without_none({"image": image, **fields})
        for name in PICTURE_FIELDS & given.keys():
            given[name] = yield from self.reference(given[name])
        return (yield from self.submit(job_request(kind, given)))

    def fetch(self, job_id: str, artifact: ArtifactResource) -> Flow[bytes]:
        """Download an artifact and check its bytes; a link that has expired meanwhile is renewed once.

        Raises:
            ServerUnreachable: the bytes that came are not those the result names.
        """
        try:
            response = yield from send(Call(method="GET", path=artifact.url), self._retry)
        except ApiError as error:
            if error.http_status not in {401, 403, 410}:
                raise
            job = yield from self.job(job_id)
            fresh = next(a for a in job.artifacts if (a.role, a.index) == (artifact.role, artifact.index))
            response = yield from send(Call(method="GET", path=fresh.url), self._retry)
        if hashlib.sha256(response.content).hexdigest() != artifact.sha256:
            raise ServerUnreachable(
                f"{artifact.role} {artifact.index} of {job_id} arrived damaged; try again"
            )
        return response.content

    # ------------------------------------------------------------------------------------------ groups

    def submit_batch(
        self,
        requests: list[dict[str, Any]],
        *,
        group: str | None,
        key: str | None = None,
        webhook: Mapping[str, Any] | None = None,
    ) -> Flow[BulkResource]:
        """Submit up to the server's `max_bulk` jobs in one request, into a group of their own or `group`."""
        body = without_none({"jobs": requests, "group": group, "webhook": webhook})
        return (yield from self.post("/v1/groups", BulkResource, body, key=key))

    def submit_many(
        self,
        rows: Iterable[Mapping[str, Any]],
        *,
        name: str | None,
        key: str | None,
        webhook: Mapping[str, Any] | None = None,
    ) -> Flow[BulkResource]:
        """Submit rows in chunks, reading the iterable only as far as needed; all land in one group.

        `name` and the value of the `key` column become the labels `name` and `key` of each job. `webhook`
        asks for the group's end with the last chunk only, so that it is not complete before.
        """
        iterator: Iterator[Mapping[str, Any]] = iter(rows)
        group: str | None = None
        ids: list[str] = []
        warnings: list[dict[str, str]] = []
        while chunk := list(islice(iterator, CHUNK_ROWS)):
            told = webhook
            if webhook is not None and (ahead := list(islice(iterator, 1))):
                iterator, told = chain(ahead, iterator), of_jobs_only(webhook)
            requests = [labelled(row, name, key) for row in chunk]
            bulk = yield from self.submit_batch(requests, group=group, webhook=told)
            group = bulk.group
            ids += bulk.ids
            warnings += [one for one in bulk.warnings if one not in warnings]
        if group is None:
            raise ValueError("there are no rows to submit")
        return BulkResource(group=group, ids=ids, warnings=warnings)

    def group(self, group_id: str) -> Flow[GroupResource]:
        """Read a group's counters."""
        return (yield from self.get(below("/v1/groups", group_id), GroupResource))

    def cancel_group(self, group_id: str) -> Flow[GroupResource]:
        """Cancel whatever of a group has not ended: the server takes some thousands a request."""
        while True:
            headers = {"Idempotency-Key": new_key()}
            call = Call(method="POST", path=below("/v1/groups", group_id, "cancel"), headers=headers)
            response = yield from send(call, self._retry)
            if response.status_code != SOME_LEFT:
                return read(response, GroupResource)

    def wait_group(self, group_id: str, timeout_s: float | None) -> Flow[GroupResource]:
        """Poll until every job of the group has ended."""
        began = time.monotonic()
        pause_s = POLL_FIRST_S
        while True:
            group = yield from self.group(group_id)
            if group.done:
                return group
            yield from self._pause(group_id, began, timeout_s, pause_s)
            pause_s = min(pause_s * 1.5, POLL_LAST_S)

    def as_completed(self, group_id: str, timeout_s: float | None) -> Flow[None]:
        """Emit each job of a group once, as it ends.

        Jobs end about in their order, so those that ended since are on the first pages of the listing: they
        are read as far as something new comes. What ended out of its order is looked for in the whole
        listing, a tenth of the time at most: following 100,000 jobs must not cost more than running them.
        """
        began = time.monotonic()
        seen: set[str] = set()
        rest_until = 0.0
        while True:
            group = yield from self.group(group_id)
            ended = sum(count for status, count in group.counts.items() if status.terminal)
            if ended > len(seen):
                yield from self._emit_ended(group, seen, whole=False)
            if ended > len(seen) and (group.done or time.monotonic() >= rest_until):
                listing_began = time.monotonic()
                yield from self._emit_ended(group, seen, whole=True)
                rest_until = time.monotonic() + 9 * (time.monotonic() - listing_began)
            if group.done:
                return
            yield from self._pause(group_id, began, timeout_s, POLL_LAST_S / 4)

    def _emit_ended(self, group: GroupResource, seen: set[str], *, whole: bool) -> Flow[None]:
        for status in sorted(TERMINAL):
            if group.counts.get(status, 0):
                yield from self.jobs(group=group.id, status=str(status), limit=200, seen=seen, whole=whole)

    # ------------------------------------------------------------------------------------------ webhooks

    def webhooks(self, subject: str | None, status: str | None) -> Flow[None]:
        """Emit the `DeliveryResource`s of a job or group, or all page after page, newest first."""
        if subject is not None:
            owners = "/v1/groups" if subject.startswith("grp_") else "/v1/jobs"
            page = yield from self.get(below(owners, subject, "webhooks"), DeliveryPage)
            for one in page.deliveries:
                if status in (None, one.status):
                    yield Emit(one)
            return
        cursor: str | None = None
        while True:
            page = yield from self.get("/v1/webhooks", DeliveryPage, status=status, limit=200, cursor=cursor)
            for one in page.deliveries:
                yield Emit(one)
            cursor = page.next_cursor
            if cursor is None:
                return

    def redeliver(self, delivery_id: str) -> Flow[DeliveryResource]:
        """Send a message again."""
        return (yield from self.post(below("/v1/webhooks", delivery_id, "redeliver"), DeliveryResource))

    # ------------------------------------------------------------------------------------------ the rest

    def models(self) -> Flow[ModelList]:
        """List the catalogue."""
        return (yield from self.get("/v1/models", ModelList))

    def workers(self) -> Flow[WorkerList]:
        """List the live workers."""
        return (yield from self.get("/v1/workers", WorkerList))

    def drain_worker(self, worker_id: str) -> Flow[WorkerResource]:
        """Ask a worker to end what it runs, claim no more and stay down."""
        return (yield from self.post(below("/v1/workers", worker_id, "drain"), WorkerResource))

    def stats(self) -> Flow[StatsResource]:
        """Read the lanes and counters."""
        return (yield from self.get("/v1/stats", StatsResource))


def check_succeeded(job: JobResource) -> None:
    """Raise unless the ended job has a result.

    Raises:
        JobFailed, JobCanceled
    """
    if job.status is Status.CANCELED:
        raise JobCanceled(job)
    if job.status is not Status.SUCCEEDED:
        raise JobFailed(job)


def of_jobs_only(webhook: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return what a group's webhook asks of each job; None when nothing."""
    events = [event for event in webhook.get("events") or () if event != "group.completed"]
    return {**webhook, "events": events} if events else None


def labelled(row: Mapping[str, Any], name: str | None, key: str | None) -> dict[str, Any]:
    """Turn a row into a request that carries its group's name and its own key as labels."""
    fields = dict(row)
    labels = dict(fields.get("labels") or {})
    if name is not None:
        labels["name"] = name
    if key is not None:
        labels["key"] = str(fields.pop(key))
    if labels:
        fields["labels"] = labels
    return row_request(fields)
