"""Published figures, measured again: a row of a manifest a model, one way to a judged INT8 file."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from quantrim.engines import EngineName, open_session
from quantrim.engines.machine import describe_machine
from quantrim.errors import ConfigError, QuantrimError, did_you_mean
from quantrim.files import size_mb, write_json
from quantrim.post_training import ptq
from quantrim.recipes.calibration import calibration_pairs, chosen_indices, validation_images
from quantrim.recipes.example import SOURCE, write_example
from quantrim.recipes.fetch import local_file, sha256_of
from quantrim.recipes.judging import TaskJudge, task_judge
from quantrim.recipes.loading import load
from quantrim.recipes.runs import best_key, export, train_config
from quantrim.scratch import claiming
from quantrim.vision.config import Config, build_data, export_transforms, load_config
from quantrim.vision.shipped import shipped_file
from quantrim.vision.train import TrainSettings

_TABLES = Path(__file__).parent / "tables"
#: Images that the verdict compares; the metric is of the whole validation set.
_JUDGED = 32


class Expected(BaseModel):
    """A published figure: of which metric (0 to 1), how far a run may lie from it, and where it stands."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    metric: str
    value: float
    tolerance: float
    source: str


class Row(BaseModel):
    """A model of a table.

    Attributes:
        name: unique in the table.
        config: shipped configuration: model, data, preprocessing, metric.
        set: keys of it that differ.
        weights: address of the weights.
        sha256: their check sum, or its first digits where only these are published; None where none is.
        convert: what has to be done to the published weights before they can be given as a file.
        shipped: a file of the example instead of weights.
        train: instead of weights: iterations of training.
        licence: of the weights.
        target: of quantization.
        samples: that calibrate, drawn by ``seed``.
        expected: the published figure.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str
    config: str
    licence: str
    expected: Expected
    set: tuple[str, ...] = ()
    weights: str | None = None
    sha256: str | None = Field(default=None, pattern="^[0-9a-f]{8,64}$")
    convert: str | None = None
    shipped: str | None = None
    train: int | None = None
    target: str = "portable"
    samples: int = 100
    seed: int = 0


class Table(BaseModel):
    """Rows that share a data set; ``data`` says how its folder looks."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    data: str
    rows: tuple[Row, ...]


@dataclass(frozen=True, slots=True)
class Reproduced:
    """What became of a row.

    Attributes:
        row: its name.
        metric: what was measured.
        fp32: of the float file on the engine; None where the row failed.
        int8: of the INT8 file.
        images: that judged.
        expected: the published figure.
        within: whether FP32 lies within its tolerance; None where only a part of the images judged.
        error: standard error of FP32 as a share of so many images; None for other metrics.
        faithful: the verdict on the INT8 file.
        speedup: FP32 / INT8 time of one race.
        size_mb: of both files.
        weights: where they came from, and the check sum of the file that was used.
        calibration: indices of the training images that calibrated.
        preprocessing: transforms, as the configuration writes them.
        failure: why the row failed.
    """

    row: str
    metric: str
    expected: float
    source: str
    fp32: float | None = None
    int8: float | None = None
    images: int = 0
    within: bool | None = None
    error: float | None = None
    faithful: bool | None = None
    speedup: float | None = None
    size_mb: Mapping[str, float] | None = None
    weights: Mapping[str, str | None] | None = None
    calibration: tuple[int, ...] = ()
    preprocessing: tuple[Mapping[str, Any], ...] = ()
    failure: str | None = None


def tables() -> list[str]:
    """Names of the tables."""
    return sorted(path.stem for path in _TABLES.glob("*.yml"))


def read_table(name: str) -> Table:
    """A table of the manifest.

    Raises:
        ConfigError: there is none of this name.
    """
    if name not in tables():
        raise ConfigError(f"table {name!r}{did_you_mean(name, tables())}", field="table")
    try:
        return Table.model_validate(yaml.safe_load((_TABLES / f"{name}.yml").read_text(encoding="utf-8")))
    except ValidationError as error:
        raise ConfigError(f"table {name!r} of the manifest is damaged: {error.errors()[0]['msg']}.") from error


@claiming
def reproduce(
    save_dir: str | Path,
    table: str,
    data: str | Path | None = None,
    *,
    rows: Sequence[str] = (),
    weights: Mapping[str, str | Path] | None = None,
    engine: EngineName = "openvino",
    threads: int = 1,
    limit: int | None = None,
    on_row: Callable[[Reproduced], None] = lambda row: None,
) -> list[Reproduced]:
    """Measure the rows of a table: FP32 beside what was published, then INT8 made by :func:`ptq`.

    Args:
        save_dir: gets a folder a row with both files, and ``reproduce.json``.
        table: one of :func:`tables`.
        data: folder of the data set; not for the embedded table.
        rows: names of rows; all by default.
        weights: files by the name of the row, instead of what the manifest's addresses hold.
        engine: that judges and races.
        threads: CPU threads.
        limit: judge on the first so many images; figures are then not compared.
        on_row: called with each row as soon as it is done.

    Returns:
        One entry a row; what failed says why, and the others go on.

    Raises:
        ConfigError: the table, a row, or the data folder is not there.
    """
    found, given = read_table(table), dict(weights or {})
    names = [row.name for row in found.rows]
    for name in (*rows, *given):
        if name not in names:
            raise ConfigError(f"row {name!r} of table {table!r}{did_you_mean(name, names)}", field="rows")
    if data is None and table != "embedded":
        raise ConfigError(f"table {table!r} needs data: the folder of {found.data}.", field="data")
    if data is not None and not Path(data).is_dir():
        raise ConfigError(f"data {str(data)!r}: no such folder. It holds {found.data}.", field="data")
    done = []
    for row in found.rows:
        if rows and row.name not in rows:
            continue
        run = _Run(row, Path(save_dir) / row.name, data, given.get(row.name), engine, threads, limit)
        done.append(run.outcome())
        on_row(done[-1])
    write_json(Path(save_dir) / "reproduce.json", to_json(table, done))
    return done


