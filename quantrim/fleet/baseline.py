"""What files reached, kept as a baseline, and whether they still do: coverage, faithfulness, size, speed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from quantrim.engines import EngineName
from quantrim.engines.inspect import inspect
from quantrim.engines.machine import Machine, describe_machine
from quantrim.engines.race import Race, race
from quantrim.errors import CheckpointError, DataError
from quantrim.files import read_json, sha256, size_mb, validated, write_json
from quantrim.fleet.work import preparation
from quantrim.graph import random_feed, read_onnx
from quantrim.judges.bars import Level, Task
from quantrim.judges.judgement import least_of
from quantrim.recipes.deploy import judging_from

FORMAT = 1
#: What a figure may lose before it counts: points of the MACs, decibel, share of the size. Engines of other
#: versions fuse and round a little otherwise.
_COVERAGE, _SQNR_DB, _SIZE = 0.001, 1.0, 0.01
#: Share of the time that a file may lose beyond what the two races can tell.
SLACK = 0.05
_ROUNDS = 101


class _Stored(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())


class Subject(_Stored):
    """A file, and how it is measured; paths are relative to the baseline.

    Attributes:
        model: quantized .onnx file.
        against: its float model.
        data: samples to judge on, as of ``inspect``; None for random numbers.
        samples: how many of them.
        deploy: how images are prepared; the ``deploy.yaml`` beside the models by default.
        engine: that runs it.
        threads: CPU threads.
        input_shape: of the first input, where it is dynamic.
        task: of the outputs; as they say by default.
        accept: bar for a faithful file.
    """

    model: str
    against: str
    data: str | None = None
    samples: int = 32
    deploy: str | None = None
    engine: EngineName = "openvino"
    threads: int = 1
    input_shape: tuple[int, ...] | None = None
    task: Task | None = None
    accept: Level = "faithful"


class Times(_Stored):
    """A race of the float model and the file, in turns.

    Attributes:
        fp32_ms: median.
        ms: median of the file.
        ratio: how many times as fast as the float model.
        low: lower end of its 95 % interval, from a bootstrap of the rounds.
        high: upper end.
        processor: that it was measured on.
        version: of the engine.
        float_sha256: of the float model.
    """

    fp32_ms: float
    ms: float
    ratio: float
    low: float
    high: float
    processor: str
    version: str
    float_sha256: str


class Figures(_Stored):
    """What a file reached.

    Attributes:
        int8_mac_share: of the multiply-accumulates that the engine ran in INT8.
        faithful: whether the bar was reached.
        score: of the task, the least; None where outputs hold values alone.
        score_high: upper end of its 95 % interval.
        sqnr_db: of the output that agrees least.
        size_mb: 10^6 bytes.
        times: of the race.
    """

    int8_mac_share: float
    faithful: bool
    score: float | None
    score_high: float | None
    sqnr_db: float
    size_mb: float
    times: Times


class Entry(_Stored):
    """A file and what it reached."""

    subject: Subject
    figures: Figures


class Baseline(_Stored):
    """The whole file."""

    format: Literal[1] = 1
    files: tuple[Entry, ...] = ()

    def with_entry(self, entry: Entry) -> Baseline:
        """The same with an entry in place of the one of its file and engine, or behind the others."""
        key = entry.subject.model, entry.subject.engine
        others = [one for one in self.files if (one.subject.model, one.subject.engine) != key]
        return Baseline(files=(*others, entry))


class Finding(_Stored):
    """One figure, before and now.

    Attributes:
        figure: its name.
        before: for people.
        now: likewise.
        fell: whether it got worse; None where the two can't be compared.
        why: a sentence; empty where there is nothing to say.
    """

    figure: str
    before: str
    now: str
    fell: bool | None
    why: str = ""


def read_baseline(path: str | Path) -> Baseline:
    """Read a baseline.

    Raises:
        DataError, CheckpointError: it is missing, no JSON, or damaged.
    """
    value = read_json(path)
    mend = "Write it anew."
    if isinstance(value, dict) and value.get("format") != FORMAT:
        raise CheckpointError(f"{path}: not a baseline of this version. {mend}")
    if isinstance(value, dict):  # JSON knows no tuples
        value = {**value, "files": tuple(_tupled(one) for one in value.get("files", ()))}
    return validated(Baseline, value, path, mend)


def _tupled(entry: object) -> object:
    if not isinstance(entry, dict) or not isinstance(entry.get("subject"), dict):
        return entry
    shape = entry["subject"].get("input_shape")
    return {**entry, "subject": entry["subject"] | ({"input_shape": tuple(shape)} if shape else {})}


def write_baseline(baseline: Baseline, path: str | Path) -> None:
    """Write a baseline, atomically."""
    write_json(path, baseline.model_dump(mode="json"))


def measure(subject: Subject, home: Path) -> Figures:
    """What a file reaches on this machine.

    Args:
        subject: the file.
        home: folder that its paths are relative to.

    Raises:
        DataError, ModelError, EngineError: one line each that says what is wrong.
    """
    model, against = home / subject.model, home / subject.against
    deploy = None if subject.deploy is None else home / subject.deploy
    for path in (model, against):
        if not path.is_file():
            raise DataError(f"{path}: no such file.")
    seen = inspect(
        model,
        engine=subject.engine,
        against=against,
        data=None if subject.data is None else home / subject.data,
        samples=subject.samples,
        input_shape=subject.input_shape,
        threads=subject.threads,
        judging=judging_from([model, against], deploy, task=subject.task, decoder=None, accept=subject.accept),
        preprocess=preparation([model, against], deploy),
    )
    assert seen.judgement is not None
    feed = random_feed(read_onnx(model), subject.input_shape, 0)
    times = race(against, model, subject.engine, feed, threads=subject.threads, bf16=False, repeat=_ROUNDS)
    score = least_of(seen.judgement.scores, seen.judgement.level)
    return Figures(
        int8_mac_share=seen.verdict.int8_mac_share,
        faithful=seen.judgement.faithful,
        score=None if score is None else score.value,
        score_high=None if score is None else score.high,
        sqnr_db=seen.judgement.outputs[0].sqnr_db,
        size_mb=size_mb(model),
        times=_times(times, against, subject.engine, describe_machine()),
    )


def _times(times: Race, against: Path, engine: EngineName, machine: Machine) -> Times:
    speed = times.over_fp32["int8"]
    return Times(
        fp32_ms=times.fp32.median,
        ms=times.int8.median,
        ratio=speed.ratio,
        low=speed.low,
        high=speed.high,
        processor=machine.processor,
        version=machine.versions.get(engine, ""),
        float_sha256=sha256(against),
    )


def findings(before: Figures, now: Figures, slack: float = SLACK) -> Iterator[Finding]:
    """What became of each figure.

    Speed is that over the float model, measured in turns with it: a machine that is slow today is slow for
    both. It fell where the intervals of the two races lie apart by more than the slack.

    Args:
        before: of the baseline.
        now: measured now.
        slack: share of the speed that may be lost.
    """
    share = now.int8_mac_share < before.int8_mac_share - _COVERAGE
    yield Finding(
        figure="INT8 coverage",
        before=f"{before.int8_mac_share:.1%}",
        now=f"{now.int8_mac_share:.1%}",
        fell=share,
    )
    yield Finding(
        figure="faithful",
        before="yes" if before.faithful else "no",
        now="yes" if now.faithful else "no",
        fell=before.faithful and not now.faithful,
    )
    if before.score is not None and now.score is not None and now.score_high is not None:
        yield Finding(
            figure="score",
            before=f"{before.score:.1%}",
            now=f"{now.score:.1%}",
            fell=now.score < before.score and now.score_high < before.score,
        )
    yield Finding(
        figure="SQNR",
        before=f"{before.sqnr_db:.1f} dB",
        now=f"{now.sqnr_db:.1f} dB",
        fell=now.sqnr_db < before.sqnr_db - _SQNR_DB,
    )
    yield Finding(
        figure="size",
        before=f"{before.size_mb:.2f} MB",
        now=f"{now.size_mb:.2f} MB",
        fell=now.size_mb > before.size_mb * (1 + _SIZE),
    )
    yield _speed(before.times, now.times, slack)


def _speed(before: Times, now: Times, slack: float) -> Finding:
    texts = (f"{one.ms:.2f} ms, {one.ratio:.2f}x ({one.low:.2f} to {one.high:.2f})" for one in (before, now))
    others = [
        words
        for words, one, two in (
            ("on another processor", before.processor, now.processor),
            ("by another version of the engine", before.version, now.version),
            ("beside another float model", before.float_sha256, now.float_sha256),
        )
        if one != two
    ]
    if others:
        why = f"the baseline was measured {' and '.join(others)}, so speed is not compared"
        return Finding(figure="speed", before=next(texts), now=next(texts), fell=None, why=why)
    fell = now.high < before.low * (1 - slack)
    return Finding(figure="speed", before=next(texts), now=next(texts), fell=fell)
