"""Decoding and non-maximum suppression behind the maps of a file: the core stays what it was, and may be INT8.

The tail is exported by itself and joined to the core, so that calibration and quantization never see it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import TensorProto, compose, helper
from torch import Tensor, nn
from torch.nn import functional as F

from quantrim.detection import BoxesDecoder, Decoder, RowsDecoder, Thresholds
from quantrim.errors import ModelError
from quantrim.files import atomic_path
from quantrim.graph.from_torch import export_onnx
from quantrim.vision.models.detection.decoded import candidates

#: Names of the outputs of files that decode themselves, and of those that suppress, too.
DECODED, SUPPRESSED = ("boxes", "scores"), ("detections",)


class _Tail(nn.Module):
    """Maps to boxes (N, P, 4), cut at the border of the canvas, and scores (N, P, C)."""

    def __init__(self, decoder: Decoder, size: tuple[int, int]) -> None:
        super().__init__()
        self.read, self.size = decoder, size

    def forward(  # torch.export can't tell how many inputs a "*maps" takes
        self,
        a: Tensor,
        b: Tensor,
        c: Tensor | None = None,
        d: Tensor | None = None,
        e: Tensor | None = None,
        f: Tensor | None = None,
        g: Tensor | None = None,
        h: Tensor | None = None,
        i: Tensor | None = None,
        j: Tensor | None = None,
        k: Tensor | None = None,
        l: Tensor | None = None,  # noqa: E741
    ) -> tuple[Tensor, Tensor]:
        """Candidates of up to twelve maps: SSDLite has six levels of two."""
        maps = [one for one in (a, b, c, d, e, f, g, h, i, j, k, l) if one is not None]
        height, width = self.size
        boxes, scores = candidates(self.read, maps, self.size)
        limits = torch.tensor([width, height, width, height], dtype=boxes.dtype)
        return torch.minimum(F.relu(boxes), limits), scores


def decoder_behind(names: Sequence[str], decoder: Decoder) -> Decoder:
    """The decoder of a file by the names of its outputs."""
    if tuple(names) == DECODED:
        return BoxesDecoder(decoder.num_classes)
    return RowsDecoder(decoder.num_classes) if tuple(names) == SUPPRESSED else decoder


def attach_tail(path: Path, decoder: Decoder, *, thresholds: Thresholds | None = None) -> None:
    """Let a file of maps decode itself.

    Args:
        path: .onnx file of a detector's raw maps; it is replaced.
        decoder: what the maps mean.
        thresholds: also suppress, by ONNX's NonMaxSuppression, which runs in float; outputs are then the rows
            that :class:`quantrim.detection.RowsDecoder` reads, without a limit over all classes.

    Raises:
        ModelError: the file's canvas is not fixed, or the tail can't be exported.
    """
    core = onnx.load(path)
    maps = [_example(value) for value in core.graph.output]
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "tail.onnx"
        opset = max(entry.version for entry in core.opset_import if entry.domain in ("", "ai.onnx"))
        size = _canvas(core, path)
        export_onnx(_Tail(decoder, size), maps, place, output_names=DECODED, opset=max(18, opset))
        tail = onnx.load(place)
    if thresholds is not None:
        _append_suppression(tail.graph, thresholds)
    joined = _joined(core, tail)
    onnx.checker.check_model(joined)
    with atomic_path(path) as temporary:
        onnx.save(joined, temporary)


def _canvas(core: onnx.ModelProto, path: Path) -> tuple[int, int]:
    dims = core.graph.input[0].type.tensor_type.shape.dim
    if len(dims) != 4 or not (dims[2].dim_value and dims[3].dim_value):
        raise ModelError(f"{path}: height or width of the input is open; the decoder needs both.")
    return dims[2].dim_value, dims[3].dim_value


def _example(value: onnx.ValueInfoProto) -> Tensor:
    sizes = [dim.dim_value or 2 for dim in value.type.tensor_type.shape.dim]
    return torch.zeros(2 if not value.type.tensor_type.shape.dim[0].dim_value else sizes[0], *sizes[1:])


def _joined(core: onnx.ModelProto, tail: onnx.ModelProto) -> onnx.ModelProto:
    """The tail behind the core; names of the tail's values get a prefix, its outputs keep theirs."""
    outputs = [value.name for value in tail.graph.output]
    tail = compose.add_prefix(tail, "tail_")
    taken = [value.name for value in tail.graph.input]
    pairs = list(zip([value.name for value in core.graph.output], taken, strict=True))
    tail.ir_version = core.ir_version
    del tail.opset_import[:]
    tail.opset_import.extend(core.opset_import)
    whole = compose.merge_models(core, tail, io_map=pairs)
    named = {f"tail_{name}": name for name in outputs}
    for node in whole.graph.node:
        for place, name in enumerate(node.output):
            node.output[place] = named.get(name, name)
        for place, name in enumerate(node.input):
            node.input[place] = named.get(name, name)
    for value in whole.graph.output:
        value.name = named[value.name]
    return whole


def _append_suppression(graph: onnx.GraphProto, thresholds: Thresholds) -> None:
    """NonMaxSuppression and the gathering of its rows (K, 7) behind boxes and scores."""
    constants = {
        "nms_keep": ([], TensorProto.INT64, [thresholds.keep]),
        "nms_iou": ([], TensorProto.FLOAT, [thresholds.iou]),
        "nms_score": ([], TensorProto.FLOAT, [thresholds.score]),
        "nms_image_box": ([2], TensorProto.INT64, [0, 2]),
        "nms_image_class": ([2], TensorProto.INT64, [0, 1]),
        "nms_last": ([1], TensorProto.INT64, [1]),
    }
    graph.initializer.extend(
        helper.make_tensor(name, kind, dims, v) for name, (dims, kind, v) in constants.items()
    )
    steps: tuple[tuple[str, list[str], list[str], dict[str, Any]], ...] = (
        ("Transpose", ["scores"], ["nms_by_class"], {"perm": [0, 2, 1]}),
        (
            "NonMaxSuppression",
            ["boxes", "nms_by_class", "nms_keep", "nms_iou", "nms_score"],
            ["nms_chosen"],
            {},
        ),
        ("Gather", ["nms_chosen", "nms_image_box"], ["nms_places"], {"axis": 1}),
        ("GatherND", ["boxes", "nms_places"], ["nms_boxes"], {}),
        ("GatherND", ["nms_by_class", "nms_chosen"], ["nms_scores"], {}),
        ("Unsqueeze", ["nms_scores", "nms_last"], ["nms_column"], {}),
        ("Gather", ["nms_chosen", "nms_image_class"], ["nms_labels"], {"axis": 1}),
        ("Cast", ["nms_labels"], ["nms_numbers"], {"to": TensorProto.FLOAT}),
        ("Concat", ["nms_numbers", "nms_column", "nms_boxes"], ["detections"], {"axis": 1}),
    )
    for kind, inputs, outputs, attributes in steps:
        graph.node.append(
            helper.make_node(kind, inputs, outputs, name=f"nms_{kind}_{outputs[0]}", **attributes)
        )
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info("detections", TensorProto.FLOAT, ["rows", 7]))
