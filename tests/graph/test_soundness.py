"""Damaged and hostile ONNX files: one line that names the place, and no sound file is refused."""

import random
import resource
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from quantrim.errors import ModelError, QuantrimError
from quantrim.graph import graph_from_onnx, normalize, prove_equal, random_feed, read_onnx
from quantrim.graph.session import parse_onnx
from tests.fuzz.models import MUTATORS, small_model


def written(model: onnx.ModelProto, folder: Path) -> Path:
    (folder / "m.onnx").write_bytes(model.SerializeToString())
    return folder / "m.onnx"


def weight(model: onnx.ModelProto, name: str = "c1") -> onnx.TensorProto:
    return next(t for t in model.graph.initializer if t.name == name)


def dims(*sizes: int) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        del weight(model).dims[:]
        weight(model).dims.extend(sizes)

    return change


def attribute(index: int, name: str, value: object) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        node = model.graph.node[index]
        kept = [a for a in node.attribute if a.name != name]
        del node.attribute[:]
        node.attribute.extend([*kept, helper.make_attribute(name, value)])

    return change


def constant_of(op: str, *arrays: object) -> Callable[[onnx.ModelProto], None]:
    """A node of constants before the graph, whose result meets the input."""

    def change(model: onnx.ModelProto) -> None:
        names = [f"k{i}" for i in range(len(arrays))]
        model.graph.initializer.extend(
            numpy_helper.from_array(np.asarray(array), name) for name, array in zip(names, arrays, strict=True)
        )
        model.graph.node.insert(0, helper.make_node(op, names, ["bomb"], "bomb"))
        model.graph.node[1].input[0] = "bomb"

    return change


def loop(*count: int, condition: bool = True) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        flag = [helper.make_tensor_value_info("go", TensorProto.BOOL, [])]
        turn = [helper.make_tensor_value_info("turn", TensorProto.INT64, [])]
        state = [helper.make_tensor_value_info("state", TensorProto.FLOAT, [10])]
        body = helper.make_graph([], "body", [*turn, *flag, *state], [*flag, *state])
        model.graph.initializer.append(numpy_helper.from_array(np.array(condition), "go_on"))
        for number in count:
            model.graph.initializer.append(numpy_helper.from_array(np.array(number), "count"))
        inputs = ["count" if count else "", "go_on", "fb"]
        model.graph.node.append(helper.make_node("Loop", inputs, ["looped"], "forever", body=body))

    return change


DAMAGED: dict[str, tuple[Callable[[onnx.ModelProto], object], str]] = {
    "few bytes": (lambda m: setattr(weight(m), "raw_data", b"1234"), "weight 'c1' of shape"),
    "huge shape": (dims(8, 3, 3, 2**40), "weight 'c1'"),
    "negative shape": (dims(8, -3, 3, 3), "weight 'c1' has shape"),
    "type 0": (lambda m: setattr(weight(m), "data_type", 0), "weight 'c1' has type 0"),
    "type 99": (lambda m: setattr(weight(m), "data_type", 99), "weight 'c1' has type 99"),
    "double": (lambda m: setattr(weight(m), "data_type", 11), "takes 1728 bytes, but has 864"),
    "twice": (lambda m: m.graph.initializer.append(weight(m)), "weight 'c1' is there twice"),
    "input type": (
        lambda m: setattr(m.graph.input[0].type.tensor_type, "elem_type", 99),
        "input 'x' has element",
    ),
    "no type": (lambda m: m.graph.input[0].ClearField("type"), "input 'x' has no type"),
    "nothing makes": (lambda m: m.graph.node.pop(0), r"node 'norm_1' \(BatchNormalization\) reads 'c'"),
    "made twice": (lambda m: m.graph.node[3].output.__setitem__(0, "c"), r"node 'conv_3' \(Conv\) makes 'c'"),
    "circle": (lambda m: m.graph.node[0].input.__setitem__(0, "s"), "waits for its own output"),
    "output": (lambda m: setattr(m.graph.output[0], "name", "lost"), "output 'lost' is made by nothing"),
    "group": (attribute(0, "group", 0), r"node 'conv_0' \(Conv\) has group \[0\]"),
    "pads": (attribute(0, "pads", [2**31] * 4), r"node 'conv_0' \(Conv\) has pads"),
    "dilations": (attribute(3, "dilations", [0, 0]), r"node 'conv_3' \(Conv\) has dilations"),
    "auto_pad": (attribute(0, "auto_pad", "NOPE"), "legal: NOTSET, SAME_UPPER"),
    "text": (attribute(0, "kernel_shape", "text"), r"'conv_0' \(Conv\) has 'kernel_shape' of another type"),
    "opset": (lambda m: setattr(m.opset_import[0], "version", 2**40), "opset 1099511627776 does not exist"),
    "constant": (constant_of("ConstantOfShape", [2**20, 2**20]), r"node 'bomb' \(ConstantOfShape\)"),
    "range": (constant_of("Range", 0, 2**40, 1), r"node 'bomb' \(Range\)"),
    "tile": (constant_of("Tile", [1.0, 2.0], [2**40]), r"node 'bomb' \(Tile\)"),
    "expand": (constant_of("Expand", [1.0], [2**20, 2**20]), r"node 'bomb' \(Expand\)"),
    "pad": (constant_of("Pad", [1.0], [2**40, 0]), r"node 'bomb' \(Pad\)"),
    "endless loop": (loop(), r"node 'forever' \(Loop\) would run for ever"),
    "long loop": (loop(2**62), r"node 'forever' \(Loop\) would run 4611686018427387904 times"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damage_is_one_line_that_names_its_place(name, tmp_path):
    change, words = DAMAGED[name]
    model = small_model()
    change(model)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ModelError, match=rf"m\.onnx: damaged model: .*{words}") as error:
        read_onnx(written(model, tmp_path))
    assert "\n" not in str(error.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 200_000  # kB


@pytest.mark.parametrize(("depth", "ring"), [(1, True), (3, True), (30, False), (200, False)])
def test_functions_that_call_themselves_or_double_thirty_times_are_refused(depth, ring, tmp_path):
    model = small_model()
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
    for level in range(depth):
        last = level == depth - 1
        name, domain = (f"F{(level + 1) % depth}", "local") if ring or not last else ("Relu", "")
        calls = [helper.make_node(name, [a], [b], domain=domain) for a, b in (("a", "m"), ("m", "b"))]
        model.functions.append(helper.make_function("local", f"F{level}", ["a"], ["b"], calls, opsets))
    model.opset_import.append(opsets[1])
    model.graph.node[2].op_type, model.graph.node[2].domain = "F0", "local"
    with pytest.raises(ModelError, match=r"damaged model: .*(calls itself|nodes once its functions)"):
        read_onnx(written(model, tmp_path))


@pytest.mark.parametrize("name", [b"conv_0", b"relu_2", b"MaxPool", b"epsilon", b"shape"])
@pytest.mark.parametrize("bad", [b"\xff", b"\xc3\x28", b"\xe2\x28\xa1"])
def test_a_name_that_is_no_utf_8_is_refused(name, bad, tmp_path):
    data = small_model().SerializeToString().replace(name, bad + name[len(bad) :])
    (tmp_path / "m.onnx").write_bytes(data)
    with pytest.raises(ModelError, match="no UTF-8 text"):
        read_onnx(tmp_path / "m.onnx")


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({"offset": "abc"}, "offset 'abc', no number"), ({"offset": "1.5"}, "no number"),
        ({"offset": "-5"}, "no number"), ({"offset": "٣"}, "no number"), ({"length": "9" * 40}, "no number"),
        ({"length": "8"}, "takes 864 bytes, but has 8"),
        ({"offset": "4096", "length": "864"}, "truncated"), ({"offset": "4"}, "but has 860"),
        ({"location": "../w.bin"}, "outside of the model's folder"), ({"location": "/etc/hostname"}, "outside"),
        ({"location": "C:\\w.bin"}, "outside"), ({"location": "link.bin"}, "a link out of the model's folder"),
        ({"location": ""}, "a file without a name"), ({"location": "none.bin"}, "are missing"),
        ({"location": "folder"}, "are missing"),
    ],
)  # fmt: skip
def test_external_data_lie_whole_in_the_models_folder(entries, words, tmp_path):
    home, model = tmp_path / "home", small_model()
    (home / "folder").mkdir(parents=True)
    for place in (tmp_path / "w.bin", home / "w.bin"):
        place.write_bytes(weight(model).raw_data)
    (home / "link.bin").symlink_to(tmp_path / "w.bin")
    tensor = weight(model)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in ({"location": "w.bin"} | entries).items():
        tensor.external_data.add(key=key, value=value)
    with pytest.raises(ModelError, match=words) as error:
        read_onnx(written(model, home))
    assert "c1" in str(error.value) or "external data" in str(error.value)


