"""A module run from the middle: what comes before a group of channels is computed once for all its masks."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.export.graph_signature import InputKind
from torch.utils._pytree import tree_leaves, tree_map, tree_unflatten

from quantrim.prune.capture import call_arguments, capture

_OWNED = (InputKind.PARAMETER, InputKind.BUFFER)


class PrefixGraph:
    """A functional graph of a module in evaluation, with its state at a cut for each of some inputs.

    Parameters are read from the module at every run, so that masks act.
    """

    def __init__(self, module: nn.Module, program: Any, inputs: Sequence[Tensor], cache_mb: float) -> None:
        self.nodes = [node for node in program.graph.nodes if node.op in ("call_function", "output")]
        self.position = {node: index for index, node in enumerate(self.nodes)}
        self.out_spec = program.call_spec.out_spec
        self.cache_bytes = cache_mb * 1e6 / max(1, len(inputs))
        self.owned, self.used_at = _owned_tensors(module, program, self.position)
        self.last_use = _last_uses(self.nodes, self.position)
        self.cut = 0
        users = [node for node in program.graph.nodes if node.op == "placeholder" and node not in self.owned]
        constants = _constants(program)
        self.states: list[dict[Any, Any]] = []
        for batch in inputs:
            feed = iter(call_arguments(batch)[0])
            self.states.append({node: constants[node] if node in constants else next(feed) for node in users})

    @staticmethod
    def of(module: nn.Module, inputs: Sequence[Tensor], cache_mb: float) -> PrefixGraph | None:
        """Graph of a module; None where the whole of it can't be exported."""
        captured = capture(module, call_arguments(inputs[0]), training=False)
        if len(captured.parts) != 1 or captured.parts[0].path:
            return None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            functional = captured.parts[0].program.run_decompositions({})  # no op runs in place afterwards
        if any(node.op == "get_attr" for node in functional.graph.nodes):
            return None  # calls a graph within the graph
        if any(spec.kind not in (*_OWNED, InputKind.USER_INPUT, InputKind.CONSTANT_TENSOR)
               for spec in functional.graph_signature.input_specs):  # fmt: skip
            return None
        return PrefixGraph(module, functional, inputs, cache_mb)

    def first_use(self, tensors: set[str]) -> int:
        """Position of the first operation that reads one of these parameters or buffers."""
        return min(
            (self.used_at[name] for name in tensors if name in self.used_at), default=len(self.nodes) - 1
        )

    def advance(self, tensors: set[str]) -> None:
        """Move the cut to before the first use of these tensors, if what crosses it fits into memory.

        Raises:
            ValueError: the cut is past that already.
        """
        goal = self.first_use(tensors)
        if goal < self.cut:
            raise ValueError("groups must be evaluated in the order of the network")
        if self._bytes_across(goal) > self.cache_bytes:
            return
        with torch.no_grad():
            for state in self.states:
                self._run(state, self.cut, goal)
        self.cut = goal

    def outputs(self) -> Iterator[Any]:
        """Outputs for each of the inputs, run from the cut."""
        for state in self.states:
            yield self._run(dict(state), self.cut, len(self.nodes))

    def _run(self, state: dict[Any, Any], start: int, end: int) -> Any:
        """Execute operations, keeping in ``state`` what is still needed after them."""

        def value(leaf: Any) -> Any:
            if not isinstance(leaf, torch.fx.Node):
                return leaf
            return self.owned[leaf] if leaf in self.owned else state[leaf]

        for index in range(start, end):
            node = self.nodes[index]
            if node.op == "output":
                leaves = [value(leaf) for leaf in tree_leaves(node.args[0])]
                return tree_unflatten(leaves[-self.out_spec.num_leaves :], self.out_spec)
            args, kwargs = tree_map(value, (list(node.args), dict(node.kwargs)))
            state[node] = node.target(*args, **kwargs)
            for used in node.all_input_nodes:
                if self.last_use.get(used) == index:
                    state.pop(used, None)
        return None

    def _bytes_across(self, cut: int) -> float:
        total = 0.0
        for node, last in self.last_use.items():
            made = self.position.get(node, -1)
            if made < cut <= last and node not in self.owned and node.target is not operator.getitem:
                total += sum(_bytes(leaf) for leaf in tree_leaves(node.meta.get("val")))
        return total


def _bytes(leaf: Any) -> int:
    return leaf.numel() * leaf.element_size() if isinstance(leaf, Tensor) else 0


def _owned_tensors(
    module: nn.Module, program: Any, position: dict[Any, int]
) -> tuple[dict[Any, Tensor], dict[str, int]]:
    """The module's tensor for each placeholder, and where each is first read, by all of its names."""
    named: dict[str, Tensor] = dict(module.named_parameters(remove_duplicate=False))
    named |= dict(module.named_buffers(remove_duplicate=False))
    specs = {spec.arg.name: spec for spec in program.graph_signature.input_specs}
    owned: dict[Any, Tensor] = {}
    first: dict[int, int] = {}
    for node in program.graph.nodes:
        if node.op == "placeholder" and specs[node.name].kind in _OWNED:
            tensor = owned[node] = named[specs[node.name].target]
            used = min((position[user] for user in node.users), default=len(position) - 1)
            first[id(tensor)] = min(used, first.get(id(tensor), used))
    used_at = {name: first[id(tensor)] for name, tensor in named.items() if id(tensor) in first}
    return owned, used_at


def _constants(program: Any) -> dict[Any, Tensor]:
    specs = {spec.arg.name: spec for spec in program.graph_signature.input_specs}
    return {
        node: program.constants[specs[node.name].target]
        for node in program.graph.nodes
        if node.op == "placeholder" and specs[node.name].kind == InputKind.CONSTANT_TENSOR
    }


def _last_uses(nodes: Sequence[Any], position: dict[Any, int]) -> dict[Any, int]:
    last: dict[Any, int] = {}
    for index, node in enumerate(nodes):
        for used in node.all_input_nodes:
            last[used] = index
    return last
