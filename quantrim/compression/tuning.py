"""Rewrites for a search over files: chosen once, on INT8 files, and used for every candidate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir
from typing_extensions import TypedDict  # pydantic reads no other one before Python 3.12

from quantrim.compression.answers import Answers
from quantrim.engines import EngineName
from quantrim.graph import read_onnx
from quantrim.graph.ports import Feed
from quantrim.graph.session import save_model
from quantrim.post_training import PtqConfig
from quantrim.post_training.drafts import DraftFiles
from quantrim.rewrites import Memory, Trial, Tuned, tune
from quantrim.scratch import scratch_folder


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
    answers: Answers,
) -> tuple[Tuned, Path | None]:
    """The model with the rewrites that its INT8 file is faster with, and its float file where there are any.

    Once chosen, the rewrites stay: a killed search goes on with the file that it had.
    """
    if tuning is None:
        return Tuned(model), None
    asked = ("rewritten", tuning.seconds)
    path = answers.path(asked, ".onnx")

    def chosen() -> _Chosen:
        with scratch_folder() as folder:
            tuned = _tuned(model, kept, engine, skip, threads, tuning, folder)
        if tuned.sites:
            save_model(tuned.model, path)
        return {"trials": [one.to_json() for one in tuned.trials], "rewritten": bool(tuned.sites),
                "seconds": tuned.seconds, "complete": tuned.complete}  # fmt: skip

    found = answers.of(asked, _Chosen, chosen, (path, path.with_name(path.name + ".data")))
    trials = tuple(Trial(**one) for one in found["trials"])
    better = read_onnx(path) if found["rewritten"] else model
    tuned = Tuned(better, trials, (), found["seconds"], found["complete"])
    return tuned, path if found["rewritten"] else None


class _Chosen(TypedDict):
    """What tuning told, as it is kept."""

    trials: list[dict[str, Any]]
    rewritten: bool
    seconds: float
    complete: bool


def _tuned(
    model: ir.Model,
    kept: Sequence[Feed],
    engine: EngineName,
    skip: Sequence[str],
    threads: int,
    tuning: Tuning,
    folder: Path,
) -> Tuned:
    drafts = DraftFiles(folder, kept[0], PtqConfig(target=engine, skip=tuple(skip)))
    return tune(
        model, kept[:1], drafts.write, [engine], kind=f"int8 {engine}", threads=threads, seconds=tuning.seconds,
        memory=tuning.memory, on_trial=tuning.on_trial,
    )  # fmt: skip
