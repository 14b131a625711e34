"""Where a model's arithmetic ends and its selection begins: NMS, thresholds, top-k, control flow by data.

What such operators return depends on the data in number, order or size, so two nearly equal models can't be
compared behind them: one box more, and every row is another one. Models are compared on the tensors that the
selection reads. What stands behind it is left as it was: it works on few values, and a quantizer there would
see other boxes at each run.
"""

from __future__ import annotations

from collections.abc import Collection

import onnx_ir as ir
import onnx_ir.passes.common as common_passes

from quantrim.errors import ModelError
from quantrim.graph.bodies import captured, subgraphs
from quantrim.graph.session import with_outputs

#: Operators that select by value: TopK where its indices are used, control flow where its condition is data.
SELECTING = frozenset({
    "NonMaxSuppression", "NonZero", "Compress", "Unique", "BatchedNMS_TRT", "EfficientNMS_TRT", "MultiClassNMS",
    "Multinomial", "TopK", "If", "Loop", "SequenceMap",
})  # fmt: skip
#: Operators whose result depends on the shape of what they read, not on its values.
_OF_SHAPES = frozenset({"Shape", "Size", "ConstantOfShape", "EyeLike"})


def selections(model: ir.Model) -> dict[str, str]:
    """Tensors that depend on a selection by value → the operator type that selects."""
    from_data = _from_data(model)
    behind: dict[str, str] = {}
    for node in model.graph:
        kind = next((behind[name] for name in _read(node) if name in behind), None)
        if kind is None and _selects(node, from_data):
            kind = node.op_type
        if kind is not None:
            behind |= dict.fromkeys((str(v.name) for v in node.outputs if v.name), kind)
    return behind


def _selects(node: ir.Node, from_data: set[str]) -> bool:
    def data(position: int) -> bool:
        value = node.inputs[position] if len(node.inputs) > position else None
        return value is not None and str(value.name) in from_data

    if node.op_type not in SELECTING:
        return False
    if node.op_type == "TopK":
        return data(0) and len(node.outputs) > 1 and bool(node.outputs[1].uses())
    if node.op_type == "If":
        return data(0)
    if node.op_type == "Loop":
        return data(0) or data(1) or _stops_by_data(node)
    return any(value is not None and str(value.name) in from_data for value in node.inputs)


def _stops_by_data(loop: ir.Node) -> bool:
    """Whether the body of a Loop computes its condition, and does not hand on what it was given."""
    for body in subgraphs(loop):
        condition = body.outputs[0]
        maker = condition.producer()
        while maker is not None and maker.op_type == "Identity" and maker.inputs[0] is not None:
            condition = maker.inputs[0]
            maker = condition.producer()
        if maker is not None and maker.op_type != "Constant":
            return True
    return False


def comparable(model: ir.Model) -> tuple[str, ...]:
    """Names of the tensors on which a model is compared with another form of itself.

    Its outputs; in the place of those behind a selection, the floating tensors that the selection and all
    behind it read from before it, or from which the masks and indices that they read are made.
    """
    behind = selections(model)
    outputs = [str(value.name) for value in model.graph.outputs]
    if not any(name in behind for name in outputs):
        return tuple(outputs)
    makers = {str(v.name): node for node in model.graph for v in node.outputs}
    tail = [node for node in model.graph if any(str(v.name) in behind for v in node.outputs)]
    waiting = [name for node in tail for name in _read(node)][::-1]
    floats, data, seen = _floats(model), _from_data(model), set(behind)
    kept = [name for name in outputs if name not in behind]
    while waiting:
        name = waiting.pop()
        if name in seen or name not in data or name not in makers:
            continue
        seen.add(name)
        if name in floats:
            kept.append(name)
        else:
            waiting += _read(makers[name])
    return tuple(dict.fromkeys(kept)) or tuple(outputs)


def _read(node: ir.Node) -> list[str]:
    return [str(v.name) for v in node.inputs if v is not None] + captured(node)


def _floats(model: ir.Model) -> set[str]:
    """Floating tensors of more than one value that nodes make; types are inferred where the file is silent.

    A single value, such as a sum that a condition is made of, is no measure of likeness: it may be near zero.
    """
    typed = ir.Model(model.graph.clone(), ir_version=model.ir_version, functions=list(model.functions.values()))
    if any(value.dtype is None for node in typed.graph for value in node.outputs):
        common_passes.ShapeInferencePass()(typed)
    kinds = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE, None)
    made = (v for node in typed.graph for v in node.outputs if v.dtype in kinds)
    return {str(v.name) for v in made if v.shape is None or any(size != 1 for size in v.shape)}


def _from_data(model: ir.Model) -> set[str]:
    """Tensors whose values depend on the values of inputs."""
    found = {str(v.name) for v in model.graph.inputs if v.name not in model.graph.initializers}
    for node in model.graph:
        if node.op_type not in _OF_SHAPES and any(name in found for name in _read(node)):
            found.update(str(v.name) for v in node.outputs if v.name)
    return found


def core_of(model: ir.Model) -> ir.Model:
    """The model, or a copy that ends at the tensors of :func:`comparable`; weights are shared, not copied."""
    names = comparable(model)
    return model if names == tuple(str(v.name) for v in model.graph.outputs) else ending_at(model, names)


def ending_at(model: ir.Model, names: Collection[str]) -> ir.Model:
    """Copy of a model that returns the named tensors and computes nothing else.

    Raises:
        ModelError: one of them is not in the model.
    """
    copy = with_outputs(model, names)
    values = {str(v.name): v for v in copy.graph.outputs}
    for name in names:
        if name not in values:
            raise ModelError(
                f"tensor {name!r}, on which models are compared, is not in this form of the model."
            )
    copy.graph.outputs[:] = [values[name] for name in names]
    needed: set[ir.Node] = set()
    waiting = [v.producer() for v in copy.graph.outputs]
    makers = {str(v.name): node for node in copy.graph for v in node.outputs}
    while waiting:
        node = waiting.pop()
        if node is None or node in needed:
            continue
        needed.add(node)
        waiting += [makers.get(name) for name in _read(node)]
    for node in reversed([node for node in copy.graph if node not in needed]):
        copy.graph.remove(node)
    return copy
