"""From traces and a placement to what happens at each call: which quantizers it reads, uses and feeds."""

from __future__ import annotations

import fnmatch
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import nn

from quantrim.errors import ConfigError, ModelError, did_you_mean
from quantrim.graph.ops import EXACT_OPS, PRODUCT_OPS, having
from quantrim.graph.view import Graph, Node
from quantrim.placement import Plan, Selection, place
from quantrim.qat.config import EXPORTED_BITS, QATConfig
from quantrim.qat.quantizers.activations import Codes
from quantrim.qat.signs import group_codes, sign_facts
from quantrim.qat.tracing.trace import ArgumentPath, Trace, TracedCall
from quantrim.targets import Target


@dataclass(frozen=True, slots=True)
class Read:
    """An argument that passes a quantizer on its way into a call.

    Attributes:
        slot: way to the argument.
        tensor: name of the tensor.
        group: key of its quantizer.
        member: place of the tensor's statistics in the quantizer; None where they are taken elsewhere.
        exposed: see :func:`exposed_tensors`.
    """

    slot: ArgumentPath
    tensor: str
    group: str
    member: int | None
    exposed: bool


@dataclass(frozen=True, slots=True)
class Write:
    """A result that passes a quantizer before anybody reads it.

    Attributes:
        index: position among the call's results.
        tensor: name of the tensor.
        group: key of its quantizer.
        member: place of the tensor's statistics in the quantizer; None where every value is on the
            quantizer's grid already.
        consumed: an in-place op takes its memory over, so that nothing may be kept in it for the backward
            pass.
        reuse: the quantizer may work in the tensor's own memory.
        exposed: see :func:`exposed_tensors`.
    """

    index: int
    tensor: str
    group: str
    member: int | None
    consumed: bool
    reuse: bool
    exposed: bool


@dataclass(frozen=True, slots=True)
class WeightUse:
    """A weight that passes a quantizer on its way into a call.

    Attributes:
        slot: way to the weight; () where the weight is diagonal, so that its codes are exact by themselves.
        source: way to the activation that it is multiplied with.
        group: key of that activation's quantizer.
        key: key of its quantizer.
        axis: output-channel dimension.
        shape: shape of the weight.
    """

    slot: ArgumentPath
    source: ArgumentPath
    group: str
    key: str
    axis: int
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class BiasUse:
    """A bias that the file stores as int32.

    Attributes:
        layer: call of the layer.
        norm: call of the BatchNorm that belongs to it, where the sum of both biases is rounded; None without.
        slot: way to the layer's own bias; () without one.
        factor: call that multiplies in a BatchNorm that is written out, and ``norm`` adds; None without.
        places: position of the constant in that call and in ``norm``.
        group: key of the quantizer of what the layer multiplies.
    """

    layer: str
    norm: str | None
    slot: ArgumentPath
    group: str
    factor: str | None = None
    places: tuple[int, int] = (1, 1)


@dataclass(frozen=True, slots=True)
class CallSite:
    """What happens at one call.

    Attributes:
        name: the call.
        reads: arguments quantized at this call.
        weight: the weight, where it is quantized.
        bias: the bias that this call adds, or a part of it.
        writes: results quantized at this call.
        is_relu: the call clips its argument to what the codes of its result hold anyway, so that the
            quantizer of the result may do its work.
        out_of_place: the call adds in place to a quantized tensor, and is to leave it alone.
    """

    name: str
    reads: tuple[Read, ...] = ()
    weight: WeightUse | None = None
    bias: BiasUse | None = None
    writes: tuple[Write, ...] = ()
    is_relu: bool = False
    out_of_place: bool = False


@dataclass(frozen=True, slots=True)
class QuantizationPlan:
    """Everything about the calls of a module that training needs to know.

    Attributes:
        sites: calls at which something is quantized.
        codes: codes of each activation quantizer.
        members: how many tensors feed each activation quantizer.
        weights: one use of each weight quantizer.
        seen: calls with weights that any trace has shown.
        frames: module path → frame names under which it runs.
        plan: placement of the first trace.
        graph: graph of the first trace.
        calls: calls of the first trace by site.
    """

    sites: Mapping[str, CallSite]
    codes: Mapping[str, Codes]
    members: Mapping[str, int]
    weights: Mapping[str, WeightUse]
    seen: frozenset[str]
    frames: Mapping[str, frozenset[str]]
    plan: Plan
    graph: Graph
    calls: Mapping[str, TracedCall]


