"""What only the folder does: signed links, side-cars after crashes and copies, folders that come and go."""

from __future__ import annotations

import errno
import os
import shutil
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from pixelkiln_shared.errors import Misconfigured, StorageUnavailable
from pixelkiln_shared.settings import Settings
from pixelkiln_shared.storage import FolderStorage, content_disposition, folder, open_storage

KEY = "acme/2026/11/20/job_01/a1/0.png"


def link_parts(link: str) -> tuple[str, int, str, str | None]:
    url = urlsplit(link)
    query = {name: values[0] for name, values in parse_qs(url.query).items()}
    key = url.path.removeprefix("/v1/objects/")
    return key, int(query["expires"]), query["signature"], query.get("filename")


# ------------------------------------------------------------------------------------------------ links


@pytest.mark.parametrize("filename", [None, "fox.png", 'a "b" & c=1é.png'])
def test_a_link_is_good_until_it_expires(folder_storage: FolderStorage, filename: str | None) -> None:
    link = folder_storage.link(KEY, expires_s=60, filename=filename)

    assert link.startswith(f"/v1/objects/{KEY}?")
    assert folder_storage.verify(*link_parts(link))

    expired = folder_storage.link(KEY, expires_s=0, filename=filename)
    assert not folder_storage.verify(*link_parts(expired))


def test_an_altered_link_is_refused(folder_storage: FolderStorage, tmp_path: Path) -> None:
    key, expires, signature, filename = link_parts(folder_storage.link(KEY, expires_s=60, filename="fox.png"))
    other_secret = FolderStorage(tmp_path / "objects", secret=b"another")

    assert not folder_storage.verify(key.replace("0.png", "1.png"), expires, signature, filename)
    assert not folder_storage.verify(key, expires + 1, signature, filename)
    assert not folder_storage.verify(key, expires, signature[:-1] + "x", filename)
    assert not folder_storage.verify(key, expires, signature, "fox.html")
    assert not folder_storage.verify(key, expires, signature, None)
    assert not folder_storage.verify(key, expires, "", filename)
    assert not folder_storage.verify(key, expires, "é", filename)
    assert not folder_storage.verify(key, expires, "\ud800", filename)
    assert not other_secret.verify(key, expires, signature, filename)


@pytest.mark.parametrize("key", ["../secret", "/etc/passwd", "a/../../b", "", ".a", "a\0", "\ud800"])
def test_what_is_no_key_has_no_good_link(folder_storage: FolderStorage, key: str) -> None:
    expires = int(time.time()) + 60

    assert not folder_storage.verify(key, expires, folder_storage._sign("x", expires, None), None)


@pytest.mark.parametrize(
    ("filename", "header"),
    [
        ("fox.png", "attachment; filename=\"fox.png\"; filename*=UTF-8''fox.png"),
        ("../../etc/passwd", "attachment; filename=\"etcpasswd\"; filename*=UTF-8''etcpasswd"),
        ('a"b\r\nX: 1.png', "attachment; filename=\"abX 1.png\"; filename*=UTF-8''abX%201.png"),
        ("\u202egnp.exe", "attachment; filename=\"gnp.exe\"; filename*=UTF-8''gnp.exe"),
        ("füchse.png", "attachment; filename=\"f_chse.png\"; filename*=UTF-8''f%C3%BCchse.png"),
        ("...", "attachment; filename=\"download\"; filename*=UTF-8''download"),
    ],
)
def test_a_download_has_a_harmless_name(filename: str, header: str) -> None:
    assert content_disposition(filename) == header


# ------------------------------------------------------------------------------------------------ files


def test_an_object_is_a_plain_file(folder_storage: FolderStorage) -> None:
    folder_storage.put(KEY, b"picture", media_type="image/png")

    assert folder_storage.path(KEY).read_bytes() == b"picture"
    assert folder_storage.path(KEY).is_relative_to(folder_storage.root)


def test_nothing_but_object_and_sidecar_is_left(folder_storage: FolderStorage) -> None:
    folder_storage.put(KEY, b"first", media_type="image/png")
    folder_storage.put(KEY, b"second", media_type="image/png")

    assert sorted(os.listdir(folder_storage.path(KEY).parent)) == [".0.png.json", "0.png"]


