"""Where calibration samples and the samples to judge on come from, once each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from quantrim.graph.feeds import (
    IMAGENET,
    KEPT_BYTES,
    ImagePreprocess,
    calibration_feeds,
    kept_batches,
)
from quantrim.graph.items import single_samples
from quantrim.graph.ports import Feed, Port, fill_shape, input_ports, samples_in
from quantrim.post_training.config import PtqConfig
from quantrim.post_training.samples import Samples
from quantrim.post_training.shards import Sketches

#: Bytes of the samples to judge on that are held at once.
_JUDGED_BYTES = 4 * KEPT_BYTES


@dataclass(frozen=True, slots=True)
class CalibrationSource:
    """Calibration batches of a model, with outliers left out, and what they leave.

    Attributes:
        calibration: all batches, to be used once.
        kept: the first few of them, for shapes, refinement and, where nothing is left, judging.
        samples: what was noticed of the data; complete when ``calibration`` is used up.
        rest: function that gives batches of the samples that did not calibrate.
        limit: samples to judge on, at most.
    """

    calibration: Iterator[Feed]
    kept: list[Feed]
    samples: Samples
    rest: Callable[[Any], Iterator[Feed]]
    limit: int

    @staticmethod
    def of(
        data: Any,
        model: ir.Model,
        config: PtqConfig,
        preprocess: ImagePreprocess | Callable[[Path], np.ndarray] = IMAGENET,
    ) -> CalibrationSource:
        """CalibrationSource of a model's samples.

        Args:
            data: see :func:`quantrim.graph.feeds.calibration_feeds`.
            model: for the inputs.
            config: how many samples, in which batches and shape.
            preprocess: for image files.

        Raises:
            DataError: there is no sample, none that fits, or they do not vary.
        """
        ports = input_ports(model)
        if config.input_shape is not None:
            fill_shape(ports[0], 1, config.input_shape)
        if isinstance(data, Sketches):
            return _of_sketches(data, ports, config, preprocess)
        opened = _opened(data, ports)

        def feeds(source: Any, count: int | None, used: int = 0) -> Iterator[Feed]:
            return calibration_feeds(
                source, ports, samples=count, batch_size=config.batch_size, preprocess=preprocess,
                shape=config.input_shape, used=used, seed=config.seed,
            )  # fmt: skip

        def rest(other: Any) -> Iterator[Feed]:
            if other is not None:
                return feeds(other, config.judged)
            return feeds(opened, config.judged, config.samples) if config.samples else iter(())

        batches = feeds(opened, config.samples)
        first = [next(batches)]  # raises DataError when there is nothing
        first += islice(batches, kept_batches(first[0]) - 1)
        samples = Samples(first, keep_outliers=config.keep_outliers)
        good = samples.good(chain(first, batches))
        kept = list(islice(good, len(first)))
        return CalibrationSource(chain(kept, good), kept, samples, rest, config.judged)

    def judged(self, other: Any = None) -> Judged:
        """Batches to judge on; call it when the calibration batches are used up.

        Args:
            other: data to judge on instead of what calibration left.
        """
        found: list[Feed] = []
        size = count = 0
        for feed in self.samples.good(self.rest(other), told=False):
            found.append(feed)
            size += sum(array.nbytes for array in feed.values())
            count += samples_in(feed)
            if size > _JUDGED_BYTES or count >= self.limit:
                break
        return Judged(found, True) if found else Judged(self.kept, False)

    @property
    def notes(self) -> tuple[str, ...]:
        """What to know of the data."""
        return self.samples.notes


@dataclass(frozen=True, slots=True)
class Judged:
    """Batches to judge on.

    Attributes:
        feeds: the batches; at least one.
        held_out: none of their samples calibrated.
    """

    feeds: list[Feed]
    held_out: bool


def _of_sketches(
    data: Sketches,
    ports: list[Port],
    config: PtqConfig,
    preprocess: ImagePreprocess | Callable[[Path], np.ndarray],
) -> CalibrationSource:
    """The kept samples of shards; nothing is left to run, and only other data can judge."""

    def rest(other: Any) -> Iterator[Feed]:
        if other is None:
            return iter(())
        return calibration_feeds(
            other, ports, samples=config.judged, batch_size=config.batch_size, preprocess=preprocess,
            shape=config.input_shape,
        )  # fmt: skip

    kept = list(data.kept)
    return CalibrationSource(iter(()), kept, Samples(kept, keep_outliers=True), rest, config.judged)


def _opened(data: Any, ports: list[Port]) -> Any:
    """The data; an iterable is opened once, so that judging goes on where calibration stopped."""
    if isinstance(data, str | Path | np.ndarray | Mapping) or not isinstance(data, Iterable):
        return data
    return single_samples(data, ports)