def plan_module(
    module: nn.Module, traces: Sequence[Trace], training: Sequence[Trace], target: Target, config: QATConfig
) -> QuantizationPlan:
    """Decide what is quantized.

    Args:
        module: the traced module.
        traces: evaluation runs, one for each set of example inputs; what they don't show isn't quantized.
        training: runs in training mode; calls that only they show (auxiliary heads) stay float.
        target: rules of the engine.
        config: what the user chose.

    Raises:
        ConfigError: a skip glob matches nothing, or an op type is unknown to the target.
        ModelError: training calls the functions of a module in another order than evaluation.
    """
    _check_globs(module, traces, config)
    plans = [place(t.graph, target, _selection(module, t, config)) for t in traces]
    for run in (*traces[1:], *training):
        _check_same_order(traces[0], run)
    groups = _merged_groups(traces, plans)
    first = replace(plans[0], float_nodes=_float_calls(traces[0], plans[0]))
    signs = [sign_facts(t.graph) for t in traces]
    codes = group_codes(groups, signs, plans[0].activation, config)
    sites: dict[str, CallSite] = {}
    members = Members()
    consumed: dict[str, str] = {}
    exposed: set[str] = set()
    for run in (*training, *traces):
        consumed.update(run.consumed)
        exposed |= exposed_tensors(run.graph)
    for run, plan in zip(traces, plans, strict=True):
        stored = target.bias == "int32" and config.activation_bits == EXPORTED_BITS
        biases = _biases(run, plan, groups) if stored else {}
        for name, site in _sites(run, plan, groups, codes, members, consumed, exposed, biases).items():
            sites[name] = _union(sites[name], site) if name in sites else site
    uses = [site.weight for site in sites.values() if site.weight is not None and site.weight.slot]
    frames: dict[str, frozenset[str]] = {}
    for run in (*traces, *training):
        for path, names in run.frames.items():
            frames[path] = frames.get(path, frozenset()) | names
    return QuantizationPlan(
        sites=sites,
        codes={group: codes[group] for group in members.count},
        members=members.count,
        weights={use.key: use for use in uses},
        seen=frozenset(
            name for run in (*traces, *training) for name, call in run.calls.items() if call.op in PRODUCT_OPS
        ).union(*(run.constant for run in (*traces, *training))),
        frames=frames,
        plan=first,
        graph=traces[0].graph,
        calls=traces[0].calls,
    )


def _float_calls(run: Trace, plan: Plan) -> dict[str, str]:
    """Every product that stays float, with the reason: those that placement knows, and all others."""
    found = dict(plan.float_nodes)
    for node in run.graph.nodes:
        if node.op in having("hidden_product") and node.name not in plan.int8_nodes:
            found.setdefault(node.name, f"quantrim doesn't quantize {node.kind}")
    found |= dict.fromkeys(sorted(run.constant), "input is a constant")
    return found | dict(run.opaque)


def _check_globs(module: nn.Module, traces: Sequence[Trace], config: QATConfig) -> None:
    names = {name for run in traces for name in (*run.calls, *run.frames)}
    for glob in config.skip:
        if not fnmatch.filter(names, glob):
            legal = [path for path, _ in module.named_modules() if path]
            raise ConfigError(f"skip {glob!r} matches no module and no call{did_you_mean(glob, legal[:400])}")


def _selection(module: nn.Module, run: Trace, config: QATConfig) -> Selection:
    """The user's choices as call names."""
    modules = dict(module.named_modules())
    skipped = [node.name for node in run.graph.nodes if _skipped(run.calls[node.name], modules, config)]
    return Selection(skip=tuple(skipped), op_types=config.op_types)


def _skipped(call: TracedCall, modules: Mapping[str, nn.Module], config: QATConfig) -> bool:
    parents = _parents(call.path)
    if call.inexact:
        return True
    if any(fnmatch.fnmatchcase(name, glob) for glob in config.skip for name in (call.site, *parents)):
        return True
    around = [modules[path] for path in parents if path in modules]
    return any(getattr(m, "skip_quant", False) or isinstance(m, config.skip_types) for m in around)


def _parents(path: str) -> list[str]:
    """The path itself and every path above it, the root ("") last."""
    parts = path.split(".") if path else []
    return [".".join(parts[:count]) for count in range(len(parts), -1, -1)]


