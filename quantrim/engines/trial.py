"""A quantized file on trial at one engine: what ran in INT8, how fast, and whether the answers are right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from quantrim.engines import EngineName, installed_engines, open_session
from quantrim.engines.verdict import NAMES, OutputAgreement, Race, Verdict, agreement, headline, judge, race
from quantrim.errors import EngineError
from quantrim.graph import Graph

#: Above this signal to noise ratio an engine is believed, decibel.
_CLEAR = 20.0
#: An engine that another one beats by so many decibel on the same file computes something else.
_APART = 8.0


@dataclass(frozen=True, slots=True)
class EngineResult:
    """What one engine says of the file.

    Attributes:
        verdict: which layers ran in INT8.
        times: latencies of FP32, BF16 and INT8.
        agreement: of each output with the float model's.
        headline: one or two sentences, the bad news first.
    """

    verdict: Verdict
    times: Race
    agreement: tuple[OutputAgreement, ...]
    headline: str

    def to_json(self) -> dict[str, Any]:
        """Plain values by the keys of the documented JSON schema."""
        times = self.times
        return {
            "headline": self.headline,
            "verdict": self.verdict.to_json(),
            "latency_ms": {
                "fp32": times.fp32.median,
                "bf16": times.bf16.median if times.bf16 else None,
                "int8": times.int8.median,
            },
            "speedup": times.speedup,
            "fastest": times.fastest,
            "agreement": [asdict(one) for one in self.agreement],
        }


def ask(
    engine: EngineName,
    float_path: Path,
    int8_path: Path,
    graph: Graph,
    planned: Mapping[str, str],
    feeds: Sequence[Mapping[str, np.ndarray]],
    threads: int,
    *,
    bf16: bool = True,
    compared: tuple[Path, Path] | None = None,
) -> EngineResult:
    """Verdict, race and agreement of a quantized file on one engine.

    Args:
        engine: where to run.
        float_path: the FP32 file.
        int8_path: the quantized file.
        graph: of the FP32 model.
        planned: nodes that were left float on purpose, with reasons.
        feeds: inputs to compare on; at least one.
        threads: CPU threads of the race.
        bf16: BF16 may win the race, where the engine has it.
        compared: float and quantized file whose outputs are compared, where those of the model itself can't be:
            they stand behind a selection by value.
    """
    single = {name: array[:1] for name, array in feeds[0].items()}
    try:
        session = open_session(int8_path, engine, threads=threads)
        session.run(single)
    except EngineError:  # a fixed batch
        single = dict(feeds[0])
        session = open_session(int8_path, engine, threads=threads)
    verdict = judge(graph, session.layers(single), engine, planned)
    times = race(float_path, int8_path, engine, single, threads=threads, bf16=bf16)
    expected, got = compared or (float_path, int8_path)
    same = agreement(open_session(expected, engine), open_session(got, engine), feeds)
    doubt = _doubt(engine, expected, got, same[0], feeds)
    return EngineResult(verdict, times, same, doubt + headline(verdict, times))


def _doubt(
    engine: EngineName,
    float_path: Path,
    int8_path: Path,
    found: OutputAgreement,
    feeds: Sequence[Mapping[str, np.ndarray]],
) -> str:
    """A warning where another engine gets far better answers from the same file, else nothing."""
    others = [one for one in installed_engines() if one not in (engine, "tensorrt")]
    if found.sqnr_db >= _CLEAR or not others:
        return ""
    witness = others[0]
    try:
        theirs = agreement(open_session(float_path, witness), open_session(int8_path, witness), feeds[:1])[0]
    except EngineError:  # a file for one engine alone
        return ""
    if theirs.sqnr_db < found.sqnr_db + _APART:
        return ""
    return (
        f"Don't deploy this file on {NAMES[engine]}: it computes something else from it than {NAMES[witness]} "
        f"(SQNR {found.sqnr_db:.1f} dB against {theirs.sqnr_db:.1f} dB). Try the engine's own target; if "
        "that is no better, please report the model. "
    )
