"""What nobody will ask for again, removed from the storage."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from pixelkiln_shared import keys
from pixelkiln_shared.storage.contract import Storage


def sweep_uploads(storage: Storage, tenant: str = "default") -> int:
    """Delete uploads older than `keys.UPLOAD_S`; jobs hold copies of theirs. Returns how many objects went.

    Raises:
        StorageUnavailable: the rest waits for the next time.
    """
    oldest_kept = datetime.now(UTC) - timedelta(seconds=keys.UPLOAD_S)
    removed = 0
    for stored in storage.list(keys.upload_key(tenant, "upl_")):
        upload_id = stored.key.rpartition("/")[2].partition(".")[0]
        if keys.id_time(upload_id) > oldest_kept:
            break  # ids sort by time
        storage.delete(stored.key)
        removed += 1
    return removed