def _check_same_order(first: Trace, other: Trace) -> None:
    """Two runs must agree on what a call is, or a quantizer would serve another tensor."""
    for site, call in first.calls.items():
        twin = other.calls.get(site)
        if twin is None:
            continue
        weights = tuple(c.weight.name if c.weight else None for c in (call, twin))
        if call.op != twin.op or weights[0] != weights[1]:
            raise ModelError(
                f"module {call.path!r} calls its functions in an order that depends on its input or mode: "
                f"{site!r} is {call.op} on {weights[0]} in one run and {twin.op} on {weights[1]} in another. "
                "Put the varying part into a module of its own."
            )


def _merged_groups(traces: Sequence[Trace], plans: Sequence[Plan]) -> dict[str, str]:
    """Tensor → quantizer key over every run.

    Runs that take different branches may feed one argument from different tensors; those share a
    quantizer, since the call has one.
    """
    parent: dict[str, str] = {}

    def find(tensor: str) -> str:
        while parent[tensor] != tensor:
            tensor = parent[tensor]
        return tensor

    readers: dict[tuple[str, ArgumentPath], str] = {}
    for run, plan in zip(traces, plans, strict=True):
        for tensor, leader in plan.groups.items():
            for name in (leader, tensor):
                parent.setdefault(name, name)
            parent[find(tensor)] = find(leader)
        for node, tensor in sorted(plan.reads):
            for slot, name in run.calls[node].inputs:
                if name == tensor:
                    first = readers.setdefault((node, slot), tensor)
                    parent[find(tensor)] = find(first)
    return {tensor: find(tensor) for tensor in parent}


class Members:
    """Numbers the tensors that feed each quantizer; a tensor is observed at one place only."""

    def __init__(self) -> None:
        self.count: dict[str, int] = {}
        self._taken: dict[str, tuple[int, tuple[str, ArgumentPath]]] = {}

    def take(self, group: str, tensor: str, place: tuple[str, ArgumentPath]) -> int | None:
        """Number of a tensor at the place where it is first seen, None at any other place."""
        if tensor not in self._taken:
            self._taken[tensor] = (self.count.get(group, 0), place)
            self.count[group] = self.count.get(group, 0) + 1
        number, first = self._taken[tensor]
        return number if first == place else None


def _sites(
    run: Trace,
    plan: Plan,
    groups: Mapping[str, str],
    codes: Mapping[str, Codes],
    members: Members,
    consumed: Mapping[str, str],
    exposed: Container[str],
    biases: Mapping[str, BiasUse],
) -> dict[str, CallSite]:
    graph = run.graph
    eager = {tensor for tensor in plan.groups if _is_eager(run, plan, tensor)}
    reads: dict[str, list[Read]] = {}
    for node in graph.nodes:
        for slot, tensor in run.calls[node.name].inputs:
            if (node.name, tensor) in plan.reads and tensor not in eager:
                member = members.take(groups[tensor], tensor, (node.name, slot))
                reads.setdefault(node.name, []).append(
                    Read(slot, tensor, groups[tensor], member, tensor in exposed)
                )
    writes: dict[str, list[Write]] = {}
    out_of_place: set[str | None] = set()
    for node in graph.nodes:
        for index, tensor in enumerate(node.outputs):
            if tensor in eager:
                exact = _is_exact(node, plan, groups, tensor)
                member = None if exact else members.take(groups[tensor], tensor, (node.name, ()))
                adder = consumed.get(tensor)
                leaves = adder is not None and _adds_in_place(run, adder)
                out_of_place.update({adder} if leaves else ())
                keep = adder is not None and not leaves
                free = _may_reuse(run, tensor, codes[groups[tensor]])
                write = Write(index, tensor, groups[tensor], member, keep, free, tensor in exposed)
                writes.setdefault(run.maker[tensor], []).append(write)
    weights = {name: _weight_use(run.calls[name], groups) for name in plan.weights}
    names = dict.fromkeys((*reads, *writes, *weights, *biases, *filter(None, out_of_place)))
    return {
        name: CallSite(
            name=name,
            reads=tuple(reads.get(name, ())),
            weight=weights.get(name),
            bias=biases.get(name),
            writes=tuple(writes.get(name, ())),
            is_relu=_is_relu(run.calls[name], writes.get(name, ()), codes),
            out_of_place=name in out_of_place,
        )
        for name in names
    }


def exposed_tensors(graph: Graph) -> frozenset[str]:
    """Tensors of which the caller, or an op like sqrt or log, may see the values.

    In training a clipped value otherwise stands a little outside of its range, for a zero below it
    (:mod:`quantrim.qat.quantizers.fake_quantize`); a square root of that is no number.
    """
    exposed = set(graph.outputs)
    for node in reversed(graph.nodes):
        kept = node.op in having("near") and exposed.isdisjoint(node.outputs)
        exposed.update(() if kept or node.op in having("smooth") else node.inputs)
    return frozenset(exposed)


