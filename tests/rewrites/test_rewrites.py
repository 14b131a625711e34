"""Each rewrite on random instances of its pattern, against the original on ONNX Runtime."""

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantrim.errors import ModelError
from quantrim.graph.from_onnx import observed_shapes
from quantrim.rewrites import (
    ARG_MAX,
    BRANCHES,
    CHANNEL_SHUFFLE,
    MOVES,
    PADDED_WIDTHS,
    SPACE_TO_DEPTH_STEM,
    everywhere,
    prove,
    sites_of,
)
from tests.rewrites.graphs import check, feeds_of, graph, node, ops

INT64 = onnx.TensorProto.INT64


def random(*shape, seed=0):
    return np.random.default_rng(seed + sum(shape)).standard_normal(shape).astype(np.float32)


class TestArgMax:
    @pytest.mark.parametrize("before", ["Softmax", "LogSoftmax", "Sigmoid"])
    @pytest.mark.parametrize("keep", [0, 1])
    def test_softmax_goes(self, before, keep):
        attributes = {} if before == "Sigmoid" else {"axis": 1}
        nodes = [node(before, "x", "p", **attributes), node("ArgMax", "p", "y", axis=1, keepdims=keep)]
        made = check(graph(nodes, (2, 5, 3, 4), {}, kind=INT64), (2, 5, 3, 4), ARG_MAX, "without softmax")
        assert ops(made) == ["ArgMax"]

    def test_softmax_over_another_axis_stays(self):
        nodes = [node("Softmax", "x", "p", axis=2), node("ArgMax", "p", "y", axis=1)]
        model = graph(nodes, (2, 5, 3, 4), {}, kind=INT64)
        found = sites_of(model, observed_shapes(model, feeds_of((2, 5, 3, 4))[0]), [ARG_MAX])
        assert {site.form for site in found} == {"running maximum"}

    @pytest.mark.parametrize("keep", [0, 1])
    @pytest.mark.parametrize("order", [[0, 2, 3, 1], [1, 0, 3, 2], [3, 2, 1, 0]])
    @pytest.mark.parametrize("axis", [-1, 0, 2])
    def test_a_transpose_before_it_goes_behind_or_away(self, keep, order, axis):
        nodes = [node("Transpose", "x", "t", perm=order), node("ArgMax", "t", "y", axis=axis, keepdims=keep)]
        model = graph(nodes, (2, 5, 3, 4), {}, kind=INT64)
        made = check(model, (2, 5, 3, 4), ARG_MAX, "channels first", exact=True)
        assert ops(made)[0] == "ArgMax"

    @pytest.mark.parametrize("keep", [0, 1])
    @pytest.mark.parametrize("mode", ["half_pixel", "asymmetric", "align_corners"])
    def test_it_comes_before_a_nearest_resize(self, keep, mode):
        nodes = [
            node("Resize", "x - - s", "u", mode="nearest", coordinate_transformation_mode=mode),
            node("ArgMax", "u", "y", axis=1, keepdims=keep),
        ]
        model = graph(nodes, (2, 5, 4, 4), {"s": np.array([2, 5, 12, 8], np.int64)}, kind=INT64)
        check(model, (2, 5, 4, 4), ARG_MAX, "before resize", exact=True)

    @settings(max_examples=20, deadline=None)
    @given(st.integers(2, 12), st.sampled_from([0, 1]), st.integers(0, 100))
    def test_the_running_maximum_takes_the_first_of_equals(self, planes, keep, seed):
        model = graph([node("Round", "x", "r"), node("ArgMax", "r", "y", axis=1, keepdims=keep)],
                      (2, planes, 6, 5), {}, kind=INT64)  # fmt: skip
        made = check(model, (2, planes, 6, 5), ARG_MAX, "running maximum", exact=True)
        assert "ArgMax" not in ops(made)


class TestMoves:
    def test_transposes_that_cancel_vanish(self):
        nodes = [
            node("Transpose", "x", "a", perm=[0, 2, 3, 1]),
            node("Sigmoid", "a", "b"),
            node("Relu", "b", "c"),
            node("Transpose", "c", "y", perm=[0, 3, 1, 2]),
        ]
        made = check(graph(nodes, (2, 3, 4, 5), {}), (2, 3, 4, 5), MOVES, "transposes", exact=True)
        assert ops(made) == ["Sigmoid", "Relu"]

    @settings(max_examples=25, deadline=None)
    @given(st.permutations(range(4)), st.permutations(range(4)), st.booleans())
    def test_two_transposes_are_one(self, one, two, function):
        nodes = [node("Transpose", "x", "a", perm=one)]
        nodes += [node("Relu", "a", "b")] if function else []
        nodes.append(node("Transpose", "b" if function else "a", "y", perm=two))
        made = check(graph(nodes, (2, 3, 4, 5), {}), (2, 3, 4, 5), MOVES, exact=True)
        assert ops(made).count("Transpose") <= 1

    def test_of_two_reshapes_the_last_stays(self):
        constants = {"s": np.array([2, 60], np.int64), "t": np.array([2, 5, -1], np.int64)}
        nodes = [node("Reshape", "x s", "a"), node("Reshape", "a t", "y")]
        made = check(graph(nodes, (2, 3, 4, 5), constants), (2, 3, 4, 5), MOVES, "reshapes", exact=True)
        assert ops(made) == ["Reshape"]


