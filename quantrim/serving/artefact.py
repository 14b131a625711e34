"""What the service serves: an exported file with its ``deploy.yaml``, compiled by OpenVINO."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import yaml

from quantrim.detection import Decoder, Detections, Thresholds, decoder_from, detect, thresholds_from
from quantrim.engines.openvino import OpenVinoSession
from quantrim.errors import ConfigError
from quantrim.images import ImageError
from quantrim.serving.batcher import Predict
from quantrim.serving.limits import Refusal
from quantrim.vision.data.color import Normalize, RandomBlur, RandomDistort, RandomNoise
from quantrim.vision.data.geometry import Resize
from quantrim.vision.data.sample import Sample, Transform, apply
from quantrim.vision.data.transforms import transform_named

TASKS = ("classification", "segmentation", "detection")
#: Boxes with a lower score are not told, unless the service is started with another threshold.
SCORE = 0.25
#: Transforms that leave the size of an image alone.
_SIZE_KEEPING = (Normalize, RandomBlur, RandomNoise, RandomDistort)


@dataclass(frozen=True)
class Artefact:
    """A model ready to answer.

    Attributes:
        path: the .onnx file.
        session: the compiled model.
        task: "classification", "segmentation" or "detection".
        output: what stands behind the logits: "none", "softmax" or "argmax"; behind a detector's maps: "raw",
            "decoded" or "nms".
        classes: names, in order; may be empty.
        transforms: preprocessing of validation.
        decoder: of a detector's outputs.
        thresholds: which boxes are told.
    """

    path: Path
    session: OpenVinoSession
    task: str
    output: str
    classes: tuple[str, ...]
    transforms: Sequence[Transform]
    decoder: Decoder | None = None
    thresholds: Thresholds = field(default_factory=lambda: Thresholds(score=SCORE))

    @property
    def channels(self) -> int:
        """3 for models of RGB images, 1 for grey ones."""
        return self.session.inputs[0].shape[1] or 3

    def name_of(self, index: int) -> str:
        """Name of a class, or its number."""
        return self.classes[index] if index < len(self.classes) else str(index)

    def require_header(self, size: tuple[int, int], answer_bytes: int) -> None:
        """Refuse an image by its header, before it is decoded.

        Args:
            size: (width, height) as stored; an EXIF tag may turn it.
            answer_bytes: memory that the scores may take once they are scaled to the image's size.

        Raises:
            Refusal: 400, no transform brings it to the model's fixed size; 413, its scores are too large.
        """
        width, height = size
        classes = (*self.session.outputs[0].shape, 1, 1)[1] or len(self.classes)
        if self.task == "segmentation" and 4 * width * height * classes > answer_bytes:
            raise Refusal(
                413,
                f"the image is {width}x{height}; its {classes} classes a pixel are too many. Make it smaller.",
            )
        if all(isinstance(transform, _SIZE_KEEPING) for transform in self.transforms) and not (
            self._takes(height, width) or self._takes(width, height)
        ):
            raise self._unfit((width, height), (width, height))

    def prepare(self, pixels: np.ndarray) -> Sample:
        """Preprocessing of an image, uint8 (H, W, channels).

        Raises:
            Refusal: 400, the transforms don't lead to the model's fixed size; 413, they lead to gigabytes.
        """
        height, width = pixels.shape[:2]
        try:
            sample = apply(self.transforms, Sample(pixels.astype(np.float32)), np.random.default_rng(0))
        except ImageError as error:
            raise Refusal(413, str(error)) from error
        got = sample.image.shape[:2]
        if not self._takes(*got):
            raise self._unfit((width, height), (got[1], got[0]))
        return sample

    def _takes(self, height: int, width: int) -> bool:
        wanted = self.session.inputs[0].shape[2:]
        return all(size in (None, side) for size, side in zip(wanted, (height, width), strict=True))

    def _unfit(self, size: tuple[int, int], prepared: tuple[int, int]) -> Refusal:
        height, width = self.session.inputs[0].shape[2:]
        return Refusal(
            400,
            f"the image is {size[0]}x{size[1]} and {prepared[0]}x{prepared[1]} after preprocessing, the model "
            f"takes {width or 'any'}x{height or 'any'}. Send that size, or have the service resize.",
        )

    def predictors(self, count: int) -> list[Predict]:
        """Functions images → scores, each with an inference request of its own, to be run in parallel."""
        return [self._predictor() for _ in range(count)]

    def warm_up(self, predict: Predict, sizes: Sequence[int]) -> None:
        """Run batches of these sizes, so that no request pays for OpenVINO's preparation of a shape."""
        _, channels, height, width = self.session.inputs[0].shape
        if height is None or width is None:
            return
        for size in sizes:
            predict(np.zeros((size, channels or 3, height, width), np.float32))

    def _predictor(self) -> Predict:
        request: ov.InferRequest = self.session.compiled.create_infer_request()
        fixed, count = self.session.inputs[0].shape[0], len(self.session.outputs)

        def run(images: np.ndarray) -> Sequence[Any]:
            request.infer([images], share_inputs=True)
            if self.decoder is None:
                return request.get_output_tensor(0).data.copy()
            return self._boxes([request.get_output_tensor(place).data for place in range(count)], images)

        def run_fixed(images: np.ndarray) -> Sequence[Any]:
            assert fixed is not None
            missing = -len(images) % fixed
            full = np.concatenate([images, np.repeat(images[-1:], missing, axis=0)])
            parts = [run(full[start : start + fixed]) for start in range(0, len(full), fixed)]
            return [one for part in parts for one in part][: len(images)]

        return run if fixed is None else run_fixed

    def _boxes(self, outputs: Sequence[np.ndarray], images: np.ndarray) -> list[Detections]:
        """Detections on the canvas, of each image."""
        assert self.decoder is not None
        return detect(self.decoder, outputs, images.shape[2:], self.thresholds, len(images))


