"""Where quantizers go: one algorithm over a graph view and a target's rules.

1. Linear ops with a constant weight (and, where the target runs them, products of two activations) are
   the seeds: they run INT8 unless the user or a guard keeps them float.
2. INT8 spreads forward: an op that joins, follows or carries activations runs INT8 when every activation
   it reads arrives as INT8. It is kept only if its result reaches a seed: an INT8 tail costs accuracy and
   saves nothing.
3. Every tensor read by an INT8 op gets a quantizer; so does the result of an INT8 op where the engine
   asks for it. Activations that the engine fuses into the op before them are stepped over: the quantizer
   stands behind them, never between.
4. Ops that carry values unchanged, and joins with a shared scale, tie the tensors around them into one
   scale group.
5. On targets that fuse a residual add into the convolution before it, only the identity branch is
   quantized.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import chain

from quantrim.errors import ConfigError, did_you_mean
from quantrim.graph.ops import EXACT_OPS, LINEAR_OPS, PRODUCT_OPS, having
from quantrim.graph.view import Graph, Node
from quantrim.placement.heads import detector_heads, head_layers
from quantrim.placement.plan import Plan, WeightQuantization
from quantrim.targets.base import Target


@dataclass(frozen=True, slots=True)
class Selection:
    """What the user wants kept float.

    Attributes:
        skip: globs on names of nodes, or on paths of modules ("head", "backbone.stage3.*") where the source
            tells them; a matching node, and all of a matching module, stays float.
        op_types: canonical ops that may run INT8; None for all that the target knows.
        float_nodes: names of nodes that a search for accuracy keeps float.
        skip_tensors: names of tensors that no node may read quantized.
        same_scale: sets of tensors that share scale and zero point.
        float_heads: the layers that make the outputs stay float (:mod:`quantrim.placement.heads`).
        find_heads: heads that the graph shows to be those of a detector stay float, and expectations. Not for
            graphs of training, where auxiliary heads end in convolutions too.
    """

    skip: tuple[str, ...] = ()
    op_types: frozenset[str] | None = None
    float_nodes: frozenset[str] = frozenset()
    skip_tensors: tuple[str, ...] = ()
    same_scale: tuple[tuple[str, ...], ...] = ()
    float_heads: bool = False
    find_heads: bool = False

    def refuses(self, node: Node) -> str | None:
        """Why the user keeps this node float, or None."""
        for glob in self.skip:
            if matches(node, glob):
                return f"skipped by {glob!r}"
        if self.op_types is not None and node.op not in self.op_types:
            return "op type not selected"
        if node.name in self.float_nodes:
            return "kept float for accuracy"
        for tensor in self.skip_tensors:
            if tensor in node.inputs:
                return f"reads skipped tensor {tensor!r}"
        return None


def matches(node: Node, glob: str) -> bool:
    """Whether a glob means a node: by its name, or the path of a module that it is in."""
    parts = node.module.split(".") if node.module else []
    paths = (".".join(parts[:count]) for count in range(1, len(parts) + 1))
    return any(fnmatch.fnmatchcase(name, glob) for name in (node.name, *paths))


EVERYTHING = Selection()


def place(graph: Graph, target: Target, selection: Selection = EVERYTHING) -> Plan:
    """Choose the quantizers of a graph for a target.

    Args:
        graph: graph view.
        target: rules of the engine.
        selection: nodes the user keeps float.

    Raises:
        ConfigError: a skip glob matches nothing, or an op type is unknown to the target.
    """
    _check_selection(graph, target, selection)
    if selection.float_heads:
        selection = replace(selection, float_nodes=selection.float_nodes | head_layers(graph))
    makers = _makers(graph, target)
    seeds, refused = _seeds(graph, target, selection)
    int8 = _spread(graph, target, selection, seeds, makers)
    tensors, returned, reads = _quantized_tensors(graph, target, int8, makers)
    return Plan(
        target=target.name,
        activation=target.activation,
        int8_nodes=frozenset(node.name for node in int8),
        groups=_scale_groups(graph, target, int8, tensors, selection.same_scale),
        reads=frozenset(reads),
        outputs=frozenset(graph.outputs) & returned,
        weights={node.name: _weight_quantizer(node) for node in int8 if node.weight is not None},
        float_nodes=refused,
    )


def _check_selection(graph: Graph, target: Target, selection: Selection) -> None:
    for glob in selection.skip:
        if not any(matches(node, glob) for node in graph.nodes):
            legal = [node.module or node.name for node in graph.nodes if _is_seed(node)]
            raise ConfigError(f"skip {glob!r} matches no node{did_you_mean(glob, legal[:400])}", field="skip")
    target.require_ops(selection.op_types or ())
    known = {*graph.inputs, *(tensor for node in graph.nodes for tensor in node.outputs)}
    named = {"skip_tensors": selection.skip_tensors, "same_scale": tuple(chain(*selection.same_scale))}
    for field, tensors in named.items():
        for tensor in tensors:
            if tensor not in known:
                raise ConfigError(
                    f"{field} {tensor!r} is no activation of the model{did_you_mean(tensor, known)}",
                    field=field,
                )


def _seeds(graph: Graph, target: Target, selection: Selection) -> tuple[list[Node], dict[str, str]]:
    """Linear nodes that run INT8, and the reason of each one that does not."""
    seeds, refused = [], {}
    heads = detector_heads(graph) if selection.find_heads else {}
    for node in graph.nodes:
        if not _is_seed(node):
            continue
        reason = selection.refuses(node) or _guard(graph, target, node) or heads.get(node.name)
        if reason is None:
            seeds.append(node)
        else:
            refused[node.name] = reason
    return seeds, refused


def _guard(graph: Graph, target: Target, node: Node) -> str | None:
    if "keep_float" in node.attributes:
        return str(node.attributes["keep_float"])
    if node.op == "matmul":
        if not target.int8_matmul:
            return f"{target.name} keeps products of two activations in float"
        if len(set(node.inputs)) < 2:
            return "not a product of two different activations"
        return None
    if node.op not in target.compute:
        return f"{target.name} has no INT8 kernel for {node.kind}"
    if node.weight is None:
        return "weight is not a constant"
    if not node.inputs:
        return "input is a constant"
    if node.inputs[0] not in graph.shapes:
        return "input comes out of control flow, with no shape of its own"
    return None


def _spread(
    graph: Graph,
    target: Target,
    selection: Selection,
    seeds: Iterable[Node],
    makers: Mapping[str, Node],
) -> list[Node]:
    """INT8 nodes in topological order: the seeds, and what stands between INT8 producers and seeds."""
    seed_names = {node.name for node in seeds}
    int8: dict[str, Node] = {}
    for node in graph.nodes:
        spreads = _may_spread(node, target) and selection.refuses(node) is None
        if node.name in seed_names or (spreads and _arrives(node, int8, makers)):
            int8[node.name] = node
    useful: set[str] = set()
    for node in reversed(int8.values()):
        results = {fused_tail(graph, target, node), *node.outputs}
        readers = [reader for tensor in results for reader in graph.consumers.get(tensor, ())]
        if node.name in seed_names or any(reader.name in useful for reader in readers):
            useful.add(node.name)
    return [node for node in int8.values() if node.name in useful]


def _may_spread(node: Node, target: Target) -> bool:
    if "keep_float" in node.attributes:
        return False
    if node.op in target.join:
        return not node.attributes.get("constant_operand")
    return node.op in target.follow or node.op in target.carry


def _arrives(node: Node, int8: Mapping[str, Node], makers: Mapping[str, Node]) -> bool:
    """Whether every activation the node reads is made by an INT8 kernel."""
    return bool(node.inputs) and all(t in makers and makers[t].name in int8 for t in node.inputs)


def _makers(graph: Graph, target: Target) -> dict[str, Node]:
    """The node whose kernel makes each tensor: its producer, or the op into which that one is fused."""
    made = dict(graph.producer)
    for node in graph.nodes:
        tail = fused_tail(graph, target, node)
        if tail != node.output:
            made[tail] = node
    return made


def fused_tail(graph: Graph, target: Target, node: Node) -> str:
    """Tensor behind the activation that the engine computes inside ``node``; its own output without one.

    Only linear ops and joins take activations in; a bias that stands as an Add of a constant after a
    matrix product counts as part of it.
    """
    tensor = node.output
    if node.op not in LINEAR_OPS and node.op not in target.join:
        return tensor
    reader = graph.sole_consumer(tensor)
    if node.op == "linear" and reader is not None and _is_bias_add(reader):
        tensor = reader.output
        reader = graph.sole_consumer(tensor)
    if reader is not None and reader.op in target.fuse and len(reader.inputs) == 1:
        return reader.output
    return tensor


def _is_bias_add(node: Node) -> bool:
    return node.op == "add" and bool(node.attributes.get("constant_operand")) and len(node.inputs) == 1


def _quantized_tensors(
    graph: Graph, target: Target, int8: list[Node], makers: Mapping[str, Node]
) -> tuple[set[str], set[str], set[tuple[str, str]]]:
    """Tensors with a quantizer, those of them that INT8 kernels make, and who reads them quantized.

    Where the engine asks for quantizers behind its kernels, a tensor made by one is read quantized by
    everybody, float ops included: a second, float reader would break the pattern that the engine looks
    for. Any other tensor is read quantized by INT8 ops alone.
    """
    names = {node.name for node in int8}
    misread = _misread(graph, target, names)
    float_reads = _fused_residual_reads(graph, int8) if target.residual == "identity" else set()
    tensors = {t for node in int8 for t in node.inputs if (node.name, t) not in float_reads}
    for node in int8:
        if node.op in target.needs_output or (target.needs_output and not _is_seed(node)):
            tensors.update(t for t in _results(graph, target, node) if t not in misread)
    tensors = {t for t in tensors if t in graph.shapes}
    returned = {t for t in tensors if target.needs_output and t in makers and makers[t].name in names}
    returned -= misread
    on_grid = _on_grid(target, int8, tensors) if target.carries_codes else set()
    reads = {
        (reader.name, tensor)
        for tensor in tensors - on_grid
        for reader in graph.consumers.get(tensor, ())
        if (tensor in returned or reader.name in names) and (reader.name, tensor) not in float_reads
    }
    return tensors, returned, reads


def _misread(graph: Graph, target: Target, int8: Container[str]) -> set[str]:
    """Tensors that a float op which the engine gets wrong behind a quantizer reads, as they are or moved."""
    if not target.misread:
        return set()
    constant: set[str] = set()  # computed from nothing but constants and shapes
    for node in graph.nodes:
        if node.kind == "Shape" or constant.issuperset(node.inputs):
            constant.update(node.outputs)
    found: set[str] = set()
    for node in reversed(graph.nodes):
        if node.name in int8:
            continue
        wrong = node.op in target.misread
        if node.op == "concat":
            wrong &= bool(node.attributes.get("constant_operand")) or not constant.isdisjoint(node.inputs)
        if wrong or (node.op in having("moves") and not found.isdisjoint(node.outputs)):
            found.update(node.inputs)
    return found - constant


def _on_grid(target: Target, int8: list[Node], tensors: set[str]) -> set[str]:
    """Tensors whose values are codes of the same scale already, for they were only moved."""
    grid: set[str] = set()
    for node in int8:
        moves = node.op in target.carry and node.op in EXACT_OPS
        if (moves or node.op in target.shared_scale) and tensors.issuperset(node.inputs):
            grid.update(node.outputs)
    return grid


def _is_seed(node: Node) -> bool:
    return node.op in PRODUCT_OPS


def _fused_residual_reads(graph: Graph, int8: list[Node]) -> set[tuple[str, str]]:
    """Reads of adds that stay float because the add is fused into the convolution making that input.

    Of two candidate branches the longer one (made later) is fused, as TensorRT does.
    """
    order = {node.name: position for position, node in enumerate(graph.nodes)}
    reads = set()
    for node in int8:
        if node.op != "add":
            continue
        fused = [
            (order[maker.name], tensor)
            for tensor in node.inputs
            if (maker := graph.producer.get(tensor)) is not None
            and maker.op in LINEAR_OPS
            and graph.sole_consumer(tensor) is node
        ]
        if fused:
            reads.add((node.name, max(fused)[1]))
    return reads


def _scale_groups(
    graph: Graph, target: Target, int8: list[Node], tensors: set[str], tied: Iterable[tuple[str, ...]] = ()
) -> dict[str, str]:
    """Quantized tensor → name of its group, the first tensor of the group in graph order."""
    parent = {tensor: tensor for tensor in tensors}

    def find(tensor: str) -> str:
        while parent[tensor] != tensor:
            parent[tensor] = parent[parent[tensor]]
            tensor = parent[tensor]
        return tensor

    for node in int8:
        if node.op in target.carry or node.op in target.shared_scale:
            _tie(
                [t for t in (*node.inputs, *_results(graph, target, node)) if t in tensors],
                parent,
                find,
            )
    for names in tied:
        _tie([tensor for tensor in names if tensor in tensors], parent, find)
    order = _tensor_order(graph)
    leader: dict[str, str] = {}
    for tensor in sorted(tensors, key=lambda t: order.get(t, -1)):
        leader.setdefault(find(tensor), tensor)
    return {tensor: leader[find(tensor)] for tensor in sorted(tensors, key=lambda t: order.get(t, -1))}


def _results(graph: Graph, target: Target, node: Node) -> tuple[str, ...]:
    fusing = _is_seed(node) or node.op in target.join
    return (fused_tail(graph, target, node),) if fusing else node.outputs


def _tie(tensors: list[str], parent: dict[str, str], find: Callable[[str], str]) -> None:
    for tensor in tensors[1:]:
        parent[find(tensor)] = find(tensors[0])


def _tensor_order(graph: Graph) -> dict[str, int]:
    order = {tensor: index for index, tensor in enumerate(graph.inputs)}
    for node in graph.nodes:
        for tensor in node.outputs:
            order[tensor] = len(order)
    return order


def _weight_quantizer(node: Node) -> WeightQuantization:
    assert node.weight is not None
    return WeightQuantization(node.name, node.weight.name, node.weight.axis, node.bias, node.inputs[0])
