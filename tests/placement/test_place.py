"""Placement on small graphs written by hand, and the structural rules of each engine."""

import dataclasses

import pytest

from quantrim.errors import ConfigError
from quantrim.graph.view import Graph, Node, Weight
from quantrim.placement import Selection, place, plan_from_json
from quantrim.targets import ONNXRUNTIME, OPENVINO, PORTABLE, TENSORRT


def conv(name: str, source: str, **attributes) -> Node:
    return Node(name, "conv", "Conv", (source,), (f"{name}_out",), Weight(f"{name}_w", 0, (8, 8, 3, 3)),
                f"{name}_b", attributes)  # fmt: skip


def op(kind: str, name: str, *sources: str, **attributes) -> Node:
    return Node(name, kind, kind, sources, (f"{name}_out",), attributes=attributes)


def graph(*nodes: Node, outputs: tuple[str, ...] | None = None) -> Graph:
    shapes = {tensor: (1, 8, 4, 4) for node in nodes for tensor in (*node.inputs, *node.outputs)}
    return Graph(nodes, ("image",), outputs or (nodes[-1].output,), shapes)


RESIDUAL = graph(
    conv("a", "image"),
    op("relu", "act", "a_out"),
    conv("b", "act_out"),
    op("relu", "act2", "b_out"),
    conv("c", "act2_out"),
    op("add", "sum", "c_out", "act_out"),
    op("relu", "act3", "sum_out"),
    conv("d", "act3_out"),
)


def test_the_quantizer_stands_behind_a_fused_activation_and_not_before_it():
    plan = place(RESIDUAL, PORTABLE)
    assert "act_out" in plan.groups
    assert "a_out" not in plan.groups


def test_a_tensor_has_one_quantizer_however_many_layers_read_it():
    plan = place(RESIDUAL, PORTABLE)
    assert {("b", "act_out"), ("sum", "act_out")} <= plan.reads
    assert list(plan.groups).count("act_out") == 1


def test_portable_puts_quantizers_behind_every_convolution_the_last_included():
    plan = place(RESIDUAL, PORTABLE)
    assert {"c_out", "act3_out", "d_out"} <= set(plan.groups)
    assert plan.outputs == {"d_out"}


@pytest.mark.parametrize("target", [PORTABLE, ONNXRUNTIME])
def test_a_residual_add_behind_a_leaky_relu_runs_int8(target):
    net = graph(
        conv("a", "image"), op("leaky_relu", "act", "a_out"), conv("b", "act_out"),
        op("leaky_relu", "act2", "b_out"), op("add", "sum", "act2_out", "act_out"), conv("c", "sum_out"),
    )  # fmt: skip
    plan = place(net, target)
    assert plan.int8_nodes == {node.name for node in net.nodes}
    assert {"a_out", "act_out", "act2_out", "sum_out"} <= set(plan.groups)


def test_openvino_leaves_the_last_result_float():
    plan = place(RESIDUAL, OPENVINO)
    assert plan.outputs == frozenset()
    assert "d_out" not in plan.groups


def test_tensorrt_quantizes_only_the_identity_branch_of_a_residual_add():
    plan = place(RESIDUAL, TENSORRT)
    assert ("sum", "act_out") in plan.reads
    assert ("sum", "c_out") not in plan.reads
    assert plan.activation == "s8"
    assert "d_out" not in plan.groups


def test_tensorrt_has_no_quantizer_on_the_result_of_a_convolution_alone():
    plan = place(RESIDUAL, TENSORRT)
    assert not {"a_out", "b_out", "c_out", "d_out"} & set(plan.groups)


CONCAT = graph(
    conv("a", "image"),
    conv("b", "image"),
    op("concat", "cat", "a_out", "b_out"),
    op("max_pool", "pool", "cat_out"),
    conv("c", "pool_out"),
)


@pytest.mark.parametrize("target", [PORTABLE, OPENVINO, TENSORRT])
def test_concat_and_what_carries_its_result_share_one_scale(target):
    groups = place(CONCAT, target).groups
    assert len({groups[t] for t in ("a_out", "b_out", "cat_out", "pool_out")}) == 1


def test_onnxruntime_gives_every_branch_of_a_concat_its_own_scale():
    groups = place(CONCAT, ONNXRUNTIME).groups
    assert len({groups["a_out"], groups["b_out"], groups["cat_out"]}) == 3


def test_openvino_needs_no_second_quantizer_where_codes_were_only_moved():
    reads = place(CONCAT, OPENVINO).reads
    assert ("c", "pool_out") not in reads
    assert ("cat", "a_out") in reads


def test_an_int8_tail_that_reaches_no_linear_layer_stays_float():
    tail = graph(conv("a", "image"), op("resize", "up", "a_out"))
    assert place(tail, PORTABLE).int8_nodes == {"a"}


def test_a_float_reader_of_an_int8_result_reads_it_quantized_where_the_engine_needs_that():
    mixed = graph(conv("a", "image"), op("softmax", "soft", "a_out"), conv("b", "a_out"), outputs=("b_out",))
    assert ("soft", "a_out") in place(mixed, PORTABLE).reads
    assert ("soft", "a_out") not in place(mixed, OPENVINO).reads


def test_skipped_layers_and_unselected_types_are_named_with_their_reason():
    plan = place(RESIDUAL, PORTABLE, Selection(skip=("b",)))
    assert plan.float_nodes == {"b": "skipped by 'b'"}
    assert "b" not in plan.weights
    no_add = place(RESIDUAL, PORTABLE, Selection(op_types=frozenset({"conv"})))
    assert "sum" not in no_add.int8_nodes


def test_a_skip_glob_that_matches_nothing_is_an_error():
    with pytest.raises(ConfigError, match="matches no node"):
        place(RESIDUAL, PORTABLE, Selection(skip=("backbone.*",)))


def test_an_op_type_the_target_cannot_run_is_an_error_with_a_suggestion():
    with pytest.raises(ConfigError, match="did you mean 'concat'"):
        place(RESIDUAL, PORTABLE, Selection(op_types=frozenset({"concatt"})))


def test_a_weight_that_is_computed_keeps_its_layer_float():
    node = dataclasses.replace(conv("a", "image"), weight=None)
    plan = place(graph(node, conv("b", "a_out")), PORTABLE)
    assert plan.float_nodes == {"a": "weight is not a constant"}


def test_a_plan_survives_its_json():
    plan = place(RESIDUAL, PORTABLE)
    assert plan_from_json(plan.to_json()) == plan
