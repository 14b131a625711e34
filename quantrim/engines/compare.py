"""Two sessions on the same inputs, judged by task."""

from __future__ import annotations

from collections.abc import Iterable

from quantrim.engines import Session
from quantrim.graph.ports import Feed
from quantrim.judges import Judgement, Judging, Jury


def compare(
    float_session: Session,
    int8_session: Session,
    feeds: Iterable[Feed],
    judging: Judging | None = None,
    *,
    held_out: bool | None = None,
) -> Judgement:
    """Judge what a quantized file keeps of the float model, each on its engine.

    Args:
        float_session: the reference.
        int8_session: the quantized file; its outputs are those of the reference, in order.
        feeds: batches to judge on, at least one; the answers of large models are not held.
        judging: how; by the outputs' shapes by default.
        held_out: whether the samples are others than those that calibrated; None where nobody knows.

    Raises:
        EngineError: an engine refuses a batch.
        ModelError: there is no batch, the float model gives NaN, or a decoder does not fit the outputs.
    """
    pairs = [(one.name, two.name) for one, two in zip(float_session.outputs, int8_session.outputs, strict=True)]
    jury = Jury(judging or Judging())
    for feed in feeds:
        got = int8_session.run(feed)
        jury.hear(feed, float_session.run(feed), {name: got[other] for name, other in pairs})
    return jury.judgement(held_out)
