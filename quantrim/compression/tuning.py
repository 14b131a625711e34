"""Rewrites for a search over files: chosen once, on INT8 files, and used for every candidate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from quantrim.engines import EngineName
from quantrim.graph.ports import Feed
from quantrim.graph.session import save_model
from quantrim.post_training import PtqConfig
from quantrim.post_training.drafts import DraftFiles
from quantrim.rewrites import Memory, Trial, Tuned, tune


@dataclass(frozen=True, slots=True)
class Tuning:
    """How long rewrites are looked for.

    Attributes:
        seconds: when no new race is begun any more.
        memory: answers of earlier races; of this run alone when None.
        on_trial: called with each rewrite that was tried.
    """

    seconds: float = 60.0
    memory: Memory | None = None
    on_trial: Callable[[Trial], None] = lambda trial: None


def rewritten_model(
    model: ir.Model,
    kept: Sequence[Feed],
    engine: EngineName,
    skip: Sequence[str],
    threads: int,
    tuning: Tuning | None,
    folder: Path,
) -> tuple[Tuned, Path | None]:
    """The model with the rewrites that its INT8 file is faster with, and its float file where there are any."""
    if tuning is None:
        return Tuned(model), None
    drafts = DraftFiles(folder, kept[0], PtqConfig(target=engine, skip=tuple(skip)))
    tuned = tune(
        model, kept[:1], drafts.write, [engine], kind=f"int8 {engine}", threads=threads, seconds=tuning.seconds,
        memory=tuning.memory, on_trial=tuning.on_trial,
    )  # fmt: skip
    if not tuned.sites:
        return tuned, None
    path = folder / "rewritten.onnx"
    save_model(tuned.model, path)
    return tuned, path
