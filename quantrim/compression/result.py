"""What a search for the fastest file found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from quantrim.engines import EngineName, Precision
from quantrim.engines.bench import Latency
from quantrim.engines.machine import describe_machine
from quantrim.engines.trial import EngineResult
from quantrim.engines.verdict import NAMES


@dataclass(frozen=True, slots=True)
class Candidate:
    """One file that was judged.

    Attributes:
        name: what was done to the model.
        precision: of the layers that are not INT8: "f32" or "bf16".
        points: accuracy on the engine, 0..100.
        drop: points below FP32 on the same engine; below zero where it is better.
        size_mb: of the file.
        float_layers: linear layers that a search kept float.
        latency_ms: at the end, in the race or alone; None for a file too far beyond the drop to be timed.
    """

    name: str
    precision: Precision
    points: float
    drop: float
    size_mb: float
    float_layers: tuple[str, ...] = ()
    latency_ms: Latency | None = None


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer as a search for the ones to keep float saw it.

    Attributes:
        name: of its node.
        noise: relative squared error at the outputs when it alone runs in INT8.
        gain_ms: milliseconds that INT8 saves on it; None where the engine gave no time.
    """

    name: str
    noise: float
    gain_ms: float | None


@dataclass(frozen=True, slots=True)
class CompressResult:
    """Result of :func:`quantrim.compression.compress`.

    Attributes:
        output: the chosen file.
        engine: where everything was measured.
        target: rules that placed the quantizers.
        metric: name of the accuracy.
        images: pictures that it was measured on.
        max_drop: points that were allowed.
        candidates: in the order they were tried; FP32 is the first.
        chosen: name of the fastest one within the drop.
        layers: what a search for float layers went by, in the order of the network; empty without one.
        verdict: of the chosen INT8 file; None where FP32 or BF16 was chosen.
        notes: what to know before trusting the figures.
        seconds: time of everything.
        tuning: rewrites that were tried; None where nothing was asked for.
    """

    output: str
    engine: EngineName
    target: str
    metric: str
    images: int
    max_drop: float
    candidates: tuple[Candidate, ...]
    chosen: str
    layers: tuple[Layer, ...]
    verdict: EngineResult | None
    notes: tuple[str, ...]
    seconds: float
    tuning: dict[str, Any] | None = None

    @property
    def front(self) -> tuple[Candidate, ...]:
        """The timed candidates that no other one beats in time and accuracy both, fastest first."""
        timed = [
            (one.latency_ms.median, one.drop, one) for one in self.candidates if one.latency_ms is not None
        ]
        timed.sort(key=lambda entry: entry[:2])
        front: list[Candidate] = []
        for _, drop, one in timed:
            if not front or drop < front[-1].drop:
                front.append(one)
        return tuple(front)

    @property
    def best(self) -> Candidate:
        """The chosen candidate."""
        return next(one for one in self.candidates if one.name == self.chosen)

    @property
    def speedup(self) -> float:
        """Median FP32 time over that of the chosen file."""
        before, after = self.candidates[0].latency_ms, self.best.latency_ms
        if before is None or after is None:
            raise ValueError("the candidates were not timed")
        return before.median / after.median

    @property
    def headline(self) -> str:
        """What was chosen and what it costs; how to load it, where the file alone does not say so."""
        best, fp32, engine = self.best, self.candidates[0], NAMES[self.engine]
        if best.name == fp32.name:
            return f"FP32 stays: nothing within {self.max_drop:g} points of it is faster on {engine} here."
        how = ""
        if best.precision == "bf16":
            how = " Load the file with INFERENCE_PRECISION_HINT=bf16, as quantrim does by itself."
        return (
            f"{best.name}: {self.speedup:.2f}x as fast as FP32 on {engine}, {self.metric} {fp32.points:.2f} to "
            f"{best.points:.2f} ({self.max_drop:g} points may be lost).{how}"
        )

    def to_json(self) -> dict[str, Any]:
        """Plain JSON value."""
        first, best = self.candidates[0], self.best
        value: dict[str, Any] = {
            "command": "compress",
            "output": self.output,
            "headline": self.headline,
            "engine": self.engine,
            "target": self.target,
            "metric": {
                "name": self.metric,
                "images": self.images,
                "fp32": first.points,
                "chosen": best.points,
            },
            "max_drop": self.max_drop,
            "chosen": self.chosen,
            "precision": best.precision,
            "speedup": self.speedup,
            "size_mb": {"fp32": first.size_mb, "chosen": best.size_mb},
            "candidates": [_candidate(one, self.max_drop) for one in self.candidates],
            "layers": [asdict(layer) for layer in self.layers],
            "engines": [self.verdict.to_json()] if self.verdict else [],
            "front": [one.name for one in self.front],
            "notes": list(self.notes),
            "seconds": round(self.seconds, 3),
        }
        if self.tuning is not None:
            value["tuning"] = self.tuning
        return value | {"machine": describe_machine().to_json()}


def _candidate(one: Candidate, max_drop: float) -> Mapping[str, Any]:
    times = None if one.latency_ms is None else asdict(one.latency_ms)
    return {**asdict(one), "latency_ms": times, "within": one.drop <= max_drop}
