"""Latency and throughput, measured interleaved so that a noisy machine is noisy for everybody."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from quantrim.engines import EngineName, Precision, Session, open_session, random_inputs
from quantrim.errors import EngineError
from quantrim.graph.ports import samples_in


@dataclass(frozen=True, slots=True)
class Latency:
    """Statistics of single runs, milliseconds."""

    median: float
    mean: float
    p90: float
    std: float


@dataclass(frozen=True, slots=True)
class BenchRow:
    """One model on one engine.

    Attributes:
        model: path as given.
        engine: engine name.
        precision: type of the layers that are not INT8.
        threads: CPU threads.
        batch_size: samples of a run.
        latency_ms: statistics over the timed runs.
        throughput: samples per second: from the median run, or of all parallel runs in throughput mode.
    """

    model: str
    engine: EngineName
    precision: Precision
    threads: int
    batch_size: int
    latency_ms: Latency
    throughput: float

    def to_json(self) -> dict[str, Any]:
        """Plain values by the keys of the JSON schema."""
        return asdict(self)


def bench(
    models: str | Path | Sequence[str | Path],
    *,
    engines: Sequence[str] = ("openvino",),
    threads: int = 1,
    batch_size: int = 1,
    warmup: int = 10,
    repeat: int = 50,
    shape: tuple[int, ...] | None = None,
    precisions: Sequence[Precision] = ("f32",),
    streams: int = 1,
) -> list[BenchRow]:
    """Time models side by side: one run of each in turn, ``repeat`` times over.

    Args:
        models: a model file, or several.
        engines: engines to run each on.
        threads: CPU threads of a run.
        batch_size: size of the first axis where it is dynamic.
        warmup: untimed rounds.
        repeat: timed rounds.
        shape: shape of the first input where other axes are dynamic too.
        precisions: types of non-INT8 layers; "f32" rows are as a tuned file asks for, "bf16" rows are measured
            on OpenVINO alone.
        streams: above 1, measure throughput with that many runs in parallel.

    Returns:
        One row for each (model, engine, precision), models in order.

    Raises:
        EngineError: a model can't be loaded or run.
    """
    if repeat < 1 or warmup < 0 or streams < 1:
        raise EngineError(f"repeat is {repeat}, warmup {warmup}, streams {streams}; they must be positive.")
    files = [models] if isinstance(models, str | Path) else models
    sessions = [
        (str(model), open_session(model, engine, threads=threads, precision=_asked(precision)))
        for model in files
        for engine in engines
        for precision in precisions
        if precision == "f32" or engine == "openvino"
    ]
    feeds = [random_inputs(session, batch_size, shape) for _, session in sessions]
    pairs = [(session, feed) for (_, session), feed in zip(sessions, feeds, strict=True)]
    times = interleaved(pairs, warmup=warmup, repeat=repeat)
    rows = []
    for (model, session), feed, milliseconds in zip(sessions, feeds, times, strict=True):
        size = samples_in(feed)
        rate = size / np.median(milliseconds) * 1e3
        if streams > 1:
            rate = throughput(model, session, feed, streams, repeat) * size
        rows.append(
            BenchRow(
                model, session.engine, session.precision, threads, size, latency(milliseconds), float(rate)
            )
        )
    return rows


def _asked(precision: Precision) -> Precision | None:
    """Beside "bf16" rows there is one as the file asks for, which is f32 unless tuning found otherwise."""
    return None if precision == "f32" else precision


def interleaved(
    pairs: Sequence[tuple[Session, dict[str, np.ndarray]]], *, warmup: int, repeat: int
) -> np.ndarray:
    """Milliseconds of every timed run, float64[sessions, repeat].

    The sessions take turns, in a new random order each round: whoever runs behind a large model finds cold
    caches, and nobody shall always be the one.
    """
    times = np.empty((len(pairs), repeat))
    generator = np.random.default_rng(0)
    for turn in range(-warmup, repeat):
        for index in generator.permutation(len(pairs)):
            session, feed = pairs[index]
            start = time.perf_counter()
            session.run(feed)
            if turn >= 0:
                times[index, turn] = (time.perf_counter() - start) * 1e3
    return times


def latency(milliseconds: np.ndarray) -> Latency:
    """Statistics of timed runs."""
    return Latency(
        median=float(np.median(milliseconds)),
        mean=float(milliseconds.mean()),
        p90=float(np.percentile(milliseconds, 90)),
        std=float(milliseconds.std()),
    )


def scatter(latencies: Iterable[Latency]) -> float:
    """Largest ratio of 90th percentile to median: 1.0 to 1.2 on a quiet machine."""
    return max(one.p90 / one.median for one in latencies)


def throughput(model: str, like: Session, feed: dict[str, np.ndarray], streams: int, repeat: int) -> float:
    """Runs per second with ``streams`` sessions running in parallel, each with its share of threads."""
    each = max(1, like.threads // streams)
    sessions = [
        open_session(model, like.engine, threads=each, precision=like.precision) for _ in range(streams)
    ]

    def work(session: Session) -> None:
        for _ in range(repeat):
            session.run(feed)

    with ThreadPoolExecutor(streams) as pool:
        list(pool.map(work, sessions))  # warm-up round
        start = time.perf_counter()
        list(pool.map(work, sessions))
        return streams * repeat / (time.perf_counter() - start)


@dataclass(frozen=True, slots=True)
class Setting:
    """How a model may be run, and what that gives.

    Attributes:
        streams: runs in parallel, which share the threads.
        batch_size: samples of a run.
        rate: samples per second.
    """

    streams: int
    batch_size: int
    rate: float


def by_throughput(
    model: str | Path,
    engine: EngineName = "openvino",
    *,
    threads: int = 1,
    shape: tuple[int, ...] | None = None,
    precision: Precision | None = None,
    seconds: float = 1.0,
) -> list[Setting]:
    """Streams and batch sizes that were tried, the one of most samples per second first.

    Streams are powers of two up to the threads. For each, batches double from 1 to 8 as long as that gives
    more; a model whose batch is fixed keeps it.

    Args:
        model: model file.
        engine: where.
        threads: CPU threads of all streams together.
        shape: shape of the first input where other axes than the batch are dynamic.
        precision: of the layers that are not INT8; None for what the file asks for.
        seconds: that one setting is timed, about.

    Raises:
        EngineError: the model can't be loaded or run.
    """
    session = open_session(model, engine, threads=threads, precision=precision)
    fixed = session.inputs[0].shape[0]
    batches = (1, 2, 4, 8) if fixed is None else (fixed,)
    tried: list[Setting] = []
    for streams in (count for count in (1, 2, 4, 8, 16, 32, 64) if count <= threads):
        best = 0.0
        for size in batches:
            feed = random_inputs(session, size, shape)
            once = interleaved([(session, feed)], warmup=1, repeat=2).min() / 1e3
            repeat = int(np.clip(seconds / max(once * streams, 1e-6), 2, 200))
            rate = size * throughput(str(model), session, feed, streams, repeat)
            tried.append(Setting(streams, size, rate))
            if rate < best:
                break
            best = rate
    return sorted(tried, key=lambda setting: -setting.rate)
