"""What verbs tell of tuning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

if TYPE_CHECKING:
    from quantrim.rewrites import Memory, Trial


def tuning_memory() -> Memory:
    """Answers of earlier races of this user."""
    from quantrim.rewrites import Memory, default_path

    return Memory(default_path())


def tuned_file(
    console: Console,
    path: Path,
    engines: Sequence[str] | None,
    shape: tuple[int, ...] | None,
    threads: int,
    seconds: float,
) -> dict[str, Any]:
    """Tune a finished file in place and tell of it; the JSON value of what was done."""
    from quantrim.engines import installed_engines, require_engine
    from quantrim.rewrites import tune_file

    for name in engines or ():
        require_engine(name)
    done = tune_file(
        path,
        engines or [name for name in installed_engines() if name != "tensorrt"],  # type: ignore[arg-type]
        shape=shape,
        threads=threads,
        seconds=seconds,
        memory=tuning_memory(),
        on_trial=lambda trial: show_trial(console, trial),
    ).to_json()
    show_tuning(console, done)
    return done


def show_trial(console: Console, trial: Trial) -> None:
    """One line about a rewrite that was tried."""
    places = "1 place" if trial.sites == 1 else f"{trial.sites} places"
    outcome = "kept" if trial.kept else "no gain" if not trial.reason else trial.reason
    console.print(
        f"{trial.rewrite}, {trial.form} ({places}) on {trial.engine}: {trial.ratio:.2f}x the time, {outcome}",
        markup=False,
    )


def show_tuning(console: Console, tuning: Mapping[str, Any] | None) -> None:
    """What tuning chose."""
    if tuning is None:
        return
    kept = [trial for trial in tuning["trials"] if trial["kept"]]
    rewrites = ", ".join(dict.fromkeys(trial["rewrite"] for trial in kept)) or "no rewrite"
    console.print(
        f"Tuned in {tuning['seconds']:.0f} s: {rewrites}; fastest in {tuning['winner']}.", markup=False
    )
    for engine, ratio in tuning["layout_ratio"].items():
        console.print(f"The rewrites alone: FP32 takes {ratio:.2f}x its time on {engine}.", markup=False)
    if not tuning["complete"]:
        console.print("[yellow]The time was up before everything was tried; run again to go on.[/yellow]")
