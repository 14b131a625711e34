"""Every rewrite, and what can be done with a model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import onnx_ir as ir

from quantrim.graph.from_onnx import observed_shapes
from quantrim.graph.ports import Feed
from quantrim.rewrites.argmax import ARG_MAX
from quantrim.rewrites.base import Draft, Rewrite, Shapes, Site, begin, finish
from quantrim.rewrites.branches import BRANCHES
from quantrim.rewrites.moves import MOVES
from quantrim.rewrites.resize_matmul import RESIZE_AS_MATMULS
from quantrim.rewrites.resize_order import RESIZE_ORDER
from quantrim.rewrites.shuffle import CHANNEL_SHUFFLE
from quantrim.rewrites.stem import SPACE_TO_DEPTH_STEM
from quantrim.rewrites.widths import PADDED_WIDTHS

#: In the order in which they are tried: what shrinks a graph comes before what reshapes it.
REWRITES: tuple[Rewrite, ...] = (
    MOVES, BRANCHES, SPACE_TO_DEPTH_STEM, CHANNEL_SHUFFLE, RESIZE_ORDER, ARG_MAX, RESIZE_AS_MATMULS,
    PADDED_WIDTHS,
)  # fmt: skip
_BY_NAME = {rewrite.name: rewrite for rewrite in REWRITES}


def sites_of(model: ir.Model, shapes: Shapes, rewrites: Iterable[Rewrite] = REWRITES) -> list[Site]:
    """Where rewrites could be done, rewrite by rewrite; none in a model whose images have no fixed size.

    Args:
        model: normalised model; its nodes have unique names.
        shapes: of its tensors in one run.
        rewrites: those to look for.
    """
    if not has_fixed_size(model):
        return []
    draft = Draft(model, shapes)
    return [site for rewrite in rewrites for site in rewrite.find(draft)]


def has_fixed_size(model: ir.Model) -> bool:
    """Whether every axis of every input but the batch is fixed, so that observed shapes hold for every run."""
    inputs = [value for value in model.graph.inputs if value.name not in model.graph.initializers]
    return all(
        value.shape is not None and all(isinstance(size, int) for size in list(value.shape)[1:])
        for value in inputs
    )


def rewritten(model: ir.Model, shapes: Shapes, sites: Sequence[Site]) -> ir.Model:
    """Copy of a model with some sites rewritten; one that an earlier one has changed is passed over."""
    draft = begin(model, shapes)
    for site in sites:
        rewrite = _BY_NAME[site.rewrite]
        present = {str(node.name) for node in draft.model.graph}
        if present.issuperset(site.nodes) and any(_same(site, found) for found in rewrite.find(draft)):
            rewrite.apply(draft, site)
    return finish(draft)


def _same(one: Site, two: Site) -> bool:
    return (one.form, one.nodes) == (two.form, two.nodes)


def everywhere(
    model: ir.Model, feed: Feed, rewrite: Rewrite, form: str | None = None, rounds: int = 50
) -> ir.Model:
    """A rewrite at every site, and at those that this brings about, until none is left.

    Args:
        model: normalised model.
        feed: one input, to see shapes by.
        rewrite: what to do.
        form: only in this form.
        rounds: passes over the graph at most.
    """
    for _ in range(rounds):
        shapes = observed_shapes(model, feed)
        found = [site for site in sites_of(model, shapes, [rewrite]) if form in (None, site.form)]
        if not found:
            break
        model = rewritten(model, shapes, found)
    return model
