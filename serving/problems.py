"""Errors as application/problem+json (RFC 9457), without internals."""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from serving.errors import BundleError, EventsRefusedError, NotReadyError, UnknownIdError
from serving.messages import FieldProblem, Problem

PROBLEM_JSON = "application/problem+json"
_SHOWN_ERRORS = 20
_SHOWN_CHARACTERS = 100
_RETRY_AFTER_S = 5


def documented(*statuses: HTTPStatus) -> dict[int | str, dict[str, Any]]:
    """Return the OpenAPI description of error answers."""
    schema = {"schema": {"$ref": "#/components/schemas/Problem"}}
    return {
        int(status): {"description": status.phrase, "content": {PROBLEM_JSON: schema}}
        for status in statuses
    }


def problem_response(
    status: HTTPStatus,
    detail: str | None = None,
    errors: list[FieldProblem] | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """Return one error answer."""
    problem = Problem(
        type="about:blank", title=status.phrase, status=status, detail=detail, errors=errors
    )
    return Response(
        problem.model_dump_json(exclude_none=True), status, headers, media_type=PROBLEM_JSON
    )


def answer_errors(app: FastAPI) -> None:
    """Let every error that a request can meet be answered as a problem."""
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _refused)
    app.add_exception_handler(UnknownIdError, _unknown)
    app.add_exception_handler(EventsRefusedError, _not_now)
    app.add_exception_handler(BundleError, _no_events)
    app.add_exception_handler(NotReadyError, _not_ready)
    app.add_exception_handler(Exception, _failed)


def _invalid(request: Request, error: Exception) -> Response:
    found = error.errors() if isinstance(error, RequestValidationError) else ()
    errors = [
        FieldProblem(
            field=_printable(".".join(map(str, one["loc"]))), message=_printable(one["msg"])
        )
        for one in found[:_SHOWN_ERRORS]
    ]
    detail = "the request is not as /openapi.json describes it"
    return problem_response(HTTPStatus.UNPROCESSABLE_ENTITY, detail, errors)


def _refused(request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    status = HTTPStatus(error.status_code)
    detail = error.detail if error.detail != status.phrase else None
    return problem_response(status, detail, headers=error.headers)


def _unknown(request: Request, error: Exception) -> Response:
    detail = "a post is not in the published bundle; /version names it"
    return problem_response(HTTPStatus.NOT_FOUND, detail)


def _not_now(request: Request, error: Exception) -> Response:
    reason = error.reason if isinstance(error, EventsRefusedError) else None
    detail = f"{reason}: no event was kept; send the same ones again later"
    headers = {"Retry-After": str(_RETRY_AFTER_S)}
    return problem_response(HTTPStatus.SERVICE_UNAVAILABLE, detail, headers=headers)


def _not_ready(request: Request, error: Exception) -> Response:
    detail = "no bundle is published yet, or it cannot be opened; the service's log says which"
    headers = {"Retry-After": str(_RETRY_AFTER_S)}
    return problem_response(HTTPStatus.SERVICE_UNAVAILABLE, detail, headers=headers)


def _no_events(request: Request, error: Exception) -> Response:
    detail = "the published bundle does not say what events mean; publish again"
    return problem_response(HTTPStatus.SERVICE_UNAVAILABLE, detail)


def _failed(request: Request, error: Exception) -> Response:
    # The server logs the traceback; who asked learns nothing of the inside.
    return problem_response(HTTPStatus.INTERNAL_SERVER_ERROR, "the service failed; see its log")


def _printable(text: str) -> str:
    """Return text that JSON can carry: what was sent may hold half a surrogate pair."""
    return text[:_SHOWN_CHARACTERS].encode("utf-8", "replace").decode("utf-8")
