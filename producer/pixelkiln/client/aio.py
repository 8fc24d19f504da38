"""The asyncio client: the same methods as `Client`, awaited."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import httpx2

from pixelkiln.client.connection import headers_for, http_options
from pixelkiln.client.flows import Flows, Picture
from pixelkiln.client.jobs import GroupFacts, JobEvent, JobFacts, Tail
from pixelkiln.client.requests import job_request
from pixelkiln.client.results import AsyncArtifact, ResultOf
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


class AsyncResult(ResultOf[AsyncArtifact]):
    """A finished job's files: `await result.images[0].save("fox.png")`."""


class AsyncClient:
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
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        self.url, self._key, options = http_options(url, api_key, timeout_s)
        self._retry = Retry(for_s=retry_for_s)
        self.flows = Flows(self._retry)
        self.http = httpx2.AsyncClient(**options, transport=transport)

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self.http.aclose()

    # ------------------------------------------------------------------------------------------ driving

    async def run(self, flow: Flow[T]) -> T:
        """Drive a flow to its end and return what it returns."""
        try:
            step = next(flow)
            while True:
                try:
                    answer = await self._perform(step)
                except (httpx2.TransportError, httpx2.InvalidURL) as error:
                    step = flow.throw(error)
                else:
                    step = flow.send(answer)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]

    async def iterate(self, flow: Flow[None]) -> AsyncIterator[Any]:
        """Drive a flow and yield what it emits."""
        try:
            step = next(flow)
            while True:
                answer = None
                if isinstance(step, Emit):
                    yield step.value
                else:
                    try:
                        answer = await self._perform(step)
                    except (httpx2.TransportError, httpx2.InvalidURL) as error:
                        step = flow.throw(error)
                        continue
                step = flow.send(answer)
        except StopIteration:
            return

    async def _perform(self, step: Call | Pause | Emit) -> httpx2.Response | None:
        if isinstance(step, Pause):
            await asyncio.sleep(step.seconds)
            return None
        assert isinstance(step, Call)  # noqa: S101  only iterated flows emit
        return await self.http.request(
            step.method,
            step.path,
            params=step.params or None,
            headers=headers_for(step.path, step.headers, self.url, self._key),
            content=step.content,
            files=step.files,
        )

    # ------------------------------------------------------------------------------------------ submitting

    async def generate(
        self,
        prompt: str | None = None,
        *,
        model: str | None = None,
        count: int = 1,
        seed: int | None = None,
        **fields: Any,
    ) -> AsyncJob:
        """Submit a text-to-image job.

        Args:
            prompt: what to draw; left out, for models that draw from noise.
            model: a catalogue id; left out: the server's default.
            count: pictures to make; picture i has the seed `seed + i`.
            seed: left out: a random one, told in the result.
            fields: `width`, `height` (pixels), `steps`, `guidance`, `negative_prompt`, `format`, `options`,
                and the envelope's `priority`, `labels`, `deterministic`, `start_deadline_s`, `run_timeout_s`,
                `retention_s`.
        """
        given = {"prompt": prompt, "model": model, "count": count, "seed": seed, **fields}
        return await self.submit(job_request(Kind.GENERATE, given))

    async def edit(self, image: Picture, prompt: str | None = None, **fields: Any) -> AsyncJob:
        """Submit a picture to be drawn anew by a prompt, or only where a mask is not black.

        Args:
            image: a path, the bytes of a PNG, JPEG or WebP, an artifact, or a job, whose first picture is
                taken as soon as it exists. Files and bytes are uploaded first.
            prompt: what it shall show.
            fields: `mask` (a picture of the same size), `strength` in (0, 1], and those of `generate`.
        """
        return await self._on_picture(Kind.EDIT, image, {"prompt": prompt, **fields})

    async def segment(self, image: Picture, **fields: Any) -> AsyncJob:
        """Submit a picture to be taken apart.

        Args:
            image: as for `edit`.
            fields: `model` (left out: what fits the picture and the marks), `labels` (classes to keep, or
                phrases to find), `points`, `boxes` (XYXY pixels), `threshold`, `regions`, `options`, and the
                envelope's fields as for `generate`.
        """
        return await self._on_picture(Kind.SEGMENT, image, fields)

    async def cutout(self, image: Picture, **fields: Any) -> AsyncJob:
        """Submit a picture whose foreground is put on transparent ground; `image` as for `edit`."""
        return await self._on_picture(Kind.CUTOUT, image, fields)

    async def upscale(self, image: Picture, *, scale: int | None = None, **fields: Any) -> AsyncJob:
        """Submit a picture to be made `scale` times as wide and high; `image` as for `edit`."""
        return await self._on_picture(Kind.UPSCALE, image, {"scale": scale, **fields})

    async def depth(self, image: Picture, **fields: Any) -> AsyncJob:
        """Submit a picture whose depth is estimated; `image` as for `edit`."""
        return await self._on_picture(Kind.DEPTH, image, fields)

    async def stereo(self, image: Picture, **fields: Any) -> AsyncJob:
        """Submit a picture to be made one for two eyes; `disparity` is a share of its width."""
        return await self._on_picture(Kind.STEREO, image, fields)

    async def classify(
        self, image: Picture, *, labels: Sequence[str] | None = None, **fields: Any
    ) -> AsyncJob:
        """Submit a picture to be named: `result.detail["classes"]`, the best first; `image` as for `edit`.

        Args:
            labels: what to choose from, where the model reads text.
            fields: `model`, `top` (classes to name), `options`, and the envelope's fields.
        """
        given = {"labels": list(labels) if labels is not None else None, **fields}
        return await self._on_picture(Kind.CLASSIFY, image, given)

    async def _on_picture(self, kind: Kind, image: Picture, fields: Mapping[str, Any]) -> AsyncJob:
        return AsyncJob(self, await self.run(self.flows.on_picture(kind, image, fields)))

    async def submit(self, request: Mapping[str, Any], *, idempotency_key: str | None = None) -> AsyncJob:
        """Submit an envelope as it is: `{"kind": ..., "model": ..., "input": {...}}`."""
        return AsyncJob(self, await self.run(self.flows.submit(request, key=idempotency_key)))

    async def submit_many(
        self,
        rows: Iterable[Mapping[str, Any]],
        *,
        name: str | None = None,
        key: str | None = None,
        webhook: Mapping[str, Any] | None = None,
    ) -> AsyncGroup:
        """Submit any number of jobs as a group; the iterable is read as it is sent, 500 rows at a time.

        Args:
            rows: envelopes, or flat rows such as `{"prompt": "a red house", "seed": 7}`.
            name: becomes the label `name` of every job.
            key: the column that identifies a row; its value becomes the label `key` of its job.
            webhook: `{"url": ...}`: whom to tell when all have ended.
        """
        bulk = await self.run(self.flows.submit_many(rows, name=name, key=key, webhook=webhook))
        return AsyncGroup(self, await self.run(self.flows.group(bulk.group)), bulk.ids)

    async def submit_batch(
        self,
        requests: list[dict[str, Any]],
        *,
        group: str | None = None,
        idempotency_key: str | None = None,
        webhook: Mapping[str, Any] | None = None,
    ) -> BulkResource:
        """Submit up to 1,000 envelopes in one request, into `group` or a new one: all of them or none."""
        flow = self.flows.submit_batch(requests, group=group, key=idempotency_key, webhook=webhook)
        return await self.run(flow)

    async def upload(self, image: str | Path | bytes) -> dict[str, Any]:
        """Store a picture and return the reference by which jobs name it; unused, it is kept for a day."""
        return await self.run(self.flows.reference(image))

    # ------------------------------------------------------------------------------------------ looking

    async def job(self, job_id: str) -> AsyncJob:
        """Read a job."""
        return AsyncJob(self, await self.run(self.flows.job(job_id)))

    async def jobs(
        self,
        *,
        status: str | None = None,
        kind: str | None = None,
        group: str | None = None,
        page_size: int = 100,
    ) -> AsyncIterator[AsyncJob]:
        """Iterate over all jobs, newest first; pages are fetched as the iteration reaches them."""
        async for resource in self.iterate(
            self.flows.jobs(status=status, kind=kind, group=group, limit=page_size)
        ):
            yield AsyncJob(self, resource)

    async def group(self, group_id: str) -> AsyncGroup:
        """Read a group."""
        return AsyncGroup(self, await self.run(self.flows.group(group_id)), [])

    async def models(self) -> list[ModelResource]:
        """List the catalogue."""
        return (await self.run(self.flows.models())).data

    async def workers(self) -> list[WorkerResource]:
        """List the live workers."""
        return (await self.run(self.flows.workers())).data

    async def drain_worker(self, worker_id: str) -> WorkerResource:
        """Ask a worker to end what it runs, claim no more and stay down; returns it as it is now."""
        return await self.run(self.flows.drain_worker(worker_id))

    async def webhooks(
        self, *, job: str | None = None, status: str | None = None
    ) -> AsyncIterator[DeliveryResource]:
        """Iterate over the messages about one job or group (`job`), or all, newest first."""
        async for one in self.iterate(self.flows.webhooks(job, status)):
            yield one

    async def redeliver(self, delivery_id: str) -> DeliveryResource:
        """Send a message again, under the same id."""
        return await self.run(self.flows.redeliver(delivery_id))

    async def stats(self) -> StatsResource:
        """Read the lanes and counters."""
        return await self.run(self.flows.stats())


