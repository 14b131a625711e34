"""Bring a model to the form that placement understands, proven equal to the original.

What normalising does, in order:

1. 16-bit floats become float32;
2. constants are folded, dead nodes and identities dropped, shared constants de-duplicated;
3. BatchNorm is folded into the linear op before it, one that is written out as Mul and Add as well, padding
   into convolutions, successive clips into one;
4. the spatial mean of a 4-D tensor becomes GlobalAveragePool, ``MatMul + Add`` becomes Gemm,
   ``x * HardSigmoid(x)`` becomes HardSwish: the forms that engines have INT8 or fused kernels for;
5. per-channel scales and shifts by constants go into the linear op before them; what a Gemm adds becomes a
   vector, or an Add;
6. a BatchNorm that nothing before it can take in (behind a concat, in DenseNet) becomes a depthwise 1x1
   convolution, which engines run in INT8 where a float island with two conversions would stand;
7. nodes without a unique name get one.

Names and dynamic axes of inputs and outputs stay as they were.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common_passes
import onnxscript.optimizer
import onnxscript.rewriter
from onnxscript.rewriter.rules import common as rules

from quantrim.errors import ModelError
from quantrim.graph.addends import fold_affine, replace, vector_addends
from quantrim.graph.constants import new_constant
from quantrim.graph.core import comparable, ending_at
from quantrim.graph.faults import telling
from quantrim.graph.folding import own_weights_before_batch_norms
from quantrim.graph.padding import wrap_by_slices
from quantrim.graph.ports import Feed, numpy_dtype
from quantrim.graph.precision import WEIGHTED, holds_halves, require_float, widen_halves
from quantrim.graph.rows import column_scales
from quantrim.graph.session import reference_session

#: Largest relative L2 distance that re-ordered float32 sums explain.
EQUAL_TOLERANCE = 1e-4
#: The same where the original computes in 16-bit floats and the normalised model in float32.
HALF_TOLERANCE = 2e-2


def normalize(model: ir.Model) -> ir.Model:
    """Normalised copy of a model; the argument is left alone.

    Raises:
        ModelError: the model holds no float32 data path, or a weight is NaN or infinite.
    """
    require_float(model)
    require_finite(model)
    with telling("be normalised", lambda: ir.serde.serialize_model(model)):
        return _normalized(model.clone())


def _normalized(model: ir.Model) -> ir.Model:
    if holds_halves(model):
        widen_halves(model)
    count = len(model.graph.outputs)
    _return_also(model, comparable(model))  # so that they are there to be compared, under their names
    onnxscript.optimizer.optimize(model, onnx_shape_inference=True)
    wrap_by_slices(model)
    own_weights_before_batch_norms(model)
    model = onnxscript.rewriter.rewrite(model, pattern_rewrite_rules=_rules(model))
    pools_from_means(model)
    vector_addends(model)
    fold_affine(model)
    column_scales(model)
    convolutions_from_batch_norms(model)
    onnxscript.optimizer.remove_unused_nodes(model)
    common_passes.LiftConstantsToInitializersPass(lift_all_constants=True)(model)
    common_passes.RemoveInitializersFromInputsPass()(model)
    model.graph.outputs[:] = model.graph.outputs[:count]
    name_nodes(model)
    return model


def _return_also(model: ir.Model, names: Collection[str]) -> None:
    returned = {value.name for value in model.graph.outputs}
    made = {value.name: value for node in model.graph for value in node.outputs}
    model.graph.outputs.extend(made[name] for name in names if name not in returned)


def _rules(model: ir.Model) -> list[onnxscript.rewriter.RewriteRule]:
    chosen = [
        rules.fuse_batchnorm_into_conv_rule,
        rules.fuse_batchnorm_into_conv_transpose_rule,
        rules.fuse_batchnorm_into_gemm_rule,
        rules.fuse_pad_into_conv_rule,
        rules.normalize_pad_format_conv_rule,
        rules.matmul_add_to_gemm_rule,
        rules.successive_relu_rule,
        rules.successive_clip_rule,
        rules.successive_clip_relu_rule,
        rules.successive_relu_clip_rule,
    ]
    if model.opset_imports.get("", 0) >= 14:
        chosen.extend(rules.fuse_hardswish_rules())
    return chosen


def require_finite(model: ir.Model) -> None:
    """Refuse a model whose layers hold NaN or infinite weights; masks elsewhere may be infinite.

    Raises:
        ModelError: names the first such weight and its node.
    """
    for node, value in ((n, value) for n in model.graph if n.op_type in WEIGHTED for value in n.inputs):
        tensor = None if value is None else value.const_value
        if tensor is None or tensor.dtype != ir.DataType.FLOAT or np.isfinite(tensor.numpy()).all():
            continue
        raise ModelError(
            f"node {node.name!r} ({node.op_type}): weight {tensor.name!r} holds NaN or infinite values. "
            "Take an earlier checkpoint, or train again."
        )


def pools_from_means(model: ir.Model) -> None:
    """Replace ReduceMean over both spatial axes of a 4-D tensor by GlobalAveragePool (and Flatten).

    Engines have INT8 kernels for the pool; none has one for the general mean.
    """
    for node in list(model.graph):
        if node.op_type != "ReduceMean" or not _is_spatial_mean(node):
            continue
        keep = node.attributes.get_int("keepdims", 1)
        pooled = ir.node("GlobalAveragePool", [node.inputs[0]], name=f"{node.name}_pool")
        made = [pooled]
        if not keep:
            made.append(ir.node("Flatten", [pooled.outputs[0]], {"axis": 1}, name=f"{node.name}_flat"))
            pooled.outputs[0].name = f"{node.outputs[0].name}_pooled"
        replace(model, node, made)


def _is_spatial_mean(node: ir.Node) -> bool:
    if not _is_image(node.inputs[0]):
        return False
    if "axes" in node.attributes:
        axes = list(node.attributes.get_ints("axes"))
    elif len(node.inputs) > 1 and node.inputs[1] is not None and node.inputs[1].const_value is not None:
        axes = node.inputs[1].const_value.numpy().ravel().tolist()
    else:
        return False
    return sorted(axis % 4 for axis in axes) == [2, 3]


def convolutions_from_batch_norms(model: ir.Model) -> None:
    """Replace the BatchNormalization nodes that are left over 4-D tensors by depthwise 1x1 convolutions."""
    for node in list(model.graph):
        if node.op_type != "BatchNormalization" or not _is_image(node.inputs[0]):
            continue
        statistics = [value.const_value if value is not None else None for value in node.inputs[1:5]]
        if any(tensor is None for tensor in statistics):
            continue
        gamma, beta, mean, variance = (t.numpy().astype(np.float64) for t in statistics if t is not None)
        factor = gamma / np.sqrt(variance + node.attributes.get_float("epsilon", 1e-5))
        name = str(node.outputs[0].name)
        weight = new_constant(model, f"{name}_weight", factor.reshape(-1, 1, 1, 1))
        bias = new_constant(model, f"{name}_bias", beta - mean * factor)
        attributes = {"group": gamma.size, "kernel_shape": [1, 1]}
        made = ir.node("Conv", [node.inputs[0], weight, bias], attributes, name=node.name)
        replace(model, node, [made])


def _is_image(value: ir.Value | None) -> bool:
    return value is not None and value.shape is not None and len(value.shape) == 4


def name_nodes(model: ir.Model) -> None:
    """Give every node a unique name, from its op type and output where it has none."""
    seen: Counter[str] = Counter()
    for node in model.graph:
        base = node.name or f"{node.op_type}_{node.outputs[0].name}"
        seen[base] += 1
        node.name = base if seen[base] == 1 else f"{base}__{seen[base]}"


def random_feed(model: ir.Model, shape: tuple[int, ...] | None = None, seed: int = 0) -> Feed:
    """Standard-normal inputs of the model's shapes.

    Args:
        model: the model.
        shape: shape of the first input; needed where axes other than the first are dynamic.
        seed: seed of the generator.

    Raises:
        ModelError: an axis other than the batch is dynamic and no shape was given, or the shape
            contradicts the model.
    """
    generator = np.random.default_rng(seed)
    feed = {}
    for position, value in enumerate(model.graph.inputs):
        known = shape if position == 0 else None
        size = _concrete_shape(value, known)
        feed[str(value.name)] = generator.standard_normal(size).astype(numpy_dtype(value))
    return feed


def _concrete_shape(value: ir.Value, given: tuple[int, ...] | None) -> tuple[int, ...]:
    declared = [d if isinstance(d, int) else None for d in (value.shape or [])]
    if given is not None:
        fits = len(given) == len(declared) and all(d in (None, g) for d, g in zip(declared, given, strict=True))
        if value.shape is not None and not fits:
            raise ModelError(f"input {value.name!r} has shape {_spell(declared)}, not {_spell(given)}.")
        return given
    dims = [1 if index == 0 and d is None else d for index, d in enumerate(declared)]
    if value.shape is None or any(d is None for d in dims):
        raise ModelError(
            f"input {value.name!r} has dynamic shape {_spell(declared)}. Give input_shape, e.g. 1,3,224,224.",
            field="input_shape",
        )
    return tuple(d for d in dims if d is not None)


def _spell(shape: object) -> str:
    return "x".join("?" if d is None else str(d) for d in shape)  # type: ignore[attr-defined]


def prove_equal(original: ir.Model, normalized: ir.Model, feed: Feed) -> float:
    """Largest relative L2 distance between the outputs of two models on the same input.

    Outputs behind a selection by value are compared before it (:func:`quantrim.graph.core.comparable`).

    Raises:
        ModelError: they differ by more than rounding explains.
    """
    names = comparable(original)
    before = run_model(ending_at(original, names), feed)
    after = run_model(ending_at(normalized, names), feed)
    worst, allowed = 0.0, HALF_TOLERANCE if holds_halves(original) else EQUAL_TOLERANCE
    for name, expected in before.items():
        if np.issubdtype(expected.dtype, np.floating) and not np.isfinite(expected).all():
            raise ModelError(
                f"output {name!r} of the float model is NaN or infinite on the first sample. "
                "Check the weights, and that the data are prepared as in training."
            )
        distance = relative_distance(expected, after[name])
        worst = max(worst, distance)
        if not distance <= allowed:
            raise ModelError(
                f"normalising changed output {name!r} by {distance:.1e} (relative L2). "
                "Please report this model."
            )
    return worst


def run_model(model: ir.Model, feed: Feed) -> Mapping[str, np.ndarray]:
    """Outputs of an in-memory model on ONNX Runtime, by name."""
    return next(run_batches(model, [feed]))


def run_batches(model: ir.Model, feeds: Iterable[Feed]) -> Iterator[Mapping[str, np.ndarray]]:
    """Outputs of an in-memory model for one batch after the other."""
    session = reference_session(model)
    names = [output.name for output in session.get_outputs()]
    for feed in feeds:
        yield dict(zip(names, session.run(names, dict(feed)), strict=True))


def relative_distance(expected: np.ndarray, got: np.ndarray) -> float:
    """||expected - got|| / ||expected|| in float64; infinite when shapes differ."""
    if expected.shape != got.shape:
        return float("inf")
    scale = float(np.linalg.norm(expected.astype(np.float64)))
    error = float(np.linalg.norm(expected.astype(np.float64) - got.astype(np.float64)))
    return error / scale if scale > 0 else error
