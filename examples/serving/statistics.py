"""What the service has done so far."""

from __future__ import annotations

import threading
from collections import Counter, deque
from typing import Any

import numpy as np


class Statistics:
    """Counters of requests and batches, and latencies of the newest requests; safe between threads."""

    def __init__(self, newest: int = 2000) -> None:
        self._lock = threading.Lock()
        self._statuses: Counter[int] = Counter()
        self._batches: Counter[int] = Counter()
        self._latencies: deque[float] = deque(maxlen=newest)

    def request(self, status: int, seconds: float) -> None:
        """Count an answered request; only good ones have a latency."""
        with self._lock:
            self._statuses[status] += 1
            if status == 200:
                self._latencies.append(seconds * 1e3)

    def batch(self, size: int) -> None:
        """Count a batch that ran."""
        with self._lock:
            self._batches[size] += 1

    def to_json(self) -> dict[str, Any]:
        """Plain JSON value; latencies in milliseconds, None before the first good request."""
        with self._lock:
            latencies = np.array(self._latencies)
            statuses, batches = dict(self._statuses), dict(self._batches)
        images, runs = sum(size * count for size, count in batches.items()), sum(batches.values())
        return {
            "requests": {str(status): count for status, count in sorted(statuses.items())},
            "batches": {str(size): count for size, count in sorted(batches.items())},
            "images_per_batch": images / runs if runs else None,
            "latency_ms": {f"p{q}": _percentile(latencies, q) for q in (50, 90, 99)},
        }


def _percentile(values: np.ndarray, share: int) -> float | None:
    return float(np.percentile(values, share)) if values.size else None