def _unsorted(model: onnx.ModelProto) -> None:
    order = list(model.graph.node)[::-1]
    del model.graph.node[:]
    model.graph.node.extend(order)


def _branch(model: onnx.ModelProto) -> None:
    out = [helper.make_tensor_value_info("o", TensorProto.FLOAT, None)]
    parts = [helper.make_graph([helper.make_node(op, ["n"], ["o"])], op, [], out) for op in ("Relu", "Abs")]
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
    made = helper.make_node("If", ["yes"], ["a"], "if_2", then_branch=parts[0], else_branch=parts[1])
    model.graph.node[2].CopyFrom(made)


def _typed_fields(model: onnx.ModelProto) -> None:
    values = numpy_helper.to_array(weight(model)).ravel().tolist()
    weight(model).ClearField("raw_data")
    weight(model).float_data.extend(values)


def _four_bits(model: onnx.ModelProto) -> None:
    model.opset_import[0].version, model.ir_version = 21, 10
    model.graph.initializer.append(helper.make_tensor("nibbles", TensorProto.INT4, [3], [1, -2, 3]))
    model.graph.initializer.append(helper.make_tensor("none", TensorProto.FLOAT, [0, 4], []))
    model.graph.initializer.append(helper.make_tensor("words", TensorProto.STRING, [2], ["a", "b"]))


ODD = [_unsorted, _branch, _typed_fields, _four_bits, loop(3), loop(condition=False)]


@pytest.mark.parametrize("change", ODD)
def test_odd_files_that_run_are_read(change, tmp_path):
    model = small_model()
    change(model)
    ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    assert parse_onnx(written(model, tmp_path)).graph.output[0].name == "y"


@pytest.mark.parametrize("mutate", MUTATORS, ids=lambda mutate: mutate.__name__)
def test_mutated_files_are_read_or_refused_in_one_line(mutate, tmp_path):
    data, path = small_model().SerializeToString(), tmp_path / "m.onnx"
    (tmp_path / "w.bin").write_bytes(bytes(864))
    for seed in range(6):
        try:
            path.write_bytes(mutate(data, random.Random(seed)))
        except (ValueError, TypeError):  # protobuf holds no such value
            continue
        try:
            original = read_onnx(path)
            feed = random_feed(original, (1, 3, 16, 16), 0)
            normalized = normalize(original)
            prove_equal(original, normalized, feed)
            graph_from_onnx(normalized, feed)
        except (QuantrimError, MemoryError) as error:
            assert "\n" not in str(error)  # noqa: PT017
            assert len(str(error)) < 700  # noqa: PT017
