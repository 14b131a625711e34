"""INT8 files made in a moment, for races: the placement of the real ones, with ranges of a few samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import onnx_ir as ir

from quantrim.graph import graph_from_onnx
from quantrim.graph.ports import Feed
from quantrim.graph.session import save_model
from quantrim.placement import place
from quantrim.placement.qdq import write_qdq
from quantrim.post_training.calibrate import collect
from quantrim.post_training.config import PtqConfig
from quantrim.post_training.quantize import decide
from quantrim.ranges import Sketch


class DraftFiles:
    """Writes the INT8 file of one model after another; no latency depends on how its ranges were chosen.

    Rewrites leave the tensors around them as they are, so statistics by name serve every model.

    Args:
        folder: where files go.
        feed: batch that ranges are taken from.
        config: placement and form of the quantizers.
    """

    def __init__(self, folder: Path, feed: Feed, config: PtqConfig) -> None:
        self.folder, self.feed = folder, feed
        self.config = replace(config, algo="abs_max", refinements=(), overrides=())
        self._sketches: dict[str, Sketch] = {}
        self._count = 0

    def write(self, model: ir.Model, float_nodes: Sequence[str] = ()) -> Path:
        """The INT8 file of a normalised model; of a model that nothing can be quantized in, the float file."""
        graph = graph_from_onnx(model, self.feed)
        selection = replace(self.config.selection, float_nodes=frozenset(float_nodes))
        plan = place(graph, self.config.rules, selection)
        self._count += 1
        path = self.folder / f"draft_{self._count}.onnx"
        if not plan.weights:
            save_model(model, path)
            return path
        missing = plan.groups.keys() - self._sketches.keys()
        if missing:
            self._sketches |= collect(model, missing, [self.feed], shapes=graph.shapes)
        one = decide(model, self._sketches, graph=graph, plan=plan, config=self.config)
        int32_bias = self.config.rules.bias == "int32"
        save_model(write_qdq(one.model, one.plan, one.activations, one.weights, int32_bias=int32_bias), path)
        return path
