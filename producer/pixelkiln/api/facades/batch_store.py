"""Batches of OpenAI's API and the files they are made from, in the storage; their jobs are a group."""

from __future__ import annotations

import time
from datetime import timedelta

from pydantic import BaseModel, Field

from pixelkiln.validation import is_id
from pixelkiln_shared import keys
from pixelkiln_shared.errors import NotFound
from pixelkiln_shared.storage.contract import Storage

_JSON, _LINES = "application/json", "application/jsonl"


class LineError(BaseModel):
    """What is wrong with one line of a file; the first is line 1."""

    line: int
    custom_id: str | None = None
    code: str
    message: str
    param: str | None = None


class BatchFile(BaseModel):
    """A file somebody sent. Times are Unix seconds."""

    id: str
    filename: str
    bytes: int

    @property
    def created_at(self) -> int:
        """When it came."""
        return int(keys.id_time(self.id).timestamp())

    @property
    def expires_at(self) -> int:
        """When it is swept."""
        return int((keys.id_time(self.id) + timedelta(seconds=keys.UPLOAD_S)).timestamp())


class Batch(BaseModel):
    """What is known of a batch beside its jobs.

    Attributes:
        jobs: how many lines became jobs.
        faults: why nothing of the file was accepted.
        refused: lines whose request is wrong; the others are jobs.
        submitted_at: when all its jobs were in the queue, Unix seconds.
        cancelled_at: when somebody asked it to end, Unix seconds.
    """

    id: str
    endpoint: str
    input_file_id: str
    completion_window: str
    metadata: dict[str, str] | None = None
    jobs: int = 0
    faults: list[LineError] = Field(default_factory=list)
    refused: list[LineError] = Field(default_factory=list)
    submitted_at: int | None = None
    cancelled_at: int | None = None

    @property
    def created_at(self) -> int:
        """When it was made, Unix seconds."""
        return int(keys.id_time(self.id).timestamp())

    @property
    def group(self) -> str:
        """The group of its jobs."""
        return self.id.replace("batch_", "grp_", 1)


class BatchStore:
    """Batches and files of one tenant. Every method may raise `StorageUnavailable`."""

    def __init__(self, storage: Storage, tenant: str) -> None:
        self._storage = storage
        self._tenant = tenant

    def keep_file(self, data: bytes, filename: str) -> BatchFile:
        """Store a file as it came."""
        file = BatchFile(id=keys.new_id("file"), filename=filename, bytes=len(data))
        key = keys.batch_input_key(self._tenant, file.id)
        self._storage.put(key, data, media_type=_LINES)
        # The facts come last: a file without them was cut short and does not exist.
        self._storage.put(f"{key}.json", file.model_dump_json().encode(), media_type=_JSON)
        return file

    def file(self, file_id: str) -> BatchFile:
        """Return a file's facts.

        Raises:
            NotFound: no such file, or it has expired.
        """
        return BatchFile.model_validate_json(self._get("file", file_id, ".json"))

    def content(self, file_id: str) -> bytes:
        """Return a file as it came.

        Raises:
            NotFound: no such file, or it has expired.
        """
        return self._get("file", self.file(file_id).id)

    def delete_file(self, file_id: str) -> None:
        """Remove a file.

        Raises:
            NotFound: no such file, or it has expired.
        """
        key = keys.batch_input_key(self._tenant, self.file(file_id).id)
        for name in (key, f"{key}.json"):
            self._storage.delete(name)

    def file_ids(self) -> list[str]:
        """Return the ids of all files, oldest first."""
        found = self._ids(keys.batch_input_key(self._tenant, "file_"))
        return [name.removesuffix(".json") for name in found if name.endswith(".json")]

    def keep(self, batch: Batch) -> None:
        """Store a batch, or what has changed of it."""
        data = batch.model_dump_json().encode()
        self._storage.put(keys.batch_key(self._tenant, batch.id), data, media_type=_JSON)

    def batch(self, batch_id: str) -> Batch:
        """Return a batch.

        Raises:
            NotFound: no such batch, or it was made long ago.
        """
        return Batch.model_validate_json(self._get("batch", batch_id))

    def batch_ids(self) -> list[str]:
        """Return the ids of all batches, oldest first."""
        return self._ids(keys.batch_key(self._tenant, "batch_"))

    def submitted(self, batch: Batch) -> Batch:
        """Note that all jobs of a batch are in the queue."""
        batch = batch.model_copy(update={"submitted_at": int(time.time())})
        self.keep(batch)
        return batch

    def cancelled(self, batch: Batch) -> Batch:
        """Note that somebody asked a batch to end; the first time counts."""
        if batch.cancelled_at is None:
            batch = batch.model_copy(update={"cancelled_at": int(time.time())})
            self.keep(batch)
        return batch

    def _ids(self, prefix: str) -> list[str]:
        return [stored.key.rpartition("/")[2] for stored in self._storage.list(prefix)]

    def _get(self, kind: str, identity: str, suffix: str = "") -> bytes:
        missing = NotFound(f"no such {kind}, or it has expired")
        if not is_id(identity, kind):
            raise missing
        key = keys.batch_input_key if kind == "file" else keys.batch_key
        try:
            return self._storage.get(key(self._tenant, identity) + suffix)
        except NotFound as error:
            raise missing from error
