"""An nn.Module as an ONNX file, checked against the module."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import nn

from quantrim.errors import ModelError, first_line
from quantrim.graph.session import reference_session, save_model
from quantrim.modules import function_modes_restored

#: Notes of torch's exporter that travel with the file: the modules that a node stands in.
_KEPT_NOTES = ("pkg.torch.onnx.name_scopes", "pkg.torch.onnx.class_hierarchy")
#: Largest relative L2 distance between torch and ONNX Runtime that float32 rounding explains.
PARITY_TOLERANCE = 1e-3
#: Largest share of classes behind an arg max that may differ, where two logits are nearly equal.
TIES_TOLERANCE = 0.01


def export_onnx(
    module: nn.Module,
    example_inputs: torch.Tensor | Sequence[torch.Tensor],
    path: str | Path,
    *,
    dynamic_batch: bool = True,
    opset: int = 18,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    parity: bool = True,
) -> float:
    """Export a module in eval mode and compare the file with it on the example inputs.

    Args:
        module: the model; it is not changed.
        example_inputs: one tensor or several, float32, batch first.
        path: where the .onnx file goes; written atomically.
        dynamic_batch: leave the first axis open, of every input whose size is that of the first input there.
        opset: ONNX opset.
        input_names: names of the inputs; "input", "input_1", ... by default.
        output_names: names of the outputs; "output", "output_1", ... by default.
        parity: run the file on ONNX Runtime and compare.

    Returns:
        Largest absolute difference between torch and ONNX Runtime; 0 without parity check.

    Raises:
        ModelError: torch can't export the module, or the file computes something else.
    """
    inputs = (example_inputs,) if isinstance(example_inputs, torch.Tensor) else tuple(example_inputs)
    # weights in channels-last layout, as training leaves them, would be exported with layout conversions
    module = copy.deepcopy(module).eval().cpu().to(memory_format=torch.contiguous_format)
    inputs = tuple(tensor.detach().cpu().contiguous() for tensor in inputs)
    with torch.no_grad():
        expected = _flatten(module(*inputs))
    shapes = None
    given = inputs
    if dynamic_batch:  # a batch of one would be taken for a constant
        counts = [tensor.dim() > 0 and len(tensor) == len(inputs[0]) for tensor in inputs]
        shapes = tuple({0: torch.export.Dim("batch")} if counted else None for counted in counts)
        given = tuple(
            torch.cat([tensor, tensor]) if counted and len(tensor) == 1 else tensor
            for tensor, counted in zip(inputs, counts, strict=True)
        )
    model = exported(
        module,
        given,
        shapes,
        opset=opset,
        input_names=input_names,
        output_names=output_names or numbered("output", len(expected)),
    )
    save_model(model, path)
    if not parity:
        return 0.0
    return _compare(model, inputs, expected, path)


def exported(
    module: nn.Module,
    inputs: tuple[torch.Tensor, ...],
    dynamic_shapes: Any,
    *,
    opset: int,
    input_names: Sequence[str] | None,
    output_names: Sequence[str],
    translations: Mapping[Any, Any] | None = None,
    of: nn.Module | None = None,
) -> ir.Model:
    """What torch's exporter makes of a module: the one place that calls it.

    Args:
        module: the model, in evaluation mode on the CPU.
        inputs: positional inputs.
        dynamic_shapes: as ``torch.export`` takes them; None where every size is fixed.
        opset: ONNX opset.
        input_names: names of the inputs; "input", "input_1", ... by default.
        output_names: names of the outputs.
        translations: functions that write custom operators, by operator.
        of: the module to name in errors, where ``module`` wraps it.

    Raises:
        ModelError: torch can't export the module.
    """
    try:
        with warnings.catch_warnings(), function_modes_restored():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                module,
                inputs,
                dynamo=True,
                dynamic_shapes=dynamic_shapes,
                opset_version=opset,
                input_names=list(input_names or numbered("input", len(inputs))),
                output_names=list(output_names),
                custom_translation_table=dict(translations or {}),
                verbose=False,
            )
    except Exception as error:  # torch.export raises a dozen types
        raise _export_error(of or module, error) from error
    assert program is not None
    return _without_sources(program.model)


def _without_sources(model: ir.Model) -> ir.Model:
    """The model without the lines and folders of the user's code, which torch notes at every node."""
    holders = [model.graph, *model.graph.inputs, *model.graph.outputs, *model.graph]
    holders += [value for node in model.graph for value in node.outputs]
    for holder in holders:
        for key in [key for key in holder.metadata_props if key not in _KEPT_NOTES]:
            del holder.metadata_props[key]
    return model


def _export_error(module: nn.Module, error: BaseException) -> ModelError:
    """What to tell of a module that torch.onnx.export fails on: the first cause, and what mends it."""
    while error.__cause__ is not None:
        error = error.__cause__
    return ModelError(
        f"{type(module).__name__} can't be exported to ONNX: {first_line(error).removesuffix('.')}. "
        "Control flow that depends on tensor values must become torch.cond or torch.where, or be moved out "
        "of the module."
    )


def numbered(name: str, count: int) -> list[str]:
    """``name``, ``name_1``, ``name_2``, ...: so many names of inputs or outputs."""
    return [name if index == 0 else f"{name}_{index}" for index in range(count)]


def _flatten(outputs: Any) -> list[torch.Tensor]:
    leaves, _ = torch.utils._pytree.tree_flatten(outputs)
    return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]


def _compare(
    model: Any, inputs: tuple[torch.Tensor, ...], expected: Sequence[torch.Tensor], path: str | Path
) -> float:
    session = reference_session(model)
    feed = {value.name: tensor.numpy() for value, tensor in zip(session.get_inputs(), inputs, strict=True)}
    worst = 0.0
    for output, got, want in zip(session.get_outputs(), session.run(None, feed), expected, strict=True):
        reference = want.numpy().astype(np.float64)
        if not np.isfinite(reference).all():
            raise ModelError(
                f"output {output.name!r} of the module is NaN or infinite on the example inputs. Check the "
                "weights and the data."
            )
        if want.is_floating_point():
            distance = np.linalg.norm(got - reference) / max(float(np.linalg.norm(reference)), 1e-12)
        else:  # classes: near ties may fall either way
            distance = np.mean(got != reference) * PARITY_TOLERANCE / TIES_TOLERANCE
        if not distance <= PARITY_TOLERANCE:
            raise ModelError(
                f"{path}: output {output.name!r} differs from torch by {distance:.1e} (relative L2). The "
                "export is wrong; please report the model and its torch version."
            )
        worst = max(worst, float(np.abs(got - reference).max(initial=0.0)))
    return worst
