"""What a server answers instead of a result, as exceptions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class ServiceError(Exception):
    """A request that was refused or failed.

    `code` is the server's and stable, `status` the HTTP status (0 where there was no answer),
    `request_id` what the server's log knows the request by, `param` the field that was wrong.
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        status: int = 0,
        request_id: str = "",
        param: str | None = None,
        retry_after: float | None = None,
        faults: list[dict[str, Any]] | None = None,
    ) -> None:
        self.code = code
        self.message = message
        self.status = status
        self.request_id = request_id
        self.param = param
        self.retry_after = retry_after
        self.faults = faults or []
        known_by = f" (request {request_id})" if request_id else ""
        super().__init__(f"{message}{known_by}")


class BadRequest(ServiceError):
    """Something in the request cannot be used; nothing was done."""


class Forbidden(ServiceError):
    """The key is missing, unknown or revoked, or lacks the scope."""


class NotFound(ServiceError):
    """There is nothing of this name or id that is yours."""


class Conflict(ServiceError):
    """It is in a state in which this cannot be done, or the idempotency key stands for another."""


class Busy(ServiceError):
    """The server takes no more for now; `retry_after` is the seconds it asks to wait."""


class ServerFault(ServiceError):
    """Something broke in the server, whose log has it under the request id."""


class Unreachable(ServiceError):
    """No answer came, however often it was tried."""


_BY_STATUS: dict[int, type[ServiceError]] = {
    401: Forbidden,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    429: Busy,
    503: Busy,
}


def error_of(status: int, body: Any, headers: Mapping[str, str]) -> ServiceError:
    """The exception of an answer that is no success."""
    told = body.get("error") if isinstance(body, dict) else None
    told = told if isinstance(told, dict) else {}
    kind = _BY_STATUS.get(status, ServerFault if status >= 500 else BadRequest)
    return kind(
        str(told.get("code") or f"status_{status}"),
        str(told.get("message") or f"the server answers with status {status}"),
        status=status,
        request_id=str(told.get("request_id") or headers.get("x-request-id", "")),
        param=told.get("param"),
        retry_after=_seconds(headers.get("retry-after")),
        faults=told.get("faults"),
    )


def _seconds(text: str | None) -> float | None:
    """`Retry-After` as seconds; a date, which this server never sends, counts as not said."""
    return float(text) if text is not None and text.isascii() and text.isdigit() else None
