"""What goes wrong over HTTP: one JSON shape, and the status of every error of the packages."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from api.errors import BAD_INPUT
from api.jobs.errors import IdempotencyConflict, JobFinal, QueueFull, QueueUnavailable, UnknownJob
from api.library.errors import (
    BadUpload,
    Busy,
    NameTaken,
    NotReady,
    QuotaExceeded,
    StorageFull,
    UnknownItem,
)
from inference.errors import AccessDenied, InferenceError, ModelUnavailable, ServerUnavailable
from retrieval.errors import RetrievalError
from workflows.errors import InvalidWorkflow, WorkflowError

log = logging.getLogger("ragwright.http")

RETRY_SECONDS = 1.0
"""What `Retry-After` says where nothing better is known."""

STATUS: dict[type[Exception], int] = {
    UnknownJob: 404,
    IdempotencyConflict: 409,
    JobFinal: 409,
    QueueFull: 503,
    ServerUnavailable: 503,
    ModelUnavailable: 503,
    AccessDenied: 502,
    UnknownItem: 404,
    NameTaken: 409,
    Busy: 409,
    NotReady: 409,
    QuotaExceeded: 413,
    BadUpload: 400,
    StorageFull: 507,
}
"""Error -> status where it is not that of its kind: 422 for bad input, 500 for a failure."""

KINDS = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
"""Status -> `type`, as clients of OpenAI's API know it."""


class ApiError(HTTPException):
    """A refusal or failure with its status, a stable code and one line for the caller.

    `retry_after` is seconds. It is Starlette's exception, which FastAPI lets through wherever
    it is raised, also while it reads a body.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        param: str | None = None,
        retry_after: float | None = None,
        headers: Mapping[str, str] | None = None,
        faults: list[dict[str, Any]] | None = None,
    ) -> None:
        given = dict(headers or {})
        if retry_after is not None:
            given["Retry-After"] = str(max(1, math.ceil(retry_after)))
        super().__init__(status, message, given or None)
        self.code = code
        self.message = message
        self.param = param
        self.faults = faults

    def response(self, request_id: str) -> JSONResponse:
        """The answer in the one shape."""
        kind = "server_error" if self.status_code >= 500 else "invalid_request_error"
        body: dict[str, Any] = {
            "code": self.code,
            "message": self.message,
            "type": KINDS.get(self.status_code, kind),
            "param": self.param,
            "request_id": request_id,
        }
        if self.faults is not None:
            body["faults"] = self.faults
        return JSONResponse({"error": body}, self.status_code, self.headers)


class WhatWentWrong(BaseModel):
    """An error; `param` names the field of the request, where it is one."""

    code: str = Field(description="stable, for programs")
    message: str = Field(description="one line: the value, the place and the remedy")
    type: str
    param: str | None
    request_id: str = Field(description="also the header X-Request-ID of every answer")
    faults: list[dict[str, Any]] | None = Field(
        default=None, description="of a workflow file: line, column, code and message"
    )


class ErrorBody(BaseModel):
    """The shape of every error."""

    error: WhatWentWrong


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route: what any route may answer, and these."""
    retry = {"headers": {"Retry-After": {"description": "seconds", "schema": {"type": "integer"}}}}
    return {
        status: {
            "model": ErrorBody,
            "description": HTTPStatus(status).phrase,
            **(retry if status in (429, 503) else {}),
        }
        for status in sorted({400, 401, 403, 413, 414, 422, 429, 500, 503, 504, *statuses})
    }


def known(error: Exception) -> ApiError | None:
    """An expected error as an answer; None for one that is a defect of ours."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, RequestValidationError):
        return _invalid(error)
    if isinstance(error, HTTPException):
        code = HTTPStatus(error.status_code).name.lower()
        return ApiError(error.status_code, code, str(error.detail), headers=error.headers)
    if not isinstance(error, InferenceError | RetrievalError | WorkflowError):
        return None
    if isinstance(error, QueueUnavailable):
        # Where Redis is and what it said is the operator's to know; the log has it.
        log.warning("%s", error)
        message = "the store of jobs and keys does not answer; try again in a moment"
        return ApiError(503, error.code, message, retry_after=RETRY_SECONDS)
    status = next((STATUS[row] for row in type(error).__mro__ if row in STATUS), None)
    if status is None:
        status = 422 if isinstance(error, BAD_INPUT) else 500
    faults = None
    if isinstance(error, InvalidWorkflow):
        faults = [fault.to_dict() for fault in error.faults]
    retry = RETRY_SECONDS if status == 503 else None
    return ApiError(status, error.code, str(error), retry_after=retry, faults=faults)


def unexpected() -> ApiError:
    """The answer to a defect of ours; what happened stands in the log under the request id."""
    message = "something broke here; the log has it under this request id"
    return ApiError(500, "internal_error", message)


def _invalid(error: RequestValidationError) -> ApiError:
    """The first problem of a request's fields, and how many more there are."""
    problems = error.errors()
    first = problems[0]
    if first["type"] == "json_invalid":
        return ApiError(400, "invalid_json", f"the body is not JSON: {first['ctx']['error']}")
    where = ".".join(str(part) for part in first["loc"])
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    message = f"{where}: {first['msg']}{more}"
    return ApiError(422, "invalid_request", message, param=where)
