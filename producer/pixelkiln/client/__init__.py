"""The HTTP client: `Client` for programs that block, `AsyncClient` for those that await.

Needs httpx2 and pydantic only; no boto3, celery, redis or torch.
"""

from pixelkiln.client.aio import AsyncClient, AsyncGroup, AsyncJob, AsyncResult
from pixelkiln.client.errors import (
    ApiError,
    AuthError,
    JobCanceled,
    JobFailed,
    NotFoundError,
    PixelkilnError,
    QueueFullError,
    ServerUnreachable,
    ValidationError,
    WaitTimeout,
)
from pixelkiln.client.jobs import JobEvent
from pixelkiln.client.results import Artifact, AsyncArtifact
from pixelkiln.client.sync import Client, Group, Job, Result

__all__ = [
    "ApiError",
    "Artifact",
    "AsyncArtifact",
    "AsyncClient",
    "AsyncGroup",
    "AsyncJob",
    "AsyncResult",
    "AuthError",
    "Client",
    "Group",
    "Job",
    "JobCanceled",
    "JobEvent",
    "JobFailed",
    "NotFoundError",
    "PixelkilnError",
    "QueueFullError",
    "Result",
    "ServerUnreachable",
    "ValidationError",
    "WaitTimeout",
]
