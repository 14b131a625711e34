"""``quantrim report``: results' JSON as an HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from quantrim.cli.calibration import is_config
from quantrim.cli.output import JsonOption, console_for, emit_json
from quantrim.errors import ConfigError

if TYPE_CHECKING:
    from quantrim.report import Result


def report(
    output: Annotated[Path, typer.Option("-o", "--output", help=".html file.")],
    results: Annotated[
        list[Path] | None,
        typer.Argument(metavar="RESULT.json...", help="What ptq, qat, prune, compress, bench, inspect wrote."),
    ] = None,
    index: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Instead: list all results below a folder.")
    ] = None,
    title: Annotated[str | None, typer.Option(help="Heading; the first result's name by default.")] = None,
    against: Annotated[
        Path | None, typer.Option(help="FP32 .onnx file, whose predictions are shown beside the result's.")
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(help="With --against: pictures to show, or a YAML configuration for its validation set."),
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="With --against: pictures at most.")] = 4,
    engine: Annotated[str, typer.Option(help="With --against: engine that predicts.")] = "openvino",
    json_target: JsonOption = None,
) -> None:
    """Write one self-contained HTML page of results; training and sensitivity beside them are drawn, too."""
    from quantrim.report import read_result, write_index, write_report

    if (index is None) == (not results):
        raise ConfigError("give results, or --index with a folder of them.")
    if index is not None:
        entries = write_index(index, output)
        console_for(json_target).print(f"{output}: {len(entries)} results", markup=False)
        found_in = {"command": "report", "output": str(output), "results": [one.source for one in entries]}
        emit_json(found_in, json_target)
        return
    results = results or []
    if (against is None) != (images is None):
        raise ConfigError("--against and --images go together: the FP32 file, and pictures to show.")
    found = [read_result(path) for path in results]
    if against is not None and images is not None:
        found = [with_pictures(one, against, images, count, engine) for one in found]
    write_report(output, title or f"quantrim: {found[0].name}", *found)
    console_for(json_target).print(f"{output}", markup=False)
    emit_json({"command": "report", "output": str(output), "results": [str(p) for p in results]}, json_target)


def with_pictures(result: Result, against: Path, images: Path, count: int, engine: str) -> Result:
    """A result with the predictions of both files; as it is where it has no file."""
    from quantrim.engines import open_session
    from quantrim.recipes.comparison import Answers, compare, examples_of_files, examples_of_set
    from quantrim.recipes.deployment import read_deployment
    from quantrim.recipes.judging import task_judge
    from quantrim.vision.config import build_data, load_config
    from quantrim.vision.detection.evaluate import engine_detector
    from quantrim.vision.evaluate import engine_predictor

    path = result.output
    if path is None:
        return result
    sessions = {
        "FP32": open_session(against, engine),
        result.kind: open_session(path, engine, precision=result.precision),
    }
    predictors: dict[str, Answers] = {one: engine_predictor(session) for one, session in sessions.items()}
    if is_config(images):
        config = load_config(images)
        data = build_data(config, "val_dataset")
        if data.task == "detection":
            judge = task_judge(config, data=data)
            predictors = {one: judge.detector(session) for one, session in sessions.items()}
        return result.with_pictures(
            compare(predictors, examples_of_set(data, count), data.task, data.class_names)
        )
    beside = [file.with_name("deploy.yaml") for file in (path, against)]
    deploy = next((file for file in beside if file.is_file()), None)
    if deploy is None:
        raise ConfigError(
            f"neither {beside[0]} nor {beside[1]} says how images are prepared. Export the model with "
            "`quantrim export`, which writes one, or give a configuration as --images."
        )
    deployment = read_deployment(deploy)
    if deployment.task is None:
        raise ConfigError(f"{deploy}: Deploy.task is missing; write segmentation, classification or detection.")
    if deployment.decoder is not None:
        predictors = {
            one: engine_detector(session, deployment.decoder, deployment.thresholds)
            for one, session in sessions.items()
        }
    grey = sessions["FP32"].inputs[0].shape[1:2] == (1,)
    examples = examples_of_files(images, deployment, count, grey)
    return result.with_pictures(compare(predictors, examples, deployment.task, deployment.class_names))
