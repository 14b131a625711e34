"""How a training run tells its progress: a bar in a terminal, plain lines in a log, scalars for TensorBoard."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

Item = TypeVar("Item")


#: A metric, or one value a class.
Metric = float | list[float]
#: Metrics whose scalars have another name in PaddleSeg.
_TAGS = {"accuracy": "Acc"}


def _told(value: Metric) -> str:
    return f"[{', '.join(f'{one:.4f}' for one in value)}]" if isinstance(value, list) else f"{value:.4f}"


class Reporter:
    """Reports a run on stderr.

    Where stderr is a terminal, a bar with the time left; elsewhere lines in PaddleSeg's form, so that a log
    file shows loss, learning rate, seconds an iteration and the time left.

    Args:
        iterations: where the run ends.
        per_epoch: iterations of an epoch.
        samples: samples of an iteration, over all processes.
        start: iterations already done.
        shown: False for silence.
        events: folder for TensorBoard's scalars, None for none.
        track: gets the same scalars by name, and the iteration, for trackers of experiments.
    """

    def __init__(
        self, iterations: int, *, per_epoch: int, samples: int, start: int = 0, shown: bool = True,
        events: Path | None = None, track: Callable[[Mapping[str, float], int], None] | None = None,
    ) -> None:  # fmt: skip
        self.iterations, self.per_epoch, self.samples = iterations, per_epoch, samples
        console = Console(stderr=True)
        self._lines = shown and not console.is_terminal
        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
            TextColumn("ETA"), TimeRemainingColumn(), console=console, transient=True,
            disable=not (shown and console.is_terminal),
        )  # fmt: skip
        self._task = self._bar.add_task("training", total=iterations, completed=start)
        self._writer = _writer(events) if events is not None else None
        self._track = track
        self._begun, self._reading, self._working, self._counted = 0.0, 0.0, 0.0, 0

    def __enter__(self) -> Reporter:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
        if self._writer is not None:
            self._writer.close()

    def timed(self, batches: Iterable[Item]) -> Iterator[Item]:
        """The batches; the time until each arrives counts as reading."""
        iterator = iter(batches)
        while True:
            self._begun = time.perf_counter()
            try:
                batch = next(iterator)
            except StopIteration:
                return
            self._reading += time.perf_counter() - self._begun
            yield batch

    def stepped(self) -> None:
        """An iteration is done; what follows until the next batch, such as validation, is not its time."""
        self._working += time.perf_counter() - self._begun
        self._counted += 1
        self._bar.advance(self._task)

    def log(self, iteration: int, loss: float, rate: float, parts: Sequence[float] = ()) -> None:
        """Report the loss, its part of each output, and the pace since the last report."""
        count = max(1, self._counted)
        each, reading = self._working / count, self._reading / count
        self._reading, self._working, self._counted = 0.0, 0.0, 0
        self._bar.update(self._task, description=f"training, loss {loss:.4f}")
        self._scalars(iteration, {"Train/loss": loss, "Train/lr": rate, "Train/batch_cost": each,
                                  "Train/reader_cost": reading,
                                  **{f"Train/loss_{i}": part for i, part in enumerate(parts)}})  # fmt: skip
        left = timedelta(seconds=round(each * (self.iterations - iteration)))
        self._say(
            f"[TRAIN] epoch: {1 + (iteration - 1) // self.per_epoch}, iter: {iteration}/{self.iterations}, "
            f"loss: {loss:.4f}, lr: {rate:.6f}, batch_cost: {each:.4f}, reader_cost: {reading:.5f}, "
            f"ips: {self.samples / max(each, 1e-9):.4f} samples/sec | ETA {left}"
        )

    def validated(self, iteration: int, metrics: Mapping[str, Metric], best: str) -> None:
        """Report metrics, those of each class too, and in words which are the best."""
        scalars = {name: value for name, value in metrics.items() if not isinstance(value, list)}
        self._scalars(iteration, {f"Evaluate/{_TAGS.get(name, name)}": one for name, one in scalars.items()})
        named = ", ".join(f"{name}: {_told(value)}" for name, value in metrics.items() if name != "images")
        self._say(f"[EVAL] iter: {iteration}/{self.iterations}, {named} | {best}")

    def _scalars(self, iteration: int, values: Mapping[str, float]) -> None:
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(name, value, iteration)
        if self._track is not None:
            self._track(values, iteration)

    def _say(self, line: str) -> None:
        if self._lines:
            print(line, file=sys.stderr, flush=True)


def _writer(folder: Path) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder))  # type: ignore[no-untyped-call]
