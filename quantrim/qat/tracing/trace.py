"""One run of a module with example inputs, seen as a :class:`~quantrim.graph.view.Graph`.

The tracer is a ``TorchFunctionMode``: it sees every torch function that the module's own forward calls
and leaves the forward as it is. What the graph says differs from the bare list of calls in three ways,
so that placement sees what engines see:

1. a BatchNorm that alone reads the result of a linear op belongs to that op, as after folding;
2. dropout, ``contiguous`` and the like hand on their input;
3. zero padding that only convolutions read belongs to them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from quantrim.graph.folding import is_channelwise
from quantrim.graph.ops import LINEAR_OPS, PRODUCT_OPS
from quantrim.graph.view import Graph, Node, Weight
from quantrim.modules import transparent_modules, uncompiled
from quantrim.qat.tracing.attention import multi_head_attention
from quantrim.qat.tracing.dependence import Dependence
from quantrim.qat.tracing.functions import Function, canonical, clip_bounds, refined
from quantrim.qat.tracing.scope import Scope

#: Way to an argument: (2,) is the third positional one, (0, 1) the second of a list in the first place,
#: ("weight",) a keyword.
ArgumentPath = tuple[int | str, ...]


@dataclass(frozen=True, slots=True)
class TracedCall:
    """One call of a torch function.

    Attributes:
        site: name of the call, see :mod:`quantrim.qat.tracing.scope`.
        op: canonical op.
        kind: name of the torch function.
        path: path of the innermost module that was running.
        inputs: (slot, tensor name) of every activation read.
        outputs: names of the tensors made.
        weight: constant operand of a linear op.
        weight_slot: way to it; () where no argument is the weight (a BatchNorm that is a convolution).
        bias: name of the constant bias.
        bias_slot: way to it; () without one.
        norm: site of the BatchNorm that belongs to this linear op, or of the addition of one written out.
        factor: site of the multiplication of a BatchNorm that is written out.
        inexact: folding that BatchNorm would tear the groups' common scales apart.
        attributes: see :class:`~quantrim.graph.view.Node`.
    """

    site: str
    op: str
    kind: str
    path: str
    inputs: tuple[tuple[ArgumentPath, str], ...]
    outputs: tuple[str, ...]
    weight: Weight | None = None
    weight_slot: ArgumentPath = ()
    bias: str | None = None
    bias_slot: ArgumentPath = ()
    norm: str | None = None
    factor: str | None = None
    inexact: bool = False
    attributes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Trace:
    """What one run showed.

    Attributes:
        graph: the graph view; node names are sites.
        calls: calls by site, BatchNorms and paddings that belong to others included.
        maker: tensor → site whose result it is (the BatchNorm's for a folded one).
        frames: module path → frame names under which it ran.
        overwritten: tensors that somebody still reads through the object an in-place op has changed.
        consumed: tensors whose memory an in-place op takes over → that call; "" when it leaves no trace.
        shapes: first output's shape by site.
        constant: sites of layers that read constants alone.
        opaque: path → why it stays float, of submodules whose calls can't be seen.
    """

    graph: Graph
    calls: Mapping[str, TracedCall]
    maker: Mapping[str, str]
    frames: Mapping[str, frozenset[str]]
    overwritten: frozenset[str]
    consumed: Mapping[str, str]
    shapes: Mapping[str, tuple[int, ...]]
    constant: frozenset[str] = frozenset()
    opaque: Mapping[str, str] = field(default_factory=dict)


def trace(module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any] | None = None) -> Trace:
    """Run a module once, without gradients, in the mode (train or eval) that it is in.

    Args:
        module: the model; parameters and buffers are as before afterwards.
        args: positional example inputs.
        kwargs: keyword example inputs.
    """
    kwargs = dict(kwargs or {})
    tracer = Tracer(module)
    handles = list(_watch(module, tracer))
    buffers = {name: buffer.detach().clone() for name, buffer in module.named_buffers()}
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            inputs = tracer.feed((*args, *kwargs.values()))
            with Dependence(args, kwargs) as tracer.dependence, tracer:
                outputs = uncompiled(module)(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
        with torch.no_grad():
            for name, buffer in module.named_buffers():
                buffer.copy_(buffers[name])
    return tracer.finish(inputs, outputs)


def _inside_of(path: str, module: nn.Module) -> bool:
    """Whether a module above the path is torch.jit's, too."""
    parts = path.split(".")
    above = (".".join(parts[:count]) for count in range(bool(path), len(parts)))
    return any(isinstance(module.get_submodule(name), torch.jit.ScriptModule) for name in above if name != path)


def _watch(module: nn.Module, tracer: Tracer) -> Iterator[torch.utils.hooks.RemovableHandle]:
    for path, inner in transparent_modules(module):
        yield inner.register_forward_pre_hook(lambda *_, path=path: tracer.enter(path))  # type: ignore[misc]
        yield inner.register_forward_hook(lambda *_: tracer.scope.leave(), always_call=True)


class Tracer(TorchFunctionMode):
    """Records the calls of one run. Tensors are kept alive until the end, so that their ids stay theirs.

    What comes out of something that no function mode sees (torch.jit, an autograd.Function, a write into a
    buffer) is a tensor without a name that depends on the input; it counts as one more input of the graph.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.scope = Scope()
        self.names: dict[int, tuple[Tensor, str]] = {}
        self.constants = {id(p): name for name, p in module.named_parameters()}
        self.constants |= {id(b): name for name, b in module.named_buffers()}
        self.calls: list[TracedCall] = []
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.frames: dict[str, set[str]] = {}
        self.stale: dict[int, tuple[Tensor, str]] = {}
        self.overwritten: set[str] = set()
        self.consumed: dict[str, str] = {}
        self.constant_layers: set[str] = set()
        self.unseen: list[str] = []
        self.dependence: Dependence | None = None
        self.opaque = {
            path: "torch.jit hides its calls"
            for path, inner in module.named_modules()
            if isinstance(inner, torch.jit.ScriptModule) and not _inside_of(path, module)
        }

    def enter(self, path: str) -> None:
        """A module call starts."""
        frame = self.scope.enter(path)
        self.frames.setdefault(path, set()).add(frame.name)

    def feed(self, values: Sequence[Any]) -> tuple[str, ...]:
        """Name the floating tensors among the inputs: "input", "input_1", ..."""
        names: list[str] = []
        for value in _tensors(values):
            names.append(f"input_{len(names)}" if names else "input")
            self._name(value, names[-1])
        return tuple(names)

    def __torch_function__(
        self, function: Function, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if function is F.multi_head_attention_forward:
            with self:
                return multi_head_attention(*args, **kwargs)
        op = canonical(function)
        site = None if op is None else self.scope.site(op)
        if site is not None:
            self._name_unseen(site, (args, kwargs))
        changed = {id(t): self.names.get(id(t)) for t in _tensors((args, kwargs))}
        inputs = tuple(self._inputs(args, kwargs))
        output = function(*args, **kwargs)
        if not inputs and op in PRODUCT_OPS and site is not None:
            self.constant_layers.add(site)
        if not inputs or not any(True for _ in _tensors(output)):
            return output
        if op is None:  # x.T, x.data: attributes that are tensors
            return self._attribute(function, inputs, output)
        assert site is not None
        if op == "alias" and isinstance(output, Tensor):
            if kwargs.get("inplace"):
                self.consumed[inputs[0][1]] = ""
            self._name(output, inputs[0][1])
            return output
        self._record(site, op, function, args, kwargs, inputs, output)
        before = changed.get(id(output)) if isinstance(output, Tensor) else None
        if before is not None:
            self.consumed[before[1]] = site
            return self._changed_in_place(output)
        return output

    def _name_unseen(self, site: str, values: Any) -> None:
        """Name the tensors that depend on the input though no call that was seen has made them."""
        for tensor in _tensors(values):
            if id(tensor) not in self.names and self.dependence is not None and tensor in self.dependence:
                self.unseen.append(f"{site}.unseen{f'_{len(self.unseen)}' if self.unseen else ''}")
                self._name(tensor, self.unseen[-1])

    def _inputs(self, args: Any, kwargs: Mapping[str, Any]) -> Iterator[tuple[ArgumentPath, str]]:
        for slot, value in _slots(args, kwargs):
            known = self.names.get(id(value))
            if known is None:
                continue
            if id(value) in self.stale:
                self.overwritten.add(known[1])
            yield slot, known[1]

    def _attribute(self, function: Function, inputs: Any, output: Any) -> Any:
        name = getattr(getattr(function, "__self__", None), "__name__", "")
        if isinstance(output, Tensor):
            transposed = name in ("T", "mT", "H", "mH")
            self._name(output, inputs[0][1] if not transposed else f"{inputs[0][1]}.{name}")
        return output

    def _record(
        self,
        site: str,
        op: str,
        function: Function,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        inputs: tuple[tuple[ArgumentPath, str], ...],
        output: Any,
    ) -> None:
        made = list(_tensors(output))
        names = tuple(site if i == 0 else f"{site}#{i}" for i in range(len(made)))
        op = refined(op, args, kwargs, output)
        call = TracedCall(site, op, getattr(function, "__name__", op), self.scope.path, inputs, names)
        if op in PRODUCT_OPS:
            call = self._with_weight(call, args, kwargs)
        elif op == "batch_norm":
            call = replace(call, inputs=inputs[:1])
        self.calls.append(replace(call, attributes=_attributes(call, function, args, kwargs)))
        for tensor, name in zip(made, names, strict=True):
            self._name(tensor, name)
            self.shapes[name] = tuple(tensor.shape)

    def _with_weight(self, call: TracedCall, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> TracedCall:
        weight = args[1] if len(args) > 1 else kwargs.get("weight", kwargs.get("other"))
        slot: ArgumentPath = (1,) if len(args) > 1 else (("weight",) if "weight" in kwargs else ("other",))
        inputs = tuple((s, name) for s, name in call.inputs if s == (0,) or s == ("input",))
        if not isinstance(weight, Tensor) or id(weight) in self.names or not inputs:
            return call
        product = call.op == "matmul"
        if product and weight.ndim != 2:
            return call
        bias = args[2] if len(args) > 2 else kwargs.get("bias")
        axis = 1 if product or call.op == "conv_transpose" else 0
        name = self.constants.get(id(weight), f"{call.site}.weight")
        return replace(
            call,
            op="linear" if product else call.op,
            inputs=inputs,
            weight=Weight(name, axis, tuple(weight.shape)),
            weight_slot=slot,
            bias=None if bias is None else self.constants.get(id(bias), f"{call.site}.bias"),
            bias_slot=() if bias is None else ((2,) if len(args) > 2 else ("bias",)),
        )

    def _changed_in_place(self, output: Tensor) -> Tensor:
        """Hand out a second object for the result, to see who keeps reading through the first one."""
        name = self.names[id(output)][1]
        alias = output.view_as(output)
        self._name(alias, name)
        self.stale[id(output)] = (output, name)
        return alias

    def _name(self, tensor: Tensor, name: str) -> None:
        self.names[id(tensor)] = (tensor, name)
        self.stale.pop(id(tensor), None)
        self.shapes.setdefault(name, tuple(tensor.shape))

    def finish(self, inputs: tuple[str, ...], outputs: Any) -> Trace:
        """The trace of the calls seen so far."""
        returned = []
        for tensor in _tensors(outputs):
            known = self.names.get(id(tensor))
            if known is not None:
                if id(tensor) in self.stale:
                    self.overwritten.add(known[1])
                returned.append(known[1])
        calls, maker = fold_batch_norms(self.calls, returned, self.shapes)
        calls = skip_paddings(calls, returned)
        graph = Graph(
            nodes=tuple(_node(call) for call in calls),
            inputs=(*inputs, *self.unseen),
            outputs=tuple(dict.fromkeys(returned)),
            shapes=self.shapes,
        )
        return Trace(
            graph=graph,
            calls={call.site: call for call in self.calls} | {call.site: call for call in calls},
            maker=maker,
            frames={path: frozenset(names) for path, names in self.frames.items()},
            overwritten=frozenset(self.overwritten),
            consumed=self.consumed,
            shapes=self.shapes,
            constant=frozenset(self.constant_layers),
            opaque=self.opaque,
        )


def fold_batch_norms(
    calls: Sequence[TracedCall], returned: Sequence[str], shapes: Mapping[str, tuple[int, ...]]
) -> tuple[list[TracedCall], dict[str, str]]:
    """Calls as they stand after normalising, and the maker of every tensor.

    A BatchNorm merges into the linear op whose result it alone reads. One over images that finds none (behind
    a concat, in DenseNet) is a depthwise 1x1 convolution. One that is written out as a product and a sum of
    channels, as torchvision's FrozenBatchNorm2d is, merges into a convolution.
    """
    readers = _readers(calls)
    maker = {name: call.site for call in calls for name in call.outputs}
    merged: dict[str, TracedCall] = {}
    for call in calls:
        source = merged.get(maker.get(call.inputs[0][1], "")) if call.inputs else None
        alone = (
            source is not None and len(readers[source.outputs[0]]) == 1 and source.outputs[0] not in returned
        )
        if call.op == "batch_norm" and source is not None and alone and source.weight:
            grouped = source.op == "conv_transpose" and source.attributes["group"] > 1
            merged[source.site] = replace(source, outputs=call.outputs, norm=call.site, inexact=grouped)
        elif call.op == "add" and (layer := _written_out(call, merged, maker, readers, shapes, returned)):
            factor = maker[call.inputs[0][1]]
            del merged[factor]
            merged[layer.site] = replace(layer, outputs=call.outputs, norm=call.site, factor=factor)
        elif call.op == "batch_norm" and len(shapes[call.outputs[0]]) == 4:
            weight = Weight(f"{call.site}.weight", 0, (shapes[call.outputs[0]][1], 1, 1, 1))
            merged[call.site] = replace(call, op="conv", weight=weight, bias=f"{call.site}.bias")
        else:
            merged[call.site] = call
    return list(merged.values()), maker


def _written_out(
    add: TracedCall,
    merged: Mapping[str, TracedCall],
    maker: Mapping[str, str],
    readers: Mapping[str, Sequence[TracedCall]],
    shapes: Mapping[str, tuple[int, ...]],
    returned: Sequence[str],
) -> TracedCall | None:
    """Convolution whose result alone is multiplied and then shifted by constants of one value a channel."""
    chain = [add]
    for op in ("mul", "conv"):
        source = merged.get(maker.get(chain[-1].inputs[0][1], "")) if chain[-1].inputs else None
        if source is None or source.op != op or source.norm is not None:
            return None
        result = source.outputs[0]
        if len(readers[result]) != 1 or result in returned or not _is_channelwise(chain[-1], shapes[result]):
            return None
        chain.append(source)
    return chain[-1] if chain[-1].weight is not None else None


def _is_channelwise(call: TracedCall, shape: tuple[int, ...]) -> bool:
    constant = call.attributes.get("constant_slot")
    plain = call.kind.strip("_") in ("add", "mul", "radd", "rmul", "multiply") and not call.kind.endswith("d_")
    return constant is not None and plain and is_channelwise(constant[1], len(shape), shape[1])


def skip_paddings(calls: Sequence[TracedCall], returned: Sequence[str]) -> list[TracedCall]:
    """Let convolutions read the tensor before a zero padding that nobody else reads."""
    readers = _readers(calls)
    inner: dict[str, str] = {}
    for call in calls:
        result = call.outputs[0]
        linear = all(reader.op in LINEAR_OPS for reader in readers.get(result, ()))
        if call.op == "pad" and call.attributes.get("zeros") and linear and result not in returned:
            inner[result] = call.inputs[0][1]
    if not inner:
        return list(calls)
    return [
        replace(call, inputs=tuple((slot, inner.get(name, name)) for slot, name in call.inputs))
        for call in calls
        if call.outputs[0] not in inner
    ]


def _readers(calls: Sequence[TracedCall]) -> dict[str, list[TracedCall]]:
    readers: dict[str, list[TracedCall]] = {}
    for call in calls:
        for name in dict.fromkeys(name for _, name in call.inputs):
            readers.setdefault(name, []).append(call)
    return readers


def _node(call: TracedCall) -> Node:
    return Node(
        name=call.site,
        op=call.op,
        kind=call.kind,
        inputs=tuple(name for _, name in call.inputs),
        outputs=call.outputs,
        weight=call.weight,
        bias=call.bias,
        attributes=call.attributes,
    )


def _attributes(
    call: TracedCall, function: Function, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, Any]:
    if call.op == "clip":
        low, high = clip_bounds(function, args, kwargs)
        return {"low": low, "high": high}
    if call.op == "conv_transpose":
        return {"group": args[6] if len(args) > 6 else kwargs.get("groups", 1)}
    if call.op in ("add", "mul", "sub", "div") and len(call.inputs) < 2:
        return {"constant_operand": True, "constant_slot": _constant_slot(call, args)}
    if call.op == "concat":
        given = args[0] if args else kwargs["tensors"]
        return {"constant_operand": True} if len(call.inputs) < len(given) else {}
    if call.op == "pad":
        mode = args[2] if len(args) > 2 else kwargs.get("mode", "constant")
        value = args[3] if len(args) > 3 else kwargs.get("value")
        return {"zeros": mode == "constant" and not value, "value": value or 0 if mode == "constant" else 0}
    if call.op == "resize":
        mode = args[3] if len(args) > 3 else kwargs.get("mode", "nearest")
        return {"mode": mode}
    return {}


def _constant_slot(call: TracedCall, args: tuple[Any, ...]) -> tuple[int, tuple[int, ...]] | None:
    """Position and shape of the constant of a binary call with two tensors by position; None of any other."""
    if len(args) != 2 or not all(isinstance(a, Tensor) for a in args) or len(call.inputs) != 1:
        return None
    position = 1 if call.inputs[0][0] == (0,) else 0
    return position, tuple(args[position].shape)


def _tensors(values: Any) -> Iterator[Tensor]:
    """Floating tensors in nested tuples, lists, dicts and registered containers."""
    leaves, _ = torch.utils._pytree.tree_flatten(values)
    return (leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point())


def _slots(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Iterator[tuple[ArgumentPath, Any]]:
    """Tensors among the arguments of a call, one level of lists deep, with the way to each."""
    keyed: list[tuple[int | str, Any]] = [*enumerate(args), *kwargs.items()]
    for key, value in keyed:
        if isinstance(value, Tensor):
            yield (key,), value
        elif isinstance(value, (list, tuple)):
            for position, item in enumerate(value):
                if isinstance(item, Tensor):
                    yield (key, position), item
