"""Predictions of an FP32 and an INT8 file side by side, on pictures that people look at."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from quantrim.detection import Detections, box_fidelity
from quantrim.errors import ConfigError, ModelError
from quantrim.graph.feeds import image_files
from quantrim.images import read_image
from quantrim.recipes.deployment import Deployment
from quantrim.recipes.predict import boxed, overlaid, ranked
from quantrim.vision.data.datasets import Truth, VisionData
from quantrim.vision.data.objects import Objects
from quantrim.vision.data.sample import Sample, apply, classes_of
from quantrim.vision.detection.evaluate import Detect, restored
from quantrim.vision.views import Predict

#: Longest side of a picture in the page.
_SIDE = 480
#: Boxes with a lower score are not shown.
_SURE = 0.3
#: Images, float32 (N, C, H, W) → scores of all, or detections on the canvas of each.
Answers = Predict | Detect


@dataclass(frozen=True, slots=True)
class ComparedImage:
    """A picture to predict.

    Attributes:
        caption: for people.
        picture: uint8 (H, W, 3) RGB, or (H, W, 1).
        sample: prepared for the model.
        truth: classes of the pixels, or the class; None where nobody knows.
    """

    caption: str
    picture: np.ndarray
    sample: Sample
    truth: Truth | None = None


def examples_of_set(data: VisionData, count: int) -> Iterator[ComparedImage]:
    """The first pictures of a data set, with their truth."""
    for index in range(min(count, len(data))):
        sample, truth = data.sample(index)
        yield ComparedImage(f"validation picture {index}", data.source[index][0], sample, truth)


def examples_of_files(
    source: Path, deployment: Deployment, count: int, grey: bool = False
) -> Iterator[ComparedImage]:
    """The first pictures of a folder or list file, prepared as ``deploy.yaml`` says.

    Args:
        source: picture, folder or list file.
        deployment: preprocessing.
        count: pictures at most.
        grey: the model takes pictures of one channel.
    """
    generator = np.random.default_rng(0)
    for path in islice(image_files(source), count):
        picture = read_image(path)
        if grey:
            picture = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)[:, :, None]
        sample = apply(deployment.transforms, Sample(picture.astype(np.float32)), generator)
        yield ComparedImage(path.name, picture, sample)


def compare(
    predictors: Mapping[str, Answers],
    examples: Iterable[ComparedImage],
    task: str,
    class_names: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """What each predictor makes of each picture, as data for the report.

    Args:
        predictors: "FP32" and "INT8", say: images → logits, classes, or detections on the canvas.
        examples: pictures.
        task: "segmentation": an overlay each, and the truth; "classification": the likeliest classes in words;
            "detection": boxes with a score above 0.3, and the true ones.
        class_names: names for the classes.

    Returns:
        An entry a picture: "caption", and "views" with "name", "png_base64" and "text".

    Raises:
        ConfigError: the task is none of these.
        ModelError: a predictor does not give what the task needs.
    """
    views = {"segmentation": _overlays, "classification": _words, "detection": _boxes}
    if task not in views:
        raise ConfigError(f"task {task!r} can't be shown; legal: {', '.join(views)}.")
    view = views[task]
    return [{"caption": one.caption, "views": view(one, predictors, class_names)} for one in examples]


def _answer(predict: Answers, example: ComparedImage) -> Any:
    image = np.ascontiguousarray(example.sample.image.transpose(2, 0, 1)[None], np.float32)
    return predict(image)[0]


def _overlays(
    example: ComparedImage, predictors: Mapping[str, Answers], class_names: Sequence[str]
) -> list[dict[str, str]]:
    maps: dict[str, np.ndarray] = {}
    if isinstance(example.truth, np.ndarray):
        maps["truth"] = example.truth
    for name, predict in predictors.items():
        scores = _answer(predict, example)
        if scores.ndim < 2:
            raise ModelError(f"{name} gives {scores.shape} for a picture; segmentation needs a class a pixel.")
        maps[name] = classes_of(scores, example.sample)
    views = [_view(name, overlaid(example.picture, classes)) for name, classes in maps.items()]
    names = list(predictors)
    if len(names) > 1:
        same = float(np.mean(maps[names[0]] == maps[names[-1]]))
        views[-1]["text"] = f"{same:.2%} of the pixels as {names[0]}"
    return views


def _boxes(
    example: ComparedImage, predictors: Mapping[str, Answers], class_names: Sequence[str]
) -> list[dict[str, str]]:
    told: dict[str, Detections] = {}
    if isinstance(example.truth, Objects):
        count = len(example.truth)
        told["truth"] = Detections(example.truth.boxes, np.ones(count, np.float32), example.truth.labels)
    for name, predict in predictors.items():
        told[name] = restored(_answer(predict, example).above(_SURE), example.sample)
    views = [_view(name, np.asarray(boxed(example.picture, one, class_names))) for name, one in told.items()]
    names = list(predictors)
    if len(names) > 1:
        pair = [told[names[0]]], [told[names[-1]]]
        kept = box_fidelity(
            *pair, 1 + int(max(one.labels.max(initial=0) for one in told.values())), score=_SURE
        )
        views[-1]["text"] = f"{kept.kept:.0%} of the {kept.reference_boxes} boxes of {names[0]} kept"
    return views


def _words(
    example: ComparedImage, predictors: Mapping[str, Answers], class_names: Sequence[str]
) -> list[dict[str, str]]:
    told = []
    for name, predict in predictors.items():
        scores = _answer(predict, example)
        if scores.ndim != 1:
            raise ModelError(
                f"{name} gives {scores.shape} for a picture; classification needs a score a class."
            )
        best = ranked(scores, class_names, 2)
        told.append(f"{name}: " + ", ".join(f"{one['class']} {one['probability']:.1%}" for one in best))
    if isinstance(example.truth, int | np.integer):
        number = int(example.truth)
        told.insert(0, f"truth: {class_names[number] if number < len(class_names) else number}")
    return [_view("", np.broadcast_to(example.picture, (*example.picture.shape[:2], 3)), "; ".join(told))]


def _view(name: str, picture: np.ndarray, text: str = "") -> dict[str, str]:
    shown = np.ascontiguousarray(picture[:, :, ::-1], np.uint8)
    ratio = _SIDE / max(shown.shape[:2])
    if ratio < 1:
        shown = cv2.resize(shown, None, fx=ratio, fy=ratio, interpolation=cv2.INTER_AREA)
    content = cv2.imencode(".png", shown)[1].tobytes()
    return {"name": name, "png_base64": base64.b64encode(content).decode(), "text": text}