def _is_eager(run: Trace, plan: Plan, tensor: str) -> bool:
    """Whether a tensor can be quantized once, where it is made: everybody reads it quantized.

    Not so for inputs of the graph, nor when somebody keeps reading the object that an in-place op changed.
    """
    graph = run.graph
    if tensor not in graph.producer or tensor in run.overwritten:
        return False
    if tensor in graph.outputs and tensor not in plan.outputs:
        return False
    return all((reader.name, tensor) in plan.reads for reader in graph.consumers.get(tensor, ()))


def _is_exact(node: Node, plan: Plan, groups: Mapping[str, str], tensor: str) -> bool:
    moves = node.op in EXACT_OPS or node.op == "concat" or node.attributes.get("mode") == "nearest"
    sources = [name for name in node.inputs if (node.name, name) in plan.reads]
    same = all(groups[name] == groups[tensor] for name in sources)
    return moves and len(sources) == len(node.inputs) and same and "constant_operand" not in node.attributes


def _biases(run: Trace, plan: Plan, groups: Mapping[str, str]) -> dict[str, BiasUse]:
    """Biases that the file stores as int32, by the call at which they are rounded.

    A matrix product over more than two dimensions adds its bias apart, in float.
    """
    found: dict[str, BiasUse] = {}
    for name in plan.weights:
        call = run.calls[name]
        flat = call.op != "linear" or len(run.shapes[call.inputs[0][1]]) == 2
        if flat and (call.bias is not None or call.norm is not None):
            use = BiasUse(name, call.norm, call.bias_slot, groups[call.inputs[0][1]])
            if call.factor is not None and call.norm is not None:
                sites = (run.calls[call.factor], run.calls[call.norm])
                first, second = (site.attributes["constant_slot"][0] for site in sites)
                use = replace(use, factor=call.factor, places=(first, second))
            found |= dict.fromkeys(filter(None, (name, call.norm, call.factor)), use)
    return found


def _adds_in_place(run: Trace, site: str) -> bool:
    """Whether a call may add out of place instead: nobody looks for the sum in the first operand."""
    call = run.calls.get(site)
    return call is not None and call.op == "add" and call.outputs[0] not in run.overwritten


def _may_reuse(run: Trace, tensor: str, codes: Codes) -> bool:
    """Whether the memory of a tensor is free: its maker doesn't look at its result in the backward pass.

    For a ReLU that a quantizer replaces, the memory is that of the ReLU's argument. One that is computed, since
    it shares a quantizer with tensors that have a sign, needs its result.
    """
    call = run.calls[run.maker[tensor]]
    if call.op in ("relu", "clip"):
        if not _clamps_alike(call, codes):
            return False
        source = call.inputs[0][1]
        if source not in run.maker or source in run.overwritten or source in run.graph.outputs:
            return False
        alone = len(run.graph.consumers.get(source, ())) == 1
        return alone and run.calls[run.maker[source]].op in having("result_unused")
    return call.op in having("result_unused")


def _is_relu(call: TracedCall, writes: Iterable[Write], codes: Mapping[str, Codes]) -> bool:
    made = [codes[write.group] for write in writes]
    return len(made) == 1 and _clamps_alike(call, made[0])


def _clamps_alike(call: TracedCall, codes: Codes) -> bool:
    """Whether the call clips to what the codes hold anyway."""
    if not codes.non_negative:
        return False
    if call.op == "relu":
        return True
    return call.op == "clip" and call.attributes["low"] == 0 and call.attributes["high"] in (codes.cap, None)


def _weight_use(call: TracedCall, groups: Mapping[str, str]) -> WeightUse:
    assert call.weight is not None
    weight, (source, tensor) = call.weight, call.inputs[0]
    key = f"{weight.name}@{weight.axis}"
    return WeightUse(call.weight_slot, source, groups[tensor], key, weight.axis, weight.shape)


def _union(first: CallSite, second: CallSite) -> CallSite:
    """A call that two runs have shown: quantized wherever one of them says so."""
    slots = {read.slot for read in first.reads}
    indices = {write.index for write in first.writes}
    return replace(
        first,
        reads=(*first.reads, *(read for read in second.reads if read.slot not in slots)),
        weight=first.weight or second.weight,
        bias=first.bias or second.bias,
        writes=(*first.writes, *(write for write in second.writes if write.index not in indices)),
        is_relu=first.is_relu and second.is_relu,
    )