def to_json(table: str, rows: Sequence[Reproduced]) -> dict[str, Any]:
    """Plain values, with the machine and the versions of the engines."""
    return {
        "command": "reproduce",
        "table": table,
        "rows": [asdict(row) for row in rows],
        "machine": describe_machine().to_json(),
    }


@dataclass(frozen=True, slots=True)
class _Run:
    """One row on its way."""

    row: Row
    folder: Path
    data: str | Path | None
    weights: str | Path | None
    engine: EngineName
    threads: int
    limit: int | None

    def outcome(self) -> Reproduced:
        """The row measured, or why it can't be."""
        try:
            return self._measured()
        except QuantrimError as error:
            expected = self.row.expected
            return Reproduced(
                self.row.name, expected.metric, expected.value, expected.source, failure=str(error)
            )

    def _measured(self) -> Reproduced:
        row, expected = self.row, self.row.expected
        self.folder.mkdir(parents=True, exist_ok=True)
        config = self._config()
        judge = task_judge(config, limit=self.limit)
        float_file, origin = self._float_file(config)
        int8 = ptq(
            float_file,
            (image for image, _ in calibration_pairs(config, row.samples, row.seed)),
            self.folder / "int8.onnx",
            samples=row.samples,
            target=row.target,
            engines=(self.engine,),
            threads=self.threads,
            judge_data=validation_images(config, _JUDGED),
            float_heads=judge.data.task == "detection",
        )
        if best_key(config) != expected.metric:
            raise ConfigError(f"{row.config}: its metric is {best_key(config)}, not {expected.metric}.")
        before, after = (self._scored(judge, path, expected.metric) for path in (float_file, Path(int8.output)))
        images = min(len(judge.data), self.limit or len(judge.data))
        shares = judge.data.task == "classification"
        return Reproduced(
            row=row.name,
            metric=expected.metric,
            expected=expected.value,
            source=expected.source,
            fp32=before,
            int8=after,
            images=images,
            within=None if self.limit else abs(before - expected.value) <= expected.tolerance,
            error=math.sqrt(before * (1 - before) / images) if shares else None,
            faithful=int8.faithful,
            speedup=int8.engines[0].times.speedup,
            size_mb={"fp32": size_mb(float_file), "int8": size_mb(Path(int8.output))},
            weights=origin,
            calibration=tuple(chosen_indices(len(build_data(config, "train_dataset")), row.samples, row.seed)),
            preprocessing=tuple(export_transforms(config)[0]),
        )

    def _config(self) -> Config:
        row, sets = self.row, list(self.row.set)
        root = self.data
        if row.shipped is not None:
            write_example(self.folder / "example")
            root = self.folder / "example"
        if root is not None:
            place = json.dumps(str(Path(root).resolve()))
            sets += [f"{key}.dataset_root={place}" for key in ("train_dataset", "val_dataset")]
        return load_config(shipped_file("configs", row.config), sets)

    def _float_file(self, config: Config) -> tuple[Path, dict[str, str | None]]:
        """The FP32 file, and where its weights come from."""
        row, path = self.row, self.folder / "fp32.onnx"
        if row.shipped is not None:
            for name, copy in ((row.shipped, path.name), ("deploy.yaml", "deploy.yaml")):
                shutil.copyfile(SOURCE / name, self.folder / copy)
            return path, {"source": f"shipped {row.shipped}", "sha256": sha256_of(path)}
        file, source = self._weights(config)
        export(load(config, file), path)
        return path, {"source": source, "sha256": sha256_of(file)}

    def _weights(self, config: Config) -> tuple[Path, str]:
        row = self.row
        if self.weights is not None:
            return local_file(self.weights), str(self.weights)
        if row.train is not None:
            settings = TrainSettings(
                row.train, config.batch_size, row.train, seed=row.seed, best_key=best_key(config)
            )
            train_config(config, settings, self.folder / "training", progress=False)
            return self.folder / "training/best_model/model.pth", f"{row.train} iterations of {row.config}"
        if row.weights is None or row.convert is not None:
            raise ConfigError(
                f"row {row.name}: the weights at {row.weights} are {row.convert}. Then give weights "
                f"{row.name}=FILE.",
                field="weights",
            )
        address = row.weights + ("" if row.sha256 is None else f"#sha256={row.sha256}")
        try:
            return local_file(address), row.weights
        except QuantrimError as error:
            hint = re.sub(r"Fetch it where there is network and give the path\.?$", "", str(error)).strip()
            raise ConfigError(
                f"{hint} Fetch it where there is network, and give it as weights {row.name}=FILE.",
                field="weights",
            ) from error

    def _scored(self, judge: TaskJudge, path: Path, metric: str) -> float:
        """A metric of a file on the engine."""
        value = judge.of_session(open_session(path, self.engine, threads=self.threads))[metric]
        assert isinstance(value, float)
        return value
