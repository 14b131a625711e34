"""What the service has done so far, for Prometheus."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.process_collector import ProcessCollector

#: Edges of the latency histogram, seconds: a small model answers in milliseconds, a large one in seconds.
_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)


class Metrics:
    """Counters of requests and batches in a registry of their own; safe between threads.

    Args:
        max_batch: images of the largest batch.
        waiting: asked how many requests wait.
        upload_bytes: asked how many bytes unfinished uploads take.
    """

    def __init__(self, max_batch: int, waiting: Callable[[], float], upload_bytes: Callable[[], float]) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)  # memory, CPU time and open files of the process
        self._requests = Counter(
            "quantrim_requests", "Answered requests.", ["route", "status"], registry=self.registry
        )
        self._seconds = Histogram(
            "quantrim_request_seconds",
            "From the head of a request to the end of its answer.",
            ["route"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._batches = Histogram(
            "quantrim_batch_images",
            "Images of a batch that ran.",
            buckets=tuple(range(1, max_batch + 1)),
            registry=self.registry,
        )
        gauges = (
            ("quantrim_waiting", "Requests between upload and answer.", waiting),
            ("quantrim_upload_bytes", "Memory of unfinished uploads.", upload_bytes),
        )
        for name, words, value in gauges:
            Gauge(name, words, registry=self.registry).set_function(value)

    def request(self, route: str, status: int, seconds: float) -> None:
        """Count an answered request."""
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def batch(self, size: int) -> None:
        """Count a batch that ran."""
        self._batches.observe(size)

    def text(self) -> bytes:
        """Prometheus's text format."""
        return generate_latest(self.registry)
