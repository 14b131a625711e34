"""Small graphs for the tests of rewrites, written as one line a node."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import helper, numpy_helper

from quantrim.graph.from_onnx import observed_shapes
from quantrim.graph.normalize import name_nodes, run_model
from quantrim.rewrites import Rewrite, prove, rewritten, sites_of


def node(op: str, inputs: str, output: str, **attributes: Any) -> onnx.NodeProto:
    """``node("Conv", "x w", "y", ...)``; "-" leaves an input out."""
    names = ["" if name == "-" else name for name in inputs.split()]
    return helper.make_node(op, names, output.split(), name=f"{op}_{output.split()[0]}", **attributes)


def graph(
    nodes: Sequence[onnx.NodeProto],
    shape: Sequence[int | str],
    constants: Mapping[str, np.ndarray],
    outputs: str = "y",
    kind: int = onnx.TensorProto.FLOAT,
) -> ir.Model:
    """Model with the input ``x`` of a shape."""
    value = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, shape)
    returned = [helper.make_tensor_value_info(name, kind, None) for name in outputs.split()]
    stored = [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()]
    proto = helper.make_graph(list(nodes), "test", [value], returned, stored)
    model = helper.make_model(proto, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    made = ir.serde.deserialize_model(onnx.shape_inference.infer_shapes(model))
    name_nodes(made)
    return made


def feeds_of(shape: Sequence[int], seed: int = 0) -> list[dict[str, np.ndarray]]:
    """Two random inputs."""
    generator = np.random.default_rng(seed)
    return [{"x": generator.standard_normal(tuple(shape)).astype(np.float32)} for _ in range(2)]


def check(
    model: ir.Model, shape: Sequence[int], rewrite: Rewrite, form: str | None = None, *, exact: bool = False
) -> ir.Model:
    """Do a rewrite at its one site of a form, and compare every output with the original's."""
    feeds = feeds_of(shape)
    shapes = observed_shapes(model, feeds[0])
    found = [site for site in sites_of(model, shapes, [rewrite]) if form in (None, site.form)]
    assert len(found) == 1, f"{len(found)} sites"
    made = rewritten(model, shapes, found)
    prove(model, made, feeds)
    for feed in feeds:
        before, after = run_model(model, feed), run_model(made, feed)
        for name, expected in before.items():
            if exact:
                np.testing.assert_array_equal(after[name], expected)
            else:
                np.testing.assert_allclose(after[name], expected, rtol=1e-4, atol=1e-4)
    return made


def ops(model: ir.Model) -> list[str]:
    """Operators of a model, in order."""
    return [one.op_type for one in model.graph]
