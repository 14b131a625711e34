"""Results of the verbs as they lie on disk: JSON files, and what stands beside them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantrim.engines import Precision
from quantrim.errors import DataError
from quantrim.files import read_json
from quantrim.report import bench, compress, fleet, inspect, prune, ptq, qat
from quantrim.report.html import View

#: Rows of ``bench``, or the object that another verb wrote.
Json = Mapping[str, Any] | Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Kind:
    """A verb whose results have a page.

    Attributes:
        view: JSON value → what people see.
        keys: keys of the value that name a file or a folder.
        beside: files of interest in the folder of the output.
    """

    view: Callable[[Any], View]
    keys: tuple[str, ...]
    beside: tuple[str, ...] = ()


KINDS = {
    "ptq": Kind(ptq.view, ("output",), ("deploy.yaml",)),
    "qat": Kind(qat.view, ("output",), ("deploy.yaml", "run.json", "best_model/model.pth")),
    "prune": Kind(
        prune.view, ("output",), ("model.onnx", "model.pth", "plan.json", "sensitivity.json", "sensitivity.svg")
    ),
    "compress": Kind(compress.view, ("output",), ("deploy.yaml",)),
    "bench": Kind(bench.view, ("model",)),
    "fleet": Kind(fleet.view, ("output",)),
    "inspect": Kind(inspect.view, ("model",)),
}


@dataclass(frozen=True, slots=True)
class Result:
    """One result.

    Attributes:
        command: verb that made it.
        value: its JSON value, with what stands beside it ("training", "sensitivity").
        source: the JSON file; None for a value that was never read from one.
    """

    command: str
    value: Json
    source: Path | None = None

    @property
    def rows(self) -> Sequence[Mapping[str, Any]]:
        """The rows of a bench, or the one value."""
        return [self.value] if isinstance(self.value, Mapping) else self.value

    @property
    def name(self) -> str:
        """Name of the model or folder it is about."""
        key = KINDS[self.command].keys[0]
        names = [Path(str(row[key])).name for row in self.rows if key in row]
        return ", ".join(dict.fromkeys(names)) or "a dry run"

    def view(self) -> View:
        """What people see.

        Raises:
            DataError: keys are missing or hold something else than this version writes.
        """
        try:
            return KINDS[self.command].view(self.value)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, ZeroDivisionError) as error:
            raise DataError(
                f"{self.source or self.name}: not a complete result of {self.command} "
                f"({type(error).__name__}: {error}). Run the command again."
            ) from error

    @property
    def output(self) -> Path | None:
        """The .onnx file that it is about; None for a bench and for a dry run."""
        if not isinstance(self.value, Mapping) or not self.value.get("output"):
            return None
        path = Path(str(self.value["output"]))
        return path if path.suffix == ".onnx" else path / "model.onnx"

    @property
    def kind(self) -> str:
        """What that file is, for people."""
        chosen = self.value.get("chosen", "") if isinstance(self.value, Mapping) else ""
        return {"prune": "pruned", "compress": str(chosen)}.get(self.command, "INT8")

    @property
    def precision(self) -> Precision:
        """How its layers that are not INT8 are meant to run."""
        meant = self.value.get("precision") if isinstance(self.value, Mapping) else None
        return "bf16" if meant == "bf16" else "f32"

    def with_pictures(self, pictures: Sequence[Mapping[str, Any]]) -> Result:
        """The same with predictions of :func:`quantrim.recipes.comparison.compare`."""
        return _with(self, "pictures", pictures)

    def files(self) -> list[Path]:
        """Files that it names or that stand beside its output, those that exist."""
        kind = KINDS[self.command]
        named = [Path(str(row[key])) for row in self.rows for key in kind.keys if row.get(key)]
        folders = dict.fromkeys(path if path.is_dir() else path.parent for path in named)
        found = [*named, *(folder / name for folder in folders for name in kind.beside)]
        found += [path.with_name(f"{path.stem}.ranges.json") for path in named]
        return [
            *([self.source] if self.source else []),
            *(path for path in dict.fromkeys(found) if path.is_file()),
        ]


def result_of(value: Any, source: Path | None = None) -> Result:
    """A JSON value as a result.

    Raises:
        DataError: no verb with a page wrote it.
    """
    legal = ", ".join(KINDS)
    if (
        isinstance(value, list)
        and value
        and all(isinstance(row, dict) and "throughput" in row for row in value)
    ):
        return Result("bench", value, source)
    if isinstance(value, dict) and value.get("command") in KINDS:
        return Result(value["command"], value, source)
    raise DataError(f"{source or 'result'}: not a result of {legal}. Pass the JSON that one of them wrote.")


def read_result(path: str | Path) -> Result:
    """Read a result, with training history and sensitivity from the files beside it.

    Raises:
        DataError: the file is missing, not JSON, or not of a verb that has a page.
    """
    path = Path(path)
    result = result_of(read_json(path), path)
    if result.command == "qat":
        return _with(result, "training", _history(path.parent / "run.json"))
    if result.command == "prune":
        runs = sorted((path.parent / "retraining").glob("round_*/run.json"))
        sensitivity = path.parent / "sensitivity.json"
        result = _with(result, "training", _history(runs[-1]) if runs else None)
        return _with(result, "sensitivity", read_json(sensitivity) if sensitivity.is_file() else None)
    return result


def _with(result: Result, key: str, value: Any) -> Result:
    if value is None or not isinstance(result.value, Mapping):
        return result
    return Result(result.command, {**result.value, key: value}, result.source)


def _history(path: Path) -> Any:
    """History of a training run; None where it has none."""
    if not path.is_file():
        return None
    record = read_json(path)
    return record.get("result", {}).get("history") if isinstance(record, dict) else None