def focus(source, target):
    """YOLOX's stem: rows and columns sliced by two, in its own order."""
    nodes, corners = [], []
    for index, (row, column) in enumerate(((0, 0), (1, 0), (0, 1), (1, 1))):
        nodes.append(node("Slice", f"{source} at{row} end two_axis two", f"rows{index}"))
        nodes.append(node("Slice", f"rows{index} at{column} end three_axis two", f"corner{index}"))
        corners.append(f"corner{index}")
    nodes.append(node("Concat", " ".join(corners), target, axis=1))
    numbers = {"at0": 0, "at1": 1, "end": 2**63 - 1, "two": 2, "two_axis": 2, "three_axis": 3}
    return nodes, {name: np.array([number], np.int64) for name, number in numbers.items()}


class TestStem:
    @pytest.mark.parametrize(("kernel", "pad", "stride"), [(3, 1, 1), (1, 0, 1), (3, 1, 2), (5, 2, 1)])
    def test_focus_is_folded_into_its_convolution(self, kernel, pad, stride):
        nodes, constants = focus("x", "f")
        nodes.append(node("Conv", "f w b", "y", pads=[pad] * 4, strides=[stride] * 2))
        constants |= {"w": random(6, 12, kernel, kernel), "b": random(6)}
        made = check(graph(nodes, (2, 3, 12, 16), constants), (2, 3, 12, 16), SPACE_TO_DEPTH_STEM)
        assert ops(made) == ["Conv"]

    @pytest.mark.parametrize("block", [2, 3])
    def test_space_to_depth_is_folded(self, block):
        nodes = [node("SpaceToDepth", "x", "s", blocksize=block), node("Conv", "s w", "y", pads=[1, 0, 1, 0])]
        constants = {"w": random(4, 3 * block * block, 3, 2)}
        check(graph(nodes, (1, 3, 12, 12), constants), (1, 3, 12, 12), SPACE_TO_DEPTH_STEM)

    def test_slices_that_stop_early_stay(self):
        nodes, constants = focus("x", "f")
        constants |= {"end": np.array([8], np.int64), "w": random(6, 12, 1, 1)}
        nodes.append(node("Conv", "f w", "y"))
        model = graph(nodes, (1, 3, 12, 12), constants)
        assert not sites_of(model, observed_shapes(model, feeds_of((1, 3, 12, 12))[0]), [SPACE_TO_DEPTH_STEM])


