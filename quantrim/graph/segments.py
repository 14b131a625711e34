"""Run a model piece by piece, so that many inner tensors can be read without holding all of them at once.

A session that returns every activation of DeepLabV3+ at 1024x2048 needs 24 GB. Here the nodes are cut into
consecutive segments, each returning at most so many bytes; only what crosses a cut is carried on. Every node is
still computed once.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort

from quantrim.errors import ModelError, refusal
from quantrim.graph.bodies import captured
from quantrim.graph.core import ending_at
from quantrim.graph.ports import Feed
from quantrim.graph.session import reference_session, with_outputs

#: Bytes of wanted tensors that a segment returns at most (or one tensor, if it is larger).
RETURNED_BYTES = 1 << 30
#: Operators whose results are no tensors, which can't cross a cut.
_NO_TENSORS = frozenset({"SequenceConstruct", "SequenceEmpty", "SequenceInsert", "SequenceErase",
                         "SequenceMap", "SplitToSequence", "Optional", "Loop", "Scan", "If"})  # fmt: skip


class Segments:
    """A model that gives inner tensors segment by segment.

    Args:
        model: float model.
        wanted: names of tensors that nodes of the main graph make.
        shapes: shapes of tensors for one feed, as in ``Graph.shapes``; without them, or where the model has
            sequences, control flow or local functions, everything is one segment.
        threads: of the forward pass; None for all cores.
        budget: bytes that a segment returns.

    Raises:
        ModelError: ONNX Runtime can't load the model.
    """

    def __init__(
        self,
        model: ir.Model,
        wanted: Collection[str],
        shapes: Mapping[str, tuple[int, ...]] | None = None,
        *,
        threads: int | None = None,
        budget: int = RETURNED_BYTES,
    ) -> None:
        made = {str(value.name) for node in model.graph for value in node.outputs}
        self.wanted = frozenset(wanted) & made
        if self.wanted and not _can_cut(model):  # what can't be cut may stand behind all that is wanted
            model = ending_at(model, self.wanted)
        self.model, self.threads = model, threads
        self.parts = _parts(model, self.wanted, shapes or {}, budget) if shapes and _can_cut(model) else []
        self._cut: list[_Segment] = []
        self._whole: ort.InferenceSession | None = None

    def run(self, feed: Feed) -> Iterator[dict[str, np.ndarray]]:
        """The wanted tensors of one feed, a mapping for each segment; each tensor is given once."""
        if len(self.parts) < 2:
            yield self._at_once(feed)
            return
        live = dict(feed)
        for index, nodes in enumerate(self.parts):
            if index == len(self._cut):  # types of what crosses are those of the first run
                self._cut.append(_segment(self.model, nodes, self._needed_after(index), live, self.threads))
            segment = self._cut[index]
            made = segment.session.run(segment.returned, {name: live[name] for name in segment.fed})
            values = dict(zip(segment.returned, made, strict=True))
            yield {name: array for name, array in values.items() if name in self.wanted}
            later = self._read_after(index)
            live = {name: array for name, array in (live | values).items() if name in later}

    def _at_once(self, feed: Feed) -> dict[str, np.ndarray]:
        if not self.wanted:
            return {}
        if self._whole is None:
            self._whole = reference_session(with_outputs(self.model, self.wanted), threads=self.threads)
        names = sorted(self.wanted)
        return dict(zip(names, self._whole.run(names, dict(feed)), strict=True))

    def _read_after(self, index: int) -> set[str]:
        return {name for nodes in self.parts[index + 1 :] for node in nodes for name in _reads(node)}

    def _needed_after(self, index: int) -> set[str]:
        return self._read_after(index) | self.wanted


@dataclass(frozen=True, slots=True)
class _Segment:
    """A session of consecutive nodes: what it is fed and what it returns."""

    session: ort.InferenceSession
    fed: tuple[str, ...]
    returned: tuple[str, ...]


def _can_cut(model: ir.Model) -> bool:
    return not model.functions and not any(node.op_type in _NO_TENSORS for node in model.graph)


def _parts(
    model: ir.Model, wanted: Collection[str], shapes: Mapping[str, tuple[int, ...]], budget: int
) -> list[list[ir.Node]]:
    """Nodes in order, cut wherever the wanted bytes of a segment would exceed the budget.

    What stands behind the last wanted tensor is left out.
    """
    parts: list[list[ir.Node]] = [[]]
    waiting: list[ir.Node] = []  # nodes that make nothing wanted
    held = 0
    for node in model.graph:
        found = [str(value.name) for value in node.outputs if value.name in wanted]
        waiting.append(node)
        if not found:
            continue
        size = sum(4 * int(np.prod(shapes.get(name, ()))) for name in found)
        if held and held + size > budget:
            parts.append([])
            held = 0
        parts[-1] += waiting
        held += size
        waiting = []
    return parts


def _reads(node: ir.Node) -> list[str]:
    names = [str(value.name) for value in node.inputs if value is not None]
    return [name for name in (*names, *captured(node)) if name]


def _segment(
    model: ir.Model, nodes: Sequence[ir.Node], needed: Collection[str], live: Feed, threads: int | None
) -> _Segment:
    made = {str(value.name): value for node in nodes for value in node.outputs if value.name}
    read = dict.fromkeys(name for node in nodes for name in _reads(node) if name not in made)
    fed = tuple(name for name in read if name not in model.graph.initializers)
    returned = tuple(name for name in made if name in needed)
    options = ort.SessionOptions()
    options.enable_cpu_mem_arena = False  # the arenas of all segments together would hold every tensor again
    if threads is not None:
        options.intra_op_num_threads = threads
    dtypes = {name: onnx.helper.np_dtype_to_tensor_dtype(live[name].dtype) for name in fed}
    protos = [ir.serde.serialize_node(node) for node in nodes]
    return _Segment(
        part_session(model, protos, dtypes, [name for name in read if name not in fed], returned, options),
        fed,
        returned,
    )


def part_session(
    model: ir.Model,
    nodes: Sequence[onnx.NodeProto],
    fed: Mapping[str, int],
    constants: Iterable[str],
    returned: Iterable[str],
    options: ort.SessionOptions | None = None,
    replaced: Mapping[str, np.ndarray] | None = None,
) -> ort.InferenceSession:
    """Session of some nodes of a model, on the CPU.

    Args:
        model: gives constants, opsets and IR version.
        nodes: in topological order.
        fed: names of the inputs → ONNX element types; any shape.
        constants: initializers of the model that are built in.
        returned: names of the outputs.
        options: ONNX Runtime's.
        replaced: other values of constants, and further ones.

    Raises:
        ModelError: ONNX Runtime refuses them.
    """
    replaced = replaced or {}
    tensors = [_initializer(model, name) for name in constants if name not in replaced]
    tensors += [onnx.numpy_helper.from_array(array, name) for name, array in replaced.items()]
    graph = onnx.helper.make_graph(
        list(nodes),
        "part",
        [onnx.helper.make_tensor_value_info(name, dtype, None) for name, dtype in fed.items()],
        [onnx.helper.make_empty_tensor_value_info(name) for name in returned],
        tensors,
    )
    opsets = [onnx.helper.make_opsetid(domain, version) for domain, version in model.opset_imports.items()]
    proto = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=model.ir_version)
    options = options or ort.SessionOptions()
    options.log_severity_level = 3
    try:
        return ort.InferenceSession(proto.SerializeToString(), options, ["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime raises many types of its own
        raise ModelError(f"ONNX Runtime can't load a part of the model: {refusal(error)}") from error


def _initializer(model: ir.Model, name: str) -> onnx.TensorProto:
    tensor = ir.serde.serialize_tensor(model.graph.initializers[name].const_value)  # type: ignore[arg-type]
    tensor.name = name
    return tensor
