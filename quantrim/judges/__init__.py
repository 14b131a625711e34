"""Judges: what a file keeps of the float model, by the task that both are for, in numpy."""

from quantrim.judges.bars import LEVELS, SCORE_BARS, TASKS, VALUE_BARS, Level, Task
from quantrim.judges.distances import Distances
from quantrim.judges.judgement import Judgement, Jury, OutputAgreement, canvas_of, require_numbers, told
from quantrim.judges.measures import Measure, Score, ValueMeasure
from quantrim.judges.reading import Judging, Reading, class_axis, read_as

__all__ = [
    "LEVELS",
    "SCORE_BARS",
    "TASKS",
    "VALUE_BARS",
    "Distances",
    "Judgement",
    "Judging",
    "Jury",
    "Level",
    "Measure",
    "OutputAgreement",
    "Reading",
    "Score",
    "Task",
    "ValueMeasure",
    "canvas_of",
    "class_axis",
    "read_as",
    "require_numbers",
    "told",
]
