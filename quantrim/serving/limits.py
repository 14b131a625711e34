"""What a client may ask of the service, and what all of them together may."""

from __future__ import annotations

from dataclasses import dataclass

from quantrim.errors import ConfigError


class Refusal(Exception):  # noqa: N818 - the request's fault, not the service's
    """A request that is not answered.

    Attributes:
        status: HTTP status code.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class ServiceLimits:
    """How the service works, and where it says no.

    Attributes:
        max_batch: images of a batch; 1 turns batching off.
        max_wait_ms: how long an image waits for others.
        max_waiting: requests between upload and answer; more are refused with 503.
        workers: batches that run in parallel; the artefact should have as many streams.
        decoders: images that are decoded and prepared in parallel; each may take some hundred MB.
        max_bytes: largest upload.
        max_pixels: largest image, by its header.
        answer_bytes: memory that the scores of an image may take once they are scaled to its size.
        upload_bytes: memory that all unfinished uploads may take together; more are refused with 503.
        header_s: seconds in which a client must have sent the head of its request.
        body_s: seconds in which it must have sent the body.
        answer_s: seconds from the first byte to the last of the answer.
        max_connections: open connections; more are refused with 503.
        stop_s: seconds that requests may take to finish after SIGTERM.

    Raises:
        ConfigError: a limit that lets nothing through.
    """

    max_batch: int = 8
    max_wait_ms: float = 2.0
    max_waiting: int = 256
    workers: int = 1
    decoders: int = 2
    max_bytes: int = 20_000_000
    max_pixels: int = 16_000_000
    answer_bytes: int = 500_000_000
    upload_bytes: int = 200_000_000
    header_s: float = 10.0
    body_s: float = 20.0
    answer_s: float = 60.0
    max_connections: int = 1000
    stop_s: float = 3.0

    def __post_init__(self) -> None:
        for name in self.__slots__:
            least = (
                0 if name in ("max_wait_ms", "stop_s") else 1 if isinstance(getattr(self, name), int) else 0.001
            )
            if getattr(self, name) < least:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least {least}.")
