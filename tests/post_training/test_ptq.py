"""The main job on small models: file in, INT8 file out, checked on both engines."""

import json

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from quantrim.engines import open_session
from quantrim.engines.inspect import inspect, layer_errors
from quantrim.errors import ConfigError, ModelError, QuantrimError
from quantrim.graph import normalize, random_feed, read_onnx
from quantrim.graph.from_torch import export_onnx
from quantrim.post_training import ptq
from quantrim.post_training.quantize import ranges_path


@pytest.fixture(scope="module")
def quantized(residual_onnx, images, tmp_path_factory):
    output = tmp_path_factory.mktemp("ptq") / "int8.onnx"
    return ptq(residual_onnx, images, output)


def test_every_linear_layer_runs_int8_on_both_engines(quantized):
    assert [r.verdict.engine for r in quantized.engines] == ["onnxruntime", "openvino"] or [
        r.verdict.engine for r in quantized.engines
    ] == ["openvino", "onnxruntime"]
    for result in quantized.engines:
        assert result.verdict.int8_mac_share == pytest.approx(1.0), result.verdict.fallbacks


def test_the_int8_file_agrees_with_the_float_model(quantized):
    for result in quantized.engines:
        assert result.agreement[0].cosine > 0.99
        assert result.agreement[0].sqnr_db > 18


def test_names_and_dynamic_batch_survive_and_weights_are_stored_as_int8(quantized):
    proto = onnx.load(quantized.output)
    onnx.checker.check_model(proto, full_check=True)
    assert [i.name for i in proto.graph.input] == ["image"]
    assert [o.name for o in proto.graph.output] == ["logits"]
    assert proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param
    large = [t for t in proto.graph.initializer if np.prod(t.dims) > 100]
    assert large
    assert {t.data_type for t in large} == {onnx.TensorProto.INT8}


def test_the_result_has_the_keys_of_the_contract_and_is_plain_json(quantized):
    value = json.loads(json.dumps(quantized.to_json(), allow_nan=False))
    assert set(value) >= {"output", "seconds", "size_mb", "verdict", "latency_ms", "speedup"}
    assert set(value["size_mb"]) == {"fp32", "int8"}
    assert set(value["verdict"]) >= {"engine", "int8_mac_share", "fallbacks"}
    assert set(value["latency_ms"]) == {"fp32", "bf16", "int8", "int8_bf16"}


def test_the_ranges_are_written_beside_the_file(quantized):
    ranges = json.loads(ranges_path(quantized.output).read_text())
    assert ranges["tensors"]["image"]["dtype"] == "uint8"
    assert ranges["plan"]["target"] == "portable"


@pytest.mark.parametrize("target", ["portable", "openvino", "onnxruntime", "tensorrt"])
def test_every_target_writes_a_valid_file_that_stays_close_on_every_engine(
    target, residual_onnx, images, tmp_path
):
    result = ptq(residual_onnx, images, tmp_path / "m.onnx", target=target, engines=())
    expected = open_session(residual_onnx, "onnxruntime").run({"image": images})["logits"]
    for engine in ("openvino", "onnxruntime"):
        got = open_session(result.output, engine).run({"image": images})["logits"]
        assert np.corrcoef(expected.ravel(), got.ravel())[0, 1] > 0.99, engine


def test_tensorrt_files_hold_symmetric_codes_and_float_biases(residual_onnx, images, tmp_path):
    ptq(residual_onnx, images, tmp_path / "m.onnx", target="tensorrt", engines=())
    proto = onnx.load(tmp_path / "m.onnx")
    zero_points = [t for t in proto.graph.initializer if t.name.endswith("_zero_point")]
    assert zero_points
    for tensor in zero_points:
        array = onnx.numpy_helper.to_array(tensor)
        assert array.dtype == np.int8
        assert not array.any()
    assert not any(t.data_type == onnx.TensorProto.INT32 for t in proto.graph.initializer)
    made = {output: node for node in proto.graph.node for output in node.output}
    for node in proto.graph.node:
        if node.op_type == "QuantizeLinear" and node.input[0] in made:
            assert made[node.input[0]].op_type not in ("Conv", "Gemm")


