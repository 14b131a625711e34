"""Options that several verbs share, each defined once, and how their text becomes values."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from quantrim.errors import ConfigError

if TYPE_CHECKING:
    from quantrim.vision.config import Config
    from quantrim.vision.train import TrainSettings

# The configuration
ConfigOption = Annotated[Path, typer.Option("-c", "--config", help="YAML configuration.")]
SetOption = Annotated[list[str] | None, typer.Option("--set", metavar="A.B=C", help="Override a key.")]
TrustOption = Annotated[
    bool, typer.Option("--trust-code", help="The configuration may call any class or function it names.")
]

# Weights, as a path or an http(s) address
WeightsOption = Annotated[
    str | None, typer.Option("--weights", "--model-path", help="torch weights, a path or an address.")
]
ModelOption = Annotated[
    Path | None, typer.Option("--model", "--infer-model", help="ONNX file, or its folder, run on --engine.")
]

# Training
SaveDirOption = Annotated[Path, typer.Option(help="Folder of what the command writes.")]
ItersOption = Annotated[int | None, typer.Option(min=1, help="Iterations; the configuration's by default.")]
BatchSizeOption = Annotated[int | None, typer.Option(min=1, help="The configuration's by default.")]
LearningRateOption = Annotated[
    float | None, typer.Option(help="From the configuration by default; qat takes a tenth of it.")
]
ResumeOption = Annotated[
    Path | None, typer.Option("--resume", "--resume-model", help="iter_N folder, or a save folder.")
]
SaveIntervalOption = Annotated[int, typer.Option(min=1, help="Iterations between checkpoints.")]
KeepOption = Annotated[int, typer.Option(help="Newest checkpoints to keep; 0: all.")]
LogItersOption = Annotated[int, typer.Option(min=1, help="Iterations between log lines.")]
NumWorkersOption = Annotated[int, typer.Option(min=0, help="Processes that load data.")]
DoEvalOption = Annotated[bool, typer.Option(help="Validate, and keep the best.")]
AmpOption = Annotated[bool, typer.Option("--amp", "--fp16", help="bfloat16 autocast.")]
EmaOption = Annotated[float | None, typer.Option(min=0, max=1, help="Average the weights, e.g. 0.999.")]
TensorboardOption = Annotated[
    bool, typer.Option("--use-tensorboard", "--use-vdl", help="Write events for TensorBoard to SAVE_DIR.")
]
TrackerOption = Annotated[
    list[str] | None,
    typer.Option(help="mlflow, wandb, tensorboard or another of accelerate's trackers; repeatable."),
]
SeedOption = Annotated[int | None, typer.Option(min=0, help="Of everything random.")]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu or cuda.")]

# Running
EngineOption = Annotated[str, typer.Option(help="openvino, onnxruntime or tensorrt.")]
ThreadsOption = Annotated[int, typer.Option(min=1, help="CPU threads of a run.")]
AllThreadsOption = Annotated[
    int | None, typer.Option("--threads", "--cpu-threads", min=1, help="CPU threads; all cores by default.")
]
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

# Views of an image
ScalesOption = Annotated[
    str | None, typer.Option(help="Scales whose predictions are joined, e.g. 0.75,1,1.25.")
]
FlipOption = Annotated[
    bool | None, typer.Option("--flip/--no-flip", "--flip-horizontal", help="Also mirrored left and right.")
]
FlipVerticalOption = Annotated[
    bool | None, typer.Option("--flip-vertical/--no-flip-vertical", help="Also mirrored top and bottom.")
]
CropSizeOption = Annotated[
    str | None, typer.Option("--crop-size", metavar="W,H", help="Slide a window of this size.")
]
StrideOption = Annotated[
    str | None, typer.Option("--stride", metavar="W,H", help="Steps of the window; 2/3 of it by default.")
]
AugmentedOption = Annotated[
    bool,
    typer.Option("--aug-pred", "--aug-eval", help="PaddleSeg's switch; scales and flips count without it."),
]
SlideOption = Annotated[bool, typer.Option("--is-slide", help="PaddleSeg's switch; needs --crop-size.")]

#: Options of several numbers, which may stand with commas or, as PaddleSeg prints them, with blanks between.
_LISTS = frozenset(
    {"--scales", "--crop-size", "--stride", "--input-shape", "--custom-color", "--mean", "--std"}
)
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?")


class Command(TyperCommand):
    """A verb whose options of several numbers also take them with blanks between: ``--scales 0.75 1.0``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Join the numbers, then parse."""
        return super().parse_args(ctx, joined(args))


def joined(args: list[str]) -> list[str]:
    """Arguments with the numbers behind an option of several numbers joined by commas."""
    made: list[str] = []
    for word in args:
        taking = len(made) > 1 and made[-2].replace("_", "-") in _LISTS
        if taking and _NUMBER.fullmatch(word) and _NUMBER.fullmatch(made[-1].split(",")[-1]):
            made[-1] += f",{word}"
        else:
            made.append(word)
    return made


def read_config(path: Path, sets: list[str] | None = None, trust_code: bool = False) -> Config:
    """The configuration that the options name."""
    from quantrim.vision.config import load_config

    return load_config(path, sets or (), trust_code=trust_code)


def require_cpu(device: str, what: str) -> None:
    """Raise ConfigError for a device that ``what`` can't run on."""
    if device not in ("auto", "cpu"):
        raise ConfigError(f"device {device!r}: {what} runs on the CPU. Use device auto or cpu.", field="device")


def refuse(why: str, **given: Any) -> None:
    """Raise ConfigError for the first option that was given though nothing would come of it."""
    for name, value in given.items():
        if value is not None and value is not False:
            raise ConfigError(f"{option_of(name)} {why}", field=None)


def train_settings(config: Config, *, iters: int | None, batch_size: int | None, seed: int | None,
                   **others: Any) -> TrainSettings:  # fmt: skip
    """Settings of a training, from the configuration where an option was not given."""
    from quantrim.recipes.runs import best_key
    from quantrim.vision.train import TrainSettings

    return TrainSettings(
        iterations=config.iterations(batch_size) if iters is None else iters,
        batch_size=config.batch_size if batch_size is None else batch_size,
        seed=config.seed if seed is None else seed,
        best_key=best_key(config),
        **others,
    )


#: Options whose name is not that of the library's argument.
OPTIONS = {
    "overrides": "--override",
    "ratio": "--pruning-ratio",
    "refinements": "--refine",
    "skip_tensors": "--skip-tensor",
}


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


def parse_pair(text: str | None, option: str) -> tuple[int, int] | None:
    """``"512,256"`` as width and height; ConfigError otherwise."""
    if text is None:
        return None
    values = parse_floats(text, option)
    if len(values) != 2 or any(value < 1 or value != int(value) for value in values):
        raise ConfigError(f"{option} {text!r} is no width and height such as 512,512.")
    return int(values[0]), int(values[1])


def parse_words(text: str | None) -> tuple[str, ...]:
    """Comma-separated words; empty for None."""
    return tuple(word.strip() for word in (text or "").split(",") if word.strip())