class AsyncJob(JobFacts):
    """A submitted job."""

    def __init__(self, client: AsyncClient, resource: JobResource) -> None:
        super().__init__(resource)
        self._client = client

    async def _heard(self, flow: Flow[JobResource]) -> AsyncJob:
        self.resource = await self._client.run(flow)
        return self

    async def refresh(self) -> AsyncJob:
        """Ask the server how the job stands."""
        return await self._heard(self._client.flows.job(self.id))

    async def wait(self, timeout_s: float | None = None) -> AsyncJob:
        """Wait until the job has ended, however it ended.

        Raises:
            WaitTimeout: it has not, after `timeout_s` seconds.
        """
        return await self._heard(self._client.flows.wait(self.id, timeout_s))

    async def result(self, timeout_s: float | None = None) -> AsyncResult:
        """Wait for the result.

        Raises:
            JobFailed, JobCanceled: there will be none.
            WaitTimeout: there is none after `timeout_s` seconds.
        """
        await self._heard(self._client.flows.result(self.id, timeout_s))
        return AsyncResult(
            self.resource, [AsyncArtifact(self._client, self.id, a) for a in self.resource.artifacts]
        )

    async def cancel(self) -> AsyncJob:
        """Ask the job to end; one that runs stops at its next step. Harmless when it has ended."""
        return await self._heard(self._client.flows.move(self.id, "cancel"))

    async def retry(self) -> AsyncJob:
        """Put a failed, canceled or expired job back into its queue."""
        return await self._heard(self._client.flows.move(self.id, "retry"))

    async def rerun(self, *, seed: int | None = None) -> AsyncJob:
        """Submit the same job anew, with another seed where one is given."""
        return await self._client.submit(self.again(seed))

    async def delete(self) -> None:
        """Remove the finished job and its files from the server."""
        await self._client.run(self._client.flows.delete(self.id))

    async def events(self) -> AsyncIterator[JobEvent]:
        """Follow the job live until it ends; a broken connection is resumed without a gap."""
        tail = Tail(self.id, self._client._retry)
        while not tail.ended:
            broken: httpx2.TransportError | None = None
            try:
                async for event in self._stream(tail):
                    yield event
            except httpx2.TransportError as error:
                broken = error
            if not tail.ended:
                await asyncio.sleep(tail.broke(broken))

    async def _stream(self, tail: Tail) -> AsyncIterator[JobEvent]:
        client = self._client
        headers = headers_for(tail.path, tail.headers, client.url, client._key)
        async with client.http.stream("GET", tail.path, headers=headers) as response:
            if not response.is_success:
                await response.aread()
                raise tail.refused(response)
            async for sse in httpx2.EventSource(response):
                yield tail.take(sse)
                if tail.ended:
                    return