def test_a_module_is_exported_on_the_way(residual_net, images, tmp_path):
    result = ptq(residual_net, images, tmp_path / "m.onnx", engines=("openvino",))
    assert result.engines[0].verdict.int8_mac_share == pytest.approx(1.0)


def test_skipped_layers_stay_float_and_are_reported(residual_onnx, images, tmp_path):
    name = next(n.name for n in read_onnx(residual_onnx).graph if n.op_type == "Gemm")
    result = ptq(residual_onnx, images, tmp_path / "m.onnx", skip=[name], engines=("openvino",))
    assert [(f.node, f.reason) for f in result.engines[0].verdict.fallbacks] == [(name, f"skipped by '{name}'")]


def test_refinement_is_kept_only_where_it_helps(residual_onnx, images, tmp_path):
    plain = ptq(residual_onnx, images, tmp_path / "a.onnx", engines=("onnxruntime",))
    refined = ptq(
        residual_onnx, images, tmp_path / "b.onnx", refinements=["equalize", "bias"], engines=("onnxruntime",)
    )
    assert "bias" in refined.refined
    assert refined.engines[0].agreement[0].sqnr_db > plain.engines[0].agreement[0].sqnr_db - 0.5


@pytest.mark.parametrize("algo", ["kl", "hist", "avg", "min_max", "abs_max", "emd"])
def test_every_algorithm_gives_a_usable_file(algo, residual_onnx, images, tmp_path):
    result = ptq(residual_onnx, images, tmp_path / "m.onnx", algo=algo, engines=("onnxruntime",))
    assert result.engines[0].agreement[0].cosine > 0.97


def test_reduced_range_never_saturates_16_bit_sums(residual_onnx, images, tmp_path):
    """On CPUs without VNNI, VPMADDUBSW adds two u8*s8 products in 16 bits: emulate it on real codes."""
    ptq(residual_onnx, images, tmp_path / "full.onnx", engines=())
    ptq(residual_onnx, images, tmp_path / "reduced.onnx", reduce_range=True, engines=())

    def saturates(path) -> bool:
        tensors = {t.name: t for t in onnx.load(path).graph.initializer}
        worst = 0
        for tensor in tensors.values():
            if tensor.data_type == onnx.TensorProto.INT8 and np.prod(tensor.dims) > 1:
                codes = onnx.numpy_helper.to_array(tensor).astype(np.int64).reshape(tensor.dims[0], -1)
                pairs = np.abs(codes[:, : codes.shape[1] // 2 * 2].reshape(len(codes), -1, 2)).sum(axis=2)
                worst = max(worst, int(pairs.max(initial=0)) * 255)
        return worst > 2**15 - 1

    assert saturates(tmp_path / "full.onnx")
    assert not saturates(tmp_path / "reduced.onnx")


def test_mobilenet_v3_like_blocks_with_gates_survive(tmp_path):
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 16, 3, padding=1)
            self.squeeze, self.excite = nn.Conv2d(16, 8, 1), nn.Conv2d(8, 16, 1)
            self.head = nn.Conv2d(16, 4, 1)

        def forward(self, x):
            x = nn.functional.hardswish(self.conv(x))
            gate = self.excite(torch.relu(self.squeeze(nn.functional.adaptive_avg_pool2d(x, 1))))
            return self.head(x * nn.functional.hardsigmoid(gate))

    torch.manual_seed(0)
    images = np.random.default_rng(0).standard_normal((8, 3, 16, 16)).astype(np.float32)
    for target in ("portable", "openvino", "onnxruntime"):
        result = ptq(
            Gated().eval(),
            images,
            tmp_path / f"{target}.onnx",
            target=target,
            engines=("openvino", "onnxruntime"),
        )
        assert min(r.agreement[0].cosine for r in result.engines) > 0.98, target


def test_a_model_with_control_flow_is_quantized_around_it(tmp_path):
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3)

        def forward(self, x):
            x = torch.relu(self.conv(x))
            return torch.cond(x.sum() > 0, lambda t: t * 2.0, lambda t: t - 1.0, (x,))

    images = np.random.default_rng(0).standard_normal((4, 3, 8, 8)).astype(np.float32)
    export_onnx(Branching(), torch.from_numpy(images[:1]), tmp_path / "m.onnx", dynamic_batch=False)
    result = ptq(tmp_path / "m.onnx", images, tmp_path / "q.onnx", engines=("onnxruntime",))
    assert result.engines[0].verdict.int8_mac_share == pytest.approx(1.0)


