"""What surrounds every HTTP request: a limit of its size, its count and its time."""

import time
from http import HTTPStatus

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.metrics import Metrics
from serving.problems import problem_response


class Measured:
    """ASGI middleware: counts and times requests by the route that they met."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, and count it whatever becomes of it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, status = time.perf_counter(), HTTPStatus.INTERNAL_SERVER_ERROR.value

        async def observe(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, observe)
        finally:
            # Never the path as sent: every invented path would become a series of its own.
            endpoint = getattr(scope.get("route"), "path", "other")
            self._metrics.count_request(endpoint, status, time.perf_counter() - start)


class Limited:
    """ASGI middleware: refuses bodies over a size, whether or not they declare it."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; a body that is too large ends it with status 413."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        detail = f"a body may have at most {self._max_bytes:,} bytes"
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if declared.isdigit() and int(declared[:20]) > self._max_bytes:
            too_large = problem_response(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, detail)
            await too_large(scope, receive, send)
            return
        received = 0

        async def count() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._max_bytes:
                raise HTTPException(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, detail)
            return message

        await self._app(scope, count, send)
