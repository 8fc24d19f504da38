"""The blocking client."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import httpx2

from pixelkiln.client.connection import headers_for, http_options
from pixelkiln.client.flows import Flows, Picture
from pixelkiln.client.jobs import GroupFacts, JobEvent, JobFacts, Tail
from pixelkiln.client.requests import job_request
from pixelkiln.client.results import Artifact, ResultOf
from pixelkiln.client.wire import Call, Emit, Flow, Pause, Retry
from pixelkiln.resources import (
    BulkResource,
    DeliveryResource,
    GroupResource,
    JobResource,
    ModelResource,
    StatsResource,
    WorkerResource,
)
from pixelkiln_shared.kinds import Kind

T = TypeVar("T")


class Result(ResultOf[Artifact]):
    """A finished job's files: `result.images[0].save("fox.png")`."""


class Client:
    """Talks to a Pixelkiln API.

    Args:
        url: the API's base; left out: `PIXELKILN_URL`, else `http://127.0.0.1:8700`.
        api_key: left out: `PIXELKILN_API_KEY`.
        timeout_s: how long one answer may take.
        retry_for_s: how long a request is repeated while the server is busy, restarting or away.

    Every method raises `ApiError` or one of its kinds when the server refuses, and `ServerUnreachable` when
    there is none.
    """

    def __init__(
        self,
        url: str | None = None,
        api_key: str | None = None,
        *,
        timeout_s: float = 60.0,
        retry_for_s: float = 60.0,
        transport: httpx2.BaseTransport | None = None,
    ) -> None:
        self.url, self._key, options = http_options(url, api_key, timeout_s)
        self._retry = Retry(for_s=retry_for_s)
        self.flows = Flows(self._retry)
        self.http = httpx2.Client(**options, transport=transport)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self.http.close()

    # ------------------------------------------------------------------------------------------ driving

    def run(self, flow: Flow[T]) -> T:
        """Drive a flow to its end and return what it returns."""
        try:
            step = next(flow)
            while True:
                try:
                    answer = self._perform(step)
                except (httpx2.TransportError, httpx2.InvalidURL) as error:
                    step = flow.throw(error)
                else:
                    step = flow.send(answer)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]

    def iterate(self, flow: Flow[None]) -> Iterator[Any]:
        """Drive a flow and yield what it emits."""
        try:
            step = next(flow)
            while True:
                answer = None
                if isinstance(step, Emit):
                    yield step.value
                else:
                    try:
                        answer = self._perform(step)
                    except (httpx2.TransportError, httpx2.InvalidURL) as error:
                        step = flow.throw(error)
                        continue
                step = flow.send(answer)
        except StopIteration:
            return

    def _perform(self, step: Call | Pause | Emit) -> httpx2.Response | None:
        if isinstance(step, Pause):
            time.sleep(step.seconds)
            return None
        assert isinstance(step, Call)  # noqa: S101  only iterated flows emit
        return self.http.request(
            step.method,
            step.path,
            params=step.params or None,
            headers=headers_for(step.path, step.headers, self.url, self._key),
            content=step.content,
            files=step.files,
        )

    # ------------------------------------------------------------------------------------------ submitting

    def generate(
        self,
        prompt: str | None = None,
        *,
        model: str | None = None,
        count: int = 1,
        seed: int | None = None,
        **fields: Any,
    ) -> Job:
        """Submit a text-to-image job.

        Args:
            prompt: what to draw; left out, for models that draw from noise.
            model: a catalogue id; left out: the server's default.
            count: pictures to make; picture i has the seed `seed + i`.
            seed: left out: a random one, told in the result.
            fields: `width`, `height` (pixels), `steps`, `guidance`, `negative_prompt`, `format`, `options`,
                and the envelope's `priority`, `labels`, `deterministic`, `start_deadline_s`, `run_timeout_s`,
                `retention_s`, `webhook`.
        """
        given = {"prompt": prompt, "model": model, "count": count, "seed": seed, **fields}
        return self.submit(job_request(Kind.GENERATE, given))

    def edit(self, image: Picture, prompt: str | None = None, **fields: Any) -> Job:
        """Submit a picture to be drawn anew by a prompt, or only where a mask is not black.

        Args:
            image: a path, the bytes of a PNG, JPEG or WebP, an artifact, or a job, whose first picture is
                taken as soon as it exists. Files and bytes are uploaded first.
            prompt: what it shall show.
            fields: `mask` (a picture of the same size), `strength` in (0, 1], and those of `generate`.
        """
        return self._on_picture(Kind.EDIT, image, {"prompt": prompt, **fields})

    def segment(self, image: Picture, **fields: Any) -> Job:
        """Submit a picture to be taken apart.

        Args:
            image: as for `edit`.
            fields: `model` (left out: what fits the picture and the marks), `labels` (classes to keep, or
                phrases to find), `points`, `boxes` (XYXY pixels), `threshold`, `regions`, `options`, and the
                envelope's fields as for `generate`.
        """
        return self._on_picture(Kind.SEGMENT, image, fields)

    def cutout(self, image: Picture, **fields: Any) -> Job:
        """Submit a picture whose foreground is put on transparent ground; `image` as for `edit`."""
        return self._on_picture(Kind.CUTOUT, image, fields)

    def upscale(self, image: Picture, *, scale: int | None = None, **fields: Any) -> Job:
        """Submit a picture to be made `scale` times as wide and high; `image` as for `edit`."""
        return self._on_picture(Kind.UPSCALE, image, {"scale": scale, **fields})

    def depth(self, image: Picture, **fields: Any) -> Job:
        """Submit a picture whose depth is estimated; `image` as for `edit`."""
        return self._on_picture(Kind.DEPTH, image, fields)

    def stereo(self, image: Picture, **fields: Any) -> Job:
        """Submit a picture to be made one for two eyes; `disparity` is a share of its width."""
        return self._on_picture(Kind.STEREO, image, fields)

    def classify(self, image: Picture, *, labels: Sequence[str] | None = None, **fields: Any) -> Job:
        """Submit a picture to be named: `result.detail["classes"]`, the best first; `image` as for `edit`.

        Args:
            labels: what to choose from, where the model reads text.
            fields: `model`, `top` (classes to name), `options`, and the envelope's fields.
        """
        given = {"labels": list(labels) if labels is not None else None, **fields}
        return self._on_picture(Kind.CLASSIFY, image, given)

    def _on_picture(self, kind: Kind, image: Picture, fields: Mapping[str, Any]) -> Job:
        return Job(self, self.run(self.flows.on_picture(kind, image, fields)))

    def submit(self, request: Mapping[str, Any], *, idempotency_key: str | None = None) -> Job:
        """Submit an envelope as it is: `{"kind": ..., "model": ..., "input": {...}}`."""
        return Job(self, self.run(self.flows.submit(request, key=idempotency_key)))

    def submit_many(
        self,
        rows: Iterable[Mapping[str, Any]],
        *,
        name: str | None = None,
        key: str | None = None,
        webhook: Mapping[str, Any] | None = None,
    ) -> Group:
        """Submit any number of jobs as a group; the iterable is read as it is sent, 500 rows at a time.

        Args:
            rows: envelopes, or flat rows such as `{"prompt": "a red house", "seed": 7}`.
            name: becomes the label `name` of every job.
            key: the column that identifies a row; its value becomes the label `key` of its job.
            webhook: `{"url": ...}`: whom to tell when all have ended.
        """
        bulk = self.run(self.flows.submit_many(rows, name=name, key=key, webhook=webhook))
        return Group(self, self.run(self.flows.group(bulk.group)), bulk.ids)

    def submit_batch(
        self,
        requests: list[dict[str, Any]],
        *,
        group: str | None = None,
        idempotency_key: str | None = None,
        webhook: Mapping[str, Any] | None = None,
    ) -> BulkResource:
        """Submit up to 1,000 envelopes in one request, into `group` or a new one: all of them or none."""
        return self.run(self.flows.submit_batch(requests, group=group, key=idempotency_key, webhook=webhook))

    def upload(self, image: str | Path | bytes) -> dict[str, Any]:
        """Store a picture and return the reference by which jobs name it; unused, it is kept for a day."""
        return self.run(self.flows.reference(image))

    # ------------------------------------------------------------------------------------------ looking

    def job(self, job_id: str) -> Job:
        """Read a job."""
        return Job(self, self.run(self.flows.job(job_id)))

    def jobs(
        self,
        *,
        status: str | None = None,
        kind: str | None = None,
        group: str | None = None,
        page_size: int = 100,
    ) -> Iterator[Job]:
        """Iterate over all jobs, newest first; pages are fetched as the iteration reaches them."""
        for resource in self.iterate(self.flows.jobs(status=status, kind=kind, group=group, limit=page_size)):
            yield Job(self, resource)

    def group(self, group_id: str) -> Group:
        """Read a group."""
        return Group(self, self.run(self.flows.group(group_id)), [])

    def models(self) -> list[ModelResource]:
        """List the catalogue."""
        return self.run(self.flows.models()).data

    def workers(self) -> list[WorkerResource]:
        """List the live workers."""
        return self.run(self.flows.workers()).data

    def drain_worker(self, worker_id: str) -> WorkerResource:
        """Ask a worker to end what it runs, claim no more and stay down; returns it as it is now."""
        return self.run(self.flows.drain_worker(worker_id))

    def webhooks(self, *, job: str | None = None, status: str | None = None) -> Iterator[DeliveryResource]:
        """Iterate over the messages about one job or group (`job`), or all, newest first."""
        yield from self.iterate(self.flows.webhooks(job, status))

    def redeliver(self, delivery_id: str) -> DeliveryResource:
        """Send a message again, under the same id."""
        return self.run(self.flows.redeliver(delivery_id))

    def stats(self) -> StatsResource:
        """Read the lanes and counters."""
        return self.run(self.flows.stats())


