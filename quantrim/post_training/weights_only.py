"""Smaller files without calibration: weights as int8, int16 or float16, arithmetic in float.

For models whose size counts and whose speed does not. Weights of convolutions and linear layers are stored in
fewer bits and turned back to float32 when an engine loads the file; activations stay as they are. PaddleSlim
calls the integer forms ``quant_post_dynamic``; its ``threshold_rate`` clips that share of a channel's largest
weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import onnx_ir as ir
import onnxscript.optimizer

from quantrim.engines import EngineName, installed_engines, open_session
from quantrim.engines.compare import compare
from quantrim.errors import ConfigError, ModelError, did_you_mean
from quantrim.files import require_onnx_output, size_mb
from quantrim.graph import LINEAR_OPS, graph_from_onnx, normalize, prove_equal, random_feed, read_onnx
from quantrim.graph.from_onnx import constant
from quantrim.graph.load import as_onnx
from quantrim.graph.session import save_model
from quantrim.graph.view import Weight
from quantrim.judges import Judgement
from quantrim.placement import Plan, WeightQuantization
from quantrim.placement.qdq import write_qdq
from quantrim.ranges import quantize_weight, weight_scales
from quantrim.ranges.codes import WeightCodes
from quantrim.ranges.scales import shape_scales
from quantrim.scratch import scratch_folder

Kind = Literal["int8", "int16", "fp16"]
_LARGEST_INT16 = 32_767


@dataclass(frozen=True, slots=True)
class WeightsResult:
    """Result of :func:`shrink_weights`.

    Attributes:
        output: path of the file.
        kind: how weights are stored.
        size_mb: "fp32" and the kind.
        layers: how many weights were stored so.
        judgements: what each engine keeps of the float model's answers, by engine.
    """

    output: str
    kind: Kind
    size_mb: dict[str, float]
    layers: int
    judgements: dict[str, Judgement]

    def to_json(self) -> dict[str, Any]:
        """Plain values by the keys of the documented JSON schema."""
        value = asdict(self) | {"command": "shrink"}
        value["judgements"] = {engine: one.to_json() for engine, one in self.judgements.items()}
        return value


def shrink_weights(
    model: Any,
    output: str | Path,
    *,
    kind: Kind = "int8",
    per_channel: bool = True,
    threshold_rate: float = 0.0,
    skip: Sequence[str] = (),
    input_shape: tuple[int, ...] | None = None,
    example_inputs: Any = None,
    engines: Sequence[EngineName] | None = None,
) -> WeightsResult:
    """Write a file whose weights take a quarter (int8) or half (int16, fp16) of the room.

    Args:
        model: .onnx file, Paddle inference model folder, or nn.Module.
        output: .onnx file.
        kind: "int8" or "int16" with a scale for each output channel, or "fp16".
        per_channel: else one scale for a weight.
        threshold_rate: share of each channel's largest magnitudes that integers clip, in [0, 1).
        skip: globs on names of nodes whose weights stay as they are.
        input_shape: shape of the first input where axes other than the batch are dynamic.
        example_inputs: for an nn.Module.
        engines: engines to judge on random inputs; OpenVINO and ONNX Runtime by default, () for none.

    Raises:
        ConfigError: an illegal option.
        ModelError: the model can't be read, has no weights, or one is too large for float16.
    """
    if kind not in get_args(Kind):
        raise ConfigError(f"kind {kind!r} is unknown{did_you_mean(kind, get_args(Kind))}", field="kind")
    if not 0 <= threshold_rate < 1:
        raise ConfigError(f"threshold_rate is {threshold_rate}; it must be in [0, 1).", field="threshold_rate")
    require_onnx_output(output, model)
    with scratch_folder() as folder:
        path = as_onnx(model, folder, example_inputs)
        original = read_onnx(path)
        feeds = [random_feed(original, input_shape, seed) for seed in range(2)]
        normalized = normalize(original)
        prove_equal(original, normalized, feeds[0])
        weights = _weights(normalized, feeds[0], skip)
        shrunk = (
            _int8(normalized, weights, per_channel, threshold_rate)
            if kind == "int8"
            else _stored(normalized, weights, kind, per_channel, threshold_rate)
        )
        staged = folder / "shrunk.onnx"
        save_model(shrunk, staged)
        asked = [one for one in installed_engines() if one != "tensorrt"] if engines is None else engines
        judgements: dict[str, Judgement] = {
            engine: compare(open_session(path, engine), open_session(staged, engine), feeds) for engine in asked
        }
        save_model(shrunk, output)
        sizes = {"fp32": size_mb(path), kind: size_mb(output)}
    return WeightsResult(str(output), kind, sizes, len(weights), judgements)


def _weights(model: ir.Model, feed: Any, skip: Sequence[str]) -> dict[str, Weight]:
    """Constant operand of each linear node that is not skipped."""
    nodes = [node for node in graph_from_onnx(model, feed).nodes if node.op in LINEAR_OPS and node.weight]
    for glob in skip:
        if not any(fnmatchcase(node.name, glob) for node in nodes):
            names = [node.name for node in nodes]
            raise ConfigError(
                f"skip {glob!r} matches no layer with a weight{did_you_mean(glob, names)}", field="skip"
            )
    chosen = {node.name: node.weight for node in nodes if not any(fnmatchcase(node.name, g) for g in skip)}
    if not chosen:
        raise ModelError("no layer of this model has a weight to store in fewer bits.")
    return {name: weight for name, weight in chosen.items() if weight is not None}


def _clipped(weight: np.ndarray, axis: int | None, rate: float) -> np.ndarray:
    """The weight with a share of each channel's largest magnitudes clipped to the next lower one."""
    if not rate:
        return weight
    others = tuple(a for a in range(weight.ndim) if a != axis)
    top = np.quantile(np.abs(weight), 1 - rate, axis=others, keepdims=True).astype(np.float32)
    return np.clip(weight, -top, top)


