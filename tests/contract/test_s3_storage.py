"""What only a store on a real S3 server does: presigned links, pages, refusals, parts."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import boto3
import httpx2
import pytest

from pixelkiln_shared.errors import StorageUnavailable
from pixelkiln_shared.storage.s3 import S3Storage, s3_client

if TYPE_CHECKING:
    from tests.contract.conftest import S3Server

pytestmark = pytest.mark.s3


def test_anybody_may_follow_a_link(s3_storage: S3Storage) -> None:
    s3_storage.put("t/0.png", b"picture", media_type="image/png")

    answer = httpx2.get(s3_storage.link("t/0.png", expires_s=60, filename='zwei "Ballone" é.png'))

    assert (answer.status_code, answer.content) == (200, b"picture")
    assert answer.headers["content-type"] == "image/png"
    disposition = answer.headers["content-disposition"]
    assert "filename*=UTF-8''zwei%20Ballone%20%C3%A9.png" in disposition


def test_expired_or_altered_links_are_refused(s3_storage: S3Storage) -> None:
    s3_storage.put("t/0.png", b"picture", media_type="image/png")
    s3_storage.put("t/1.png", b"other", media_type="image/png")
    short = s3_storage.link("t/0.png", expires_s=1)

    altered = httpx2.get(s3_storage.link("t/0.png", expires_s=60).replace("t/0.png", "t/1.png"))
    time.sleep(2.1)
    expired = httpx2.get(short)

    assert (altered.status_code, expired.status_code) == (403, 403)


def test_listing_goes_over_pages(s3_storage: S3Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [f"t/{number:02}.png" for number in range(7)]
    for key in keys:
        s3_storage.put(key, b"x", media_type="image/png")
    whole = s3_storage._client.list_objects_v2
    monkeypatch.setattr(s3_storage._client, "list_objects_v2", lambda **query: whole(**query, MaxKeys=3))

    assert [stored.key for stored in s3_storage.list("t/", after="t/00.png")] == keys[1:]


def test_a_missing_bucket_is_an_outage(s3_server: S3Server) -> None:
    storage = s3_server.storage(bucket="no-such-bucket-here")

    for call in (storage.get, storage.head, storage.delete):
        with pytest.raises(StorageUnavailable, match="bucket"):
            call("t/0.png")
    with pytest.raises(StorageUnavailable, match="bucket"):
        storage.put("t/0.png", b"x", media_type="image/png")
    with pytest.raises(StorageUnavailable, match="bucket"):
        list(storage.list("t/"))


def test_wrong_credentials_are_an_outage(s3_server: S3Server) -> None:
    client = s3_client(endpoint_url=s3_server.endpoint_url, access_key="AKWRONG", secret_key="wrong")
    storage = S3Storage(client, s3_server.bucket)

    for call in (storage.get, storage.head, storage.delete):
        with pytest.raises(StorageUnavailable, match="refuses"):
            call("t/0.png")


def test_a_big_file_in_a_missing_bucket_is_an_outage(s3_server: S3Server, tmp_path: Path) -> None:
    big = tmp_path / "big.bin"
    big.write_bytes(bytes(9 << 20))

    with pytest.raises(StorageUnavailable, match="bucket"):
        s3_server.storage(bucket="no-such-bucket-here").put("t/0.zip", big, media_type="application/zip")


def test_no_parts_are_left_over(s3_server: S3Server, s3_storage: S3Storage, tmp_path: Path) -> None:
    big = tmp_path / "big.bin"
    big.write_bytes(bytes(17 << 20))
    s3_storage.put("t/0.zip", big, media_type="application/zip")

    left = s3_storage._client.list_multipart_uploads(Bucket=s3_server.bucket)

    assert "Uploads" not in left


def test_parts_that_an_earlier_try_began_go_with_the_next(
    s3_server: S3Server, s3_storage: S3Storage, tmp_path: Path
) -> None:
    client, bucket, name = s3_storage._client, s3_server.bucket, s3_storage._name("t/0.zip")
    for key in (name, f"{name}.other"):  # the first as by a try whose store went away: nobody could end it
        client.create_multipart_upload(Bucket=bucket, Key=key)
    big = tmp_path / "big.bin"
    big.write_bytes(bytes(9 << 20))

    s3_storage.put("t/0.zip", big, media_type="application/zip")

    [left] = client.list_multipart_uploads(Bucket=bucket, Prefix=name)["Uploads"]
    client.abort_multipart_upload(Bucket=bucket, Key=left["Key"], UploadId=left["UploadId"])
    assert left["Key"] == f"{name}.other"
    assert s3_storage.get("t/0.zip") == bytes(9 << 20)


def test_knows_objects_that_others_wrote(s3_server: S3Server) -> None:
    storage = s3_server.storage(prefix="foreign")
    client = boto3.session.Session().client(
        "s3",
        endpoint_url=s3_server.endpoint_url,
        aws_access_key_id=s3_server.access_key,
        aws_secret_access_key=s3_server.secret_key,
        region_name="us-east-1",
    )
    client.put_object(Bucket=s3_server.bucket, Key="foreign/t/0.png", Body=b"x")
    client.put_object(Bucket=s3_server.bucket, Key="foreign/t/", Body=b"")
    client.put_object(Bucket=s3_server.bucket, Key="foreign/t/a b", Body=b"x")

    found = storage.head("t/0.png")

    assert storage.get("t/0.png") == b"x"
    assert found is not None
    assert found.sha256 is None
    assert [stored.key for stored in storage.list("")] == ["t/0.png"]
