"""FP32, BF16, INT8 and INT8 with BF16 float parts in one race: the only source of a result's speeds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from quantrim.engines import EngineName, Session, open_session
from quantrim.engines.bench import Latency, interleaved, latency
from quantrim.graph.ports import Feed

#: Racers as people write them.
RACERS: Mapping[str, str] = {
    "fp32": "FP32", "bf16": "BF16", "int8": "INT8", "int8_bf16": "INT8 with BF16 float parts",
}  # fmt: skip
#: Resamples of the rounds; the quantiles between which 95 % of their ratios lie.
_RESAMPLES, _BETWEEN = 1000, (2.5, 97.5)


@dataclass(frozen=True, slots=True)
class Speedup:
    """Median time of one racer over that of another.

    Attributes:
        ratio: above 1 where the other is faster.
        low: lower end of the 95 % interval.
        high: its upper end.
    """

    ratio: float
    low: float
    high: float

    @property
    def clear(self) -> bool:
        """Whether the race can tell the two apart."""
        return not self.low <= 1.0 <= self.high

    @property
    def inverse(self) -> Speedup:
        """The same from the other's side."""
        return Speedup(1 / self.ratio, 1 / self.high, 1 / self.low)


@dataclass(frozen=True, slots=True)
class Race:
    """Latencies of one race, milliseconds; None where a racer did not run.

    Attributes:
        fp32: the float model.
        bf16: the float model, where the engine computed in BF16.
        int8: the quantized file, its float parts in FP32.
        int8_bf16: the quantized file, its float parts in BF16.
        over_fp32: how many times as fast as FP32 each other racer is.
        over_fastest: FP32 and each other racer over the fastest; below 1, or 1 for itself.
        rounds: how often each ran.
    """

    fp32: Latency
    bf16: Latency | None
    int8: Latency
    int8_bf16: Latency | None = None
    over_fp32: Mapping[str, Speedup] = field(default_factory=dict)
    over_fastest: Mapping[str, Speedup] = field(default_factory=dict)
    rounds: int = 0

    @staticmethod
    def of(times: Mapping[str, np.ndarray]) -> Race:
        """Race of measured times.

        Args:
            times: milliseconds of every round, float64 (rounds,), of "fp32", "int8" and maybe the others.
        """
        found = {name: latency(row) for name, row in times.items()}
        best = min(found, key=lambda name: found[name].median)
        return Race(
            fp32=found["fp32"],
            bf16=found.get("bf16"),
            int8=found["int8"],
            int8_bf16=found.get("int8_bf16"),
            over_fp32={name: speedup(times["fp32"], times[name]) for name in times if name != "fp32"},
            over_fastest={name: speedup(times[best], times[name]) for name in times},
            rounds=len(times["fp32"]),
        )

    @property
    def latencies(self) -> dict[str, Latency]:
        """Of those that ran."""
        named = {"fp32": self.fp32, "bf16": self.bf16, "int8": self.int8, "int8_bf16": self.int8_bf16}
        return {name: one for name, one in named.items() if one is not None}

    @property
    def speedup(self) -> float:
        """Median FP32 time over median INT8 time."""
        return self.fp32.median / self.int8.median

    @property
    def fastest(self) -> str:
        """The one with the smallest median: "int8", "int8_bf16", "bf16" or "fp32"."""
        found = self.latencies
        return min(found, key=lambda name: found[name].median)

    @property
    def level(self) -> tuple[str, ...]:
        """The fastest, and all that the race can't tell apart from it."""
        return tuple(
            name for name in self.latencies
            if name == self.fastest or (name in self.over_fastest and not self.over_fastest[name].clear)
        )  # fmt: skip

    def without_bf16(self) -> Race:
        """The race of those that may be deployed where BF16 loses too much."""
        int8 = self.over_fp32.get("int8")
        if int8 is None:
            return Race(self.fp32, None, self.int8, rounds=self.rounds)
        slower = {"fp32": int8.inverse} if int8.ratio > 1 else {"int8": int8}
        return Race(self.fp32, None, self.int8, None, {"int8": int8}, slower, self.rounds)

    def to_json(self) -> dict[str, Any]:
        """Speeds beyond the medians."""
        return {
            "rounds": self.rounds,
            "speedups": {name: asdict(one) for name, one in self.over_fp32.items()},
            "level": list(self.level),
        }


def speedup(slow: np.ndarray, fast: np.ndarray) -> Speedup:
    """Ratio of the medians of two racers' times, with a bootstrap of the rounds, which both share.

    Args:
        slow: milliseconds of every round, float64 (rounds,).
        fast: likewise.
    """
    rounds = len(slow)
    drawn = np.random.default_rng(0).integers(0, rounds, (_RESAMPLES, rounds))
    ratios = np.median(slow[drawn], axis=1) / np.median(fast[drawn], axis=1)
    low, high = np.percentile(ratios, _BETWEEN)
    return Speedup(float(np.median(slow) / np.median(fast)), float(low), float(high))


def race(
    float_path: str | Path,
    int8_path: str | Path,
    engine: EngineName,
    feed: Feed,
    *,
    threads: int = 1,
    bf16: bool = True,
    warmup: int = 5,
    repeat: int = 25,
) -> Race:
    """Time both files on one engine, in turns of random order; in BF16 too where the engine computes in it.

    Args:
        float_path: FP32 file.
        int8_path: quantized file.
        engine: engine to run on.
        feed: one input for both.
        threads: CPU threads.
        bf16: let BF16 take part where the engine has it.
        warmup: untimed rounds.
        repeat: timed rounds.
    """
    sessions: dict[str, Session] = {
        "fp32": open_session(float_path, engine, threads=threads),
        "int8": open_session(int8_path, engine, threads=threads),
    }
    if bf16 and engine == "openvino":
        for name, path in (("bf16", float_path), ("int8_bf16", int8_path)):
            session = open_session(path, engine, threads=threads, precision="bf16")
            if computes_in_bf16(session):
                sessions[name] = session
    times = interleaved([(one, dict(feed)) for one in sessions.values()], warmup=warmup, repeat=repeat)
    return Race.of(dict(zip(sessions, times, strict=True)))


def computes_in_bf16(session: Session) -> bool:
    """Whether an engine that was asked for BF16 really computes in it; a CPU without it goes on in FP32."""
    return "bf16" in getattr(session, "precisions", frozenset)()


def pace(times: Race, engine: str) -> str:
    """One sentence on speed, the bad news first.

    Args:
        times: the race.
        engine: the engine's name for people.
    """
    level = times.level
    quantized = [name for name in ("int8", "int8_bf16") if name in level]
    if not quantized:
        best = times.fastest
        return (
            f"INT8 does not pay on {engine} here: {RACERS[best]} is fastest with "
            f"{times.latencies[best].median:.2f} ms, INT8 takes {times.int8.median:.2f} ms. "
            f"Deploy {RACERS[best]}."
        )
    name = times.fastest if times.fastest in quantized else quantized[0]
    ratio, found = times.fp32.median / times.latencies[name].median, times.over_fp32.get(name)
    span = f" ({found.low:.2f} to {found.high:.2f})" if found else ""
    if "fp32" in level:
        return f"{RACERS[name]} and FP32 show no difference in speed on {engine}: {ratio:.2f}x{span}."
    also = " BF16 is as fast." if "bf16" in level else ""
    return f"{RACERS[name]} is {ratio:.2f}x as fast as FP32 on {engine}{span}.{also}"
