"""What a file must keep of the float model to be called faithful: one bar a task and level."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

from quantrim.errors import ConfigError, did_you_mean

Task = Literal["classification", "segmentation", "detection", "sequences", "values"]
Level = Literal["strict", "faithful", "loose", "any"]
TASKS: tuple[Task, ...] = get_args(Task)
LEVELS: tuple[Level, ...] = get_args(Level)
#: What people also call the tasks.
_ALSO: Mapping[str, Task] = {
    "embedding": "values", "embeddings": "values", "regression": "values", "sequence": "sequences",
    "ocr": "sequences", "recognition": "sequences",
}  # fmt: skip
#: Least score of each task, 0..1: the share of samples of the same class; mean intersection over union with
#: the float model's map; AP against the float model's boxes; one minus the edit distance a character.
SCORE_BARS: Mapping[Level, Mapping[Task, float]] = {
    "strict": {"classification": 0.98, "segmentation": 0.95, "detection": 0.90, "sequences": 0.98},
    "faithful": {"classification": 0.90, "segmentation": 0.80, "detection": 0.75, "sequences": 0.90},
    "loose": {"classification": 0.70, "segmentation": 0.60, "detection": 0.50, "sequences": 0.70},
}
#: Least median SQNR of values, decibel; nine samples in ten must reach half of it.
VALUE_BARS: Mapping[Level, float] = {"strict": 20.0, "faithful": 10.0, "loose": 5.0}
#: Where a task was told, its own score decides, and SQNR only says that nothing but noise is left.
NOISE_DB = 3.0
#: Where nobody told the task, and the numbers of an output agree so well, its classes are near ties at worst.
CLEAR_DB = 20.0


def task_named(word: str) -> Task:
    """The task of a word.

    Raises:
        ConfigError: no such task.
    """
    found = _ALSO.get(word, word)
    if found not in TASKS:
        raise ConfigError(f"task {word!r} is unknown{did_you_mean(word, [*TASKS, *_ALSO])}", field="task")
    return found  # type: ignore[return-value]


def level_named(word: str) -> Level:
    """The level of a word.

    Raises:
        ConfigError: no such level.
    """
    if word not in LEVELS:
        raise ConfigError(f"accept {word!r} is unknown{did_you_mean(word, LEVELS)}", field="accept")
    return word  # type: ignore[return-value]
