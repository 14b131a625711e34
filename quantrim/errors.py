"""The errors a user sees: what is wrong, where, and how to mend it, in one line."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from typing import Any

#: Legal words that a message lists at most; a model has hundreds of layers.
_SHOWN = 24
#: Characters of a value that a message repeats.
_LONG = 80
_QUOTED = re.compile("'([^']*)'")
#: A word of a message that no line needs whole: a value, a path or a name out of somebody's file.
_ENDLESS = re.compile(r"(\S{100})\S{200,}(\S{20})")


class QuantrimError(Exception):
    """Base of every error that quantrim raises on purpose; the CLI prints it and exits 1.

    Args:
        message: what is wrong, where, and how to mend it, in one line.
        field: the argument that is to blame, where there is one. The message speaks of it by this name; the
            command line puts its option in the name's place.
    """

    def __init__(self, message: str, *, field: str | None = None) -> None:
        super().__init__(_ENDLESS.sub(r"\1...\2", message))
        self.field = field


class ModelError(QuantrimError):
    """A model can't be read, captured, normalised or pruned as asked."""


class DataError(QuantrimError):
    """Images, labels, arrays or a data set folder are missing, unreadable or of the wrong shape."""


class ConfigError(QuantrimError):
    """A configuration file or an option holds an unknown key or an illegal value."""


class EngineError(QuantrimError):
    """An inference engine is missing, refuses the file, or fails while running it."""


class CheckpointError(QuantrimError):
    """A checkpoint, plan or sensitivity file is damaged or belongs to another model."""


def in_words(fault: Mapping[str, Any]) -> str:
    """One of pydantic's errors as the end of a sentence, such as "is 'four'; it must be a valid integer."."""
    context = fault.get("ctx", {})
    if fault["type"] == "value_error":
        return str(context["error"])
    if fault["type"] in ("missing", "union_tag_not_found"):
        return "is missing."
    given, legal = fault["input"], _QUOTED.findall(str(context.get("expected_tags", context.get("expected"))))
    if fault["type"] == "union_tag_invalid":
        given = context["tag"]
    if legal and isinstance(given, str):
        return f"unknown {_short(given)}{did_you_mean(given, legal)}"
    rule = str(fault["msg"]).split(", unable")[0].replace("a valid tuple", "a list")  # as YAML calls it
    if rule.startswith("Input should "):
        return f"is {_short(given)}; it must {rule.removeprefix('Input should ')}."
    return f"is {_short(given)}: {rule}."


def _short(value: object) -> str:
    """``repr`` of a value, cut where it is long: a value may be a whole file."""
    text = repr(value)
    return text if len(text) <= _LONG else f"{text[:_LONG]}..."


def did_you_mean(word: str, legal: Iterable[str]) -> str:
    """Suggestion for a mistyped word.

    Args:
        word: what the user wrote.
        legal: the words that would have been accepted.

    Returns:
        ``"; did you mean 'x'?"`` with the nearest legal word, else ``"; legal: a, b, ..."``.
    """
    choices = sorted(filter(None, map(str, legal)))
    near = difflib.get_close_matches(str(word)[:_LONG], choices, n=1, cutoff=0.6)
    if near:
        return f"; did you mean {near[0]!r}?"
    more = f", ... ({len(choices)} in all)" if len(choices) > _SHOWN else ""
    return f"; legal: {', '.join(choices[:_SHOWN])}{more}"


#: Characters of another library's message that a line of ours quotes.
_LONGEST = 400
#: Source position and signature that ONNX Runtime puts before some of its messages.
_ORT_SOURCE = re.compile(r"/onnxruntime_src/\S+:\d+ .*?\) (?=\S)")


def first_line(error: BaseException) -> str:
    """First line of an exception's text, without the error code and the place in ONNX Runtime's source."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    text = lines[0]
    marker = " : "
    if text.startswith("[ONNXRuntimeError]") and text.count(marker) >= 3:
        text = text.split(marker, 3)[3]
    text = _ORT_SOURCE.sub("", text).strip()
    return text if len(text) <= _LONGEST else text[:_LONGEST] + " ..."


def refusal(error: BaseException) -> str:
    """Why ONNX Runtime refuses a model; what to do where the file is newer than the engine."""
    text = first_line(error)
    if "Unsupported model IR version" in text:
        text += ". Install a newer onnxruntime, or save the model with ir_version = 10"
    return text