class Job(JobFacts):
    """A submitted job."""

    def __init__(self, client: Client, resource: JobResource) -> None:
        super().__init__(resource)
        self._client = client

    def _heard(self, flow: Flow[JobResource]) -> Job:
        self.resource = self._client.run(flow)
        return self

    def refresh(self) -> Job:
        """Ask the server how the job stands."""
        return self._heard(self._client.flows.job(self.id))

    def wait(self, timeout_s: float | None = None) -> Job:
        """Wait until the job has ended, however it ended.

        Raises:
            WaitTimeout: it has not, after `timeout_s` seconds.
        """
        return self._heard(self._client.flows.wait(self.id, timeout_s))

    def result(self, timeout_s: float | None = None) -> Result:
        """Wait for the result.

        Raises:
            JobFailed, JobCanceled: there will be none.
            WaitTimeout: there is none after `timeout_s` seconds.
        """
        self._heard(self._client.flows.result(self.id, timeout_s))
        return Result(self.resource, [Artifact(self._client, self.id, a) for a in self.resource.artifacts])

    def cancel(self) -> Job:
        """Ask the job to end; one that runs stops at its next step. Harmless when it has ended."""
        return self._heard(self._client.flows.move(self.id, "cancel"))

    def retry(self) -> Job:
        """Put a failed, canceled or expired job back into its queue."""
        return self._heard(self._client.flows.move(self.id, "retry"))

    def rerun(self, *, seed: int | None = None) -> Job:
        """Submit the same job anew, with another seed where one is given."""
        return self._client.submit(self.again(seed))

    def delete(self) -> None:
        """Remove the finished job and its files from the server."""
        self._client.run(self._client.flows.delete(self.id))

    def events(self) -> Iterator[JobEvent]:
        """Follow the job live until it ends; a broken connection is resumed without a gap."""
        tail = Tail(self.id, self._client._retry)
        while not tail.ended:
            broken: httpx2.TransportError | None = None
            try:
                yield from self._stream(tail)
            except httpx2.TransportError as error:
                broken = error
            if not tail.ended:
                time.sleep(tail.broke(broken))

    def _stream(self, tail: Tail) -> Iterator[JobEvent]:
        client = self._client
        headers = headers_for(tail.path, tail.headers, client.url, client._key)
        with client.http.stream("GET", tail.path, headers=headers) as response:
            if not response.is_success:
                response.read()
                raise tail.refused(response)
            for sse in httpx2.EventSource(response):
                yield tail.take(sse)
                if tail.ended:
                    return


class Group(GroupFacts):
    """Jobs submitted together."""

    def __init__(self, client: Client, resource: GroupResource, ids: list[str]) -> None:
        super().__init__(resource, ids)
        self._client = client

    def refresh(self) -> Group:
        """Ask the server how the group stands."""
        self.resource = self._client.run(self._client.flows.group(self.id))
        return self

    def wait(self, timeout_s: float | None = None) -> Group:
        """Wait until every job has ended, however it ended.

        Raises:
            WaitTimeout: some have not, after `timeout_s` seconds.
        """
        self.resource = self._client.run(self._client.flows.wait_group(self.id, timeout_s))
        return self

    def as_completed(self, timeout_s: float | None = None) -> Iterator[Job]:
        """Iterate over the jobs as they end, each one once, however it ended."""
        for resource in self._client.iterate(self._client.flows.as_completed(self.id, timeout_s)):
            yield Job(self._client, resource)

    def jobs(self, *, status: str | None = None) -> Iterator[Job]:
        """Iterate over the jobs, newest first."""
        return self._client.jobs(group=self.id, status=status)

    def cancel(self) -> Group:
        """Cancel every job of the group that has not ended."""
        self.resource = self._client.run(self._client.flows.cancel_group(self.id))
        return self
