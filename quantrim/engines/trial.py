"""A quantized file on trial at one engine: whether it is faithful, what ran in INT8, and how fast."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from quantrim.engines import EngineName, installed_engines, open_session
from quantrim.engines.compare import compare
from quantrim.engines.race import Race, pace, race
from quantrim.engines.verdict import NAMES, Verdict, judge
from quantrim.errors import EngineError
from quantrim.graph import Graph
from quantrim.judges import Judgement, Judging, OutputAgreement

#: Above this signal to noise ratio an engine is believed, decibel.
_CLEAR = 20.0
#: An engine that another one beats by so many decibel on the same file computes something else.
_APART = 8.0
#: Batches that both hear.
_WITNESSED = 4
#: How the reason begins where it does.
_ELSE = "it computes something else"


@dataclass(frozen=True, slots=True)
class EngineResult:
    """What one engine says of the file.

    Attributes:
        verdict: which layers ran in INT8.
        times: the race of FP32, BF16 and INT8.
        judgement: what the file keeps of the float model.
    """

    verdict: Verdict
    times: Race
    judgement: Judgement

    @property
    def contradicted(self) -> bool:
        """Whether another engine gets far better answers from the same file."""
        return any(reason.startswith(_ELSE) for reason in self.judgement.reasons)

    @property
    def faithful(self) -> bool:
        """Whether the file may be deployed on this engine."""
        return self.judgement.faithful

    @property
    def agreement(self) -> tuple[OutputAgreement, ...]:
        """Of each output with the float model's, the one that agrees least first."""
        return self.judgement.outputs

    @property
    def headline(self) -> str:
        """Faithful or not, then how fast: a few sentences, the bad news first."""
        name, share = NAMES[self.verdict.engine], f"{self.verdict.int8_mac_share:.1%} of the MACs ran in INT8."
        return f"{ruling(self.judgement, name)} {pace(self.times, name)} {share}"

    def to_json(self) -> dict[str, Any]:
        """Plain values by the keys of the documented JSON schema."""
        times = self.times.latencies
        return {
            "headline": self.headline,
            "faithful": self.faithful,
            "judgement": self.judgement.to_json(),
            "verdict": self.verdict.to_json(),
            "latency_ms": {
                name: times[name].median if name in times else None
                for name in ("fp32", "bf16", "int8", "int8_bf16")
            },
            "speedup": self.times.speedup,
            "fastest": self.times.fastest,
            "race": self.times.to_json(),
            "agreement": [asdict(one) for one in self.agreement],
        }


def ruling(judgement: Judgement, engine: str) -> str:
    """The first sentence on a file: faithful or not, with the figures that say so.

    Args:
        judgement: of the file.
        engine: the engine's name for people.
    """
    if not judgement.faithful:
        return (
            f"NOT faithful on {engine}: {'; '.join(judgement.reasons)} ({judgement.summary}). "
            "Don't deploy this file."
        )
    word = "Taken as it is" if judgement.level == "any" else "Faithful"
    return f"{word} on {engine}: {judgement.summary}."


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
    judging: Judging | None = None,
    held_out: bool | None = None,
    times: Race | None = None,
) -> EngineResult:
    """Judgement, verdict and race of a quantized file on one engine.

    Args:
        engine: where to run.
        float_path: the FP32 file.
        int8_path: the quantized file.
        graph: of the FP32 model.
        planned: nodes that were left float on purpose, with reasons.
        feeds: inputs to judge on; at least one.
        threads: CPU threads of the race.
        bf16: BF16 may win the race, where the engine has it.
        compared: float and quantized file whose outputs are compared, where those of the model itself can't be:
            they stand behind a selection by value.
        judging: how to judge; by the outputs' shapes by default.
        held_out: whether the inputs are others than those that calibrated; None where nobody knows.
        times: a race that was held already, so that a result has one alone.
    """
    judging = judging or Judging()
    single = {name: array[:1] if np.ndim(array) else array for name, array in feeds[0].items()}
    try:
        session = open_session(int8_path, engine, threads=threads)
        session.run(single)
    except EngineError:  # a fixed batch
        single = dict(feeds[0])
        session = open_session(int8_path, engine, threads=threads)
    verdict = judge(graph, session.layers(single), engine, planned)
    found = times or race(float_path, int8_path, engine, single, threads=threads, bf16=bf16)
    expected, got = compared or (float_path, int8_path)
    judgement = compare(
        open_session(expected, engine), open_session(got, engine), feeds, judging, held_out=held_out
    )
    doubt = _doubt(engine, expected, got, judgement.outputs[0], feeds)
    if doubt:
        judgement = replace(judgement, faithful=judging.accept == "any", reasons=(doubt, *judgement.reasons))
    return EngineResult(verdict, found, judgement)


def _doubt(
    engine: EngineName,
    float_path: Path,
    int8_path: Path,
    found: OutputAgreement,
    feeds: Sequence[Mapping[str, np.ndarray]],
) -> str:
    """What to say where another engine gets far better answers from the same file, else nothing."""
    others = [one for one in installed_engines() if one not in (engine, "tensorrt")]
    if found.sqnr_db >= _CLEAR or not others:
        return ""
    witness = others[0]
    try:
        ours, theirs = (
            _decibel(one, float_path, int8_path, found.output, feeds[:_WITNESSED]) for one in (engine, witness)
        )
    except EngineError:  # a file for one engine alone
        return ""
    if ours >= _CLEAR or theirs < ours + _APART:
        return ""
    return (
        f"{_ELSE} from this file than {NAMES[witness]} does (SQNR {ours:.1f} dB "
        f"against {theirs:.1f} dB): try the engine's own target, and please report the model if "
        "that is no better"
    )


def _decibel(
    engine: EngineName,
    float_path: Path,
    int8_path: Path,
    output: str,
    feeds: Sequence[Mapping[str, np.ndarray]],
) -> float:
    """Median SQNR of an output on an engine; of the same batches for each, since samples differ by more."""
    judged = compare(open_session(float_path, engine), open_session(int8_path, engine), feeds)
    return next(one.sqnr_db for one in judged.outputs if one.output == output)
