"""What every store must do, run on the twin, the folder and a real S3 server."""

from __future__ import annotations

import hashlib
import secrets
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from pixelkiln_shared.errors import InvalidInput, NotFound, StorageUnavailable
from pixelkiln_shared.storage.contract import Storage
from pixelkiln_shared.testing.storage import MemoryStorage

KEY = "acme/2026/11/20/job_01/a1/0.png"


def names(storage: Storage, prefix: str, after: str = "") -> list[str]:
    return [stored.key for stored in storage.list(prefix, after=after)]


def test_gives_back_what_was_put(storage: Storage) -> None:
    data = secrets.token_bytes(100_000)

    stored = storage.put(KEY, data, media_type="image/png")

    assert storage.get(KEY) == data
    assert (stored.key, stored.size_bytes, stored.media_type) == (KEY, 100_000, "image/png")
    assert stored.sha256 == hashlib.sha256(data).hexdigest()


def test_keeps_an_empty_object(storage: Storage) -> None:
    storage.put(KEY, b"", media_type="application/octet-stream")

    assert storage.get(KEY) == b""
    found = storage.head(KEY)
    assert found is not None
    assert found.size_bytes == 0


def test_puts_a_file(storage: Storage, tmp_path: Path) -> None:
    source = tmp_path / "source.bin"
    source.write_bytes(secrets.token_bytes(300_000))

    stored = storage.put(KEY, source, media_type="image/webp")

    assert storage.get(KEY) == source.read_bytes()
    assert stored.sha256 == hashlib.sha256(source.read_bytes()).hexdigest()
    assert storage.head(KEY) is not None


def test_puts_a_file_of_several_parts(storage: Storage, tmp_path: Path) -> None:
    source = tmp_path / "big.bin"
    source.write_bytes(secrets.token_bytes(1 << 20) * 20)

    storage.put(KEY, source, media_type="application/zip")

    found = storage.head(KEY)
    assert found is not None
    assert found.sha256 == hashlib.sha256(source.read_bytes()).hexdigest()
    assert found.media_type == "application/zip"
    assert storage.get(KEY) == source.read_bytes()


def test_head_tells_the_facts(storage: Storage) -> None:
    stored = storage.put(KEY, b"12345", media_type="image/png")

    found = storage.head(KEY)

    assert found is not None
    assert (found.key, found.size_bytes, found.media_type) == (KEY, 5, "image/png")
    assert found.sha256 == stored.sha256
    assert abs(found.modified_at - datetime.now(UTC)) < timedelta(minutes=1)


def test_knows_nothing_of_a_missing_key(storage: Storage) -> None:
    assert storage.head(KEY) is None
    with pytest.raises(NotFound):
        storage.get(KEY)


def test_a_folder_of_keys_is_no_object(storage: Storage) -> None:
    storage.put(KEY, b"x", media_type="image/png")

    assert storage.head("acme/2026") is None
    with pytest.raises(NotFound):
        storage.get("acme/2026")


def test_a_key_below_an_object_is_missing(storage: Storage) -> None:
    storage.put(KEY, b"x", media_type="image/png")

    assert storage.head(f"{KEY}/more") is None
    with pytest.raises(NotFound):
        storage.get(f"{KEY}/more")
    storage.delete(f"{KEY}/more")
    assert storage.get(KEY) == b"x"


def test_second_put_replaces_the_first(storage: Storage) -> None:
    storage.put(KEY, b"first, and longer", media_type="image/png")
    storage.put(KEY, b"second", media_type="image/webp")

    found = storage.head(KEY)
    assert storage.get(KEY) == b"second"
    assert found is not None
    assert (found.media_type, found.size_bytes) == ("image/webp", 6)
    assert found.sha256 == hashlib.sha256(b"second").hexdigest()


def test_reader_sees_one_put_or_the_other(storage: Storage) -> None:
    versions = [bytes([n]) * 50_000 for n in range(1, 5)]
    storage.put(KEY, versions[0], media_type="image/png")

    def write(number: int) -> None:
        storage.put(KEY, versions[number % 4], media_type="image/png")

    def read(_: int) -> bytes:
        return storage.get(KEY)

    with ThreadPoolExecutor(8) as pool:
        writes = [pool.submit(write, number) for number in range(40)]
        seen = set(pool.map(read, range(80)))
        for done in writes:
            done.result()

    assert seen <= set(versions)
    found = storage.head(KEY)
    assert found is not None
    assert found.sha256 == hashlib.sha256(storage.get(KEY)).hexdigest()