def _int8(model: ir.Model, weights: dict[str, Weight], per_channel: bool, rate: float) -> ir.Model:
    """Weights as int8 behind DequantizeLinear: a plan that has no activations."""
    quantizers, codes = {}, {}
    for name, weight in weights.items():
        axis = weight.axis if per_channel else None
        values = _clipped(constant(model, weight.name), axis, rate)
        scales = weight_scales(values, axis)
        quantizers[name] = WeightQuantization(name, weight.name, weight.axis, None, "")
        codes[name] = WeightCodes(quantize_weight(values, scales, axis), scales, axis)
    plan = Plan("portable", "u8", frozenset(), {}, frozenset(), frozenset(), quantizers, {})
    return write_qdq(model, plan, {}, codes, int32_bias=False)


def _stored(
    model: ir.Model, weights: dict[str, Weight], kind: Kind, per_channel: bool, rate: float
) -> ir.Model:
    """Weights as int16 or float16 behind a Cast, for which no engine needs a kernel."""
    model = model.clone()
    made: dict[str, ir.Value] = {}
    for node in list(model.graph):
        weight = weights.get(str(node.name))
        if weight is None:
            continue
        if weight.name not in made:
            axis = weight.axis if per_channel else None
            values = constant(model, weight.name)
            made[weight.name] = (
                _half(model, weight.name, values)
                if kind == "fp16"
                else _int16(model, weight.name, _clipped(values, axis, rate), axis)
            )
        node.replace_input_with(1, made[weight.name])
    onnxscript.optimizer.remove_unused_nodes(model)
    model.graph.sort()
    return model


def _half(model: ir.Model, name: str, values: np.ndarray) -> ir.Value:
    half = values.astype(np.float16)
    if not np.isfinite(half).all():
        raise ModelError(f"weight {name!r} holds values beyond float16's 65504. Use int8 or int16.")
    return _cast(model, name, half)


def _int16(model: ir.Model, name: str, values: np.ndarray, axis: int | None) -> ir.Value:
    scales = shape_scales(weight_scales(values, axis, levels=_LARGEST_INT16), values.ndim, axis)
    codes = np.clip(np.rint(values / scales), -_LARGEST_INT16, _LARGEST_INT16).astype(np.int16)
    real = _cast(model, name, codes)
    product = ir.node("Mul", [real, _initializer(model, f"{name}_scale", scales)], name=f"{name}_dequantize")
    model.graph.insert_before(model.graph[0], product)
    return product.outputs[0]


def _cast(model: ir.Model, name: str, values: np.ndarray) -> ir.Value:
    stored = _initializer(model, f"{name}_{values.dtype}", values)
    node = ir.node("Cast", [stored], {"to": int(ir.DataType.FLOAT)}, name=f"{name}_cast")
    model.graph.insert_before(model.graph[0], node)
    return node.outputs[0]


def _initializer(model: ir.Model, name: str, values: np.ndarray) -> ir.Value:
    tensor = ir.tensor(np.ascontiguousarray(values), name=name)
    value = ir.Value(
        name=name, shape=ir.Shape(values.shape), type=ir.TensorType(tensor.dtype), const_value=tensor
    )
    model.graph.register_initializer(value)
    return value
