"""A model run piece by piece gives what it gives at once."""

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from quantrim.graph import graph_from_onnx, normalize, read_onnx
from quantrim.graph.segments import Segments
from quantrim.graph.session import reference_session, with_outputs


@pytest.fixture(scope="module")
def model(residual_onnx):
    return normalize(read_onnx(residual_onnx))


def at_once(model, names, feed):
    return dict(zip(names, reference_session(with_outputs(model, names)).run(names, feed), strict=True))


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 400_000), st.data())
def test_any_cut_gives_the_same_tensors_each_once(model, images, budget, data):
    feed = {"image": images[:2]}
    graph = graph_from_onnx(model, feed)
    tensors = sorted(name for node in graph.nodes for name in node.outputs if name in graph.shapes)
    wanted = data.draw(st.lists(st.sampled_from(tensors), min_size=1, unique=True))
    segments = Segments(model, wanted, graph.shapes, budget=budget)
    expected = at_once(model, wanted, feed)
    for _ in range(2):
        found = list(segments.run(feed))
        assert sorted(name for part in found for name in part) == sorted(wanted)
        for part in found:
            held = sum(array.nbytes for array in part.values())
            assert held <= max(budget, *(array.nbytes for array in part.values()), 0)
            for name, array in part.items():
                np.testing.assert_allclose(array, expected[name], rtol=1e-4, atol=1e-5)


def test_a_small_budget_cuts_and_none_does_not(model, images):
    feed = {"image": images[:2]}
    graph = graph_from_onnx(model, feed)
    wanted = [node.output for node in graph.nodes]
    assert len(Segments(model, wanted, graph.shapes, budget=1).parts) > 5
    assert len(list(Segments(model, wanted).run(feed))) == 1
    assert list(Segments(model, []).run(feed)) == [{}]


def test_integers_and_shapes_may_cross_a_cut(tmp_path):
    class Reshaped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.one(x).relu()
            y = y.reshape(x.shape[0], 8, -1)
            return self.two(y.reshape(x.shape[0], 8, x.shape[2] - 2, -1)).relu()

    path = tmp_path / "m.onnx"
    torch.onnx.export(
        Reshaped().eval(), (torch.randn(2, 3, 12, 12),), path, dynamo=True, verbose=False,
        dynamic_shapes=({0: torch.export.Dim("b"), 2: torch.export.Dim("h"), 3: torch.export.Dim("w")},),
        input_names=["x"],
    )  # fmt: skip
    model = read_onnx(path)
    assert any(node.op_type == "Shape" for node in model.graph)
    feed = {"x": np.random.default_rng(0).standard_normal((2, 3, 12, 12)).astype(np.float32)}
    graph = graph_from_onnx(normalize(model), feed)
    wanted = [node.output for node in graph.nodes if node.output in graph.shapes]
    segments = Segments(normalize(model), wanted, graph.shapes, budget=1)
    got = {name: array for part in segments.run(feed) for name, array in part.items()}
    expected = at_once(normalize(model), wanted, feed)
    for name in wanted:
        np.testing.assert_allclose(got[name], expected[name], rtol=1e-4, atol=1e-5)


def test_sequences_keep_a_model_in_one_piece():
    float32 = onnx.TensorProto.FLOAT
    helper = onnx.helper
    graph = helper.make_graph(
        [
            helper.make_node("SplitToSequence", ["x"], ["parts"], axis=1, name="split"),
            helper.make_node("ConcatFromSequence", ["parts"], ["y"], axis=0, name="join"),
            helper.make_node("Relu", ["y"], ["z"], name="relu"),
        ],
        "g",
        [helper.make_tensor_value_info("x", float32, [2, 4])],
        [helper.make_tensor_value_info("z", float32, None)],
    )
    import onnx_ir as ir

    model = ir.serde.deserialize_model(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    )
    feed = {"x": np.ones((2, 4), np.float32)}
    view = graph_from_onnx(model, feed)
    assert view.shapes["y"] == (8, 1)
    assert len(list(Segments(model, ["y", "z"], view.shapes, budget=1).run(feed))) == 1