def test_a_model_without_linear_layers_is_refused_with_the_reason(tmp_path):
    export_onnx(nn.ReLU(), torch.randn(1, 3, 8, 8), tmp_path / "m.onnx")
    with pytest.raises(ModelError, match="no convolution or linear layer"):
        ptq(tmp_path / "m.onnx", np.eye(8, dtype=np.float32)[None, None].repeat(3, 1), tmp_path / "q.onnx")
    assert not (tmp_path / "q.onnx").exists()


def test_nan_weights_are_refused_and_nothing_is_written(residual_net, images, tmp_path):
    import copy

    broken = copy.deepcopy(residual_net)
    with torch.no_grad():
        broken.head.weight[0, 0] = float("nan")
    export_onnx(broken, torch.randn(1, 3, 32, 32), tmp_path / "m.onnx", parity=False)
    with pytest.raises(ModelError, match=r"weight 'head.weight' holds NaN"):
        ptq(tmp_path / "m.onnx", images, tmp_path / "q.onnx")
    with pytest.raises(ModelError, match="holds NaN"):
        inspect(tmp_path / "m.onnx")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.onnx"]


def test_a_read_only_output_is_one_clear_line_and_leaves_nothing(residual_onnx, images, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(QuantrimError, match="can't be written"):
        ptq(residual_onnx, images, tmp_path / "file" / "q.onnx", engines=())
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_an_output_that_is_the_model_a_folder_or_no_onnx_file_is_refused(residual_onnx, images, tmp_path):
    before = residual_onnx.read_bytes()
    (tmp_path / "folder.onnx").mkdir()
    for output, words in (
        (residual_onnx.parent / "." / residual_onnx.name, "the model itself"),
        (tmp_path / "folder.onnx", "this is a folder"),
        (tmp_path / "q.bin", "must end in .onnx"),
    ):
        with pytest.raises(ConfigError, match=words):
            ptq(residual_onnx, images, output, engines=())
    assert residual_onnx.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["folder.onnx"]


def test_an_unknown_refinement_or_target_gets_a_suggestion(residual_onnx, images, tmp_path):
    with pytest.raises(ConfigError, match="did you mean 'bias'"):
        ptq(residual_onnx, images, tmp_path / "q.onnx", refinements=["biass"])  # type: ignore[list-item]
    with pytest.raises(ConfigError, match="did you mean 'openvino'"):
        ptq(residual_onnx, images, tmp_path / "q.onnx", target="openvno")


def test_inspect_reads_the_file_without_its_history(quantized, residual_onnx):
    result = inspect(quantized.output, engine="openvino", against=residual_onnx)
    assert result.verdict.int8_mac_share == pytest.approx(1.0)
    assert {error.op for error in result.errors} >= {"Conv", "Gemm"}
    assert all(error.sqnr_db > 8 for error in result.errors)
    json.dumps(result.to_json(), allow_nan=False)


def test_a_file_of_another_quantizer_can_be_inspected(residual_onnx, images, tmp_path):
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static

    class Reader(CalibrationDataReader):
        left = iter(images)

        def get_next(self):
            image = next(self.left, None)
            return None if image is None else {"image": image[None]}

    quantize_static(str(residual_onnx), str(tmp_path / "q.onnx"), Reader(), quant_format=QuantFormat.QDQ)
    found = inspect(tmp_path / "q.onnx", engine="onnxruntime", against=residual_onnx)
    assert found.verdict.int8_mac_share > 0.4
    assert all(
        8 < error.sqnr_db < 60 for error in found.errors
    )  # behind its quantizers, however they are named


def test_tensors_behind_quantizers_are_found_by_structure(tmp_path, residual_onnx, quantized):
    """Names may say anything: no tensor of a file is read without the quantizer that stands behind it."""
    model = read_onnx(quantized.output)
    for node in model.graph:
        for value in node.outputs:
            if value.name.endswith(("_dequantized", "_quantized")):
                value.name = f"other_{value.name[::-1]}"
    plain = layer_errors(normalize(read_onnx(residual_onnx)), read_onnx(quantized.output), [random_feed(model)])
    renamed = layer_errors(normalize(read_onnx(residual_onnx)), model, [random_feed(model)])
    assert renamed == plain


@pytest.mark.parametrize("per_channel", [True, False])
def test_a_bias_that_fills_int32_leaves_room_for_the_products(per_channel, tmp_path):
    """With the bias at the end of int32, the products carried the sum over it: 10 came out as -10."""
    weight = np.full((2, 16, 1, 1), 1e-6, np.float32)
    weight[1] = 1.0 if per_channel else 1e-6
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Conv", ["x", "w", "b"], ["y"])],
        "g",
        [onnx.helper.make_tensor_value_info("x", 1, ["n", 16, 8, 8])],
        [onnx.helper.make_tensor_value_info("y", 1, ["n", 2, 8, 8])],
        [
            onnx.numpy_helper.from_array(weight, "w"),
            onnx.numpy_helper.from_array(np.array([10.0, 0.0], np.float32), "b"),
        ],
    )
    path, output = tmp_path / "m.onnx", tmp_path / "q.onnx"
    opsets = [onnx.helper.make_opsetid("", 17)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    data = np.random.default_rng(0).random((8, 16, 8, 8), np.float32)
    ptq(path, data, output, engines=(), refinements=(), per_channel=per_channel)
    made = open_session(output, "onnxruntime").run({"x": data})["y"]
    np.testing.assert_allclose(made[:, 0], 10.0, atol=0.1)


def _two_convolutions(path, middle, shape, output=("n", 8, 16, 16)):
    """File of Conv, Relu, what stands in the middle (r -> z), Conv."""
    generator = np.random.default_rng(0)
    stored = {"w": generator.normal(size=(8, 3, 3, 3)), "v": generator.normal(size=(8, 8, 3, 3))}
    make = onnx.helper.make_node
    nodes = [make("Conv", ["x", "w"], ["a"], pads=[1] * 4), make("Relu", ["a"], ["r"]), *middle,
             make("Conv", ["z", "v"], ["y"], pads=[1] * 4)]  # fmt: skip
    arrays = [onnx.numpy_helper.from_array(a.astype(np.float32), name) for name, a in stored.items()]
    arrays.append(onnx.numpy_helper.from_array(np.array([1, 8, 16, 16]), "sizes"))
    values = [onnx.helper.make_tensor_value_info(*one) for one in (("x", 1, shape), ("y", 1, output))]
    graph = onnx.helper.make_graph(nodes, "g", values[:1], values[1:], arrays)
    onnx.save(
        onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8), path
    )
    return path


PHOTOS = np.random.default_rng(1).normal(size=(6, 3, 16, 16)).astype(np.float32)


def test_a_model_that_takes_one_sample_alone_is_calibrated_so(tmp_path):
    reshape = onnx.helper.make_node("Reshape", ["r", "sizes"], ["z"])
    path = _two_convolutions(tmp_path / "m.onnx", [reshape], ["n", 3, 16, 16])
    result = ptq(path, PHOTOS, tmp_path / "q.onnx", engines=("onnxruntime",))
    assert result.faithful
    assert any("one sample at a time" in note for note in result.notes)


def test_outputs_without_a_rank_and_samples_with_a_batch_axis_are_taken(tmp_path):
    same = onnx.helper.make_node("Identity", ["r"], ["z"])
    path = _two_convolutions(tmp_path / "m.onnx", [same], [1, 3, 16, 16], output=None)
    assert ptq(path, PHOTOS[:, None], tmp_path / "q.onnx", engines=("onnxruntime",)).faithful
