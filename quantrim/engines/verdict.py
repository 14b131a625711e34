"""What the engine really did: which layers ran INT8, and how much of the work they are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from quantrim.engines import EngineName, LayerRun
from quantrim.graph.ops import LINEAR_OPS, PRODUCT_OPS
from quantrim.graph.view import Graph, Node, macs

#: Engines as people write them.
NAMES: dict[str, str] = {"openvino": "OpenVINO", "onnxruntime": "ONNX Runtime", "tensorrt": "TensorRT"}


#: Ops that multiply and accumulate; operands of the latter may both be activations, as in attention.
_PRODUCTS = PRODUCT_OPS | {"einsum"}


@dataclass(frozen=True, slots=True)
class Fallback:
    """A product that did not run in INT8.

    Attributes:
        node: its name in the float model.
        op: the file's op type.
        reason: why, as far as plan and engine tell.
        mac_share: its share of the model's multiply-accumulates.
        module: path of its module in the code that the model came from, where the file tells.
    """

    node: str
    op: str
    reason: str
    mac_share: float
    module: str = ""


@dataclass(frozen=True, slots=True)
class OpShare:
    """Work of one kind of product.

    Attributes:
        op: the file's op type; "MatMul of activations" where no operand is a weight, as in attention.
        mac_share: share of the model's multiply-accumulates.
        int8_share: share of these that ran in INT8.
    """

    op: str
    mac_share: float
    int8_share: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """How an engine executed a quantized file.

    Attributes:
        engine: engine name.
        int8_mac_share: share of all multiply-accumulates that ran in INT8, 0..1; products of two activations
            count, too.
        fallbacks: products that ran in float, most work first.
        conversions: layers that only convert types or layouts (Reorder, QuantizeLinear, ...).
        int8_layers: layers of any kind that ran in INT8.
        layers: layers the engine executed.
        ops: the work of each kind of product, most work first.
    """

    engine: EngineName
    int8_mac_share: float
    fallbacks: tuple[Fallback, ...]
    conversions: int
    int8_layers: int
    layers: int
    ops: tuple[OpShare, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain values by the keys of the documented JSON schema."""
        return asdict(self)


_CONVERSIONS = frozenset({"Reorder", "Convert", "QuantizeLinear", "DequantizeLinear", "ReorderInput",
                          "ReorderOutput", "FakeQuantize", "Cast"})  # fmt: skip


def judge(graph: Graph, runs: Sequence[LayerRun], engine: EngineName, planned: Mapping[str, str]) -> Verdict:
    """Compare what was meant with what an engine did.

    Args:
        graph: view of the model whose products are asked for (float, or the QDQ file's own).
        runs: the engine's account of one execution.
        engine: its name.
        planned: linear nodes meant to stay float → reason.
    """
    by_name = {name: run for run in runs for name in run.nodes}
    products = [n for n in graph.nodes if n.op in _PRODUCTS and "keep_float" not in n.attributes]
    work = {node.name: macs(graph, node) for node in products}
    total = sum(work.values()) or 1
    fallbacks: list[Fallback] = []
    ops: dict[str, tuple[int, int]] = {}
    for node in products:
        run = run_of(graph, node, by_name)
        kind = f"{node.kind} of activations" if _of_activations(graph, node) else node.kind
        done, seen = ops.get(kind, (0, 0))
        int8 = run is not None and run.precision == "int8"
        ops[kind] = done + int8 * work[node.name], seen + work[node.name]
        if not int8:
            reason = planned.get(node.name) or _reason(run, engine, of_activations=_of_activations(graph, node))
            fallbacks.append(Fallback(node.name, node.kind, reason, work[node.name] / total, node.module))
    fallbacks.sort(key=lambda fallback: -fallback.mac_share)
    return Verdict(
        engine=engine,
        int8_mac_share=1.0 - sum(fallback.mac_share for fallback in fallbacks),
        fallbacks=tuple(fallbacks),
        conversions=sum(run.kind in _CONVERSIONS for run in runs),
        int8_layers=sum(run.precision == "int8" and run.kind not in _CONVERSIONS for run in runs),
        layers=len(runs),
        ops=tuple(
            OpShare(op, seen / total, done / seen if seen else 0.0)
            for op, (done, seen) in sorted(ops.items(), key=lambda item: -item[1][1])
        ),
    )


def _of_activations(graph: Graph, node: Node) -> bool:
    """Whether no operand is a constant, stored as integers or not."""
    if node.weight is not None or len(node.inputs) < 2:
        return False
    makers = [graph.producer.get(tensor) for tensor in node.inputs[:2]]
    return all(maker is None or maker.inputs for maker in makers)


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


def layer_times(graph: Graph, layers: Iterable[str], profile: Sequence[LayerRun]) -> dict[str, float]:
    """Milliseconds of layers with what is fused into them, where the engine gives a time.

    Args:
        graph: view of the model that was run.
        layers: names of its nodes.
        profile: the engine's account.
    """
    by_name = {name: run for run in profile for name in run.nodes}
    found = {layer: run_of(graph, graph.by_name[layer], by_name) for layer in layers}
    return {layer: run.time_ms for layer, run in found.items() if run is not None and run.time_ms is not None}


def _reason(run: LayerRun | None, engine: EngineName, *, of_activations: bool) -> str:
    if of_activations:
        return "a product of two activations, for which no quantizer was placed"
    if run is None:
        return f"{engine} merged it into another layer that is not INT8"
    return f"{engine} chose kernel {run.kernel} in {run.precision}"
