"""Every setting, read from the environment (`PIXELKILN_*`) once, checked at start."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from pixelkiln_shared.errors import Misconfigured


class Settings(BaseSettings):
    """Times are seconds, sizes bytes unless the name says otherwise."""

    model_config = SettingsConfigDict(env_prefix="PIXELKILN_", frozen=True)

    redis_url: str = Field("redis://127.0.0.1:6379/0", description="The ledger, the events and the bells")
    redis_timeout_s: float = Field(5.0, gt=0, description="How long one Redis call may take")
    storage_url: str = Field(
        "file://./pixelkiln-data/objects", description="`file:///dir` or `s3://bucket/prefix`"
    )
    s3_endpoint_url: str | None = Field(
        None, description="For S3-compatible servers; left out: the cloud's own"
    )
    s3_public_url: str | None = Field(
        None, description="The S3 server as clients reach it, for links; left out: same"
    )
    s3_region: str = "us-east-1"
    s3_checksums: str | None = Field(None, pattern="^when_(required|supported)$")
    catalogue: Path | None = Field(None, description="A TOML file added to the embedded catalogue")
    secret: SecretStr = Field(
        SecretStr(""), description="Signs cursors and file links; left out: random per process"
    )

    host: str = "127.0.0.1"
    port: int = Field(8_700, ge=0, le=65_535)
    api_key: SecretStr | None = Field(
        None, description="Clients must send it; needed to listen beyond loopback"
    )
    public_url: str | None = Field(None, description="The base of links, when a proxy stands in front")
    max_body_bytes: int = 25_000_000
    max_image_bytes: int = 20_000_000
    max_image_pixels: int = 32_000_000
    max_image_side_px: int = 8_192
    max_queue: int = Field(2_000_000, description="Waiting jobs at which submit answers `queue_full`")
    max_bulk: int = Field(1_000, description="Jobs in one `POST /v1/groups`")
    url_ttl_s: int = Field(900, description="How long an artifact link is valid")
    webhook_secrets: SecretStr = Field(
        SecretStr(""),
        description="`whsec_...` and `ORIGIN=whsec_...`, comma-separated; webhooks are off without one",
    )
    webhook_hosts: str = Field(
        "", description="Comma-separated hosts (or host:port) told although their addresses are not public"
    )
    retention_s: int = Field(7 * 86_400, description="How long a finished record lives")
    scale_target_s: float = Field(
        60.0, gt=0, description="`desired_workers` of `/v1/stats` finish what waits within this time"
    )

    lease_s: float = Field(15.0, gt=0)
    heartbeat_s: float = Field(5.0, gt=0)
    worker_concurrency: int = Field(
        4, ge=2, le=16, description="Pipeline depth: firings in flight in one process"
    )
    worker_models: str = Field(
        "", description="Comma-separated model ids this worker serves; empty: all it can"
    )
    worker_memory_mb: int | None = Field(
        None, description="Budget of resident models; left out: from the device"
    )
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?|mps)$")
    torch_threads: int | None = Field(None, ge=1, description="CPU threads of the device thread")
    drain_s: float = Field(30.0, ge=0, description="Grace period after SIGTERM")
    load_timeout_s: float = Field(
        600.0, gt=0, description="A model that loads for longer hangs: the process is started anew"
    )
    silent_s: float = Field(
        60.0, ge=2, description="A worker process without a sign of life for so long is killed"
    )
    spool_dir: Path | None = Field(
        None,
        description="Where results wait while the store is away; left out: the temporary folder",
    )
    spool_mb: int = Field(1_024, ge=0, description="When so much waits there, the worker claims no more")
    outage_s: float = Field(
        3_600.0, gt=0, description="How long a store may be away before jobs that need it fail"
    )
    worker_rss_mb: int | None = Field(
        None, ge=1, description="Resident memory above which a worker claims no more; left out: never"
    )
    stub: bool = Field(False, description="Serve the stub model of benchmarks and tests")
    log_json: bool = True
    log_level: str = "INFO"


def load(**overrides: Any) -> Settings:
    """Read the settings; a wrong one is one clear line.

    Raises:
        Misconfigured: a variable has the wrong type or range, or `PIXELKILN_` is followed by an unknown name.
    """
    known = {f"PIXELKILN_{name}".upper() for name in Settings.model_fields} | {"PIXELKILN_URL"}
    unknown = sorted(name for name in os.environ if name.startswith("PIXELKILN_") and name not in known)
    if unknown:
        raise Misconfigured(f"unknown setting {unknown[0]}; `pixelkiln doctor` lists the known ones")
    try:
        return Settings(**overrides)
    except ValidationError as error:
        first = error.errors()[0]
        name = "PIXELKILN_" + "_".join(str(part) for part in first["loc"]).upper()
        raise Misconfigured(f"{name}: {first['msg']}") from error


@cache
def settings() -> Settings:
    """The process's settings, read once."""
    return load()
