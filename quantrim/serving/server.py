"""The process: uvicorn with a limit for slow clients, log lines in JSON, an end within seconds of SIGTERM."""

from __future__ import annotations

import asyncio
import json
import logging
import logging.config
import time
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from quantrim.serving.app import create_app
from quantrim.serving.artefact import Artefact
from quantrim.serving.limits import ServiceLimits
from quantrim.serving.middleware import HEAD_BYTES

#: Seconds for which an idle connection is kept for the client's next request.
_KEEP_ALIVE_S = 15
#: Fields of every log record of Python; all others are the caller's.
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "color_message", "taskName"}


class PatientProtocol(H11Protocol):
    """uvicorn's HTTP/1.1, which cuts a client that doesn't send the head of its request in time.

    uvicorn alone waits for ever for the first request of a connection, and for the second one as soon as its
    first byte is there (the attack called slow loris).
    """

    header_s: float = 10.0
    _cut_at: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client is there: its time runs."""
        super().connection_made(transport)
        self._start()

    def data_received(self, data: bytes) -> None:
        """Bytes came: the head is complete, or the time runs on."""
        super().data_received(data)
        if self.conn.their_state is h11.IDLE:
            self._start()
        else:
            self._stop()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has gone."""
        self._stop()
        super().connection_lost(exc)

    def _start(self) -> None:
        if self._cut_at is None:
            self._cut_at = self.loop.call_later(self.header_s, self._cut)

    def _stop(self) -> None:
        if self._cut_at is not None:
            self._cut_at.cancel()
            self._cut_at = None

    def _cut(self) -> None:
        self._cut_at = None
        if self.conn.their_state is h11.IDLE and not self.transport.is_closing():
            self.transport.abort()


class JsonLines(logging.Formatter):
    """One JSON object a line: time (UTC), level, event, and the fields of the record."""

    converter = time.gmtime  # type: ignore[assignment]

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        line: dict[str, Any] = {
            "time": f"{self.formatTime(record, '%Y-%m-%dT%H:%M:%S')}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "event": record.getMessage(),
        }
        line |= {key: value for key, value in vars(record).items() if key not in _STANDARD}
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def configure_log(level: str = "info") -> None:
    """Send the log of the service and of uvicorn to stderr, as JSON lines."""
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {"json": {"()": JsonLines}},
            "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "json"}},
            "loggers": {
                name: {"handlers": ["stderr"], "level": level.upper(), "propagate": False}
                for name in ("uvicorn", "quantrim.serving")
            },
        }
    )


def server_of(artefact: Artefact, limits: ServiceLimits, host: str, port: int) -> uvicorn.Server:
    """The server around an artefact, not started yet."""
    protocol = type("Protocol", (PatientProtocol,), {"header_s": limits.header_s})
    config = uvicorn.Config(
        create_app(artefact, limits),
        host=host,
        port=port,
        http=protocol,
        ws="none",
        log_config=None,
        access_log=False,  # the middleware writes a line with more in it
        server_header=False,
        proxy_headers=False,
        limit_concurrency=limits.max_connections,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=max(1, round(limits.stop_s)),
        h11_max_incomplete_event_size=HEAD_BYTES,
    )
    return uvicorn.Server(config)


def serve(
    artefact: Artefact,
    limits: ServiceLimits,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    log_level: str = "info",
) -> None:
    """Serve until SIGTERM or SIGINT; then answer what has begun, for ``limits.stop_s`` at most.

    Args:
        artefact: the model.
        limits: what clients may ask.
        host: address to listen on.
        port: TCP port; 0 for a free one, which the log names.
        log_level: "debug" (with probes of health and metrics), "info", "warning" or "error".
    """
    configure_log(log_level)
    server_of(artefact, limits, host, port).run()
