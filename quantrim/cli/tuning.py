"""What verbs tell of tuning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Console

if TYPE_CHECKING:
    from quantrim.rewrites import Memory, Trial


def tuning_memory() -> Memory:
    """Answers of earlier races of this user."""
    from quantrim.rewrites import Memory, default_path

    return Memory(default_path())


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
