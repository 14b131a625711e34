"""Names that people know: the path of the module that a node came from, as exporters write it into the file."""

from __future__ import annotations

import ast

import onnx_ir as ir

#: Where torch's exporter notes the modules around a node, outermost first, and its own name of the node last.
_SCOPES = "pkg.torch.onnx.name_scopes"
#: Operators whose second operand bears the module's name.
_WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def module_of(node: ir.Node) -> str:
    """Path of a node's module ("backbone.stage3.0.conv"); "" where the file does not tell.

    The name of a weight tells more than the scopes where the exporter folded a batch norm into the layer
    before it, and gave the result the batch norm's scope.

    Args:
        node: of a model that torch exported, quantized or not.
    """
    return _of_weight(node) or _of_scopes(node) or _of_name(str(node.name or ""))


def _of_weight(node: ir.Node) -> str:
    if node.op_type not in _WEIGHTED or len(node.inputs) < 2 or node.inputs[1] is None:
        return ""
    name = str(node.inputs[1].name).split("@")[0]  # a quantized weight is named WEIGHT@NODE
    path, separator, last = name.rpartition(".")
    return path if separator and last in ("weight", "in_proj_weight") else ""


def _of_scopes(node: ir.Node) -> str:
    text = node.metadata_props.get(_SCOPES)
    if not text:
        return ""
    try:
        scopes = ast.literal_eval(text)
    except (ValueError, SyntaxError):  # another exporter's form
        return ""
    return str(scopes[-2]) if isinstance(scopes, list) and len(scopes) > 1 else ""


def _of_name(name: str) -> str:
    """Path in a name of torch's older exporter, /layer1/layer1.0/conv1/Conv."""
    if not name.startswith("/"):
        return ""
    path = ""
    for scope in name.split("/")[1:-1]:
        path = scope if not path or scope.startswith(f"{path}.") else _joined(path, scope)
    return path


def _joined(path: str, scope: str) -> str:
    """A scope behind a path whose last step it repeats: layer1 and layer1.0, or a.layer1 and layer1.0."""
    last = path.rpartition(".")[2]
    return path[: len(path) - len(last)] + scope if scope.startswith(f"{last}.") else f"{path}.{scope}"
