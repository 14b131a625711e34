"""Options of the verbs that judge a file: its task, the decoder of its boxes, and the bar."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from quantrim.judges import Judging

TaskOption = Annotated[
    str | None,
    typer.Option(
        help="classification, segmentation, detection, sequences or values; as deploy.yaml or the outputs say."
    ),
]
DecoderOption = Annotated[
    str | None,
    typer.Option(
        metavar="YAML", help="Decoder of a detector's boxes: a YAML file, or '{type: yolox, num_classes: 80}'."
    ),
]
AcceptOption = Annotated[
    str, typer.Option(metavar="LEVEL", help="Bar for a faithful file: strict, faithful, loose or any.")
]


def judging_of(
    models: Sequence[Path], deploy: Path | None, task: str | None, decoder: str | None, accept: str
) -> Judging:
    """How a file is to be judged: as the options say, else as ``deploy.yaml`` does.

    Args:
        models: the first of them that has a ``deploy.yaml`` beside it is asked.
        deploy: or this file.
        task: text of ``--task``, likewise the others.
        decoder: see task.
        accept: see task.

    Raises:
        ConfigError: an unknown word, or a decoder that can't be read.
    """
    from quantrim.recipes.deploy import judging_from

    return judging_from(models, deploy, task=task, decoder=decoder, accept=accept)