def load_artefact(
    model: str | Path,
    deploy: str | Path | None = None,
    *,
    threads: int | None = None,
    streams: int = 1,
    resize: bool = False,
    score: float = SCORE,
) -> Artefact:
    """Compile a model and read its ``deploy.yaml``.

    Args:
        model: .onnx file of ``quantrim export``, ``ptq`` or ``qat``.
        deploy: its deploy.yaml; the one beside it when None.
        threads: CPU threads; None for all cores.
        streams: batches that run in parallel.
        resize: stretch prepared images to the model's size where that is fixed.
        score: a detector's boxes below are not told.

    Raises:
        ConfigError: deploy.yaml is missing or says too little, or the model takes no single image input.
        EngineError: OpenVINO can't load the model.
    """
    model = Path(model)
    content = _deploy(Path(deploy) if deploy else model.with_name("deploy.yaml"))
    session = OpenVinoSession(model, threads=threads, streams=streams)
    if len(session.inputs) != 1 or len(session.inputs[0].shape) != 4:
        raise ConfigError(f"{model}: the service needs a model with one input (N, C, H, W).")
    transforms = [transform_named(dict(spec)) for spec in content["transforms"]]
    height, width = session.inputs[0].shape[2:]
    if resize and height and width:
        transforms.append(Resize((width, height)))
    return Artefact(
        path=model,
        session=session,
        task=content["task"],
        output=content.get("output", "none"),
        classes=tuple(map(str, content.get("classes") or ())),
        transforms=tuple(transforms),
        decoder=decoder_from(content["decoder"]) if content["task"] == "detection" else None,
        # the file's score is that of a metric
        thresholds=replace(thresholds_from(content.get("thresholds") or {}), score=score),
    )


def _deploy(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))["Deploy"]
        if content["task"] not in TASKS:
            raise ConfigError(f"{path}: task {content['task']!r}; legal: {', '.join(TASKS)}.")
        if content["task"] == "detection" and not content.get("decoder"):
            raise ConfigError(f"{path}: Deploy.decoder is missing, such as {{type: yolox, num_classes: 80}}.")
        return {**content, "transforms": list(content["transforms"])}
    except (OSError, yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise ConfigError(f"{path}: no deploy.yaml with Deploy.task and .transforms ({error}).") from error