class TestBranches:
    @settings(max_examples=20, deadline=None)
    @given(st.sampled_from([1, 2, 4]), st.sampled_from([1, 2, 4]), st.sampled_from([1, 2]), st.booleans())
    def test_a_repvgg_block_is_one_convolution(self, group, other, stride, bias):
        constants = {"w": random(4, 4 // group, 3, 3), "v": random(4, 4 // other, 1, 1), "b": random(4)}
        nodes = [
            node("Conv", "x w b", "a", pads=[1] * 4, strides=[stride] * 2, group=group),
            node("Conv", "x v b" if bias else "x v", "c", strides=[stride] * 2, group=other),
            node("Add", "a c", "y"),
        ]
        made = check(graph(nodes, (2, 4, 7, 8), constants), (2, 4, 7, 8), BRANCHES, "convolutions")
        assert ops(made) == ["Conv"]

    def test_branches_of_a_mobileone_block_become_one(self):
        constants = {f"w{i}": random(4, 1, 3, 3, seed=i) for i in range(3)} | {"v": random(4, 1, 1, 1)}
        nodes = [node("Conv", f"x w{i}", f"c{i}", pads=[1] * 4, group=4) for i in range(3)]
        nodes += [node("Conv", "x v", "c3", group=4), node("Add", "c0 c1", "s1"), node("Add", "s1 c2", "s2"),
                  node("Add", "s2 c3", "y")]  # fmt: skip
        model = graph(nodes, (1, 4, 6, 6), constants)
        feed = feeds_of((1, 4, 6, 6))
        made = everywhere(model, feed[0], BRANCHES)
        assert ops(made) == ["Conv"]
        prove(model, made, feed)

    @pytest.mark.parametrize("group", [1, 2, 4])
    def test_an_identity_branch_is_a_one_in_the_middle(self, group):
        nodes = [node("Conv", "x w", "a", pads=[1] * 4, group=group), node("Add", "x a", "y")]
        constants = {"w": random(4, 4 // group, 3, 3)}
        made = check(graph(nodes, (1, 4, 5, 5), constants), (1, 4, 5, 5), BRANCHES, "identity")
        assert ops(made) == ["Conv"]

    def test_convolutions_in_a_row_are_multiplied(self):
        nodes = [node("Conv", "x w b", "a", pads=[1] * 4), node("Conv", "a v c", "y")]
        constants = {"w": random(8, 3, 3, 3), "b": random(8), "v": random(4, 8, 1, 1), "c": random(4)}
        made = check(graph(nodes, (1, 3, 6, 6), constants), (1, 3, 6, 6), BRANCHES, "in a row")
        assert ops(made) == ["Conv"]

    def test_a_bottleneck_stays_two_convolutions(self):
        nodes = [node("Conv", "x w", "a"), node("Conv", "a v", "y")]
        model = graph(nodes, (1, 64, 4, 4), {"w": random(2, 64, 1, 1), "v": random(64, 2, 1, 1)})
        assert not sites_of(model, observed_shapes(model, feeds_of((1, 64, 4, 4))[0]), [BRANCHES])


class TestChannels:
    @pytest.mark.parametrize("groups", [2, 3, 4])
    def test_a_shuffle_goes_into_the_weights_behind(self, groups):
        size = np.array([2, groups, 12 // groups, 5, 5], np.int64)
        constants = {"s": size, "t": np.array([2, 12, 5, 5], np.int64), "w": random(4, 12, 1, 1),
                     "d": random(12, 1, 3, 3), "e": random(12)}  # fmt: skip
        nodes = [node("Reshape", "x s", "a"), node("Transpose", "a", "b", perm=[0, 2, 1, 3, 4]),
                 node("Reshape", "b t", "c"), node("Conv", "c d e", "f", group=12), node("Relu", "f", "g"),
                 node("Conv", "g w", "y")]  # fmt: skip
        made = check(graph(nodes, (2, 12, 5, 5), constants), (2, 12, 5, 5), CHANNEL_SHUFFLE)
        assert ops(made) == ["Conv", "Relu", "Conv"]

    def test_a_gather_of_all_channels_goes_too(self):
        order = np.random.default_rng(0).permutation(6)
        nodes = [node("Gather", "x i", "a", axis=1), node("Conv", "a w", "y")]
        made = check(
            graph(nodes, (1, 6, 4, 4), {"i": order, "w": random(3, 6, 3, 3)}), (1, 6, 4, 4), CHANNEL_SHUFFLE
        )
        assert ops(made) == ["Conv"]

    def test_a_shuffle_that_leaves_the_graph_stays(self):
        nodes = [node("Gather", "x i", "y", axis=1), node("Conv", "y w", "z")]
        constants = {"i": np.arange(6)[::-1].copy(), "w": random(3, 6, 3, 3)}
        model = graph(nodes, (1, 6, 4, 4), constants, outputs="y z")
        assert not sites_of(model, observed_shapes(model, feeds_of((1, 6, 4, 4))[0]), [CHANNEL_SHUFFLE])

    @pytest.mark.parametrize("function", ["Relu", "Sigmoid", "HardSwish"])
    @pytest.mark.parametrize("depthwise", [False, True])
    def test_widths_are_padded_through_functions_and_depthwise_convolutions(self, function, depthwise):
        nodes = [node("Conv", "x w b", "a"), node(function, "a", "f")]
        if depthwise:
            nodes.append(node("Conv", "f d e", "g", group=14, pads=[1] * 4))
        nodes.append(node("Conv", f"{'g' if depthwise else 'f'} v c", "y"))
        constants = {"w": random(14, 3, 1, 1), "b": random(14), "d": random(14, 1, 3, 3), "e": random(14),
                     "v": random(5, 14, 1, 1), "c": random(5)}  # fmt: skip
        if not depthwise:
            del constants["d"], constants["e"]
        made = check(graph(nodes, (1, 3, 6, 6), constants), (1, 3, 6, 6), PADDED_WIDTHS, "multiple of 16")
        assert next(iter(made.graph)).inputs[1].const_value.shape[0] == 16


def test_a_wrong_rewrite_is_refused():
    one = graph([node("Relu", "x", "y")], (1, 3), {})
    other = graph([node("Abs", "x", "y")], (1, 3), {})
    with pytest.raises(ModelError, match="changed output 'y'"):
        prove(one, other, feeds_of((1, 3)))


def test_a_rewrite_that_takes_what_is_selected_from_is_refused():
    def chosen(scores):
        nodes = [node("Relu", "x", scores), node("NonZero", scores, "y")]
        return graph(nodes, (1, 3), {}, kind=onnx.TensorProto.INT64)

    prove(chosen("scores"), chosen("scores"), feeds_of((1, 3)))
    with pytest.raises(ModelError, match="tensor 'scores'"):
        prove(chosen("scores"), chosen("others"), feeds_of((1, 3)))


def test_codes_may_differ_by_one_at_an_edge_and_no_more():
    expected = np.random.default_rng(0).integers(0, 256, (100, 100)).astype(np.float32)
    from quantrim.rewrites.proof import _compare

    near, far = expected.copy(), expected.copy()
    near[0, 0] += 1
    far[0, 0] += 9
    _compare("y", expected * 3, near * 3)
    with pytest.raises(ModelError, match="output 'y'"):
        _compare("y", expected * 3, far * 3 + 5)
