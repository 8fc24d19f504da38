"""Links into an S3 bucket, which need no server to be signed."""

from __future__ import annotations

from urllib.parse import urlsplit

import pytest

from pixelkiln_shared.settings import Settings
from pixelkiln_shared.storage import open_storage
from pixelkiln_shared.storage.s3 import checksum_mode


@pytest.fixture(autouse=True)
def _credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "somebody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "something")


@pytest.mark.parametrize(("public", "host"), [(None, "s3:3900"), ("http://127.0.0.1:3900", "127.0.0.1:3900")])
def test_links_name_the_server_as_clients_reach_it(public: str | None, host: str) -> None:
    settings = Settings(storage_url="s3://bucket", s3_endpoint_url="http://s3:3900", s3_public_url=public)

    link = open_storage(settings).link("default/one.png", expires_s=60)

    assert urlsplit(link).netloc == host
    assert urlsplit(link).path == "/bucket/default/one.png"


def test_checksums_are_sent_where_servers_bear_them() -> None:
    assert checksum_mode(None, None) == "when_supported"
    assert checksum_mode(None, "http://127.0.0.1:9") == "when_required"
    assert checksum_mode("when_supported", "http://127.0.0.1:9") == "when_supported"
