"""Every error the client raises, on one page.

PixelkilnError                  the base they share with the rest of Pixelkiln: `.code`, `.message`
├── ApiError                    the API refused; `.problem` is its RFC 9457 answer, `.http_status` its status
│   ├── AuthError               401 or 403: no key, a wrong one, or one without the scope
│   ├── NotFoundError           404: no such thing, or somebody else's
│   ├── QueueFullError          429, or 503 `queue_full`: full, or asked too often; see `.retry_after_s`
│   └── ValidationError         400, 413, 415, 422: the request is wrong as it stands; `.errors` has fields
├── ServerUnreachable           nothing answers at the address, or what answers is not Pixelkiln
├── JobFailed                   the job ended in `failed` or `expired`; `.job` is it, `.code` says why
├── JobCanceled                 the job was canceled
└── WaitTimeout                 the job or group did not end in the time given; it goes on
"""

from __future__ import annotations

from typing import Any

from pixelkiln.resources import JobResource, Problem
from pixelkiln_shared.errors import PixelkilnError as PixelkilnError


class ApiError(PixelkilnError):
    """The API answered with an error; `problem` is what it said."""

    def __init__(self, problem: Problem, *, retry_after_s: float | None = None) -> None:
        super().__init__(problem.detail or problem.title, code=problem.code, retry_after_s=retry_after_s)
        self.problem = problem
        self.http_status = problem.status
        self.errors: list[dict[str, Any]] = problem.errors


class AuthError(ApiError):
    """No valid key was sent; set `PIXELKILN_API_KEY`."""


class NotFoundError(ApiError):
    """No such job, group, upload or file."""


class QueueFullError(ApiError):
    """The queue or its Redis's memory is full, or this key asks too often (`code` tells which).

    `retry_after_s` says when to come back.
    """


class ValidationError(ApiError):
    """The request is wrong as it stands; sending it again cannot help."""


class ServerUnreachable(PixelkilnError):
    """Nothing answers at the address, or what answers is not a Pixelkiln API."""

    code = "server_unreachable"


class JobFailed(PixelkilnError):
    """The job has no result and never will have, unless it is retried."""

    def __init__(self, job: JobResource) -> None:
        if job.error is not None:
            message, code = job.error.message, job.error.code
        else:
            message, code = f"the job ended as {job.status}", f"job_{job.status}"
        super().__init__(f"{job.id}: {message}", code=code)
        self.job = job


class JobCanceled(PixelkilnError):
    """The job was canceled before it had a result."""

    code = "job_canceled"

    def __init__(self, job: JobResource) -> None:
        super().__init__(f"{job.id} was canceled")
        self.job = job


class WaitTimeout(PixelkilnError):
    """It did not end in the time given. It goes on: wait again."""

    code = "wait_timeout"


BY_STATUS: dict[int, type[ApiError]] = {
    400: ValidationError,
    401: AuthError,
    403: AuthError,
    404: NotFoundError,
    413: ValidationError,
    415: ValidationError,
    422: ValidationError,
    429: QueueFullError,
}
