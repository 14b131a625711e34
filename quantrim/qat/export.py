"""From a trained module to the INT8 file that computes the same.

torch exports the module in float, with a mark (an identity of our own domain) where each quantizer stands
and before each layer with a quantized weight. The graph is normalised as for PTQ, which folds BatchNorm
and keeps the marks; then the marks are read off and taken out, and what they said becomes the plan for the
writer. A weight's codes are those of the training; the factor that folding has put on each of its channels
goes to the scale, and its sign to the codes.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import onnx
import onnx_ir as ir
import onnxscript
import torch
from torch import Tensor, nn
from typing_extensions import override

from quantrim.errors import ConfigError, ModelError
from quantrim.export.qdq import WeightCodes, save_model, write_qdq
from quantrim.files import size_mb
from quantrim.graph import normalize
from quantrim.graph.from_onnx import CANONICAL
from quantrim.placement import Plan, WeightQuantizer
from quantrim.qat.agreement import Agreement, agreement
from quantrim.qat.bank import Bank, Visitor, key_of, prepared_weight
from quantrim.qat.bias import finer_factor
from quantrim.qat.config import EXPORTED_BITS
from quantrim.qat.layout import Read, Site, WeightUse, Write
from quantrim.ranges import ActivationScale, widen_for_bias
from quantrim.runtime import first_line

if TYPE_CHECKING:
    from quantrim.qat.qat import QAT

DOMAIN = "quantrim"
#: Largest relative L2 distance of a float output, given equal codes before it.
OUTPUT_TOLERANCE = 1e-3
#: Largest residual of "exported weight = factor of the channel * trained weight".
_FOLD_TOLERANCE = 1e-4
_LINEAR_NODES = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclass(frozen=True, slots=True)
class ExportResult:
    """What was written.

    Attributes:
        path: the file.
        size_mb: its size, 10^6 bytes.
        plan: where quantizers stand in the file.
        agreement: comparison with the module, layer by layer, on the example.
        tensors: tensor of the file → tensor of the trace, for each quantized one.
        float_model: the same graph in float, with the trained weights.
    """

    path: Path
    size_mb: float
    plan: Plan
    agreement: Agreement
    tensors: Mapping[str, str]
    float_model: ir.Model = field(repr=False)


@dataclass(frozen=True, slots=True)
class TrainedWeight:
    """A weight as trained.

    Attributes:
        raw: float32 weight of the module, before its preprocess module.
        codes: int8, same shape.
        scales: float32[channels], or [1] per tensor.
        axis: output-channel dimension.
    """

    raw: np.ndarray
    codes: np.ndarray
    scales: np.ndarray
    axis: int


@torch.library.custom_op(f"{DOMAIN}::mark", mutates_args=())
def mark(x: Tensor, key: str) -> Tensor:
    """Identity that survives export; ``key`` says what stands here."""
    return x.clone()


@mark.register_fake
def _(x: Tensor, key: str) -> Tensor:
    return torch.empty_like(x)


def _mark_op() -> onnxscript.values.Op:
    schema = onnx.defs.OpSchema(
        "Mark",
        DOMAIN,
        1,
        type_constraints=[("T", ["tensor(float)"], "")],
        inputs=[onnx.defs.OpSchema.FormalParameter("x", "T")],
        outputs=[onnx.defs.OpSchema.FormalParameter("y", "T")],
        attributes=[onnx.defs.OpSchema.Attribute("key", onnx.defs.OpSchema.AttrType.STRING, "", required=True)],
    )
    return onnxscript.values.Op(onnxscript.values.Opset(DOMAIN, 1), "Mark", schema)


class Mark(Visitor):
    """Visitor that leaves the module in float and marks where quantizers stand."""

    @override
    def read(self, x: Tensor, read: Read, site: Site) -> Tensor:
        return mark(x, _key("tensor", read.group, read.tensor))

    @override
    def write(self, x: Tensor, write: Write, site: Site) -> Tensor:
        return mark(x, _key("tensor", write.group, write.tensor))

    @override
    def source(self, x: Tensor, site: Site) -> Tensor:
        assert site.weight is not None
        return mark(x, _key("site", site.weight.group, site.name))


def _key(kind: Literal["tensor", "site"], group: str, name: str) -> str:
    """What a mark says: where it stands, the quantizer of the tensor, and the tensor's or call's name."""
    return "\n".join((kind, group, name))


class TakeWeights(Visitor):
    """Visitor that takes the codes of every weight in an ordinary run."""

    def __init__(self, bank: Bank) -> None:
        self.bank = bank
        self.weights: dict[str, TrainedWeight] = {}

    @override
    def weight(self, weight: Tensor, use: WeightUse, site: Site) -> Tensor:
        quantizer = self.bank.weights[key_of(use.key)]
        prepared = prepared_weight(self.bank, weight, use)
        if not hasattr(quantizer, "scale"):
            raise ModelError(
                f"the weight quantizer {type(quantizer).__name__} has no method scale(weight); "
                "it can train but not be exported."
            )
        scale: Tensor = quantizer.scale(prepared)  # type: ignore[operator]
        largest = getattr(quantizer, "largest", 127)
        finer = finer_factor(largest)
        codes = torch.div(prepared, scale).round_().clamp_(-largest, largest) * finer
        self.weights[site.name] = TrainedWeight(
            raw=weight.detach().float().cpu().numpy().copy(),
            codes=codes.to(torch.int8).cpu().numpy(),
            scales=scale.detach().float().cpu().numpy().reshape(-1) / finer,
            axis=use.axis,
        )
        return weight


def export_int8(
    qat: QAT,
    path: str | Path,
    example: tuple[tuple[Any, ...], dict[str, Any]],
    *,
    dynamic_batch: bool,
    opset: int,
    inputs: Sequence[str] | None,
    outputs: Sequence[str] | None,
) -> ExportResult:
    """See :meth:`quantrim.qat.QAT.export`."""
    if qat.config.activation_bits != EXPORTED_BITS:
        raise ConfigError(
            f"activation_bits is {qat.config.activation_bits}; narrower activations exist in simulation only. "
            "Train with activation_bits=8 to export."
        )
    args, kwargs = example
    taken = TakeWeights(qat.bank)
    with qat.evaluating(taken):
        count = len(_flatten(qat.module(*args, **kwargs)))
    names = outputs or [_numbered("output", index) for index in range(count)]
    with qat.evaluating(Mark()):
        marked = _exported(qat.module, args, kwargs, dynamic_batch, opset, inputs, names)
    model = normalize(_before_padding(marked))
    found = read_marks(model)
    scales = activation_scales(qat, found)
    weights = {
        name: folded_weight(model, name, taken.weights.get(site), scales) for site, name in found.sites.items()
    }
    plan = _plan(qat, model, found)
    quantized = write_qdq(model, plan, scales, weights, int32_bias=qat.target.bias == "int32")
    quantized.opset_imports.pop(DOMAIN, None)
    compared = agreement(qat, quantized, found.tensors, args, kwargs)
    _require_agreement(compared, path)
    save_model(quantized, path)
    model.opset_imports.pop(DOMAIN, None)
    return ExportResult(Path(path), size_mb(path), plan, compared, found.tensors, model)


def _require_agreement(compared: Agreement, path: str | Path) -> None:
    if compared.beyond_edge:
        raise ModelError(
            f"{path}: {compared.beyond_edge} of {compared.codes} codes differ from the trained module, most of "
            f"them in {compared.worst_tensor!r}. Please report the model and its torch version."
        )
    if not compared.output_difference <= OUTPUT_TOLERANCE:
        raise ModelError(
            f"{path}: an output differs from the trained module by {compared.output_difference:.1e} (relative "
            "L2). Please report the model and its torch version."
        )


def _exported(
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    dynamic_batch: bool,
    opset: int,
    inputs: Sequence[str] | None,
    outputs: Sequence[str],
) -> ir.Model:
    """Float ONNX model with marks."""
    mark_op = _mark_op()
    wrapped = _Wrapped(module, list(kwargs)).eval()
    values = tuple(v.detach().cpu() if isinstance(v, Tensor) else v for v in (*args, *kwargs.values()))
    batch = torch.export.Dim("batch") if dynamic_batch else None
    if dynamic_batch:  # a batch of one would be taken for a constant
        values = tuple(torch.cat([v, v]) if isinstance(v, Tensor) and len(v) == 1 else v for v in values)
    try:
        with warnings.catch_warnings(), _on_cpu(module):
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                wrapped,
                values,
                dynamo=True,
                dynamic_shapes=(tuple({0: batch} for _ in values),) if dynamic_batch else None,
                opset_version=opset,
                input_names=list(inputs or [_numbered("input", i) for i in range(len(values))]),
                output_names=list(outputs),
                custom_translation_table={torch.ops.quantrim.mark.default: lambda x, key: mark_op(x, key=key)},
                verbose=False,
            )
    except Exception as error:  # torch.export raises a dozen types
        raise ModelError(
            f"{type(module).__name__} can't be exported to ONNX: {_deepest(error)} Control flow that depends "
            "on tensor values must become torch.cond or torch.where, or be moved out of the module."
        ) from error
    assert program is not None
    return program.model


class _Wrapped(nn.Module):
    """Calls the module through ``__call__``, so that its hooks run, with all arguments by position."""

    def __init__(self, module: nn.Module, keywords: Sequence[str]) -> None:
        super().__init__()
        self.module, self.keywords = module, keywords

    def forward(self, *values: Any) -> Any:
        count = len(values) - len(self.keywords)
        return self.module(*values[:count], **dict(zip(self.keywords, values[count:], strict=True)))


@contextmanager
def _on_cpu(module: nn.Module) -> Iterator[None]:
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    module.cpu()
    try:
        yield
    finally:
        module.to(device)


def _numbered(name: str, index: int) -> str:
    return name if index == 0 else f"{name}_{index}"


def _deepest(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    text = first_line(error)
    return text if text.endswith(".") else text + "."


def _flatten(outputs: Any) -> list[Tensor]:
    leaves, _ = torch.utils._pytree.tree_flatten(outputs)
    return [leaf.detach().cpu() for leaf in leaves if isinstance(leaf, Tensor)]


def _before_padding(model: ir.Model) -> ir.Model:
    """Move marks that stand behind a zero padding before it, so that normalising fuses the padding."""
    for node in list(model.graph):
        source = node.inputs[0].producer() if _is_mark(node) and node.inputs[0] is not None else None
        if source is None or source.op_type != "Pad" or len(list(source.outputs[0].uses())) != 1:
            continue
        ir.convenience.replace_all_uses_with(node.outputs[0], source.outputs[0])
        node.replace_input_with(0, source.inputs[0])
        source.replace_input_with(0, node.outputs[0])
        node.outputs[0].shape = node.inputs[0].shape if node.inputs[0] is not None else None
    model.graph.sort()
    return model


def _is_mark(node: ir.Node) -> bool:
    return node.domain == DOMAIN and node.op_type == "Mark"


@dataclass(frozen=True, slots=True)
class Marks:
    """What the marks of a model said.

    Attributes:
        groups: quantized tensor of the file → key of its quantizer.
        tensors: quantized tensor of the file → tensor of the trace.
        reads: (node, tensor) pairs that read a quantized tensor.
        outputs: outputs of the file that are returned quantized.
        sites: call → node of the file.
    """

    groups: dict[str, str] = field(default_factory=dict)
    tensors: dict[str, str] = field(default_factory=dict)
    reads: set[tuple[str, str]] = field(default_factory=set)
    outputs: set[str] = field(default_factory=set)
    sites: dict[str, str] = field(default_factory=dict)


def read_marks(model: ir.Model) -> Marks:
    """Read the marks of a normalised model off and take them out of it."""
    found = Marks()
    marks = [node for node in model.graph if _is_mark(node)]
    keyed = [(node, node.attributes["key"].as_string().split("\n")) for node in marks]
    layers: dict[str, str] = {}
    for node, (kind, group, name) in keyed:
        if kind == "site":
            found.sites[name] = _linear_reader(node, name)
            layers[found.sites[name]] = group
            _drop(model, node)
    for node, (kind, group, name) in keyed:
        if kind == "tensor":
            _read_tensor_mark(model, node, group, name, found)
    for node in model.graph:
        if str(node.name) in layers:  # where codes were only moved, no mark stands before the layer
            found.groups.setdefault(str(_source(node).name), layers[str(node.name)])
    return found


def _linear_reader(node: ir.Node, site: str) -> str:
    """Name of the layer behind a mark; a padding that could not be fused may stand between."""
    readers = [reader for reader, _ in node.outputs[0].uses()]
    while len(readers) == 1 and readers[0].op_type in ("Pad", "Mark"):
        readers = [reader for reader, _ in readers[0].outputs[0].uses()]
    layers = [reader for reader in readers if reader.op_type in _LINEAR_NODES]
    if len(layers) != 1:
        kinds = ", ".join(reader.op_type for reader in readers) or "nothing"
        raise ModelError(
            f"layer {site!r} became {kinds} in the exported graph, which quantrim can't follow. "
            f"Keep it in float: skip={site!r}."
        )
    return str(layers[0].name)


def _read_tensor_mark(model: ir.Model, node: ir.Node, group: str, tensor: str, found: Marks) -> None:
    value, marked = node.inputs[0], node.outputs[0]
    assert value is not None
    readers = [str(reader.name) for reader, _ in marked.uses() if not _is_mark(reader)]
    returned = marked.is_graph_output()
    _drop(model, node)
    name = str(value.name)
    found.groups.setdefault(name, group)
    found.tensors.setdefault(name, tensor)
    found.reads.update((reader, name) for reader in readers)
    if returned:
        found.outputs.add(name)


def _drop(model: ir.Model, node: ir.Node) -> None:
    """Let the readers of a mark read what it reads; an output of the graph keeps its name."""
    value, marked = node.inputs[0], node.outputs[0]
    assert value is not None
    if marked.is_graph_output():
        name = marked.name
        for position, output in enumerate(model.graph.outputs):
            if output is marked:
                model.graph.outputs[position] = value
        marked.name = f"{name}_marked"
        value.name, value.shape, value.type = name, marked.shape, marked.type
    ir.convenience.replace_all_uses_with(marked, value)
    model.graph.remove(node, safe=True)


def activation_scales(qat: QAT, found: Marks) -> dict[str, ActivationScale]:
    """Scale of every quantized tensor of the file."""
    scales = {}
    for tensor, group in found.groups.items():
        quantizer = qat.bank.quantizer(group)
        if not hasattr(quantizer, "qparams"):
            raise ModelError(
                f"the activation quantizer {type(quantizer).__name__} has no method qparams(); "
                "it can train but not be exported."
            )
        scale, zero_point = quantizer.qparams()  # type: ignore[operator]
        signed = qat.bank.layout.codes[group].low < 0
        scales[tensor] = ActivationScale(float(scale), int(zero_point), signed)
    return scales


def folded_weight(
    model: ir.Model, name: str, weight: TrainedWeight | None, scales: Mapping[str, ActivationScale]
) -> WeightCodes:
    """Codes of a weight with the factor of each channel, as the file's own float weight shows it.

    Args:
        model: normalised float model.
        name: node of the layer.
        weight: the weight as trained; None for a BatchNorm that became a depthwise 1x1 convolution.
        scales: scale of every quantized tensor of the file.

    Raises:
        ModelError: the file's weight is not the trained one times a factor of each channel.
    """
    node = next(n for n in model.graph if n.name == name)
    exported = _constant(node, 1)
    assert exported is not None
    weight = weight or unit_weight(exported)
    axis = weight.axis
    rows, codes = _rows(weight.raw, axis), _rows(weight.codes, axis)
    if node.op_type in ("Gemm", "MatMul"):
        kept = node.op_type == "Gemm" and bool(node.attributes.get_int("transB", 0))
        file_axis = 0 if kept else 1
    else:
        file_axis = axis
    target = _rows(exported, file_axis)
    if target.shape != rows.shape:
        raise ModelError(f"layer {name!r}: weight {exported.shape} in the file, {weight.raw.shape} trained.")
    factors = _factors(rows, target, name)
    trained = np.broadcast_to(weight.scales, factors.shape)
    folded = np.maximum(np.abs(factors) * trained, np.finfo(np.float32).tiny * 2**24).astype(np.float32)
    signed = codes * np.where(factors < 0, -1, 1).astype(np.int8)[:, None]
    signed[factors == 0] = 0
    bias = _constant(node, 2)
    source = scales[str(_source(node).name)].scale
    wide = widen_for_bias(folded, source, bias)
    coarse = wide > folded * (1 + 1e-5)
    signed[coarse] = np.rint(signed[coarse] * (folded / wide)[coarse, None])
    shape = np.moveaxis(exported, file_axis, 0).shape
    result = np.moveaxis(signed.reshape(shape), 0, file_axis).astype(np.int8)
    return WeightCodes(np.ascontiguousarray(result), np.where(coarse, wide, folded), file_axis)


def unit_weight(exported: np.ndarray) -> TrainedWeight:
    """Weight of ones: code 127 in every channel, whose factor is the whole weight."""
    channels = exported.shape[0]
    ones = np.ones((channels, 1, 1, 1), np.float32)
    return TrainedWeight(ones, np.full(ones.shape, 127, np.int8), np.full(channels, 1 / 127, np.float32), 0)


def _rows(weight: np.ndarray, axis: int) -> np.ndarray:
    return np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1)


def _factors(rows: np.ndarray, target: np.ndarray, name: str) -> np.ndarray:
    """float64[channels]: target = factor * rows, by least squares; 1 for a channel of zeros."""
    rows, target = rows.astype(np.float64), target.astype(np.float64)
    energy = np.square(rows).sum(axis=1)
    factors = np.where(energy > 0, (rows * target).sum(axis=1) / np.maximum(energy, 1e-300), 1.0)
    residual = float(np.linalg.norm(target - factors[:, None] * rows))
    if residual > _FOLD_TOLERANCE * max(float(np.linalg.norm(target)), 1e-30):
        raise ModelError(
            f"layer {name!r}: the exported weight is not the trained one times a factor of each channel. "
            "Skip this layer, and please report the model."
        )
    return factors


def _constant(node: ir.Node, position: int) -> np.ndarray | None:
    value = node.inputs[position] if len(node.inputs) > position else None
    if value is None or value.const_value is None:
        return None
    return value.const_value.numpy()


def _source(node: ir.Node) -> ir.Value:
    """Quantized tensor that a layer multiplies, before a padding."""
    value = node.inputs[0]
    assert value is not None
    return value


def _plan(qat: QAT, model: ir.Model, found: Marks) -> Plan:
    nodes = {str(node.name): node for node in model.graph}
    leaders: dict[str, str] = {}
    for tensor, group in found.groups.items():
        leaders.setdefault(group, tensor)
    weights = {}
    for name in found.sites.values():
        node = nodes[name]
        constant, bias = node.inputs[1], node.inputs[2] if len(node.inputs) > 2 else None
        source = str(_source(node).name)
        assert constant is not None
        weights[name] = WeightQuantizer(name, str(constant.name), 0, str(bias.name) if bias else None, source)
    runs = qat.target.runs_int8
    readers = {name for name, _ in found.reads if CANONICAL.get(nodes[name].op_type) in runs}
    return Plan(
        target=qat.target.name,
        activation=qat.target.activation,
        int8_nodes=frozenset(readers | set(weights)),
        groups={tensor: leaders[group] for tensor, group in found.groups.items()},
        reads=frozenset(found.reads),
        outputs=frozenset(found.outputs),
        weights=weights,
        float_nodes=qat.plan.float_nodes,
    )
