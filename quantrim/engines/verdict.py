"""What the engine really did: which layers ran INT8, how fast, how close to the float model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from quantrim.engines import EngineName, LayerRun, Session, open_session
from quantrim.engines.bench import Latency, interleaved, latency
from quantrim.graph.ops import LINEAR_OPS
from quantrim.graph.ports import Feed
from quantrim.graph.view import Graph, Node, macs

#: Engines as people write them.
NAMES: dict[str, str] = {"openvino": "OpenVINO", "onnxruntime": "ONNX Runtime", "tensorrt": "TensorRT"}


@dataclass(frozen=True, slots=True)
class Fallback:
    """A linear layer that did not run in INT8.

    Attributes:
        node: its name in the float model.
        op: the file's op type.
        reason: why, as far as plan and engine tell.
        mac_share: its share of the model's multiply-accumulates.
    """

    node: str
    op: str
    reason: str
    mac_share: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """How an engine executed a quantized file.

    Attributes:
        engine: engine name.
        int8_mac_share: share of the multiply-accumulates of linear layers that ran in INT8, 0..1.
        fallbacks: linear layers that ran in float, most work first.
        conversions: layers that only convert types or layouts (Reorder, QuantizeLinear, ...).
        int8_layers: layers of any kind that ran in INT8.
        layers: layers the engine executed.
    """

    engine: EngineName
    int8_mac_share: float
    fallbacks: tuple[Fallback, ...]
    conversions: int
    int8_layers: int
    layers: int

    def to_json(self) -> dict[str, Any]:
        """Plain values by the keys of the documented JSON schema."""
        return asdict(self)


_CONVERSIONS = frozenset({"Reorder", "Convert", "QuantizeLinear", "DequantizeLinear", "ReorderInput",
                          "ReorderOutput", "FakeQuantize", "Cast"})  # fmt: skip


def judge(graph: Graph, runs: Sequence[LayerRun], engine: EngineName, planned: Mapping[str, str]) -> Verdict:
    """Compare what was meant with what an engine did.

    Args:
        graph: view of the model whose linear layers are asked for (float, or the QDQ file's own).
        runs: the engine's account of one execution.
        engine: its name.
        planned: linear nodes meant to stay float → reason.
    """
    by_name = {name: run for run in runs for name in run.nodes}
    linear = [n for n in graph.nodes if n.op in LINEAR_OPS and "keep_float" not in n.attributes]
    work = {node.name: macs(graph, node) for node in linear}
    total = sum(work.values()) or 1
    fallbacks = []
    for node in linear:
        run = run_of(graph, node, by_name)
        if run is None or run.precision != "int8":
            reason = planned.get(node.name) or _reason(run, engine)
            fallbacks.append(Fallback(node.name, node.kind, reason, work[node.name] / total))
    fallbacks.sort(key=lambda fallback: -fallback.mac_share)
    return Verdict(
        engine=engine,
        int8_mac_share=1.0 - sum(fallback.mac_share for fallback in fallbacks),
        fallbacks=tuple(fallbacks),
        conversions=sum(run.kind in _CONVERSIONS for run in runs),
        int8_layers=sum(run.precision == "int8" and run.kind not in _CONVERSIONS for run in runs),
        layers=len(runs),
    )


def run_of(graph: Graph, node: Node, by_name: Mapping[str, LayerRun]) -> LayerRun | None:
    """The engine's layer for a node: by its name, its result, or what is fused behind it."""
    candidates = [node.name, *node.outputs]
    tensor = node.output
    for _ in range(4):  # bias, activation, quantizer: names of whatever was fused behind
        candidates += [f"{tensor}_QuantizeLinear", f"{tensor}_quantized", f"{tensor}_dequantized"]
        reader = graph.sole_consumer(tensor)
        if reader is None or len(reader.inputs) != 1 or reader.op in LINEAR_OPS:
            break
        candidates += [reader.name, reader.output]
        tensor = reader.output
    return next((by_name[name] for name in candidates if name in by_name), None)


def layer_times(
    graph: Graph, layers: Iterable[str], profiles: Sequence[Sequence[LayerRun]]
) -> dict[str, float]:
    """Median milliseconds of layers with what is fused into them, where the engine gives a time.

    Args:
        graph: view of the model that was run.
        layers: names of its nodes.
        profiles: the engine's accounts of one or more runs.
    """
    times: dict[str, list[float]] = {}
    names = tuple(layers)
    for runs in profiles:
        by_name = {name: run for run in runs for name in run.nodes}
        for layer in names:
            run = run_of(graph, graph.by_name[layer], by_name)
            if run is not None and run.time_ms is not None:
                times.setdefault(layer, []).append(run.time_ms)
    return {layer: float(np.median(found)) for layer, found in times.items()}


def _reason(run: LayerRun | None, engine: EngineName) -> str:
    if run is None:
        return f"{engine} merged it into another layer that is not INT8"
    return f"{engine} chose kernel {run.kernel} in {run.precision}"


@dataclass(frozen=True, slots=True)
class OutputAgreement:
    """Distance between the outputs of the quantized file on its engine and of the float model.

    Attributes:
        output: name of the output.
        cosine: mean over samples of the cosine similarity.
        sqnr_db: signal to quantization noise over all samples, decibel.
        top1: share of samples (or pixels) with the same arg max over axis 1; None where that has no meaning.
    """

    output: str
    cosine: float
    sqnr_db: float
    top1: float | None


def agreement(
    float_session: Session, int8_session: Session, feeds: Sequence[Feed]
) -> tuple[OutputAgreement, ...]:
    """Compare two sessions on the same inputs, output by output in order.

    Args:
        float_session: the reference.
        int8_session: the quantized file on its engine.
        feeds: inputs; at least one.
    """
    pairs = [(one.name, two.name) for one, two in zip(float_session.outputs, int8_session.outputs, strict=True)]
    compared = {name: _Compared() for name, _ in pairs}
    for feed in feeds:  # answers of large models are not held
        expected, got = float_session.run(feed), int8_session.run(feed)
        for name, other in pairs:
            compared[name].add(expected[name], got[other])
    return tuple(one.agreement(name) for name, one in compared.items())


class _Compared:
    """Sums over the answers of two models to the same batches."""

    def __init__(self) -> None:
        self.cosines: list[np.ndarray] = []
        self.same: list[float] = []
        self.signal = self.noise = 0.0

    def add(self, expected: np.ndarray, got: np.ndarray) -> None:
        """Take in one batch."""
        e, g = (array.reshape(len(array), -1).astype(np.float64) for array in (expected, got))
        norms = np.linalg.norm(e, axis=1) * np.linalg.norm(g, axis=1)
        dots = np.einsum("ij,ij->i", e, g)
        self.cosines.append(np.where(norms > 0, dots / np.maximum(norms, 1e-30), 1.0))
        self.signal += float(np.square(e).sum())
        self.noise += float(np.square(e - g).sum())
        if expected.ndim > 1 and expected.shape[1] > 1 and np.issubdtype(expected.dtype, np.floating):
            self.same.append(float(np.mean(expected.argmax(axis=1) == got.argmax(axis=1))))

    def agreement(self, output: str) -> OutputAgreement:
        """What the sums say."""
        sizes = [len(batch) for batch in self.cosines]
        return OutputAgreement(
            output=output,
            cosine=float(np.concatenate(self.cosines).mean()),
            sqnr_db=sqnr_db(self.signal, self.noise),
            top1=float(np.average(self.same, weights=sizes)) if self.same else None,
        )


def sqnr_db(signal: float, noise: float) -> float:
    """10 log10(signal / noise), limited to 200 so that it can be written as JSON."""
    return float(min(200.0, 10 * np.log10(max(signal, 1e-30) / max(noise, 1e-30))))


@dataclass(frozen=True, slots=True)
class Race:
    """FP32, BF16 and INT8 latencies of one interleaved run, milliseconds; None where not measured."""

    fp32: Latency
    bf16: Latency | None
    int8: Latency

    @property
    def speedup(self) -> float:
        """Median FP32 time over median INT8 time."""
        return self.fp32.median / self.int8.median

    @property
    def fastest(self) -> str:
        """The one with the smallest median: "int8", "bf16" or "fp32"."""
        named = {"fp32": self.fp32, "bf16": self.bf16, "int8": self.int8}
        return min((k for k, v in named.items() if v is not None), key=lambda k: named[k].median)  # type: ignore[union-attr]


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
    """Time the float model, its BF16 mode and the INT8 file in turns on one engine.

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
    sessions = [open_session(float_path, engine, threads=threads)]
    if bf16 and engine == "openvino":
        sessions.append(open_session(float_path, engine, threads=threads, precision="bf16"))
    sessions.append(open_session(int8_path, engine, threads=threads))
    times = interleaved([(session, dict(feed)) for session in sessions], warmup=warmup, repeat=repeat)
    return Race(
        fp32=latency(times[0]),
        bf16=latency(times[1]) if len(sessions) == 3 else None,
        int8=latency(times[-1]),
    )


def headline(verdict: Verdict, times: Race) -> str:
    """One sentence for people, the bad news first."""
    name = NAMES[verdict.engine]
    share = f"{verdict.int8_mac_share:.1%} of the MACs in INT8"
    if times.fastest == "int8":
        return f"INT8 is {times.speedup:.2f}x as fast as FP32 on {name}, {share}."
    best = {"fp32": times.fp32, "bf16": times.bf16}[times.fastest]
    assert best is not None
    return (
        f"INT8 does not pay on {name} here: {times.fastest.upper()} is fastest with {best.median:.2f} ms, INT8 "
        f"takes {times.int8.median:.2f} ms ({share}). Deploy {times.fastest.upper()}."
    )
