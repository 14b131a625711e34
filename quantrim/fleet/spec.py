"""What ``fleet.yaml`` says: models, targets, budgets, and how the files are made."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, ValidationError, model_validator

from quantrim.devices import device_named
from quantrim.engines import EngineName
from quantrim.errors import ConfigError
from quantrim.judges.bars import Level, Task
from quantrim.post_training.refine import Refinement
from quantrim.ranges import Algo
from quantrim.targets import target_named
from quantrim.vision.document import read_document
from quantrim.vision.fields import ConfigSection, Count, Positive, key_and_rule


def _name(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", text):
        raise ValueError(f"{text!r} can't be part of a file's name; use letters, digits, '_', '-' and '.'.")
    return text


def _device(text: str) -> str:
    try:
        device_named(text)
    except ConfigError as error:
        raise ValueError(str(error)) from error
    return text


Name = Annotated[str, AfterValidator(_name)]


class ModelSpec(ConfigSection):
    """A model and its data; paths are relative to the file that names them.

    Attributes:
        file: .onnx file.
        data: folder of images, list file, .npy or .npz: some calibrate, others judge.
        deploy: how images are prepared; the ``deploy.yaml`` beside the model by default.
        input_shape: of the first input, where it is dynamic.
        task: how outputs are judged; as ``deploy`` or the outputs say by default.
    """

    file: Path
    data: Path
    deploy: Path | None = None
    input_shape: tuple[Count, ...] | None = None
    task: Task | None = None


class TargetSpec(ConfigSection):
    """Where files shall run.

    Attributes:
        target: rules that place the quantizers, by name or as the .json file of a learned target; its own name
            by default.
        engine: that judges and is timed; the target's first by default.
        on: device that is timed, ``ssh://...``; this machine by default.
        threads: CPU threads of a run.
    """

    target: str | None = None
    engine: EngineName | None = None
    on: Annotated[str, AfterValidator(_device)] | None = None
    threads: Count = 1


class BudgetSpec(ConfigSection):
    """What a file may cost.

    Attributes:
        accept: bar that the whole INT8 file must reach.
        max_drop: instead: the fastest file that loses no more points (of 100) is looked for.
        max_ms: milliseconds of a run.
        max_mb: size of the file, 10^6 bytes.
    """

    accept: Level = "faithful"
    max_drop: Annotated[float, Field(ge=0, le=100)] | None = None
    max_ms: Positive | None = None
    max_mb: Positive | None = None


class RecipeSpec(ConfigSection):
    """How files are made; fields of :class:`~quantrim.post_training.PtqConfig`."""

    algo: Algo = "mse"
    samples: Count = 100
    judged: Count = 32
    refinements: tuple[Refinement, ...] = ("bias",)
    float_heads: bool = False
    skip: tuple[str, ...] = ()


class FleetSpec(ConfigSection):
    """The whole file."""

    models: Annotated[dict[Name, ModelSpec], Field(min_length=1)]
    targets: Annotated[dict[Name, TargetSpec], Field(min_length=1)]
    budgets: dict[Name, BudgetSpec] = Field(default_factory=lambda: {"faithful": BudgetSpec()}, min_length=1)
    recipe: RecipeSpec = RecipeSpec()
    workers: Count = 1

    @model_validator(mode="before")
    @classmethod
    def _empty_sections(cls, given: Any) -> Any:
        """``openvino:`` without anything behind it is a target with its defaults."""
        if isinstance(given, dict) and isinstance(given.get("targets"), dict):
            targets = {name: {} if one is None else one for name, one in given["targets"].items()}
            return {**given, "targets": targets}
        return given

    @model_validator(mode="after")
    def _known_targets(self) -> FleetSpec:
        for name, target in self.targets.items():
            word = target.target or name
            try:
                if not word.endswith(".json"):  # a learned one; where it lies is known later
                    target_named(word)
            except ConfigError as error:
                raise ValueError(f"{name}: {error} Or give the key target.") from error
        return self

    def rules_of(self, name: str) -> str:
        """The target's rules."""
        return self.targets[name].target or name

    def engine_of(self, name: str) -> str:
        """The engine that judges and is timed for a target."""
        return self.targets[name].engine or target_named(self.rules_of(name)).engines[0]


def read_fleet(path: str | Path) -> FleetSpec:
    """Read a ``fleet.yaml``; its paths become relative to the working folder.

    Raises:
        ConfigError: names file, line and key of what is wrong.
        DataError, CheckpointError: the file of a learned target is missing or damaged.
    """
    document = read_document(path)
    try:
        spec = FleetSpec.model_validate(document.values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise document.fail(*key_and_rule(first, document.values)) from error
    home = Path(path).parent
    models = {
        name: one.model_copy(
            update={
                "file": home / one.file,
                "data": home / one.data,
                "deploy": None if one.deploy is None else home / one.deploy,
            }
        )
        for name, one in spec.models.items()
    }
    for name, model in models.items():
        for key in ("file", "data", "deploy"):
            place = getattr(model, key)
            if place is not None and not place.exists():
                raise document.fail(f"models.{name}.{key}", f"{place}: no such file.")
    targets = {
        name: one.model_copy(update={"target": str((home / one.target).resolve())})
        if one.target and one.target.endswith(".json")
        else one
        for name, one in spec.targets.items()
    }
    spec = spec.model_copy(update={"models": models, "targets": targets})
    for name in targets:
        target_named(spec.rules_of(name))
    return spec
