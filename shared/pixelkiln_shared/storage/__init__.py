"""Where pictures live: one small interface (`contract.py`), a folder for one machine, S3 for many."""

from __future__ import annotations

import secrets
from functools import partial
from pathlib import Path
from urllib.parse import unquote, urlsplit

from pixelkiln_shared.errors import InvalidInput, Misconfigured
from pixelkiln_shared.settings import Settings
from pixelkiln_shared.storage.contract import Storage, StoredObject
from pixelkiln_shared.storage.folder import FolderStorage
from pixelkiln_shared.storage.naming import checked_prefix, content_disposition

__all__ = ["FolderStorage", "Storage", "StoredObject", "content_disposition", "open_storage"]


# Seconds, for one try and for all the tries of a call: with a client at the other end, and else.
IMPATIENT_S, PATIENT_S = (5.0, 10.0), (15.0, 30.0)


def open_storage(settings: Settings, *, secret: bytes | None = None, impatient: bool = False) -> Storage:
    """Return the store that `storage_url` names: `file:///dir`, `file://./relative` or `s3://bucket/prefix`.

    Opens no connection; `check()` does. S3 credentials come by boto3's own chain.

    Args:
        settings: `storage_url`, and for S3 the settings that begin with `s3_`.
        secret: signs a folder's links; left out: `settings.secret`, or one of this process's own.
        impatient: give up on a silent store sooner, because somebody waits for the answer.

    Raises:
        Misconfigured: the URL is not one of the three forms.
    """
    url = urlsplit(settings.storage_url)
    if url.scheme == "file" and url.netloc in ("", ".", "localhost") and len(url.path) > 1:
        root = Path("." + unquote(url.path)) if url.netloc == "." else Path(unquote(url.path))
        key = secret or settings.secret.get_secret_value().encode() or secrets.token_bytes(32)
        return FolderStorage(root, secret=key)
    if url.scheme == "s3" and url.netloc:
        prefix = url.path.strip("/")
        try:
            checked_prefix(prefix)
        except InvalidInput as error:
            raise Misconfigured(
                "PIXELKILN_STORAGE_URL: the prefix holds other than a-z 0-9 . _ - /"
            ) from error
        from pixelkiln_shared.storage.s3 import S3Storage, s3_client  # boto3 takes most of a second to import

        timeout_s, deadline_s = IMPATIENT_S if impatient else PATIENT_S
        client_for = partial(
            s3_client, region=settings.s3_region, checksums=settings.s3_checksums, timeout_s=timeout_s
        )
        client = client_for(endpoint_url=settings.s3_endpoint_url)
        links = client_for(endpoint_url=settings.s3_public_url) if settings.s3_public_url else client
        return S3Storage(client, url.netloc, prefix=prefix, links=links, deadline_s=deadline_s)
    raise Misconfigured("PIXELKILN_STORAGE_URL: write file:///dir, file://./relative or s3://bucket/prefix")