def test_deleting_the_last_object_removes_its_folders(folder_storage: FolderStorage) -> None:
    folder_storage.put(KEY, b"x", media_type="image/png")
    folder_storage.put("acme/other", b"x", media_type="image/png")
    folder_storage.delete(KEY)

    assert sorted(os.listdir(folder_storage.root / "acme")) == [".other.json", "other"]


def test_what_a_killed_writer_left_goes_with_the_folder(folder_storage: FolderStorage) -> None:
    folder_storage.put(KEY, b"x", media_type="image/png")
    left = folder_storage.path(KEY).with_name(".0123.part")
    left.write_bytes(b"half")

    folder_storage.delete(KEY)
    assert left.exists()  # its writer may live

    folder_storage.put(KEY, b"x", media_type="image/png")
    os.utime(left, (1, 1))
    folder_storage.delete(KEY)
    assert os.listdir(folder_storage.root) == []


def test_bytes_altered_behind_our_back_are_noticed(folder_storage: FolderStorage) -> None:
    folder_storage.put(KEY, b"picture", media_type="image/png")
    folder_storage.path(KEY).write_bytes(b"Picture")

    with pytest.raises(StorageUnavailable, match="damaged"):
        folder_storage.get(KEY)
    found = folder_storage.head(KEY)
    assert found is not None
    assert found.sha256 is None


