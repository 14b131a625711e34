"""``quantrim example``: a model and images to try the verbs on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from quantrim.cli.output import JsonOption, console_for, emit_json


def example(
    save_dir: Annotated[Path, typer.Option(help="Where they go.")] = Path("example"),
    json_target: JsonOption = None,
) -> None:
    """Write a small trained model, real images and a deploy.yaml, to try every verb on."""
    from quantrim.recipes.example import write_example

    made = write_example(save_dir)
    console_for(json_target).print(
        f"{made.model}, {made.count} images in {made.images}, their classes in {made.labels}", markup=False
    )
    paths = {"model": str(made.model), "images": str(made.images), "labels": str(made.labels)}
    emit_json({"command": "example", **paths, "count": made.count}, json_target)
