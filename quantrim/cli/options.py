"""Options that several verbs share, and how their text becomes values."""

from __future__ import annotations

from typing import Annotated

import typer

from quantrim.errors import ConfigError

InputShapeOption = Annotated[
    str | None,
    typer.Option("--input-shape", metavar="N,C,H,W", help="Shape of the first input, where it is dynamic."),
]
TuneOption = Annotated[
    bool,
    typer.Option("--tune", help="Rewrite the graph and choose the precision of layers by the engine's clock."),
]
TuneSecondsOption = Annotated[
    float, typer.Option(min=0, help="With --tune: seconds for races; what was raced before costs none.")
]
#: A mobile net is tuned in less.
TUNE_SECONDS = 60.0
ThreadsOption = Annotated[int, typer.Option(min=1, help="CPU threads of a run.")]


#: Options whose name is not that of the library's argument.
OPTIONS = {"overrides": "--override", "refinements": "--refine", "skip_tensors": "--skip-tensor"}


def option_of(field: str) -> str:
    """The option that sets an argument of the library."""
    return OPTIONS.get(field, "--" + field.replace("_", "-"))


def parse_shape(text: str | None) -> tuple[int, ...] | None:
    """``"1,3,224,224"`` as numbers.

    Raises:
        ConfigError: not a comma-separated list of positive numbers.
    """
    if text is None:
        return None
    try:
        shape = tuple(int(part) for part in text.replace("x", ",").split(","))
    except ValueError as error:
        raise ConfigError(f"--input-shape {text!r} is no list of numbers such as 1,3,224,224.") from error
    if any(size < 1 for size in shape):
        raise ConfigError(f"--input-shape {text!r}: every size must be at least 1.")
    return shape


def parse_floats(text: str, option: str) -> tuple[float, ...]:
    """``"0.5,0.5,0.5"`` as numbers; ConfigError otherwise."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise ConfigError(f"{option} {text!r} is no list of numbers such as 0.5,0.5,0.5.") from error


def parse_words(text: str | None) -> tuple[str, ...]:
    """Comma-separated words; empty for None."""
    return tuple(word.strip() for word in (text or "").split(",") if word.strip())
