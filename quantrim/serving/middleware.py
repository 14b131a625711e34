"""Around every request: an id, a deadline, a line in the log, a count, and no traceback for whoever left."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import time
import uuid
from collections.abc import Callable

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

log = logging.getLogger("quantrim.serving")

#: An id that a proxy may hand in; anything else could forge lines of the log.
_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")
#: nginx's word for a client that left before its answer; nobody receives it.
CLIENT_GONE = 499
#: Bytes of a request's head; h11 counts those that come piece by piece alone.
HEAD_BYTES = 16 * 1024
#: Seconds for which the rest of a refused upload is read and thrown away.
_DRAIN_S = 1.0
ROUTES = frozenset({"/predict", "/health", "/healthz", "/readyz", "/metrics"})


class Requests:
    """ASGI middleware.

    Args:
        app: the application.
        answer_s: seconds that a request may take from its head to the end of its answer.
        count: told (route, status, seconds) of every request.
    """

    def __init__(self, app: ASGIApp, answer_s: float, count: Callable[[str, int, float], None]) -> None:
        self.app, self.answer_s, self.count = app, answer_s, count

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        exchange = _Exchange(scope, receive, send)
        if _head_bytes(scope) > HEAD_BYTES:
            await exchange.fail(431, f"the head of the request has more than {HEAD_BYTES} bytes.")
            self._finish(exchange)
            return
        try:
            async with asyncio.timeout(self.answer_s):
                await self.app(scope, exchange.receive, exchange.send)
        except ClientDisconnect:
            exchange.status = CLIENT_GONE
        except TimeoutError:
            await exchange.fail(504, f"no answer within {self.answer_s:g} s.")
        except asyncio.CancelledError:  # the server cancels what has not ended in time; nothing stands above us
            exchange.patient = False
            await exchange.fail(503, "the service is stopping.")
        except Exception:
            log.exception("unexpected error", extra={"request": exchange.id})
            await exchange.fail(500, f"the service failed; request {exchange.id} is in its log.")
        finally:
            self._finish(exchange)

    def _finish(self, exchange: _Exchange) -> None:
        seconds = time.perf_counter() - exchange.start
        path = exchange.scope["path"]
        route = path if path in ROUTES else "other"  # a label for every path would fill the memory
        self.count(route, exchange.status, seconds)
        level = logging.DEBUG if route in ("/healthz", "/readyz", "/metrics") else logging.INFO
        client = exchange.scope.get("client")
        fields = {
            "request": exchange.id,
            "method": exchange.scope["method"],
            "path": path[:200],
            "status": exchange.status,
            "ms": round(seconds * 1e3, 1),
            "client": client[0] if client else None,
        }
        log.log(level, "request", extra=fields)


def _head_bytes(scope: Scope) -> int:
    pairs = sum(len(name) + len(value) for name, value in scope["headers"])
    return pairs + len(scope.get("raw_path") or b"") + len(scope["query_string"])


class _Exchange:
    """One request and what has become of its answer."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scope, self._receive, self._send = scope, receive, send
        self.start, self.status, self.begun = time.perf_counter(), CLIENT_GONE, False
        headers = Headers(scope=scope)
        self.unread = headers.get("content-length", "0") != "0" or "transfer-encoding" in headers
        self.patient = "expect" not in headers  # 100-continue: the client sends nothing before we ask for it
        given = headers.get("x-request-id", "")
        self.id = given if _ID.fullmatch(given) else uuid.uuid4().hex

    async def receive(self) -> Message:
        """The next message of the client."""
        message = await self._receive()
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            self.unread = False
        return message

    async def send(self, message: Message) -> None:
        """Hand a message on, with the id in the head of the answer.

        An answer to a request that was not read to its end closes the connection: else a client could go on
        sending for ever.
        """
        if message["type"] == "http.response.start":
            self.begun, self.status = True, message["status"]
            headers = MutableHeaders(scope=message)
            headers["x-request-id"] = self.id
            if self.unread:
                await self._drain()
                headers["connection"] = "close"
        await self._send(message)

    async def _drain(self) -> None:
        """Read on for a moment: who is cut off in the middle of sending loses the answer."""
        if not self.patient:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_DRAIN_S):
                while self.unread:
                    await self.receive()

    async def fail(self, status: int, words: str) -> None:
        """Answer with an error, unless an answer has begun."""
        if not self.begun:
            answer = JSONResponse({"error": words}, status, {"connection": "close"})
            await answer(self.scope, self.receive, self.send)
        self.status = status
