"""Marks: how the exported graph tells which of its tensors and layers are which of the traced module's.

A mark is an identity of our own domain that survives export and normalising. One stands on every tensor with
a quantizer and before every layer with a quantized weight; once read, they are taken out again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import onnx
import onnx_ir as ir
import onnxscript
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten
from typing_extensions import override

from quantrim.errors import ModelError
from quantrim.graph.from_torch import exported
from quantrim.qat.interceptor import QuantizerSet, Visitor, prepared_activation
from quantrim.qat.plan import CallSite, Read, Write

DOMAIN = "quantrim"
_LINEAR_NODES = ("Conv", "ConvTranspose", "Gemm", "MatMul")


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
    """Visitor that leaves the module in float and marks where quantizers stand.

    Modules of the user's that prepare an activation for its quantizer are part of what is exported.
    """

    def __init__(self, quantizers: QuantizerSet) -> None:
        self.quantizers = quantizers

    @override
    def read(self, x: Tensor, read: Read, site: CallSite) -> Tensor:
        prepared = prepared_activation(self.quantizers, x, read.group)
        return mark(prepared, _key("tensor", read.group, read.tensor))

    @override
    def write(self, x: Tensor, write: Write, site: CallSite) -> Tensor:
        prepared = prepared_activation(self.quantizers, x, write.group)
        return mark(prepared, _key("tensor", write.group, write.tensor))

    @override
    def source(self, x: Tensor, site: CallSite) -> Tensor:
        assert site.weight is not None
        return mark(x, _key("site", site.weight.group, site.name))


def _key(kind: Literal["tensor", "site"], group: str, name: str) -> str:
    """What a mark says: where it stands, the quantizer of the tensor, and the tensor's or call's name."""
    return "\n".join((kind, group, name))


def marked_model(
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
    wrapped = _Wrapped(module, args, kwargs).eval()
    values = tuple(v.detach().cpu() for v in tensors_of(args, kwargs))
    batched = [dynamic_batch and v.dim() > 0 and len(v) == len(values[0]) for v in values]
    batch = torch.export.Dim("batch")
    shapes = tuple({0: batch} if open_ else None for open_ in batched)
    if any(batched) and len(values[0]) == 1:  # a batch of one would be taken for a constant
        values = tuple(torch.cat([v, v]) if open_ else v for v, open_ in zip(values, batched, strict=True))
    with _on_cpu(module):
        return exported(
            wrapped,
            values,
            (shapes,) if any(batched) else None,
            opset=opset,
            input_names=inputs,
            output_names=outputs,
            translations={torch.ops.quantrim.mark.default: lambda x, key: mark_op(x, key=key)},
            of=module,
        )


def tensors_of(args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Tensor]:
    """Tensors among the arguments of a forward, nested ones too: the inputs of its file, in order."""
    return [leaf for leaf in tree_leaves((tuple(args), dict(kwargs))) if isinstance(leaf, Tensor)]


class _Wrapped(nn.Module):
    """Calls the module through ``__call__``, so that its hooks run, with its tensors by position.

    Whatever else is among the example's arguments (None, flags, numbers) is a constant of the file.
    """

    def __init__(self, module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        super().__init__()
        self.module = module
        leaves, self.structure = tree_flatten((tuple(args), dict(kwargs)))
        self.constants = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        self.places = [place for place, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]

    def forward(self, *values: Tensor) -> Any:
        leaves = list(self.constants)
        for place, value in zip(self.places, values, strict=True):
            leaves[place] = value
        args, kwargs = tree_unflatten(leaves, self.structure)
        return self.module(*args, **kwargs)


@contextmanager
def _on_cpu(module: nn.Module) -> Iterator[None]:
    """On the CPU and in the plain layout; channels-last weights would be exported with layout conversions."""
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    channels_last = any(
        p.dim() == 4 and not p.is_contiguous() and p.is_contiguous(memory_format=torch.channels_last)
        for p in module.parameters()
    )
    module.cpu().to(memory_format=torch.contiguous_format)
    try:
        yield
    finally:
        module.to(device)
        if channels_last:
            module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def marks_before_padding(model: ir.Model) -> ir.Model:
    """Move marks that stand behind a zero padding before it, so that normalising fuses the padding."""
    for node in list(model.graph):
        source = node.inputs[0].producer() if _is_mark(node) and node.inputs[0] is not None else None
        if source is None or not _pads_zeros(source) or len(list(source.outputs[0].uses())) != 1:
            continue
        ir.convenience.replace_all_uses_with(node.outputs[0], source.outputs[0])
        node.replace_input_with(0, source.inputs[0])
        source.replace_input_with(0, node.outputs[0])
        node.outputs[0].shape = node.inputs[0].shape if node.inputs[0] is not None else None
    model.graph.sort()
    return model


def _pads_zeros(node: ir.Node) -> bool:
    """Whether a node pads with zeros, which every quantizer holds exactly."""
    if node.op_type != "Pad" or node.attributes.get_string("mode", "constant") != "constant":
        return False
    value = node.inputs[2] if len(node.inputs) > 2 else None
    constant = None if value is None else ir.convenience.get_const_tensor(value, propagate_shape_type=False)
    return value is None or (constant is not None and not constant.numpy().any())


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
            found.groups.setdefault(str(multiplied(node).name), layers[str(node.name)])
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


def multiplied(node: ir.Node) -> ir.Value:
    """Quantized tensor that a layer multiplies, before a padding."""
    value = node.inputs[0]
    assert value is not None
    return value
