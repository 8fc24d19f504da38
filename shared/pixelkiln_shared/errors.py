"""Every error Pixelkiln raises, on one page.

PixelkilnError
├── InvalidRequest              the caller sent something wrong; sending it again cannot help
│   ├── InvalidInput            a field of a job is wrong (several codes, see below)
│   ├── InvalidImage            bytes that are not a picture we open
│   ├── UnknownModel            no such model, or one that does not do this kind of job
│   ├── InvalidCursor           a list cursor that we did not sign
│   └── IdempotencyKeyReused    the same key arrived with another body
├── NotFound                    no such job, group, upload or file (or it is somebody else's)
├── AlreadyTerminal             the job has ended; the move asked for needs one that has not
├── ResultNotReady              the job has no result yet, or never will have
├── Unauthorized / Forbidden    no valid key / the key lacks the scope
├── QueueFull                   the queue is at its limit; `retry_after_s` says when to come back
├── Unavailable                 something we need does not answer
│   ├── RedisUnavailable
│   │   └── RedisFull           it answers and reads, but has no memory left to write anything
│   └── StorageUnavailable
├── Misconfigured               start-up refuses; the message names the setting
└── JobError                    a job failed by itself; stored in the record, never an HTTP error
    ├── ModelUnavailable        weights missing, corrupt or of the wrong hash
    ├── OutOfMemory             the device's memory does not hold this job
    ├── InputUnavailable        an input object vanished or changed after it was accepted
    ├── RunTimeout              the forward pass took longer than the job's limit
    ├── WorkerCrashed           three processes died while running this job alone
    └── ParentFailed            the job whose artifact this one waited for did not succeed
LeaseLost                       a newer attempt owns the job: drop the work, publish nothing
JobCanceled                     raised inside a running model to stop at a step boundary
"""

from __future__ import annotations

from typing import Any, ClassVar


class PixelkilnError(Exception):
    """Base of all errors with a stable `code`.

    Attributes:
        code: stable snake_case word, part of the public contract.
        status: the HTTP status the API answers with.
        retryable: whether sending the same thing again later can succeed.
        pointer: JSON pointer of the offending field, where there is one.
        detail: further machine-readable facts (limits, known ids).
    """

    code: str = "internal_error"
    status: ClassVar[int] = 500
    retryable: ClassVar[bool] = False

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        pointer: str | None = None,
        detail: dict[str, Any] | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        if code is not None:
            self.code = code
        self.pointer = pointer
        self.detail = detail or {}
        self.retry_after_s = retry_after_s


class InvalidRequest(PixelkilnError):
    """The request is wrong as it stands."""

    code = "invalid_request"
    status = 422


class InvalidInput(InvalidRequest):
    """A field of a job is wrong. Codes: `unknown_field`, `invalid_type`, `invalid_number`, `invalid_prompt`,
    `prompt_too_long`, `invalid_seed`, `out_of_range`, `invalid_size`, `invalid_region`, `unknown_option`."""

    code = "invalid_input"


class InvalidImage(InvalidRequest):
    """Bytes that are not a picture we open. Codes: `invalid_image`, `image_too_large`, `image_too_small`,
    `unsupported_format`, `animated_image`, `invalid_base64`, `mask_mismatch`."""

    code = "invalid_image"


class UnknownModel(InvalidRequest):
    """No such model in the catalogue, or it does not do this kind of job."""

    code = "unknown_model"


class InvalidCursor(InvalidRequest):
    """A list cursor that we did not sign, or that belongs to another listing."""

    code = "invalid_cursor"
    status = 400


class IdempotencyKeyReused(InvalidRequest):
    """The same Idempotency-Key arrived before with another body."""

    code = "idempotency_key_reused"


class NotFound(PixelkilnError):
    """No such thing, or it belongs to another tenant: the two are not told apart."""

    code = "not_found"
    status = 404


class AlreadyTerminal(PixelkilnError):
    """The job's state does not allow this move."""

    code = "already_terminal"
    status = 409


class ResultNotReady(PixelkilnError):
    """The job has no result to hand out."""

    code = "result_not_ready"
    status = 409


class Unauthorized(PixelkilnError):
    """No key, or one that is not valid."""

    code = "unauthorized"
    status = 401


class Forbidden(PixelkilnError):
    """The key is valid but lacks the scope."""

    code = "forbidden"
    status = 403


class QueueFull(PixelkilnError):
    """The queue is at its limit; come back after `retry_after_s`."""

    code = "queue_full"
    status = 429
    retryable = True


class Unavailable(PixelkilnError):
    """Something we need does not answer right now."""

    code = "unavailable"
    status = 503
    retryable = True


class RedisUnavailable(Unavailable):
    """Redis does not answer, is read-only, out of memory or cannot persist."""

    code = "redis_unavailable"


class RedisFull(RedisUnavailable):
    """Redis has no memory left: no job can be accepted, and nothing but ends be written, until it has."""

    code = "queue_full"


class StorageUnavailable(Unavailable):
    """The object store does not answer or refuses us."""

    code = "storage_unavailable"


class Misconfigured(PixelkilnError):
    """Start-up refuses to go on; the message names the setting and the mend."""

    code = "misconfigured"


class JobError(PixelkilnError):
    """A job failed by itself. Lives in `job.error`, with the same code vocabulary as HTTP errors."""

    code = "job_failed"


class ModelUnavailable(JobError):
    """The model's weights are missing, corrupt or not the ones the catalogue names."""

    code = "model_unavailable"


class OutOfMemory(JobError):
    """The device's memory does not hold this job, even alone."""

    code = "out_of_memory"


class InputUnavailable(JobError):
    """An input object vanished or changed after the job was accepted."""

    code = "input_unavailable"


class RunTimeout(JobError):
    """The forward pass took longer than the job's `run_timeout_s`."""

    code = "timeout"


class WorkerCrashed(JobError):
    """Three worker processes died while running this job alone."""

    code = "worker_crashed"


class ParentFailed(JobError):
    """The job whose artifact this one waited for did not succeed."""

    code = "parent_failed"


class LeaseLost(Exception):
    """A newer attempt owns the job: drop the work, publish nothing."""


class JobCanceled(Exception):
    """Raised inside a running model to stop at a step boundary."""
