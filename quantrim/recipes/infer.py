"""Images in, predictions out, by a file and its ``deploy.yaml``: no configuration, no data set, no torch."""

from __future__ import annotations

import resource
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from quantrim.detection import Thresholds
from quantrim.engines import Precision, Session, open_session, random_inputs
from quantrim.engines.bench import Latency, interleaved, latency
from quantrim.engines.machine import describe_machine
from quantrim.errors import ConfigError, ModelError
from quantrim.files import write_json
from quantrim.recipes.deploy import deploy_of
from quantrim.recipes.deployment import Deployment, read_deployment
from quantrim.recipes.predict import Prediction, predict_files, write_boxes
from quantrim.scratch import claiming
from quantrim.vision.palette import PALETTE

#: Untimed runs before a benchmark.
WARM_UP = 10


@dataclass(frozen=True, slots=True)
class Running:
    """How a file is run.

    Attributes:
        engine: "openvino", "onnxruntime" or "tensorrt".
        precision: of layers that are not INT8: "f32" or "bf16"; None for what the file or its deploy.yaml asks.
        threads: CPU threads; None for all cores.
        batch_size: images of equal size in a batch.
        repeat: timed runs of the benchmark; 0 for none.
    """

    engine: str = "openvino"
    precision: Precision | None = None
    threads: int | None = None
    batch_size: int = 1
    repeat: int = 0


@dataclass(frozen=True, slots=True)
class InferRun:
    """What came of a run.

    Attributes:
        model: the file.
        running: how it was run.
        precision: that the session runs in.
        results: one entry an image.
        model_ms: median time of the model alone, an image.
        peak_memory_mb: largest resident memory of this process so far.
        latency: of the benchmark, ms a batch; None without.
    """

    model: str
    running: Running
    precision: str
    results: tuple[dict[str, Any], ...]
    model_ms: float
    peak_memory_mb: float
    latency: Latency | None

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        value: dict[str, Any] = {
            "command": "infer",
            "model": self.model,
            **asdict(self.running),
            "precision": self.precision,
            "images": len(self.results),
            "model_ms": self.model_ms,
            "peak_memory_mb": self.peak_memory_mb,
            "results": list(self.results),
            "machine": describe_machine().to_json(),
        }
        return value if self.latency is None else value | {"latency_ms": asdict(self.latency)}


def located(model: Path | None, deploy: Path | None) -> tuple[Path, Deployment]:
    """The file and what its ``deploy.yaml`` says.

    Args:
        model: the file; None for the one that ``deploy`` names.
        deploy: the deploy.yaml; None for the one beside the file.

    Raises:
        ConfigError: one can't be found by the other.
    """
    if model is None:
        if deploy is None:
            raise ConfigError("give the model file, or a deploy.yaml that names it.")
        found = read_deployment(deploy)
        if found.model is None:
            raise ConfigError(f"{deploy}: Deploy.model is missing: the name of the file beside it.")
        return found.model, found
    place = deploy_of(model, deploy)
    if place is None:
        raise ConfigError(f"{model}: no deploy.yaml beside it, which says how images are prepared. Name one.")
    return model, read_deployment(place)


@claiming
def infer(
    model: Path,
    deployment: Deployment,
    images: Path,
    save_dir: Path,
    running: Running,
    *,
    palette: np.ndarray = PALETTE,
    score: float = 0.25,
) -> InferRun:
    """Predict images by a file on an engine.

    Args:
        model: the file.
        deployment: what its deploy.yaml says.
        images: image, folder, or list file.
        save_dir: gets images of predictions, and ``infer.json``; of a detector ``coco_results.json``, too.
        running: engine, precision, threads, batch.
        palette: colours of the classes.
        score: boxes below are not told.

    Raises:
        ConfigError: deploy.yaml names no task, or one that has no images of predictions.
        EngineError, DataError, ModelError: one line each that says what is wrong.
    """
    tasks = ("segmentation", "classification", "detection")
    if deployment.task not in tasks:
        told = f"Deploy.task is {deployment.task!r} in its deploy.yaml"
        raise ConfigError(f"{model}: {told}; infer knows {', '.join(tasks)}.")
    asked = running.precision or ("bf16" if deployment.precision == "bf16" else None)
    session = open_session(model, running.engine, threads=running.threads, precision=asked)
    how = Prediction(
        deployment.task,
        deployment.transforms,
        deployment.class_names,
        deployment.channels,
        palette,
        deployment.decoder,
        replace(deployment.thresholds or Thresholds(), score=score),
    )
    shapes: list[tuple[int, ...]] = []

    def run(batch: np.ndarray) -> Sequence[np.ndarray]:
        shapes.append(batch.shape)
        return _outputs(session, batch)

    results, times = predict_files(run, images, how, save_dir, batch_size=running.batch_size)
    timed = None
    if running.repeat:
        feed = random_inputs(session, shapes[0][0], shapes[0])
        timed = latency(interleaved([(session, feed)], warmup=WARM_UP, repeat=running.repeat)[0])
    found = InferRun(
        model=str(model),
        running=running,
        precision=session.precision,
        results=tuple(results),
        model_ms=statistics.median(times[1:] or times),  # the first run allocates
        peak_memory_mb=peak_memory_mb(),
        latency=timed,
    )
    write_json(save_dir / "infer.json", found.to_json())
    if deployment.task == "detection":
        write_boxes(found.results, save_dir)
    return found


def _outputs(session: Session, batch: np.ndarray) -> list[np.ndarray]:
    """All outputs of a batch; a fixed batch of the file is filled up and cut again."""
    port = session.inputs[0]
    if len(session.inputs) != 1 or len(port.shape) != 4:
        raise ModelError(f"the model takes {len(session.inputs)} inputs; infer runs models of one image input.")
    fixed = port.shape[0] or len(batch)
    made = []
    for start in range(0, len(batch), fixed):
        part = batch[start : start + fixed]
        full = np.concatenate([part, np.repeat(part[-1:], fixed - len(part), axis=0)])
        outputs = session.run({port.name: full})
        made.append([outputs[one.name][: len(part)] for one in session.outputs])
    return [np.concatenate(parts) for parts in zip(*made, strict=True)]


def peak_memory_mb() -> float:
    """Largest resident memory of this process, MB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1024 if sys.platform != "darwin" else peak / 2**20
