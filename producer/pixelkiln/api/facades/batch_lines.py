"""The lines of a batch: read into jobs, and written from what came of them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pixelkiln.api.body import parse
from pixelkiln.api.dialects import openai
from pixelkiln.api.errors import told
from pixelkiln.api.facades.batch_store import LineError
from pixelkiln.api.facades.openai_answers import document
from pixelkiln.api.facades.openai_fields import answer_of, job_of
from pixelkiln.api.facades.running import failure_of
from pixelkiln.api.views import Views
from pixelkiln.records import spec_of
from pixelkiln.validation import wrong
from pixelkiln_shared.errors import InvalidRequest, NotFound, PixelkilnError
from pixelkiln_shared.jobs import Priority, Status
from pixelkiln_shared.kinds import Kind
from pixelkiln_shared.ledger.contract import Record

ENDPOINTS = {"/v1/images/generations": Kind.GENERATE}
MAX_LINES = 50_000
CUSTOM_ID, LINKS = "custom_id", "response_format"  # labels of a batch's jobs


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """One request of a file; the first is line 1."""

    number: int
    custom_id: str
    body: Mapping[str, Any]

    def job(self, kind: Kind) -> dict[str, Any]:
        """Return the body of `POST /v1/jobs` that asks for it; it waits behind others unless it says so.

        Raises:
            InvalidInput: a field is wrong.
        """
        answer, job = answer_of(self.body), job_of(kind, self.body)
        if answer.stream:
            raise wrong("unknown_option", "/stream", "a batch answers with a file")
        ours = {CUSTOM_ID: self.custom_id} | ({LINKS: "url"} if answer.links else {})
        given = job.get("labels", {})
        labels = {**given, **ours} if isinstance(given, Mapping) else given
        return {"priority": Priority.BULK.value, **job, "labels": labels}

    def error(self, error: PixelkilnError) -> LineError:
        """Return what is wrong with it."""
        facts = openai(error, error.message)["error"]
        return LineError(
            line=self.number,
            custom_id=self.custom_id,
            code=error.code,
            message=error.message,
            param=facts["param"],
        )


class BatchLines:
    """The lines of a file, read piece by piece, and why it cannot be taken. Blank lines do not count."""

    def __init__(self, endpoint: str) -> None:
        self.lines: list[Line] = []
        self._endpoint = endpoint
        self._faults: list[LineError] = []
        self._seen: set[str] = set()
        self._number = 0

    def read(self, texts: Iterable[bytes]) -> None:
        """Take the next lines."""
        for text in texts:
            self._number += 1
            if not text.strip():
                continue
            try:
                line = _line(self._number, text, self._endpoint)
                if line.custom_id in self._seen:
                    raise wrong("duplicate_custom_id", "/custom_id", "another line has this custom_id")
                self._seen.add(line.custom_id)
                self.lines.append(line)
            except InvalidRequest as error:
                self._faults.append(Line(number=self._number, custom_id="", body={}).error(error))

    @property
    def faults(self) -> list[LineError]:
        """What is wrong with the file as a whole or with lines of it; with any, none of it is taken."""
        if len(self.lines) > MAX_LINES:
            return [*self._faults, _of_the_file("too_many_lines", f"at most {MAX_LINES:,} requests a batch")]
        if not self.lines and not self._faults:
            return [_of_the_file("empty_file", "the file has no requests")]
        return self._faults


def _line(number: int, text: bytes, endpoint: str) -> Line:
    entry = parse(text)
    if not isinstance(entry, dict):
        raise wrong("invalid_type", "", "a line is a JSON object")
    custom_id, body = entry.get("custom_id"), entry.get("body")
    if not isinstance(custom_id, str) or not 0 < len(custom_id) <= 200 or not custom_id.isprintable():
        raise wrong("invalid_custom_id", "/custom_id", "a custom_id is printable text of 1 to 200 characters")
    if entry.get("method") != "POST" or entry.get("url") != endpoint:
        raise wrong("invalid_url", "/url", f"the requests of this batch are `POST {endpoint}`")
    if not isinstance(body, dict):
        raise wrong("invalid_type", "/body", "`body` is an object")
    return Line(number=number, custom_id=custom_id, body=body)


def _of_the_file(code: str, message: str) -> LineError:
    return LineError(line=1, code=code, message=message)


def outputs(records: Iterable[Record], views: Views) -> Iterator[str]:
    """Yield a line for each job that has succeeded, with the answer to its request.

    Raises:
        StorageUnavailable: the store does not answer.
    """
    for record in records:
        if record.status is Status.SUCCEEDED:
            labels = spec_of(record).labels
            try:
                body = document(record, views, links=labels.get(LINKS) == "url")
            except NotFound:
                continue  # deleted meanwhile
            yield _written(record.id, labels.get(CUSTOM_ID), response={"status_code": 200, "body": body})


def errors(records: Iterable[Record], refused: Iterable[LineError]) -> Iterator[str]:
    """Yield a line for each request that was refused, and for each job that ended without a result."""
    for one in refused:
        facts = {"code": one.code, "message": one.message, "param": one.param}
        yield _written(f"line_{one.line}", one.custom_id, error=facts)
    for record in records:
        if record.status.terminal and record.status is not Status.SUCCEEDED:
            failure = failure_of(record)
            facts = {"code": failure.code, "message": told(failure), "param": None}
            yield _written(record.id, spec_of(record).labels.get(CUSTOM_ID), error=facts)


def _written(
    identity: str,
    custom_id: str | None,
    *,
    response: dict[str, Any] | None = None,
    error: dict[str, Any] | None = None,
) -> str:
    if response is not None:
        response = {"request_id": identity, **response}
    line = {"id": identity, "custom_id": custom_id, "response": response, "error": error}
    return json.dumps(line, separators=(",", ":")) + "\n"
