"""Objects in a bucket of S3 or of a server that speaks its protocol.

Only put, get, head, delete, list, multipart and presigned GET are used: the rest differs between servers.
boto3's own retries are off, because they know neither a body cut in the middle nor an overall deadline.
"""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import boto3
from boto3.exceptions import S3UploadFailedError
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, PartialCredentialsError
from urllib3.exceptions import HTTPError

from pixelkiln_shared.errors import NotFound, StorageUnavailable
from pixelkiln_shared.storage.contract import StoredObject
from pixelkiln_shared.storage.naming import (
    checked_key,
    checked_prefix,
    content_disposition,
    is_key,
    media_type_of,
)
from pixelkiln_shared.storage.probe import round_trip

S3Client = Any  # boto3 makes the class at run time
T = TypeVar("T")

_CHUNK = 1 << 18
_MULTIPART_BYTES = 8 << 20  # below, one PUT; S3 takes parts from 5 MB
_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 5.0
_MISSING = {"NoSuchKey", "404", "NotFound"}
_PASSING = {
    "SlowDown",
    "RequestTimeout",
    "InternalError",
    "ServiceUnavailable",
    "Throttling",
    "ThrottlingException",
}


class _CutBody(Exception):
    """The body of a GET ended early, came too slowly or does not have the hash it was stored with."""


def checksum_mode(checksums: str | None, endpoint_url: str | None) -> str:
    """Return when boto3 sends checksums of its own: as asked, else as most such servers bear."""
    return checksums or ("when_required" if endpoint_url else "when_supported")


def s3_client(
    *,
    endpoint_url: str | None = None,
    region: str = "us-east-1",
    checksums: str | None = None,
    access_key: str | None = None,
    secret_key: str | None = None,
    timeout_s: float = 15.0,
    tries: int = 1,
) -> S3Client:
    """Return a boto3 client, set up for `S3Storage`; it may be shared between threads.

    Args:
        endpoint_url: an S3-compatible server; its bucket then goes into the path, not into the host name.
        region: part of the signature.
        checksums: `when_required` or `when_supported`. Left out: `when_required` for a custom endpoint,
            because many servers refuse the CRC trailers that boto3 sends by default.
        access_key: with `secret_key`, instead of boto3's credential chain.
        secret_key: see `access_key`.
        timeout_s: for connecting, and for each wait for bytes.
        tries: of each call by boto3 itself; `S3Storage` has its own.
    """
    checked = checksum_mode(checksums, endpoint_url)
    config = Config(
        region_name=region,
        signature_version="s3v4",
        connect_timeout=min(timeout_s, 5.0),
        read_timeout=timeout_s,
        retries={"total_max_attempts": tries, "mode": "standard"},
        max_pool_connections=32,
        tcp_keepalive=True,
        s3={"addressing_style": "path" if endpoint_url else "auto"},
        request_checksum_calculation=checked,  # type: ignore[arg-type]
        response_checksum_validation=checked,  # type: ignore[arg-type]
    )
    session = boto3.session.Session()  # the module's default session may not be used from several threads
    return session.client(
        "s3",
        endpoint_url=endpoint_url,
        config=config,
        aws_access_key_id=access_key,
        aws_secret_access_key=secret_key,
    )


