"""What a model is worth on a validation set: one judge for modules and files on engines, for every task."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from quantrim.detection import Decoder, Thresholds
from quantrim.engines import Session
from quantrim.vision.config import Config, build_data, build_model
from quantrim.vision.data.datasets import VisionData
from quantrim.vision.detection.evaluate import (
    Detect,
    DetectionTest,
    engine_detector,
    evaluate_boxes,
    torch_detector,
)
from quantrim.vision.detection.tail import decoder_behind
from quantrim.vision.evaluate import engine_predictor, evaluate, torch_predictor
from quantrim.vision.models.detection import require_detector
from quantrim.vision.schema import TestSpec
from quantrim.vision.views import Predict, Views, views_of

Metrics = dict[str, float | list[float]]
#: The metric that decides, by task.
KEYS = {"segmentation": "mIoU", "classification": "top1", "detection": "mAP"}


def file_detector(session: Session, decoder: Decoder, thresholds: Thresholds) -> Detect:
    """Detections of a file on an engine, whether it ends with maps or with what a tail makes of them."""
    read = decoder_behind([output.name for output in session.outputs], decoder)
    return engine_detector(session, read, thresholds)


@dataclass(frozen=True)
class TaskJudge:
    """A validation set, and how models are judged on it.

    Attributes:
        data: with the transforms of validation.
        views: how images are shown, for segmentation and classification.
        test: how boxes are judged.
        decoder: what a detector's raw maps mean; None for other tasks.
        batch_size: images that are predicted together.
        limit: use the first so many images.
    """

    data: VisionData
    views: Views
    test: DetectionTest
    decoder: Decoder | None = None
    batch_size: int = 8
    limit: int | None = None

    def of_module(self, model: nn.Module) -> Metrics:
        """Metrics of a module, which is in eval mode afterwards."""
        if self.decoder is None:
            return self._of(self.views.of(torch_predictor(model)))
        return self._of_boxes(self.detector(model))

    def of_session(self, session: Session) -> Metrics:
        """Metrics of a file on an engine; a detector's file may hold its decoder."""
        if self.decoder is None:
            return self._of(self.views.of(engine_predictor(session)))
        return self._of_boxes(self.detector(session))

    def _of_boxes(self, run: Detect) -> Metrics:
        return evaluate_boxes(run, self.data, test=self.test, batch_size=self.batch_size, limit=self.limit)

    def detector(self, model: nn.Module | Session) -> Detect:
        """Images → detections on the canvas, of a detector's module or file."""
        assert self.decoder is not None
        if isinstance(model, nn.Module):
            return torch_detector(model, self.test.thresholds, self.decoder)
        return file_detector(model, self.decoder, self.test.thresholds)

    def _of(self, predict: Predict) -> Metrics:
        return evaluate(predict, self.data, batch_size=self.batch_size, limit=self.limit)


def task_judge(
    config: Config,
    key: str = "val_dataset",
    *,
    data: VisionData | None = None,
    views: Views | None = None,
    batch_size: int = 8,
    limit: int | None = None,
) -> TaskJudge:
    """Judge on a data set of a configuration, as its ``test_config`` says.

    Args:
        config: with the model, whose decoder is asked for.
        key: "val_dataset" or "train_dataset".
        data: the data set where it is open already.
        views: instead of the configuration's.
        batch_size: images that are predicted together.
        limit: use the first so many images.
    """
    data = build_data(config, key) if data is None else data
    decoder = None
    if data.task == "detection":
        decoder = require_detector(build_model(config, data.num_classes)).decoder
    chosen = views_of(config) if views is None else views
    return TaskJudge(data, chosen, detection_test(config), decoder, batch_size, limit)


def detection_test(config: Config) -> DetectionTest:
    """How ``test_config`` wants boxes to be judged."""
    spec = config.spec.test_config or TestSpec()
    thresholds = Thresholds(spec.score_threshold, spec.nms_threshold, spec.nms_top_k, spec.keep_top_k)
    return DetectionTest(spec.metric, spec.map_type, thresholds)
