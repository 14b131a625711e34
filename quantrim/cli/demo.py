"""``quantrim demo``: the whole story on embedded data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from quantrim.cli.output import JsonOption, console_for, emit_json


def demo(
    save_dir: Annotated[Path, typer.Option(help="Where everything goes.")] = Path("output/demo"),
    task: Annotated[str, typer.Option(help="segmentation or detection.")] = "segmentation",
    iters: Annotated[int | None, typer.Option(min=1, help="Training iterations.")] = None,
    images: Annotated[int | None, typer.Option(min=1, help="Validation pictures to judge on.")] = None,
    json_target: JsonOption = None,
) -> None:
    """Train, export, quantize, verify and report on generated pictures; a few minutes on 2 cores."""
    from quantrim.cli.ptq import show
    from quantrim.recipes.demo import demo as run

    console = console_for(json_target)
    result = run(save_dir, task=task, iterations=iters, images=images, say=console.print)
    show(console, result.quantized)
    console.print(f"[bold]everything is in {save_dir}; open {result.report}[/bold]")
    emit_json({"command": "demo", "accuracy": result.accuracy, **result.quantized.to_json()}, json_target)
