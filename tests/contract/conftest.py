"""The stores under test. S3 comes from the environment: skipped at home without it, failing in CI."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from pixelkiln_shared.storage.contract import Storage
from pixelkiln_shared.storage.folder import FolderStorage
from pixelkiln_shared.storage.s3 import S3Storage, s3_client
from pixelkiln_shared.testing.storage import MemoryStorage


@dataclass(frozen=True, kw_only=True)
class S3Server:
    """Where a real S3 server is, and a bucket of this test session's own on it."""

    endpoint_url: str
    access_key: str
    secret_key: str
    bucket: str

    def storage(self, *, prefix: str = "", bucket: str | None = None, **options: float) -> S3Storage:
        """Return a store on the server, set up as the settings would."""
        client = s3_client(
            endpoint_url=self.endpoint_url, access_key=self.access_key, secret_key=self.secret_key
        )
        return S3Storage(client, bucket or self.bucket, prefix=prefix, **options)


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """A real S3 server: `TEST_S3_ENDPOINT`, `TEST_S3_ACCESS_KEY`, `TEST_S3_SECRET_KEY`."""
    names = ("TEST_S3_ENDPOINT", "TEST_S3_ACCESS_KEY", "TEST_S3_SECRET_KEY")
    missing = [name for name in names if not os.environ.get(name)]
    if missing:
        stop = pytest.fail if os.environ.get("CI", "").lower() == "true" else pytest.skip
        stop(f"no S3 server: {', '.join(missing)} not set")
    endpoint, access, secret = (os.environ[name] for name in names)
    client = s3_client(endpoint_url=endpoint, access_key=access, secret_key=secret)
    bucket = f"pixelkiln-test-{secrets.token_hex(6)}"
    client.create_bucket(Bucket=bucket)
    yield S3Server(endpoint_url=endpoint, access_key=access, secret_key=secret, bucket=bucket)
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket)
    for found in [o["Key"] for page in pages for o in page.get("Contents", [])]:
        client.delete_object(Bucket=bucket, Key=found)
    with contextlib.closing(client):
        client.delete_bucket(Bucket=bucket)


@pytest.fixture
def s3_storage(s3_server: S3Server) -> S3Storage:
    """An empty S3 store: a fresh prefix of the session's bucket."""
    return s3_server.storage(prefix=f"t/{secrets.token_hex(6)}")


@pytest.fixture
def folder_storage(tmp_path: Path) -> FolderStorage:
    """An empty folder store."""
    return FolderStorage(tmp_path / "objects", secret=b"secret of the test")


@pytest.fixture(params=["memory", "folder", pytest.param("s3", marks=pytest.mark.s3)])
def storage(request: pytest.FixtureRequest) -> Storage:
    """Each store in turn, empty."""
    made: dict[str, Callable[[], Storage]] = {
        "memory": MemoryStorage,
        "folder": lambda: request.getfixturevalue("folder_storage"),
        "s3": lambda: request.getfixturevalue("s3_storage"),
    }
    return made[request.param]()
