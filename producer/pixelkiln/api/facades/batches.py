"""OpenAI's batch API: `/v1/files` with the requests, `/v1/batches` that run them, their jobs a group."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar

from fastapi import APIRouter, Query
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.requests import Request

from pixelkiln.api.auth import Caller, CurrentCaller
from pixelkiln.api.body import JsonBody
from pixelkiln.api.errors import InvalidMultipart
from pixelkiln.api.facades.batch_lines import ENDPOINTS, BatchLines, Line, errors, outputs
from pixelkiln.api.facades.batch_store import Batch, BatchFile, BatchStore, LineError
from pixelkiln.api.forms import form_of
from pixelkiln.api.services import Parts, Services
from pixelkiln.api.views import Views
from pixelkiln.validation import validate, wrong
from pixelkiln_shared import keys
from pixelkiln_shared.errors import InvalidRequest, NotFound, PixelkilnError
from pixelkiln_shared.jobs import Status
from pixelkiln_shared.ledger.contract import Record

MAX_FIELDS = 8
MAX_LISTED = 100
TOLD_FAULTS = 20
SLICE = 500  # lines read or checked in one go
PAGE = 100  # records read at a time while a file is written

VALIDATED_S = 3_600  # a process that died while it read a file leaves a batch that will never begin

_OUTPUT, _ERRORS = "output_", "errors_"  # + the batch's own id: files that are written when they are read

Item = TypeVar("Item")

router = APIRouter(tags=["OpenAI"], include_in_schema=False)

Limit = Annotated[int, Query(ge=1, le=MAX_LISTED)]


class BatchRequest(BaseModel):
    """The body of `POST /v1/batches`."""

    model_config = ConfigDict(strict=True, extra="ignore")

    input_file_id: str
    endpoint: str
    completion_window: Literal["24h"]
    metadata: dict[str, str] | None = Field(default=None, max_length=16)


# ------------------------------------------------------------------------------------------------ files


@router.post("/v1/files")
async def upload(request: Request, parts: Parts, caller: CurrentCaller) -> Response:
    """Keep a file of requests for a day."""
    async with form_of(request, max_files=1, max_fields=MAX_FIELDS) as form:
        purpose, file = form.get("purpose"), form.get("file")
        if not isinstance(file, UploadFile):
            raise InvalidMultipart("the form has no file of the name `file`")
        if purpose != "batch":
            raise wrong("unknown_option", "/purpose", "files are for batches here", known=["batch"])
        name, data = file.filename or "batch.jsonl", await file.read()
    kept = await run_in_threadpool(_store(parts, caller).keep_file, data, name[:200])
    return JSONResponse(_file(kept))


@router.get("/v1/files")
def files(parts: Parts, caller: CurrentCaller, limit: Limit = MAX_LISTED, after: str = "") -> Response:
    """List the files that were sent, newest first."""
    store = _store(parts, caller)
    return _page(store.file_ids(), limit, after, lambda file_id: _file(store.file(file_id)))


@router.get("/v1/files/{file_id}")
def file(file_id: str, parts: Parts, caller: CurrentCaller) -> Response:
    """Return what is known of a file."""
    store = _store(parts, caller)
    if (batch := _written_for(file_id, store)) is not None:
        facts = {"id": file_id, "object": "file", "created_at": batch.created_at, "bytes": None}
        return JSONResponse(
            facts | {"filename": f"{file_id}.jsonl", "purpose": "batch_output", "status": "processed"}
        )
    return JSONResponse(_file(store.file(file_id)))


@router.get("/v1/files/{file_id}/content")
def content(file_id: str, request: Request, parts: Parts, caller: CurrentCaller) -> Response:
    """Return a file; that of a batch is written while it is read."""
    store = _store(parts, caller)
    batch = _written_for(file_id, store)
    if batch is None:
        return Response(store.content(file_id), media_type="application/jsonl")
    records = _records(batch, parts, caller)
    if file_id.startswith(_OUTPUT):
        lines = outputs(records, Views.of(request, parts))
    else:
        lines = errors(records, batch.refused)
    return StreamingResponse(lines, media_type="application/jsonl")


@router.delete("/v1/files/{file_id}")
def delete(file_id: str, parts: Parts, caller: CurrentCaller) -> Response:
    """Remove a file that was sent."""
    _store(parts, caller).delete_file(file_id)
    return JSONResponse({"id": file_id, "object": "file", "deleted": True})


# ------------------------------------------------------------------------------------------------ batches


@router.post("/v1/batches")
async def begin(body: JsonBody, parts: Parts, caller: CurrentCaller) -> Response:
    """Run the requests of a file: every one that is right becomes a job."""
    wanted = validate(BatchRequest, body)
    if wanted.endpoint not in ENDPOINTS:
        raise wrong("unknown_option", "/endpoint", "no batches of these", known=list(ENDPOINTS))
    data = await run_in_threadpool(_store(parts, caller).content, wanted.input_file_id)
    file = BatchLines(wanted.endpoint)
    for text in _slices(data.split(b"\n")):
        await run_in_threadpool(file.read, text)
    faults = file.faults
    jobs: list[dict[str, Any]] = []
    refused: list[LineError] = []
    for lines in _slices([] if faults else file.lines):
        await run_in_threadpool(_check, lines, wanted.endpoint, parts, caller, jobs, refused)
    batch = Batch(
        id=keys.new_id("batch"),
        jobs=len(jobs),
        faults=faults[:TOLD_FAULTS],
        refused=refused,
        **wanted.model_dump(),
    )
    return JSONResponse(await run_in_threadpool(_begun, batch, jobs, parts, caller))


@router.get("/v1/batches")
def batches(parts: Parts, caller: CurrentCaller, limit: Limit = 20, after: str = "") -> Response:
    """List the batches, newest first."""
    store = _store(parts, caller)
    return _page(
        store.batch_ids(), limit, after, lambda batch_id: _batch(store.batch(batch_id), parts, caller)
    )


@router.get("/v1/batches/{batch_id}")
def batch(batch_id: str, parts: Parts, caller: CurrentCaller) -> Response:
    """Return a batch as it is now."""
    return JSONResponse(_batch(_store(parts, caller).batch(batch_id), parts, caller))


@router.post("/v1/batches/{batch_id}/cancel")
def cancel(batch_id: str, parts: Parts, caller: CurrentCaller) -> Response:
    """Ask what has not ended to end."""
    store = _store(parts, caller)
    batch = store.cancelled(store.batch(batch_id))
    _cancel(batch, parts, caller)
    return JSONResponse(_batch(batch, parts, caller))


# ------------------------------------------------------------------------------------------------ inside


def _store(parts: Services, caller: Caller) -> BatchStore:
    return BatchStore(parts.producer.storage, caller.tenant)


def _written_for(file_id: str, store: BatchStore) -> Batch | None:
    """Return the batch whose output or errors this is; None: a file that was sent."""
    for prefix in (_OUTPUT, _ERRORS):
        if file_id.startswith(prefix):
            return store.batch(file_id.removeprefix(prefix))
    return None


def _slices(whole: Sequence[Item]) -> Iterator[Sequence[Item]]:
    """Yield pieces that are a few hundredths of a second of work: in between, others are served."""
    for start in range(0, len(whole), SLICE):
        yield whole[start : start + SLICE]


def _check(
    lines: Sequence[Line],
    endpoint: str,
    parts: Services,
    caller: Caller,
    jobs: list[dict[str, Any]],
    refused: list[LineError],
) -> None:
    """Append the jobs of the lines that are right, and what is wrong with the others."""
    for line in lines:
        try:
            job = line.job(ENDPOINTS[endpoint])
            parts.producer.check(job, tenant=caller.tenant)
            jobs.append(job)
        except (InvalidRequest, NotFound) as error:
            refused.append(line.error(error))


def _begun(batch: Batch, jobs: list[dict[str, Any]], parts: Services, caller: Caller) -> dict[str, Any]:
    """Note the batch, then submit its jobs; if they are not all taken, those that were are canceled."""
    store = _store(parts, caller)
    store.keep(batch)
    if jobs:
        try:
            parts.producer.submit_many(jobs, tenant=caller.tenant, group=batch.group)
        except PixelkilnError:
            store.cancelled(batch)
            _cancel(batch, parts, caller)
            raise
    return _batch(store.submitted(batch), parts, caller)


def _cancel(batch: Batch, parts: Services, caller: Caller) -> None:
    try:
        parts.producer.cancel_group(batch.group, caller.tenant)
    except NotFound:
        return  # none of its lines became a job


def _records(batch: Batch, parts: Services, caller: Caller) -> Iterator[Record]:
    after: int | None = None
    while True:
        page = parts.producer.jobs(caller.tenant, group=batch.group, limit=PAGE, after=after)
        yield from page.records
        if page.after is None:
            return
        after = page.after


def _batch(batch: Batch, parts: Services, caller: Caller) -> dict[str, Any]:
    try:
        counts = parts.producer.group(batch.group, caller.tenant).counts
    except NotFound:
        counts = {}
    completed = counts.get(Status.SUCCEEDED, 0)
    ended = sum(count for status, count in counts.items() if status.terminal)
    status = _status(batch, counts, ended)
    failed = len(batch.refused) + ended - completed
    over = status in {"completed", "cancelled"}
    return {
        "id": batch.id,
        "object": "batch",
        "endpoint": batch.endpoint,
        "input_file_id": batch.input_file_id,
        "completion_window": batch.completion_window,
        "metadata": batch.metadata,
        "status": status,
        "created_at": batch.created_at,
        "in_progress_at": None if batch.faults else batch.created_at,
        "failed_at": batch.created_at if batch.faults else None,
        "cancelling_at": batch.cancelled_at,
        "request_counts": {
            "total": len(batch.refused) + sum(counts.values()),
            "completed": completed,
            "failed": failed,
        },
        "output_file_id": f"{_OUTPUT}{batch.id}" if over and completed else None,
        "error_file_id": f"{_ERRORS}{batch.id}" if over and failed else None,
        "errors": {"object": "list", "data": [one.model_dump() for one in batch.faults]}
        if batch.faults
        else None,
    }


def _status(batch: Batch, counts: Mapping[Status, int], ended: int) -> str:
    if batch.faults:
        return "failed"
    if batch.submitted_at is None:
        return "validating" if time.time() - batch.created_at < VALIDATED_S else "failed"
    if batch.jobs and not counts:
        return "expired"  # the records of its jobs are gone, and the pictures with them
    if ended < sum(counts.values()):
        return "cancelling" if batch.cancelled_at else "in_progress"
    return "cancelled" if batch.cancelled_at else "completed"


def _file(file: BatchFile) -> dict[str, Any]:
    return {
        "object": "file",
        "purpose": "batch",
        "status": "processed",
        "created_at": file.created_at,
        "expires_at": file.expires_at,
        **file.model_dump(),
    }


def _page(ids: Sequence[str], limit: int, after: str, show: Callable[[str], dict[str, Any]]) -> Response:
    """Answer with a page of a list, newest first; `after` is the last id of the page before."""
    newest = [one for one in reversed(ids) if not after or one < after]
    shown = [show(one) for one in newest[:limit]]
    return JSONResponse(
        {
            "object": "list",
            "data": shown,
            "has_more": len(newest) > len(shown),
            "first_id": shown[0]["id"] if shown else None,
            "last_id": shown[-1]["id"] if shown else None,
        }
    )
