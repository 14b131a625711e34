"""INT8 files of one model from one calibration: any set of float layers, any range estimator."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import onnx_ir as ir

from quantrim.compression.answers import Answers
from quantrim.engines import LayerRun
from quantrim.engines.verdict import layer_times
from quantrim.errors import ModelError
from quantrim.files import sha256
from quantrim.graph import Graph, graph_from_onnx
from quantrim.graph.normalize import run_batches
from quantrim.graph.ops import PRODUCT_OPS
from quantrim.graph.ports import Feed
from quantrim.journal import Journal
from quantrim.placement import Plan, Selection, place
from quantrim.placement.quantized import Quantized
from quantrim.post_training.calibrate import collect
from quantrim.post_training.config import PtqConfig
from quantrim.post_training.quantize import decide, refine, save_quantized
from quantrim.post_training.refine import Refinement, equalize, noise
from quantrim.post_training.resume import saved_pass
from quantrim.post_training.veto import settled_plan
from quantrim.ranges import Algo, Sketch
from quantrim.ranges.estimators import HIST_PERCENT
from quantrim.targets import Target

_RANKING_BATCHES = 4


@dataclass(frozen=True, slots=True)
class Variant:
    """How the numbers of an INT8 file are chosen.

    Attributes:
        algo: range estimator of activations.
        refinements: corrections, applied whether they lower the error or not: the judge decides.
        hist_percent: share of values that "hist" keeps.
    """

    algo: Algo = "mse"
    refinements: tuple[Refinement, ...] = ("bias",)
    hist_percent: float = HIST_PERCENT

    @property
    def name(self) -> str:
        """For people."""
        kept = f" {self.hist_percent:g}" if self.algo == "hist" and self.hist_percent != HIST_PERCENT else ""
        return " + ".join((self.algo + kept, *self.refinements))


class Variants:
    """INT8 files of a model for one target.

    Args:
        model: normalised float model.
        target: rules of the engine.
        feeds: calibration batches, as often as asked; read once, and once more when the model is equalised.
        kept: a few of them, for shapes, refinement and the ranking of layers.
        skip: globs on names of nodes that stay float in every variant.
        journal: what a killed run had sketched, and what this one does.

    Raises:
        ModelError: no layer can be quantized.
    """

    def __init__(
        self,
        model: ir.Model,
        target: Target,
        feeds: Callable[[], Iterable[Feed]],
        kept: Sequence[Feed],
        skip: Sequence[str] = (),
        journal: Journal | None = None,
    ) -> None:
        self.model, self.target, self.feeds, self.kept, self.skip = model, target, feeds, kept, tuple(skip)
        self.journal = journal
        self.graph: Graph = graph_from_onnx(model, kept[0])
        self.plan = self._place(frozenset())
        if not self.plan.weights:
            raise ModelError("no layer of this model can be quantized.")
        self._sketches: dict[bool, dict[str, Sketch]] = {}

    @cached_property
    def layers(self) -> tuple[str, ...]:
        """Linear layers and matrix products that can run in INT8, in the order of the network."""
        int8 = self.plan.int8_nodes
        return tuple(node.name for node in self.graph.nodes if node.name in int8 and node.op in PRODUCT_OPS)

    def write(self, path: Path, recipe: Variant, float_layers: frozenset[str] = frozenset()) -> Plan:
        """Write a file, and its ranges beside it; returns where its quantizers stand.

        Raises:
            ModelError: so many layers are float that none is left.
        """
        quantized = self._decided(recipe, float_layers, equal="equalize" in recipe.refinements)
        rest = tuple(name for name in recipe.refinements if name != "equalize")
        if rest:
            quantized = refine(quantized, self.kept, rest)
        save_quantized(quantized, self.target, path)
        return quantized.plan

    def noise_alone(self, layer: str, algo: Algo) -> float:
        """Relative squared error at the outputs when this layer alone runs in INT8, on a few batches."""
        one = self._decided(Variant(algo), frozenset(self.layers) - {layer}, equal=False)
        feeds, expected = self.kept[:_RANKING_BATCHES], self._expected
        return noise(one.model, one.plan, one.activations, one.weights, feeds, expected)

    def gains(self, float_profile: Sequence[LayerRun], int8_profile: Sequence[LayerRun]) -> dict[str, float]:
        """Milliseconds that INT8 saves on each layer, by the engine's profiles of the float and the INT8 file.

        Below zero where the layer got slower; layers that the engine gives no time for are left out.
        """
        before, after = (layer_times(self.graph, self.layers, one) for one in (float_profile, int8_profile))
        return {
            layer: before[layer] - after[layer] for layer in self.layers if layer in before and layer in after
        }

    @cached_property
    def _expected(self) -> list[Mapping[str, np.ndarray]]:
        return list(run_batches(self.model, self.kept[:_RANKING_BATCHES]))

    @cached_property
    def _equal(self) -> ir.Model:
        return equalize(self.model, self.graph)

    def _place(self, float_layers: frozenset[str]) -> Plan:
        return place(self.graph, self.target, self._selection(float_layers))

    def _selection(self, float_layers: frozenset[str]) -> Selection:
        return Selection(self.skip, float_nodes=float_layers, find_heads=True)

    def _decided(self, recipe: Variant, float_layers: frozenset[str], equal: bool) -> Quantized:
        plan = self._place(float_layers)
        if not plan.int8_nodes:
            raise ModelError("every layer is kept float; nothing is left to quantize.")
        model = self._equal if equal else self.model
        config = PtqConfig(target=self.target.name, algo=recipe.algo, hist_percent=recipe.hist_percent)
        sketches = self._sketched(model, plan, equal)
        plan = settled_plan(self.graph, plan, self._selection(float_layers), sketches, config)
        return decide(model, sketches, graph=self.graph, plan=plan, config=config)

    def _sketched(self, model: ir.Model, plan: Plan, equal: bool) -> Mapping[str, Sketch]:
        """Statistics of the plan's tensors; one pass over the data serves all plans but for rare tensors."""
        known = self._sketches.setdefault(equal, {})
        missing = sorted({*(() if known else self.plan.groups), *plan.groups} - known.keys())
        if missing:
            saved = None if self.journal is None else saved_pass(self.journal, model, missing, self.kept)
            known |= collect(model, missing, self.feeds(), shapes=self.graph.shapes, saved=saved)
        return known


@dataclass(frozen=True)
class Files:
    """A float file, and the INT8 files that can be made of it.

    Attributes:
        source: the float file.
        variants: makes the INT8 files.
        made_of: the file whose content the INT8 files depend on; with rewrites, another one than the source.
    """

    source: Path
    variants: Variants
    made_of: Path

    @cached_property
    def key(self) -> str:
        """Digest of what the INT8 files depend on, beside the settings."""
        return sha256(self.made_of)

    def noises(self, algo: Algo, answers: Answers) -> dict[str, float]:
        """Of each layer, :meth:`Variants.noise_alone`."""
        alone = self.variants.noise_alone
        return {
            layer: answers.of(("noise", self.key, layer, algo), float, partial(alone, layer, algo))
            for layer in self.variants.layers
        }