class AsyncGroup(GroupFacts):
    """Jobs submitted together."""

    def __init__(self, client: AsyncClient, resource: GroupResource, ids: list[str]) -> None:
        super().__init__(resource, ids)
        self._client = client

    async def refresh(self) -> AsyncGroup:
        """Ask the server how the group stands."""
        self.resource = await self._client.run(self._client.flows.group(self.id))
        return self

    async def wait(self, timeout_s: float | None = None) -> AsyncGroup:
        """Wait until every job has ended, however it ended.

        Raises:
            WaitTimeout: some have not, after `timeout_s` seconds.
        """
        self.resource = await self._client.run(self._client.flows.wait_group(self.id, timeout_s))
        return self

    async def as_completed(self, timeout_s: float | None = None) -> AsyncIterator[AsyncJob]:
        """Iterate over the jobs as they end, each one once, however it ended."""
        async for resource in self._client.iterate(self._client.flows.as_completed(self.id, timeout_s)):
            yield AsyncJob(self._client, resource)

    def jobs(self, *, status: str | None = None) -> AsyncIterator[AsyncJob]:
        """Iterate over the jobs, newest first."""
        return self._client.jobs(group=self.id, status=status)

    async def cancel(self) -> AsyncGroup:
        """Cancel every job of the group that has not ended."""
        self.resource = await self._client.run(self._client.flows.cancel_group(self.id))
        return self
