"""Bias correction in one quantized pass over a few samples, with means of the float layers from calibration.

A layer's mean error has two parts: its weight's, on the input that it should get, and what the layers before
and the input's own quantizer changed in that input,

    E[W x] - E[Wq xq] = (W - Wq) E[x] + Wq (E[x] - E[xq]).

E[x] is known from calibration, over many samples and for nothing (:mod:`quantrim.post_training.refine.means`).
The second part is small and its two means are of the same samples, so few of them are enough. The layers are
corrected in order, each on the input that the corrected layers before it give.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort

from quantrim.graph.bodies import captured
from quantrim.graph.ports import Feed
from quantrim.graph.segments import part_session
from quantrim.placement.qdq import write_qdq
from quantrim.placement.quantized import Quantized
from quantrim.post_training.refine.means import InputMeans, Means, Taps
from quantrim.post_training.refine.walk import dequantize
from quantrim.ranges.codes import WeightCodes


def correct_biases(quantized: Quantized, means: InputMeans, feeds: Sequence[Feed]) -> dict[str, WeightCodes]:
    """Codes with biases that remove the mean error of each output channel, layer by layer.

    Args:
        quantized: what was decided so far.
        means: of the float model, from calibration; its early batches are ``feeds``.
        feeds: the few batches of the quantized pass.
    """
    one = quantized
    walk = _Pass(write_qdq(one.model, one.plan, one.activations, one.weights, int32_bias=False), feeds)
    corrected = dict(one.weights)
    known = {name: taps for name, taps in means.taps.items() if name in one.plan.weights}
    targets = {
        name: target for name, taps in known.items() if (target := _target(one, name, taps, means)) is not None
    }
    for name, inputs in walk.inputs_of(targets):
        taps, codes = known[name], corrected[name]
        inputs = [x for x in inputs if x.shape[2:] == taps.sizes]  # others have no float means beside them
        got = np.sum([taps.sums(x) for x in inputs], axis=0) / (sum(map(len, inputs)) * taps.positions)
        bias = (targets[name] - taps.mean_output(dequantize(codes), got)).astype(np.float32)
        corrected[name] = replace(codes, bias=bias)
        walk.biases[name] = bias
    return corrected


def _target(one: Quantized, name: str, taps: Taps, means: InputMeans) -> Means | None:
    """Mean output, with bias, that the quantized layer shall have on the few samples."""
    whole, early = means.of(name, early=False), means.of(name, early=True)
    if whole is None or early is None:
        return None
    quantizer = one.plan.weights[name]
    weight: np.ndarray = _constant(one.model, quantizer.tensor)
    codes: np.ndarray = dequantize(one.weights[name])
    target = taps.mean_output(weight - codes, whole) + taps.mean_output(codes, early)
    kept = one.weights[name].bias
    if kept is None and quantizer.bias is not None:
        kept = _constant(one.model, quantizer.bias)
    return target if kept is None else target + kept


def _constant(model: ir.Model, name: str) -> np.ndarray:
    return model.graph.initializers[name].const_value.numpy()  # type: ignore[union-attr]


class _Pass:
    """A model run up to one layer after the other, a batch each side by side.

    Attributes:
        biases: float32 biases by node that are run instead of the file's.
    """

    def __init__(self, model: ir.Model, feeds: Sequence[Feed]) -> None:
        self.model = model
        self.biases: dict[str, np.ndarray] = {}
        self.live: list[dict[str, np.ndarray]] = [dict(feed) for feed in feeds]

    def inputs_of(self, layers: Mapping[str, object]) -> Iterator[tuple[str, list[np.ndarray]]]:
        """Each layer with its inputs, a batch each; ``biases`` has its bias when the next is asked for."""
        needed = _before(self.model, layers)
        waiting: list[ir.Node] = []
        for index, node in enumerate(needed):
            if node.name in layers:
                self._run(waiting, {name for later in needed[index:] for name in _reads(later)})
                yield str(node.name), [values[str(node.inputs[0].name)] for values in self.live]  # type: ignore[union-attr]
                waiting = []
            waiting.append(node)

    def _run(self, nodes: Sequence[ir.Node], later: set[str]) -> None:
        made = {str(value.name) for node in nodes for value in node.outputs if value.name}
        returned = sorted(made & later)
        if returned:
            session, fed = self._session(nodes, made, returned)
            with ThreadPoolExecutor(os.cpu_count()) as pool:  # a session of few nodes has one thread
                results = list(
                    pool.map(lambda live: session.run(returned, {n: live[n] for n in fed}), self.live)
                )
            for values, result in zip(self.live, results, strict=True):
                values.update(zip(returned, result, strict=True))
        self.live = [{name: array for name, array in values.items() if name in later} for values in self.live]

    def _session(
        self, nodes: Sequence[ir.Node], made: set[str], returned: Sequence[str]
    ) -> tuple[ort.InferenceSession, list[str]]:
        protos = [ir.serde.serialize_node(node) for node in nodes]
        replaced = {}
        for proto in protos:
            if proto.name in self.biases:
                del proto.input[2:]
                proto.input.append(f"{proto.name}@bias")
                replaced[proto.input[2]] = self.biases[proto.name]
        named = dict.fromkeys(name for proto in protos for name in proto.input if name and name not in made)
        named |= dict.fromkeys(name for node in nodes for name in captured(node) if name and name not in made)
        fed = [name for name in named if name not in self.model.graph.initializers and name not in replaced]
        dtypes = {name: onnx.helper.np_dtype_to_tensor_dtype(self.live[0][name].dtype) for name in fed}
        constants = [name for name in named if name not in fed and name not in replaced]
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        return part_session(self.model, protos, dtypes, constants, returned, options, replaced), fed


def _before(model: ir.Model, layers: Mapping[str, object]) -> list[ir.Node]:
    """The layers and all that they depend on, in order."""
    wanted: set[str] = set()
    needed = []
    for node in reversed(model.graph):
        if node.name in layers or wanted.intersection(str(value.name) for value in node.outputs):
            needed.append(node)
            wanted.update(_reads(node))
    return needed[::-1]


def _reads(node: ir.Node) -> list[str]:
    names = [str(value.name) for value in node.inputs if value is not None]
    return [name for name in (*names, *captured(node)) if name]