def test_a_crash_before_the_replacement_keeps_the_first_object(
    folder_storage: FolderStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = folder_storage.put(KEY, b"first", media_type="image/png")
    replace = os.replace

    def die_at_the_object(source: Path, target: Path) -> None:
        if target == folder_storage.path(KEY):
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", die_at_the_object)
    with pytest.raises(KeyboardInterrupt):
        folder_storage.put(KEY, b"second", media_type="image/webp")
    monkeypatch.undo()

    assert folder_storage.get(KEY) == b"first"
    assert folder_storage.head(KEY) == first
    folder_storage.put(KEY, b"third", media_type="image/webp")
    assert folder_storage.get(KEY) == b"third"


@pytest.mark.parametrize("sidecar", [None, "", "{", "[]", "{}"])
def test_an_object_outlives_its_sidecar(folder_storage: FolderStorage, sidecar: str | None) -> None:
    folder_storage.put(KEY, b"picture", media_type="image/png")
    path = folder_storage.path(KEY).with_name(".0.png.json")
    if sidecar is None:
        path.unlink()
    else:
        path.write_text(sidecar)

    found = folder_storage.head(KEY)
    assert folder_storage.get(KEY) == b"picture"
    assert found is not None
    assert (found.media_type, found.size_bytes, found.sha256) == ("image/png", 7, None)


def test_a_plain_copy_of_the_folder_works(folder_storage: FolderStorage, tmp_path: Path) -> None:
    stored = folder_storage.put(KEY, b"picture", media_type="image/x-other")
    shutil.copytree(folder_storage.root, tmp_path / "copy", copy_function=shutil.copyfile)

    copy = FolderStorage(tmp_path / "copy", secret=b"s")

    found = copy.head(KEY)
    assert copy.get(KEY) == b"picture"
    assert found is not None
    assert (found.media_type, found.sha256) == ("image/x-other", stored.sha256)


def test_links_in_the_folder_are_not_listed(folder_storage: FolderStorage, tmp_path: Path) -> None:
    folder_storage.put("t/0.png", b"x", media_type="image/png")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_text("s")
    (folder_storage.root / "t" / "out").symlink_to(tmp_path / "outside")

    assert [stored.key for stored in folder_storage.list("")] == ["t/0.png"]


@pytest.mark.parametrize(
    ("number", "says"), [(errno.ENOSPC, "full"), (errno.EIO, "error"), (errno.EROFS, "only")]
)
def test_a_failing_disk_is_an_outage(
    folder_storage: FolderStorage, monkeypatch: pytest.MonkeyPatch, number: int, says: str
) -> None:
    def fail(_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)

    with pytest.raises(StorageUnavailable, match=says):
        folder_storage.put(KEY, b"x", media_type="image/png")
    assert os.listdir(folder_storage.path(KEY).parent) == []


# ------------------------------------------------------------------------------------------------ others


def _write_and_remove(root: str, number: int) -> None:
    storage = FolderStorage(Path(root), secret=b"s")
    for turn in range(40):
        storage.put("t/a/shared.png", bytes([number]) * 20_000, media_type="image/png")
        storage.put(f"t/b/{number}/{turn % 3}.png", b"x", media_type="image/png")
        storage.delete(f"t/b/{number}/{turn % 3}.png")


def test_several_processes_share_a_folder(folder_storage: FolderStorage) -> None:
    with ProcessPoolExecutor(3, mp_context=get_context("spawn")) as pool:
        for done in [pool.submit(_write_and_remove, str(folder_storage.root), n) for n in (1, 2, 3)]:
            done.result()

    data = folder_storage.get("t/a/shared.png")
    assert data in [bytes([n]) * 20_000 for n in (1, 2, 3)]
    assert [stored.key for stored in folder_storage.list("")] == ["t/a/shared.png"]


def test_a_put_waits_for_another_of_its_key(
    folder_storage: FolderStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The side-car of one must not end up beside the bytes of the other."""
    write, delays = folder._write_sidecar, [0.3, 0.0]

    def write_slowly(*arguments: Any) -> None:
        write(*arguments)
        time.sleep(delays.pop(0))

    monkeypatch.setattr(folder, "_write_sidecar", write_slowly)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(folder_storage.put, KEY, b"first", media_type="image/png")
        time.sleep(0.1)
        second = pool.submit(folder_storage.put, KEY, b"second", media_type="image/png")
        first.result()

    assert folder_storage.get(KEY) == b"second"
    assert folder_storage.head(KEY) == second.result()


def test_a_folder_swept_in_mid_put_is_made_again(folder_storage: FolderStorage) -> None:
    def churn(number: int) -> None:
        for _ in range(100):
            folder_storage.put(f"t/deep/{number}.png", b"x", media_type="image/png")
            folder_storage.delete(f"t/deep/{number}.png")

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(churn, range(6)))

    assert list(folder_storage.list("")) == []


@pytest.mark.parametrize("url", ["file:///{tmp}/objects", "file://localhost/{tmp}/objects"])
def test_a_folder_is_opened_by_its_url(tmp_path: Path, url: str) -> None:
    storage = open_storage(Settings(storage_url=url.format(tmp=str(tmp_path).lstrip("/"))))

    storage.put("t/0.png", b"x", media_type="image/png")

    assert (tmp_path / "objects" / "t" / "0.png").read_bytes() == b"x"


def test_a_relative_folder_is_below_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    storage = open_storage(Settings(storage_url="file://./data/o"))
    monkeypatch.chdir("/")

    storage.put("t/0.png", b"x", media_type="image/png")

    assert (tmp_path / "data" / "o" / "t" / "0.png").exists()


@pytest.mark.parametrize(
    "url", ["", "/srv/x", "file://host/x", "file:///", "ftp://x/y", "s3://", "s3://b/../c"]
)
def test_any_other_url_is_misconfigured(url: str) -> None:
    with pytest.raises(Misconfigured, match="PIXELKILN_STORAGE_URL"):
        open_storage(Settings(storage_url=url))


def test_a_folder_swept_at_the_worst_moment_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = FolderStorage(tmp_path, secret=b"s")
    swept: list[Any] = []
    open_file = os.open

    def sweep_first(path: Any, flags: int, *more: Any, **named: Any) -> int:
        if Path(path) == tmp_path / "a" and not swept:
            swept.append(path)
            shutil.rmtree(path)
        return open_file(path, flags, *more, **named)

    storage.put("a/one", b"1", media_type="text/plain")
    monkeypatch.setattr(os, "open", sweep_first)
    storage.delete("a/one")
    assert swept
    assert list(storage.list("")) == []
