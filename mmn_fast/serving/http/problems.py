"""Errors as problem documents (RFC 9457): status, title, and the sentence that says what was expected and what came."""

from __future__ import annotations

from http import HTTPStatus

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from mmn_fast.errors import BackendUnavailable, InputError, WriteError
from mmn_fast.index.writing import LockedError
from mmn_fast.serving.http.outgoing import json_response

RETRY_S = 1
"""Seconds after which a refused client should try again."""


class Problem(Exception):  # noqa: N818 - reads as the document that it becomes
    """An answer other than the wanted one.

    Args:
        status: the HTTP status.
        detail: one sentence.
        headers: further headers of the answer.
    """

    def __init__(self, status: int, detail: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status, self.detail, self.headers = status, detail, headers or {}


REFUSALS = (Problem, InputError, BackendUnavailable, MemoryError, HTTPException, RequestValidationError)
"""Exceptions that are answers; any other is a fault, and status 500."""


class ClientGoneError(Exception):
    """The client has closed its connection, so no one reads an answer."""


def busy(detail: str) -> Problem:
    """A refusal for lack of capacity: 503 with Retry-After."""
    return Problem(503, detail, {"Retry-After": str(RETRY_S)})


def problem_of(error: Exception) -> Problem:
    """The problem that an error becomes.

    Input that the library refuses is 422; what the machine refuses is 503 (a full disk, a missing device, memory, an
    index that another process writes).
    """
    if isinstance(error, Problem):
        return error
    if isinstance(error, (WriteError, LockedError, BackendUnavailable)):
        return busy(str(error))
    if isinstance(error, MemoryError):
        return busy("the machine has too little memory for this request")
    if isinstance(error, InputError):
        return Problem(422, str(error))
    return Problem(500, "the service failed; its log says why")


def response_of(problem: Problem, instance: str = "") -> Response:
    """The problem as a response.

    Args:
        problem: the problem.
        instance: the path of the request.
    """
    document = {
        "type": "about:blank",
        "title": HTTPStatus(problem.status).phrase,
        "status": problem.status,
        "detail": problem.detail,
    }
    if instance:
        document["instance"] = instance
    return json_response(document, problem.status, problem.headers, "application/problem+json")


async def answer_error(request: Request, error: Exception) -> Response:
    """Answer a request that this application, FastAPI or Starlette has refused, or that failed."""
    if isinstance(error, RequestValidationError):
        first = error.errors()[0]
        problem = Problem(422, f"{first['loc'][-1]}: {first['msg']}")
    elif isinstance(error, HTTPException):
        details = {404: "there is nothing at this path", 405: "this path does not take this method"}
        problem = Problem(error.status_code, details.get(error.status_code) or str(error.detail))
    else:
        problem = problem_of(error)
    return response_of(problem, request.url.path)
