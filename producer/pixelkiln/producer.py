"""The one door: everything that puts a job into the queue goes through `Producer`.

A submit is intake, then the ledger, then the bells, in this order. The ledger's write is the moment of
acceptance: a bell that cannot be rung afterwards costs seconds (the sweep rings it), never a job.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import structlog

from pixelkiln.inputs import Inputs, Order, Reader, picture_limits
from pixelkiln.intake import Accepted, Intake, Prepared
from pixelkiln.pipelines import prepare_steps
from pixelkiln.validation import check_group, is_id
from pixelkiln.webhooks.destinations import Destinations
from pixelkiln_shared import keys
from pixelkiln_shared.bells import Bells, CeleryBells, make_app
from pixelkiln_shared.catalogue import Catalogue
from pixelkiln_shared.errors import (
    AlreadyTerminal,
    InvalidRequest,
    NotFound,
    PixelkilnError,
    QueueFull,
    StorageUnavailable,
    Unavailable,
)
from pixelkiln_shared.jobs import GroupWebhook, JobRequest, Status
from pixelkiln_shared.kinds import Kind
from pixelkiln_shared.ledger import open_ledger, redis_client
from pixelkiln_shared.ledger.contract import Group, Idempotency, Ledger, Page, Reaped, Record
from pixelkiln_shared.ledger.submitting import fresh_record
from pixelkiln_shared.pictures import CheckedPicture, open_picture
from pixelkiln_shared.settings import Settings
from pixelkiln_shared.settings import settings as process_settings
from pixelkiln_shared.storage import open_storage
from pixelkiln_shared.storage.contract import Storage

CHUNK = 1_000  # jobs a ledger call of `submit_many`: a few MB in flight, whatever the number of rows

# What the ledger raises when it has certainly written nothing. After `RedisUnavailable` nobody knows.
_REFUSALS = (InvalidRequest, NotFound, QueueFull)

_log = structlog.get_logger(__name__)

Request = JobRequest | Mapping[str, Any]


class Producer:
    """Submits jobs and moves them about on behalf of tenants. Thread-safe.

    Left out, the parts are made from the settings (`PIXELKILN_*`): Redis for the ledger and the bells, the
    storage the workers share. Every method may raise `RedisUnavailable` and `StorageUnavailable`.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        ledger: Ledger | None = None,
        storage: Storage | None = None,
        bells: Bells | None = None,
        catalogue: Catalogue | None = None,
        served_lanes: Callable[[], frozenset[str]] | None = None,
    ) -> None:
        self.settings = settings or process_settings()
        self.ledger = ledger or open_ledger(self.settings)
        self.storage = storage or open_storage(self.settings)
        self.catalogue = catalogue or Catalogue.load(self.settings.catalogue, stub=self.settings.stub)
        self._bells = bells or CeleryBells(make_app(self.settings), redis_client(self.settings))
        self._served_lanes = served_lanes
        self._inputs = Inputs(self.catalogue, self.ledger, self.storage, picture_limits(self.settings))
        self._destinations = Destinations(self.settings)
        self._intake = Intake(self.catalogue, self._inputs, self._destinations)

    # ------------------------------------------------------------------------------------- submit

    def submit(
        self, request: Request, *, tenant: str = "default", idempotency: Idempotency | None = None
    ) -> Record:
        """Accept one job and return its record.

        Raises:
            InvalidInput, InvalidImage, UnknownModel: the request is wrong; nothing was accepted.
            NotFound: it refers to a job, group or upload that does not exist.
            IdempotencyKeyReused: the key came before with another request.
            QueueFull: too many jobs wait.
        """
        accepted = self.accept(request, tenant=tenant, idempotency=idempotency)
        return accepted.record or self.ledger.get(accepted.ids[0])

    def accept(
        self,
        request: Request,
        *,
        tenant: str = "default",
        idempotency: Idempotency | None = None,
        need_worker: bool = False,
    ) -> Accepted:
        """As `submit`, but say whether the answer is a replay.

        Args:
            need_worker: refuse a job that no live worker would run (`Unavailable`, `no_worker_for_model`).
        """
        order = Order(tenant=tenant)
        prepared = self._intake.prepare(request, order)
        with self._removed_on(Exception, [prepared]):
            check_group(prepared.job.group)
            if need_worker and not self.served(prepared.job.lane):
                raise Unavailable(f"no live worker serves {prepared.spec.model}", code="no_worker_for_model")
        return self._write([prepared], idempotency)

    def check(self, request: Request, *, tenant: str = "default") -> None:
        """Raise what `submit` would say of the request itself; nothing is accepted."""
        self._remove([self._intake.prepare(request, Order(tenant=tenant))])

    def submit_many(
        self,
        requests: Iterable[Request],
        *,
        tenant: str = "default",
        group: str | None = None,
        chunk: int = CHUNK,
    ) -> tuple[str, list[str]]:
        """Accept any number of jobs as one group, chunk by chunk; returns the group's id and the jobs' ids.

        Raises:
            PixelkilnError: as `submit`. Chunks before the fault stay accepted: `error.detail` has `group` and
                `accepted`, how many rows from the start need not be sent again. Up to two chunks more have
                been read from the iterable.
        """
        group = group or keys.new_id("grp")
        check_group(group)
        ids: list[str] = []
        try:
            for written in self._written(requests, Order(tenant=tenant, group=group), min(chunk, CHUNK)):
                ids += written
        except PixelkilnError as error:
            error.detail |= {"group": group, "accepted": len(ids)}
            raise
        return group, ids

    def submit_group(
        self,
        requests: Sequence[Request],
        *,
        tenant: str = "default",
        group: str | None = None,
        webhook: GroupWebhook | None = None,
        idempotency: Idempotency | None = None,
        at: str = "",
    ) -> Accepted:
        """Accept a list of jobs as one group: all or none.

        Raises:
            InvalidInput: some rows are wrong; `detail["errors"]` names up to `MAX_ERRORS` faults by pointer.
        """
        group = group or keys.new_id("grp")
        check_group(group)
        order = self._order(tenant, group, webhook, at)
        batch: list[Prepared] = []
        with self._removed_on(Exception, batch):
            self._intake.prepare_all(requests, order, into=batch)
        return self._write(batch, idempotency)

    def submit_pipeline(
        self,
        steps: Sequence[Mapping[str, Any]],
        *,
        tenant: str = "default",
        webhook: GroupWebhook | None = None,
        idempotency: Idempotency | None = None,
        at: str = "",
    ) -> Accepted:
        """Accept jobs of which later ones take earlier ones' pictures; all or none, as one group.

        Raises:
            InvalidInput: as `submit`, and `invalid_step` for a step or reference that cannot be.
        """
        order = self._order(tenant, keys.new_id("grp"), webhook, at)
        batch: list[Prepared] = []
        with self._removed_on(Exception, batch):
            prepare_steps(self._intake, steps, order, into=batch)
        return self._write(batch, idempotency)

    def upload(
        self, data: bytes, *, tenant: str = "default", read: Reader = open_picture
    ) -> tuple[str, str, CheckedPicture]:
        """Check and store a picture for later jobs; returns its id, its SHA-256 and the picture.

        Raises:
            InvalidImage: not a picture we open.
        """
        return self._inputs.upload(data, tenant, read=read)

    # ------------------------------------------------------------------------------------- look and move

    def get(self, job_id: str, tenant: str = "default") -> Record:
        """Return a job of this tenant.

        Raises:
            NotFound: no such job, or somebody else's.
        """
        missing = NotFound("no such job")  # said alike whether it never was, has gone or is somebody else's
        if not is_id(job_id, "job"):
            raise missing
        try:
            record = self.ledger.get(job_id)
        except NotFound as error:
            raise missing from error
        if record.tenant != tenant:
            raise missing
        return record

    def jobs(
        self,
        tenant: str = "default",
        *,
        status: Status | None = None,
        kind: Kind | None = None,
        group: str | None = None,
        limit: int = 50,
        after: int | None = None,
    ) -> Page:
        """List a tenant's jobs, newest first."""
        if group is not None and not is_id(group, "grp"):
            return Page(records=(), after=None)
        return self.ledger.jobs(tenant, status=status, kind=kind, group=group, limit=limit, after=after)

    def cancel(self, job_id: str, tenant: str = "default") -> Record:
        """Ask a job to end; asking twice, or of an ended job, changes nothing.

        Raises:
            NotFound: no such job.
        """
        self.get(job_id, tenant)
        self.ledger.cancel(job_id)
        return self.ledger.get(job_id)

    def retry(self, job_id: str, tenant: str = "default") -> Record:
        """Put a failed, canceled or expired job back into its queue.

        Raises:
            NotFound: no such job.
            AlreadyTerminal: it has succeeded, or it has not ended.
        """
        lane = self.get(job_id, tenant).lane
        self.ledger.retry(job_id)
        self._ring(lambda: {one.lane: one.waiting for one in self.ledger.lanes() if one.lane == lane})
        return self.ledger.get(job_id)

    def delete(self, job_id: str, tenant: str = "default") -> None:
        """Forget an ended job: its record, its input and its artifacts.

        Raises:
            NotFound: no such job.
            AlreadyTerminal: it has not ended (`not_terminal`).
        """
        if not self.get(job_id, tenant).status.terminal:
            raise AlreadyTerminal("the job has not ended; cancel it first", code="not_terminal")
        # The record goes last: a deletion that the store interrupts can then be asked for again.
        for stored in self.storage.list(keys.job_prefix(tenant, job_id)):
            self.storage.delete(stored.key)
        self.ledger.delete(job_id)

    def group(self, group_id: str, tenant: str = "default") -> Group:
        """Return a group's counters.

        Raises:
            NotFound: no such group, or somebody else's.
        """
        missing = NotFound("no such group")
        if not is_id(group_id, "grp"):
            raise missing
        try:
            group = self.ledger.group(group_id)
        except NotFound as error:
            raise missing from error
        if group.tenant != tenant:
            raise missing
        return group

    def cancel_group(self, group_id: str, tenant: str = "default", *, most: int | None = None) -> Group:
        """Cancel every unfinished job of a group; with `most`, about so many: `counts` tells what is left.

        Raises:
            NotFound: no such group.
        """
        self.group(group_id, tenant)
        touched = 0
        while (most is None or touched < most) and (more := self.ledger.cancel_group(group_id)):
            touched += more
        return self.ledger.group(group_id)

    def served(self, lane: str) -> bool:
        """Whether a live worker serves this lane; True where nobody told us how to know."""
        return self._served_lanes is None or lane in self._served_lanes()

    def sweep(self) -> Reaped:
        """Take back what dead workers held and ring for what waits: the share of every process that can."""
        reaped = self.ledger.reap()
        if reaped.lanes:
            self._bells.ring(reaped.lanes)
        return reaped

    # ------------------------------------------------------------------------------------- inside

    def _order(self, tenant: str, group: str, webhook: GroupWebhook | None, at: str) -> Order:
        if webhook is not None:
            self._destinations.check(webhook.url, "/webhook/url")
        return Order(tenant=tenant, group=group, webhook=webhook, at=at)

    def _written(self, rows: Iterable[Request], order: Order, chunk: int) -> Iterator[tuple[str, ...]]:
        """Yield the ids of each chunk once it is written; Redis writes one while the next is prepared."""
        rows, read = iter(rows), 0
        writing: list[Prepared] = []
        with self.ledger.bulk(max_waiting=self.settings.max_queue) as bulk:
            while True:
                batch: list[Prepared] = []
                fault: Exception | None = None
                try:
                    batch = self._chunk(islice(rows, chunk), order, read)
                except Exception as error:  # noqa: BLE001 - raised below: what is being written comes before it
                    fault = error
                if writing:
                    with self._removed_on(Exception, batch), self._removed_on(_REFUSALS, writing):
                        written = bulk.answer()
                    self._ring(lambda: written.waiting)  # noqa: B023 - called at once
                    yield written.ids
                if fault is not None:
                    raise fault
                if not batch:
                    return
                bulk.send([prepared.job for prepared in batch])
                writing, read = batch, read + len(batch)

    def _chunk(self, rows: Iterable[Request], order: Order, first: int) -> list[Prepared]:
        batch: list[Prepared] = []
        with self._removed_on(Exception, batch):
            for number, row in enumerate(rows, first):
                batch.append(self._intake.prepare(row, replace(order, at=f"/{number}")))
        return batch

    def _write(self, batch: Sequence[Prepared], idempotency: Idempotency | None) -> Accepted:
        with self._removed_on(_REFUSALS, batch):
            submitted = self.ledger.submit(
                [prepared.job for prepared in batch],
                idempotency=idempotency,
                max_waiting=self.settings.max_queue,
            )
        if submitted.replayed:
            self._remove(batch)
            return self._replay_of(submitted.ids)
        lanes = tuple(prepared.job.lane for prepared in batch)
        self._ring(lambda: submitted.waiting)
        record = fresh_record(batch[0].job, submitted) if len(batch) == 1 else None
        group = batch[0].job.group if batch else None
        return Accepted(ids=submitted.ids, lanes=lanes, group=group, record=record)

    def _replay_of(self, ids: tuple[str, ...]) -> Accepted:
        """Return what an earlier submit came to; some of its jobs may have been deleted since."""
        left = [record for record in self.ledger.get_many(ids) if record is not None]
        if not left:
            raise NotFound("what this key made before has been deleted")
        lanes = tuple(record.lane for record in left)
        return Accepted(ids=ids, lanes=lanes, group=left[0].group, replayed=True)

    def _ring(self, waiting: Callable[[], Mapping[str, int]]) -> None:
        try:
            self._bells.ring(waiting())
        except Unavailable as error:
            _log.warning("bells not rung; the sweep will", reason=str(error))

    @contextlib.contextmanager
    def _removed_on(
        self, errors: type[Exception] | tuple[type[Exception], ...], batch: Sequence[Prepared]
    ) -> Iterator[None]:
        """Remove what was stored for the batch when one of these errors says that it was not written."""
        try:
            yield
        except errors:
            self._remove(batch)
            raise

    def _remove(self, batch: Sequence[Prepared]) -> None:
        """Remove what was stored for jobs that were not accepted, as far as the store answers."""
        for prepared in batch:
            for key in prepared.stored:
                with contextlib.suppress(StorageUnavailable):
                    self.storage.delete(key)
