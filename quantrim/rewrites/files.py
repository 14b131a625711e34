"""A finished file, float or quantized, made faster: its rewrites, and the precision of its float layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from quantrim.engines import PRECISION_KEY, EngineName, Precision
from quantrim.engines.machine import describe_machine
from quantrim.graph.normalize import name_nodes, normalize, random_feed
from quantrim.graph.read import read_onnx
from quantrim.graph.session import parse_onnx, save_model
from quantrim.rewrites.contest import Contest, Entrant
from quantrim.rewrites.memory import Memory
from quantrim.rewrites.tuner import Trial, Tuned, digest, one_sample, tune
from quantrim.scratch import scratch_folder

_BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16"})


def engines_have_bf16(engines: Sequence[EngineName]) -> bool:
    """Whether one of the engines computes in BF16 on this processor."""
    return "openvino" in engines and bool(_BF16_FLAGS & set(describe_machine().flags))


def ask_precision(model: ir.Model, precision: Precision) -> None:
    """Let a file say in which precision its float layers run; float32 needs no word."""
    model.metadata_props.pop(PRECISION_KEY, None)
    if precision != "f32":
        model.metadata_props[PRECISION_KEY] = precision


def asked_precision(path: Path) -> Precision:
    """In which precision a file asks its float layers to be run; "f32" where it says nothing, or is no ONNX.

    Raises:
        ModelError: an .onnx file that can't be read.
    """
    if path.suffix != ".onnx" or not path.is_file():
        return "f32"
    asked = {prop.key: prop.value for prop in parse_onnx(path, external=False).metadata_props}
    return "bf16" if asked.get(PRECISION_KEY) == "bf16" else "f32"


@dataclass(frozen=True, slots=True)
class TunedFile:
    """What became of a file.

    Attributes:
        rewrites: what was tried.
        precision: of its float layers.
        quantized: whether it holds quantizers.
    """

    rewrites: Tuned
    precision: Precision
    quantized: bool

    @property
    def winner(self) -> str:
        """The precision in words, such as "INT8 and BF16"."""
        floats = {"f32": "FP32", "bf16": "BF16"}[self.precision]
        return floats if not self.quantized else "INT8" if self.precision == "f32" else f"INT8 and {floats}"

    def to_json(self) -> dict[str, Any]:
        """Plain JSON value."""
        return {
            **self.rewrites.to_json(),
            "winner": self.winner,
            "precision": self.precision,
            "float_layers": [],
            "layout_ratio": {},
        }


def tune_file(
    path: str | Path,
    engines: Sequence[EngineName],
    *,
    output: str | Path | None = None,
    shape: tuple[int, ...] | None = None,
    threads: int = 1,
    seconds: float = 60.0,
    memory: Memory | None = None,
    on_trial: Callable[[Trial], None] = lambda trial: None,
) -> TunedFile:
    """Write the fastest form of a file: the same function to rounding, proven on random inputs.

    A float file is normalised first (BatchNorm folded, dead nodes dropped); a quantized one keeps every code.

    Args:
        path: .onnx file.
        engines: where it shall be fast; at least one.
        output: the file to write; ``path`` itself by default.
        shape: of the first input, where axes other than the batch are dynamic.
        threads: CPU threads.
        seconds: when no new race is begun any more.
        memory: answers of earlier races.
        on_trial: called with each rewrite that was tried.

    Raises:
        ModelError, EngineError: the file can't be read or run.
    """
    original, memory = read_onnx(path), memory or Memory(None)
    quantized = any(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in original.graph)
    if quantized:
        name_nodes(original)
    else:
        original = normalize(original)
    feed = random_feed(original, shape)
    with scratch_folder() as folder:
        count = iter(range(1_000_000))

        def build(model: ir.Model) -> Path:
            file = folder / f"trial_{next(count)}.onnx"
            save_model(model, file)
            return file

        kind = "quantized file" if quantized else "float file"
        tuned = tune(
            original, [feed], build, engines, kind=kind, threads=threads, seconds=seconds, memory=memory,
            on_trial=on_trial,
        )  # fmt: skip
        precision: Precision = "f32"
        if engines_have_bf16(engines):
            contest = Contest(
                engines, threads, one_sample(original, feed), memory, f"{kind} {digest(tuned.model)}"
            )
            file = build(tuned.model)
            if contest.beats(Entrant("BF16", file, "bf16"), Entrant("FP32", file)):
                precision = "bf16"
        ask_precision(tuned.model, precision)
        save_model(tuned.model, output or path)
    return TunedFile(tuned, precision, quantized)