def test_deletes_once_and_again(storage: Storage) -> None:
    storage.put(KEY, b"x", media_type="image/png")

    storage.delete(KEY)
    storage.delete(KEY)

    assert storage.head(KEY) is None
    assert names(storage, "") == []


def test_lists_in_the_order_of_keys(storage: Storage) -> None:
    keys = ["t/a.png", "t/a/0.png", "t/a-b/0.png", "t/a/1.mask.png", "t/B", "t/a0", "t/b/c/d", "u/a"]
    for key in keys:
        storage.put(key, b"x", media_type="image/png")

    assert names(storage, "") == sorted(keys)
    assert names(storage, "t/") == sorted(key for key in keys if key.startswith("t/"))
    assert names(storage, "t/a") == ["t/a-b/0.png", "t/a.png", "t/a/0.png", "t/a/1.mask.png", "t/a0"]
    assert names(storage, "t/a/") == ["t/a/0.png", "t/a/1.mask.png"]
    assert names(storage, "x") == names(storage, "t/a.png/") == []


@pytest.mark.parametrize(
    "after", ["", "t/a-b/0.png", "t/a.png", "t/a/", "t/a/0.png", "t/a/zzz", "t/b/c/d", "u/b"]
)
def test_listing_goes_on_after_a_key(storage: Storage, after: str) -> None:
    keys = ["t/a.png", "t/a/0.png", "t/a-b/0.png", "t/a/1.mask.png", "t/b/c/d", "u/a"]
    for key in keys:
        storage.put(key, b"x", media_type="image/png")

    assert names(storage, "", after) == [key for key in sorted(keys) if key > after]


def test_listing_tells_sizes(storage: Storage) -> None:
    storage.put("t/0.png", b"123", media_type="image/png")

    (found,) = storage.list("t/")

    assert (found.size_bytes, found.media_type) == (3, "image/png")


@pytest.mark.parametrize(
    "key",
    [
        *("", "/", "/a", "a/", "a//b", ".", "..", "../a", "a/../b", "a/./b", ".a", "a/.b"),
        *(
            "a\\b",
            "a\0b",
            "a\nb",
            "a/b\n",
            "a b",
            "%2e%2e/a",
            "a%2Fb",
            "\u00e9",
            "e\u0301",
            "a?b",
            "a#b",
            "C:",
        ),
        *("x" * 201, "/".join(["x" * 100] * 10)),
    ],
)
def test_refuses_what_is_no_key(storage: Storage, key: str) -> None:
    with pytest.raises(InvalidInput) as put:
        storage.put(key, b"x", media_type="image/png")
    with pytest.raises(InvalidInput):
        storage.get(key)
    with pytest.raises(InvalidInput):
        storage.head(key)
    with pytest.raises(InvalidInput):
        storage.delete(key)
    with pytest.raises(InvalidInput):
        storage.link(key, expires_s=60)
    assert put.value.code == "invalid_prefix"


@pytest.mark.parametrize("prefix", ["../", "/", "a/../", "a//", ".git", "a/.", "\0"])
def test_refuses_what_begins_no_key(storage: Storage, prefix: str) -> None:
    with pytest.raises(InvalidInput):
        list(storage.list(prefix))


def test_check_leaves_nothing_behind(storage: Storage) -> None:
    storage.check()

    assert names(storage, "") == []


def test_link_names_the_object(storage: Storage) -> None:
    storage.put(KEY, b"x", media_type="image/png")

    assert KEY in storage.link(KEY, expires_s=60, filename="two balloons.png")


def test_the_twin_can_be_down() -> None:
    twin = MemoryStorage()
    twin.put(KEY, b"x", media_type="image/png")
    twin.outage = True

    for call in (twin.get, twin.head, twin.delete):
        with pytest.raises(StorageUnavailable):
            call(KEY)
    with pytest.raises(StorageUnavailable):
        twin.check()
    twin.outage = False
    assert twin.get(KEY) == b"x"