class S3Storage:
    """A bucket, or the part of one below a prefix.

    Args:
        client: from `s3_client`.
        bucket: must exist.
        prefix: put before every key; keys given and listed are without it.
        deadline_s: how long one call may take, all its tries together.
        links: signs links, where clients reach the server by another address than we do; left out: `client`.
    """

    def __init__(
        self,
        client: S3Client,
        bucket: str,
        *,
        prefix: str = "",
        deadline_s: float = 30.0,
        links: S3Client | None = None,
    ) -> None:
        self._client = client
        self._links = links or client
        self._bucket = bucket
        self._base = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        self._deadline_s = deadline_s

    def put(self, key: str, data: bytes | Path, *, media_type: str) -> StoredObject:
        """Store bytes by one PUT, or a file (a big one in parts); a retry writes the same bytes again."""
        name = self._name(key)
        if isinstance(data, Path):
            with data.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            size = data.stat().st_size
        else:
            digest, size = hashlib.sha256(data).hexdigest(), len(data)
        metadata = {"sha256": digest}

        def send() -> None:
            if isinstance(data, Path):
                if size >= _MULTIPART_BYTES:
                    self._give_up_parts(name)
                self._client.upload_file(
                    str(data),
                    self._bucket,
                    name,
                    ExtraArgs={"ContentType": media_type, "Metadata": metadata},
                    Config=TransferConfig(multipart_threshold=_MULTIPART_BYTES, max_concurrency=4),
                )
            else:
                self._client.put_object(
                    Bucket=self._bucket, Key=name, Body=data, ContentType=media_type, Metadata=metadata
                )

        self._persist(lambda _: send())
        return StoredObject(
            key=key, size_bytes=size, media_type=media_type, modified_at=datetime.now(UTC), sha256=digest
        )

    def get(self, key: str) -> bytes:
        """Return the object, whole and with the hash it was stored with; anything less is fetched again.

        Raises:
            NotFound: no such key.
        """
        name = self._name(key)
        return self._persist(lambda deadline: self._fetch(name, deadline))

    def head(self, key: str) -> StoredObject | None:
        """Return the object's facts, or None."""
        name = self._name(key)
        try:
            answer = self._persist(lambda _: self._client.head_object(Bucket=self._bucket, Key=name))
        except NotFound:
            # A HEAD has no body: a missing bucket looks like a missing key. A listing tells them apart.
            self._persist(lambda _: self._client.list_objects_v2(Bucket=self._bucket, Prefix=name, MaxKeys=1))
            return None
        return StoredObject(
            key=key,
            size_bytes=answer["ContentLength"],
            media_type=answer["ContentType"],
            modified_at=answer["LastModified"],
            sha256=answer["Metadata"].get("sha256"),
        )

    def delete(self, key: str) -> None:
        """Remove the object; a missing one is no error."""
        name = self._name(key)
        try:
            self._persist(lambda _: self._client.delete_object(Bucket=self._bucket, Key=name))
        except NotFound:
            return

    def list(self, prefix: str, *, after: str = "") -> Iterator[StoredObject]:
        """Yield objects in key order, a page a call; media types are guessed from the key's ending."""
        query: dict[str, Any] = {"Bucket": self._bucket, "Prefix": self._base + checked_prefix(prefix)}
        if after:
            query["StartAfter"] = self._base + after
        while True:
            page = self._persist(lambda _: self._client.list_objects_v2(**query))
            for found in page.get("Contents", []):
                key = found["Key"][len(self._base) :]
                if is_key(key):  # somebody else's objects, and the folder markers of some tools, are not ours
                    yield StoredObject(
                        key=key,
                        size_bytes=found["Size"],
                        media_type=media_type_of(key),
                        modified_at=found["LastModified"],
                    )
            if not page.get("IsTruncated"):
                return
            query["ContinuationToken"] = page["NextContinuationToken"]

    def link(self, key: str, *, expires_s: int, filename: str | None = None) -> str:
        """Return a presigned URL for GET, on the endpoint that clients talk to."""
        query = {"Bucket": self._bucket, "Key": self._name(key)}
        if filename is not None:
            query["ResponseContentDisposition"] = content_disposition(filename)
        try:
            url: str = self._links.generate_presigned_url("get_object", Params=query, ExpiresIn=expires_s)
        except BotoCoreError as error:
            raise _translated(error) from error
        return url

    def check(self) -> None:
        """Write, read and remove a small object.

        Raises:
            StorageUnavailable: with the reason.
        """
        round_trip(self)

    def _name(self, key: str) -> str:
        return self._base + checked_key(key)

    def _give_up_parts(self, name: str) -> None:
        """End what an earlier try began and could not end, the store being away: nobody else would.

        Of one key one try is under way at a time. A server that does not list uploads keeps them.
        """
        with suppress(BotoCoreError, ClientError):
            begun = self._client.list_multipart_uploads(Bucket=self._bucket, Prefix=name)
            for upload in begun.get("Uploads", []):
                if upload["Key"] == name:
                    self._client.abort_multipart_upload(
                        Bucket=self._bucket, Key=name, UploadId=upload["UploadId"]
                    )

    def _fetch(self, name: str, deadline: float) -> bytes:
        answer = self._client.get_object(Bucket=self._bucket, Key=name)
        stream = answer[
            "Body"
        ]._raw_stream  # read1: a whole-chunk read would wait for ever on a dripping body
        received = bytearray()
        try:
            while chunk := stream.read1(_CHUNK):
                received += chunk
                if time.monotonic() > deadline:
                    raise _CutBody(f"only {len(received):,} bytes came within the deadline")
        except BaseException:
            stream.close()
            raise
        stream.release_conn()
        if len(received) != answer["ContentLength"]:
            raise _CutBody(f"{len(received):,} of {answer['ContentLength']:,} bytes came")
        stored = answer["Metadata"].get("sha256")
        if stored and hashlib.sha256(received).hexdigest() != stored:
            raise _CutBody("other bytes came than were stored")
        return bytes(received)

    def _persist(self, call: Callable[[float], T]) -> T:
        """Call until it succeeds, fails for good, or another try would begin past the deadline.

        The pause grows from 0.1 s to 5 s, with full jitter, so that workers do not come back in step.
        """
        deadline = time.monotonic() + self._deadline_s
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                return call(deadline)
            except (BotoCoreError, ClientError, S3UploadFailedError, HTTPError, OSError, _CutBody) as error:
                wait_s = random.uniform(0, pause_s)  # noqa: S311 - jitter is no secret
                if not _passing(error) or time.monotonic() + wait_s >= deadline:
                    raise _translated(error) from error
            time.sleep(wait_s)
            pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)


def _answer(error: Exception) -> tuple[str, int]:
    """Return the server's error code and HTTP status; ("", 0) where no server answered."""
    if isinstance(error, S3UploadFailedError):
        cause = error.__context__
        return _answer(cause) if isinstance(cause, Exception) else ("", 0)
    if not isinstance(error, ClientError):
        return "", 0
    facts = error.response
    return facts.get("Error", {}).get("Code", ""), facts.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)


def _passing(error: Exception) -> bool:
    """Whether trying again may help."""
    if isinstance(error, (NoCredentialsError, PartialCredentialsError)):
        return False
    code, status = _answer(error)
    return not status or status >= 500 or status == 429 or code in _PASSING


def _translated(error: Exception) -> Exception:
    code, status = _answer(error)
    if code in _MISSING:
        return NotFound("no such file")
    if code == "NoSuchBucket":
        return StorageUnavailable("the S3 bucket does not exist", detail={"reason": code})
    if code == "RequestTimeTooSkewed":
        return StorageUnavailable("S3 says that this machine's clock is wrong", detail={"reason": code})
    if status in (401, 403):
        return StorageUnavailable(f"S3 refuses our credentials ({code})", detail={"reason": code})
    if isinstance(error, (NoCredentialsError, PartialCredentialsError)):
        return StorageUnavailable("no S3 credentials found", detail={"reason": "NoCredentials"})
    if isinstance(error, _CutBody):
        return StorageUnavailable(f"S3 download failed: {error}", detail={"reason": "cut_body"})
    reason = code or type(error).__name__
    return StorageUnavailable(f"S3 does not answer as it should ({reason})", detail={"reason": reason})
