"""The error tree. Each error says what was given, what is allowed and what to change, and how a client should see it.

SmallfirstError
|- ConfigError                 smallfirst.toml or the command line is wrong
|- RequestError          400   the call is wrong
|  |- UnsupportedError   400   no configured model can answer such a call
|  |- TooLargeError      413   body, schema or nesting over a limit
|  |- SlowClientError    408   the body did not arrive in time
|- AuthenticationError   401
|- PermissionDenied      403
|- NotFoundError         404
|- MethodError           405   `allowed` methods
|- LimitError            429   a limit or budget of the key; `retry_after` seconds
|- BackendError          502   a model did not answer
|  |- UpstreamError            it answered with an HTTP error: status and body are kept
|  |- BackendTimeout     504
|  |- BackendUnavailable 503   connection refused, dead engine process
|  |- BackendGarbage     502   an answer that cannot be read
|  |- ContextLengthExceeded 400
|  |- ConstraintUnsupported 400  a schema that the embedded engine cannot hold an answer to
|- NoAnswerError         502   every stage was tried and no valid answer came (abstain)
|- StoreError            503   the record could not be made durable
|- CalibrationError            too few labels, or a calibrator that this version cannot read
|- DataError                   an input file is wrong: which line, which field
|- ModelFileError              weights missing, wrong checksum, disk full
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar


def unreadable(path: object, error: Exception) -> str:
    """A sentence on a file that could not be read."""
    if isinstance(error, FileNotFoundError):
        return f"There is no file {str(path)!r}."
    why = error.strerror if isinstance(error, OSError) else None
    return f"{str(path)!r} cannot be read: {why or error}."


class SmallfirstError(Exception):
    """Base of all errors of ours.

    `hint` tells what to change. `status`, `code` and `type` are what a client sees; `param` names the offending field
    of a request.
    """

    status: int = 500
    code: ClassVar[str] = "internal_error"
    type: ClassVar[str] = "server_error"

    def __init__(self, message: str, *, hint: str = "", param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.param = param

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".strip()


class ConfigError(SmallfirstError):
    code = "config_error"


class RequestError(SmallfirstError):
    status = 400
    code = "invalid_request"
    type = "invalid_request_error"


class UnsupportedError(RequestError):
    code = "unsupported"


class TooLargeError(RequestError):
    status = 413
    code = "too_large"


class SlowClientError(RequestError):
    status = 408
    code = "request_timeout"


class AuthenticationError(SmallfirstError):
    status = 401
    code = "invalid_api_key"
    type = "authentication_error"


class PermissionDenied(SmallfirstError):
    status = 403
    code = "permission_denied"
    type = "permission_error"


class NotFoundError(SmallfirstError):
    status = 404
    code = "not_found"
    type = "invalid_request_error"


class MethodError(SmallfirstError):
    status = 405
    code = "method_not_allowed"
    type = "invalid_request_error"

    def __init__(self, message: str, allowed: tuple[str, ...]) -> None:
        super().__init__(message, hint=f"Use {' or '.join(allowed)}.")
        self.allowed = allowed


class LimitError(SmallfirstError):
    """A limit of the key is reached; `retry_after` is in seconds (None: waiting does not help)."""

    status = 429
    code = "rate_limit_exceeded"
    type = "rate_limit_error"

    def __init__(self, message: str, *, hint: str = "", retry_after: float | None = None) -> None:
        super().__init__(message, hint=hint)
        self.retry_after = retry_after


class BackendError(SmallfirstError):
    status = 502
    code = "backend_error"
    type = "api_error"


class UpstreamError(BackendError):
    """The upstream answered with an HTTP error; `upstream_status`, `body` and `retry_after` are as it sent them.

    The client sees the upstream's status too, unless that is none of an error (a redirect, say).
    """

    code = "upstream_error"

    def __init__(
        self,
        message: str,
        *,
        upstream_status: int,
        body: Mapping[str, Any] | None = None,
        retry_after: float | None = None,
        hint: str = "",
    ) -> None:
        super().__init__(message, hint=hint)
        self.upstream_status = upstream_status
        if upstream_status >= 400:
            self.status = upstream_status
        self.body = body
        self.retry_after = retry_after


class BackendTimeout(BackendError):
    status = 504
    code = "timeout"


class BackendUnavailable(BackendError):
    status = 503
    code = "unavailable"


class BackendGarbage(BackendError):
    code = "unreadable_answer"


class ContextLengthExceeded(BackendError):
    status = 400
    code = "context_length_exceeded"
    type = "invalid_request_error"


class ConstraintUnsupported(BackendError):
    status = 400
    code = "constraint_unsupported"
    type = "invalid_request_error"


class NoAnswerError(SmallfirstError):
    status = 502
    code = "no_valid_answer"
    type = "api_error"


class StoreError(SmallfirstError):
    status = 503
    code = "store_unavailable"


class CalibrationError(SmallfirstError):
    code = "calibration"


class TrainError(SmallfirstError):
    code = "training"


class DataError(SmallfirstError):
    code = "data"


class ModelFileError(SmallfirstError):
    code = "model_file"
