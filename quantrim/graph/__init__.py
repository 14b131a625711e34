"""The model as quantrim sees it: canonical ops over named tensors."""

from quantrim.graph.from_onnx import graph_from_onnx
from quantrim.graph.normalize import normalize, prove_equal, random_feed, require_finite
from quantrim.graph.ops import LINEAR_OPS
from quantrim.graph.read import read_onnx
from quantrim.graph.view import Graph, Node, Weight, macs

__all__ = [
    "LINEAR_OPS", "Graph", "Node", "Weight", "graph_from_onnx", "macs", "normalize", "prove_equal",
    "random_feed", "read_onnx", "require_finite",
]  # fmt: skip
