"""A module run from the middle: what comes before a group of channels is computed once for all its masks."""

from __future__ import annotations

import math
import operator
import warnings
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.export.graph_signature import InputKind
from torch.utils._pytree import tree_leaves, tree_map, tree_unflatten

from quantrim.modules import example_arguments, named_tensors
from quantrim.pruning.groups.capture import capture

_OWNED = (InputKind.PARAMETER, InputKind.BUFFER)
#: Most memory for the values of inputs that run in step.
_POOL_BYTES = 1e9
#: Samples whose common statistics are good enough; no more run in step.
_IN_STEP = 256


class PrefixGraph:
    """A functional graph of a module in evaluation, with its state at a cut for each of some inputs.

    Parameters are read from the module at every run, so that masks act. With ``pooled`` statistics a batch norm
    normalises by the mean and variance of what reaches it, over as many inputs as fit into memory together,
    instead of by its running ones: what measuring those anew under each mask would give, in the same pass.
    """

    def __init__(
        self, module: nn.Module, program: Any, inputs: Sequence[Tensor], cache_mb: float, pooled: bool
    ) -> None:
        self.nodes = [node for node in program.graph.nodes if node.op in ("call_function", "output")]
        self.position = {node: index for index, node in enumerate(self.nodes)}
        self.out_spec = program.call_spec.out_spec
        self.cache_bytes = cache_mb * 1e6 / max(1, len(inputs))
        self.owned, self.used_at = _owned_tensors(module, program, self.position)
        self.last_use = _last_uses(self.nodes, self.position)
        self.cut = 0
        self.batch = len(inputs[0])
        users = [node for node in program.graph.nodes if node.op == "placeholder" and node not in self.owned]
        constants = _constants(program)
        self.states: list[dict[Any, Any]] = []
        for batch in inputs:
            feed = iter(example_arguments(batch)[0])
            self.states.append({node: constants[node] if node in constants else next(feed) for node in users})
        self.pooled = pooled and any(_is_batch_norm(node) for node in self.nodes)
        self.together = self._fitting_together() if self.pooled else 1

    @staticmethod
    def of(
        module: nn.Module, inputs: Sequence[Tensor], cache_mb: float, pooled: bool = False
    ) -> PrefixGraph | None:
        """Graph of a module; None where the whole of it can't be exported."""
        captured = capture(module, example_arguments(inputs[0]), training=False)
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
        return PrefixGraph(module, functional, inputs, cache_mb, pooled)

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
            for states in self._bundles():
                self._run(states, self.cut, goal)
        self.cut = goal

    def portions(self) -> Iterator[list[Any]]:
        """Outputs for the inputs, run from the cut, as many at a time as run in step."""
        for states in self._bundles():
            yield self._run([dict(state) for state in states], self.cut, len(self.nodes))

    def _bundles(self) -> Iterator[list[dict[Any, Any]]]:
        """States that run in step."""
        for start in range(0, len(self.states), self.together):
            yield self.states[start : start + self.together]

    def _fitting_together(self) -> int:
        """Inputs whose values fit into memory together, wherever the run stands."""
        largest = max(self._bytes_across(index) for index in range(len(self.nodes)))
        enough = math.ceil(_IN_STEP / max(1, self.batch))
        return max(1, min(enough, int(_POOL_BYTES / max(1.0, largest))))

    def _run(self, states: Sequence[dict[Any, Any]], start: int, end: int) -> list[Any]:
        """Execute operations on all states in step, keeping in them what is still needed afterwards."""

        def value(state: dict[Any, Any], leaf: Any) -> Any:
            if not isinstance(leaf, torch.fx.Node):
                return leaf
            return self.owned[leaf] if leaf in self.owned else state[leaf]

        for index in range(start, end):
            node = self.nodes[index]
            of = [partial(value, state) for state in states]
            if node.op == "output":
                leaves = [[one(leaf) for leaf in tree_leaves(node.args[0])] for one in of]
                return [tree_unflatten(each[-self.out_spec.num_leaves :], self.out_spec) for each in leaves]
            calls = [tree_map(one, (list(node.args), dict(node.kwargs))) for one in of]
            if self.pooled and _is_batch_norm(node):
                _pool_statistics([args for args, _ in calls])
            for state, (args, kwargs) in zip(states, calls, strict=True):
                state[node] = node.target(*args, **kwargs)
                for used in node.all_input_nodes:
                    if self.last_use.get(used) == index:
                        state.pop(used, None)
        return []

    def _bytes_across(self, cut: int) -> float:
        total = 0.0
        for node, last in self.last_use.items():
            made = self.position.get(node, -1)
            if made < cut <= last and node not in self.owned and node.target is not operator.getitem:
                total += sum(_bytes(leaf) for leaf in tree_leaves(node.meta.get("val")))
        return total


def _is_batch_norm(node: Any) -> bool:
    return node.target is torch.ops.aten._native_batch_norm_legit_no_training.default


def _pool_statistics(calls: Sequence[list[Any]]) -> None:
    """Put mean and variance over the inputs of all calls in the place of the running ones."""
    inputs = [args[0] for args in calls]
    dims = [dim for dim in range(inputs[0].ndim) if dim != 1]
    moments = [torch.var_mean(values, dims, correction=0) for values in inputs]
    shares = [values.numel() / sum(one.numel() for one in inputs) for values in inputs]
    mean = torch.stack([share * one for share, (_, one) in zip(shares, moments, strict=True)]).sum(0)
    spread = [share * (var + (one - mean) ** 2) for share, (var, one) in zip(shares, moments, strict=True)]
    variance = torch.stack(spread).sum(0)
    for args in calls:
        args[3], args[4] = mean, variance


def _bytes(leaf: Any) -> int:
    return leaf.numel() * leaf.element_size() if isinstance(leaf, Tensor) else 0


def _owned_tensors(
    module: nn.Module, program: Any, position: dict[Any, int]
) -> tuple[dict[Any, Tensor], dict[str, int]]:
    """The module's tensor for each placeholder, and where each is first read, by all of its names."""
    named = named_tensors(module)
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
