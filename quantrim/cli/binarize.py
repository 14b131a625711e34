"""``quantrim binarize``: a data set in one binary file, ready for the model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from quantrim.cli.options import ConfigOption, SetOption, TrustOption
from quantrim.cli.output import JsonOption, console_for, emit_json


def binarize(
    config: ConfigOption,
    output: Annotated[Path, typer.Option("-o", "--output", help="Binary file to write.")],
    split: Annotated[Literal["val", "train"], typer.Option(help="Which data set.")] = "val",
    limit: Annotated[int | None, typer.Option(min=1, help="Write the first so many pictures.")] = None,
    sets: SetOption = None,
    trust_code: TrustOption = False,
    json_target: JsonOption = None,
) -> None:
    """Write a classification set as int64 N, float32 images (C, H, W), int64 labels.

    The pictures are those that validation shows the model; `quantrim evaluate --binary` reads them.
    """
    from quantrim.files import size_mb
    from quantrim.vision.config import build_data, load_config
    from quantrim.vision.data.binary import write_binary

    data = build_data(load_config(config, sets or (), trust_code=trust_code), f"{split}_dataset")
    shape = write_binary(output, data, limit)
    size = size_mb(output)
    console_for(json_target).print(f"{output}: {shape[0]} images of {shape[1:]}, {size:.1f} MB")
    emit_json(
        {"command": "binarize", "output": str(output), "shape": list(shape), "size_mb": size}, json_target
    )
