"""Micro-batches: requests that arrive close together run through the model as one batch.

Each worker owns one inference request. A free worker takes the oldest waiting image, waits for company until
the batch is full or the image has waited ``max_wait_ms``, and runs; while all workers are busy, images pile
up, so that batches grow with the load by themselves.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from quantrim.serving.limits import Refusal

#: Images float32 (N, C, H, W) → an answer each: scores, or a detector's boxes.
Predict = Callable[[np.ndarray], Sequence[Any]]
_STOPPING = "the service is stopping."


@dataclass(frozen=True, slots=True)
class _Waiting:
    image: np.ndarray
    answer: Future[Any]
    since: float = field(default_factory=time.monotonic)


class MicroBatcher:
    """Runs single images in batches.

    Args:
        predicts: one function for each worker; a worker never calls another one's.
        max_batch: images of a batch; 1 turns batching off.
        max_wait_ms: how long the first image of a batch waits for others.
        max_waiting: images that may wait; more are refused.
        on_batch: told the size of every batch that ran.
    """

    def __init__(
        self,
        predicts: Sequence[Predict],
        *,
        max_batch: int = 8,
        max_wait_ms: float = 2.0,
        max_waiting: int = 256,
        on_batch: Callable[[int], None] = lambda size: None,
    ) -> None:
        if max_batch < 1 or max_wait_ms < 0 or max_waiting < 1:
            raise ValueError(
                f"max_batch is {max_batch}, max_wait_ms {max_wait_ms}, max_waiting {max_waiting}; "
                "the first and last must be at least 1, the second at least 0."
            )
        self.max_batch, self.max_wait = max_batch, max_wait_ms / 1e3
        self.on_batch = on_batch
        self.max_waiting = max_waiting
        self._waiting: queue.Queue[_Waiting | None] = queue.Queue()  # None: a worker shall stop
        self._held: _Waiting | None = None  # taken for a batch of another shape; first of the next one
        self._gathering, self._entering = threading.Lock(), threading.Lock()
        self._closed = False
        self._threads = [threading.Thread(target=self._work, args=(p,), daemon=True) for p in predicts]
        for thread in self._threads:
            thread.start()

    @property
    def waiting(self) -> int:
        """Images that wait now."""
        return self._waiting.qsize()

    def submit(self, image: np.ndarray) -> Future[Any]:
        """What the model says of one image, later.

        Args:
            image: float32 (C, H, W).

        Raises:
            Refusal: 503, ``max_waiting`` images wait already, or the service is stopping.
        """
        entry = _Waiting(image, Future())
        with self._entering:  # nothing may come in behind the stop marks
            if self._closed:
                raise Refusal(503, _STOPPING)
            if self.waiting >= self.max_waiting:
                raise Refusal(503, f"{self.max_waiting} images wait already; try again later.")
            self._waiting.put(entry)
        return entry.answer

    def close(self, wait_s: float | None = None) -> None:
        """Answer what waits, then stop the workers.

        Args:
            wait_s: wait no longer for them; what still waits then is refused. None: as long as it takes.
        """
        with self._entering:
            self._closed = True
            for _ in self._threads:
                self._waiting.put(None)
        until = None if wait_s is None else time.monotonic() + wait_s
        for thread in self._threads:
            thread.join(None if until is None else max(0.0, until - time.monotonic()))
        if any(thread.is_alive() for thread in self._threads):
            self._refuse_waiting()

    def _refuse_waiting(self) -> None:
        stops = 0
        while True:
            try:
                entry = self._waiting.get_nowait()
            except queue.Empty:
                break
            stops += entry is None
            if entry is not None and entry.answer.set_running_or_notify_cancel():
                entry.answer.set_exception(Refusal(503, _STOPPING))
        for _ in range(stops):
            self._waiting.put(None)

    def _work(self, predict: Predict) -> None:
        while (gathered := self._gather()) is not None:
            batch = [entry for entry in gathered if entry.answer.set_running_or_notify_cancel()]
            if not batch:  # all who asked have gone
                continue
            try:
                scores = predict(np.stack([entry.image for entry in batch]))
            except Exception as error:  # whatever it is, those who wait must hear of it
                for entry in batch:
                    entry.answer.set_exception(error)
                continue
            self.on_batch(len(batch))
            for entry, one in zip(batch, scores, strict=True):
                entry.answer.set_result(one)

    def _gather(self) -> list[_Waiting] | None:
        """Images of equal shape for one batch; None when this worker shall stop."""
        with self._gathering:
            first = self._held or self._waiting.get()
            self._held = None
            if first is None:
                return None
            batch = [first]
            until = first.since + self.max_wait
            while len(batch) < self.max_batch and (entry := self._next(until)) is not None:
                if entry.image.shape != first.image.shape:
                    self._held = entry
                    break
                batch.append(entry)
            return batch

    def _next(self, until: float) -> _Waiting | None:
        """Next image, waiting no longer than ``until``; a stop mark goes back for whom it is meant."""
        try:
            left = until - time.monotonic()
            entry = self._waiting.get(timeout=left) if left > 0 else self._waiting.get_nowait()
        except queue.Empty:
            return None
        if entry is None:
            self._waiting.put(None)
        return entry
