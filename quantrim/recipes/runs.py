"""What the verbs do: configuration in, trained, evaluated, predicted, exported model out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import yaml
from PIL import Image
from torch import Tensor, nn

from quantrim.checkpoints import require_numbers
from quantrim.errors import ConfigError
from quantrim.files import atomic_path, require_onnx_output, write_text
from quantrim.graph.feeds import image_files
from quantrim.graph.from_torch import export_onnx
from quantrim.images import read_image
from quantrim.pruning.plan import load_trained
from quantrim.scratch import claiming
from quantrim.vision.config import (
    Config,
    build_data,
    build_loss,
    build_model,
    build_optimizer,
    export_transforms,
)
from quantrim.vision.data.datasets import VisionData
from quantrim.vision.data.sample import Sample, Transform, apply, classes_of
from quantrim.vision.data.transforms import transform_named
from quantrim.vision.evaluate import evaluate, torch_predictor
from quantrim.vision.palette import PALETTE
from quantrim.vision.train import TrainResult, TrainSettings, train
from quantrim.vision.views import Predict, views_of


@dataclass(frozen=True, slots=True)
class Loaded:
    """A configuration made real.

    Attributes:
        config: the configuration.
        model: with its weights, in eval mode.
        data: validation set, or the training set where there is none.
    """

    config: Config
    model: nn.Module
    data: VisionData


def load(config: Config, weights: str | Path | None) -> Loaded:
    """Model with weights, pruned where they are a pruned model's, and the data to judge it on."""
    data = build_data(config, config.judged)
    model = build_model(config, data.num_classes)
    if weights is not None:
        load_trained(model, weights)
        require_numbers(model, weights)
    return Loaded(config, model.eval(), data)


@claiming
def train_config(
    config: Config,
    settings: TrainSettings,
    save_dir: str | Path,
    *,
    learning_rate: float | None = None,
    do_eval: bool = True,
    weights: str | Path | None = None,
    resume: str | Path | None = None,
    use_tensorboard: bool = False,
    progress: bool = True,
) -> TrainResult:
    """Train what a configuration describes; the settings win over it."""
    train_set = build_data(config, "train_dataset", seed=settings.seed)
    torch.manual_seed(settings.seed)
    model = build_model(config, train_set.num_classes)
    if weights is not None:
        load_trained(model, weights)
    optimizer, scheduler = build_optimizer(
        config, model, iterations=settings.iterations, learning_rate=learning_rate
    )
    judge = validation(config) if do_eval and config.spec.val_dataset else None
    return train(
        model,
        settings,
        train_set,
        save_dir,
        loss_fn=build_loss(config, train_set.ignore_index),
        optimizer=optimizer,
        scheduler=scheduler,
        validate=judge,
        resume=resume,
        use_tensorboard=use_tensorboard,
        progress=progress,
    )


def validation(config: Config, limit: int | None = None) -> Callable[[nn.Module], dict[str, float]]:
    """Function module → scalar metrics on the validation set, as ``test_config`` says."""
    data, views = build_data(config, "val_dataset"), views_of(config)

    def judge(model: nn.Module) -> dict[str, float]:
        metrics = evaluate(views.of(torch_predictor(model)), data, limit=limit)
        return {key: value for key, value in metrics.items() if isinstance(value, float)}

    return judge


def best_key(config: Config) -> str:
    """Metric that decides: mIoU for segmentation, top-1 for classification."""
    return "mIoU" if build_data(config, "train_dataset").task == "segmentation" else "top1"


def example_input(loaded: Loaded, shape: tuple[int, ...] | None = None) -> Tensor:
    """First validation picture as a batch of one, or random values of a given shape."""
    if shape is not None:
        return torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return loaded.data[0][0][None]


class _Deployed(nn.Module):
    """A model reduced to its main output, with soft-max or arg max behind it."""

    def __init__(self, model: nn.Module, output_op: str) -> None:
        super().__init__()
        self.model, self.output_op = model, output_op

    def forward(self, images: Tensor) -> Tensor:
        outputs = self.model(images)
        logits: Tensor = outputs if isinstance(outputs, Tensor) else outputs[0]
        if self.output_op == "softmax":
            return logits.softmax(dim=1)
        return logits.argmax(dim=1) if self.output_op == "argmax" else logits


def export(
    loaded: Loaded, output: str | Path, *, shape: tuple[int, ...] | None = None, output_op: str = "none"
) -> float:
    """Write ONNX and ``deploy.yaml`` beside it.

    Args:
        loaded: model and data.
        output: .onnx file.
        shape: fixed input shape; the first picture's with an open batch by default.
        output_op: "none", "argmax" or "softmax".

    Returns:
        Largest absolute difference between torch and ONNX Runtime.

    Raises:
        ConfigError: unknown output_op.
        ModelError: the export fails or computes something else.
    """
    if output_op not in ("none", "argmax", "softmax"):
        raise ConfigError(f"output_op {output_op!r}; legal: none, argmax, softmax.", field="output_op")
    require_onnx_output(output)
    channels = loaded.data[0][0].shape[0]
    if shape is not None and (len(shape) != 4 or shape[1] != channels):
        raise ConfigError(f"input_shape {shape}: the model takes N,{channels},H,W.", field="input_shape")
    difference = export_onnx(
        _Deployed(loaded.model, output_op),
        example_input(loaded, shape),
        output,
        dynamic_batch=shape is None,
        input_names=["image"],
        output_names=["classes" if output_op == "argmax" else "logits"],
    )
    write_deploy(Path(output), loaded, output_op)
    return difference


def write_deploy(model_path: Path, loaded: Loaded, output_op: str) -> None:
    """``deploy.yaml``: model, preprocessing of validation, output, class names."""
    specs, _ = export_transforms(loaded.config)
    content = {
        "Deploy": {
            "model": model_path.name,
            "task": loaded.data.task,
            "transforms": [dict(spec) for spec in specs],
            "output": output_op,
            "classes": list(loaded.data.class_names),
        }
    }
    write_text(model_path.with_name("deploy.yaml"), yaml.safe_dump(content, sort_keys=False))


@dataclass(frozen=True, slots=True)
class Deployment:
    """What a ``deploy.yaml`` says of a model.

    Attributes:
        transforms: preprocessing, in order.
        task: "segmentation" or "classification"; None where the file does not say.
        class_names: names of the classes, none where it does not say.
    """

    transforms: tuple[Transform, ...]
    task: str | None
    class_names: tuple[str, ...]


def read_deployment(deploy: str | Path) -> Deployment:
    """Read a ``deploy.yaml``.

    Raises:
        ConfigError: the file is missing, has no list ``Deploy.transforms``, or one of them is unknown.
    """
    try:
        section = yaml.safe_load(Path(deploy).read_text(encoding="utf-8"))["Deploy"]
        specs = section["transforms"]
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError) as error:
        raise ConfigError(f"{deploy}: no deploy.yaml with Deploy.transforms ({error}).") from error
    if not isinstance(specs, list):
        raise ConfigError(
            f"{deploy}: Deploy.transforms is {specs!r}; it must be a list: [{{type: Normalize}}]."
        )
    try:
        transforms = tuple(transform_named(spec) for spec in specs)
    except ConfigError as error:
        raise ConfigError(f"{deploy}: Deploy.transforms: {error}") from error
    return Deployment(transforms, section.get("task"), tuple(map(str, section.get("classes") or ())))


def load_transforms(deploy: str | Path) -> Callable[[np.ndarray], np.ndarray]:
    """Preprocessing of a ``deploy.yaml``: RGB uint8 (H, W, 3) → float32 (C, H, W).

    Raises:
        ConfigError: as :func:`read_deployment`.
    """
    transforms = read_deployment(deploy).transforms
    generator = np.random.default_rng(0)

    def prepare(picture: np.ndarray) -> np.ndarray:
        sample = apply(transforms, Sample(picture.astype(np.float32)), generator)
        return np.ascontiguousarray(sample.image.transpose(2, 0, 1), np.float32)

    return prepare


def predict_files(
    predict: Predict,
    source: str | Path,
    transforms: Sequence[Transform],
    task: str,
    save_dir: str | Path,
    class_names: Sequence[str] = (),
    grey: bool = False,
) -> list[dict[str, Any]]:
    """Predict pictures one by one.

    Segmentation writes ``added_prediction/`` (overlay) and ``pseudo_color_prediction/`` (palette PNG whose
    indices are the classes), in the folders that the pictures have below the source.

    Args:
        predict: images → logits.
        source: picture, folder, or list file.
        transforms: preprocessing.
        task: "segmentation" or "classification".
        save_dir: where pictures go.
        class_names: names for the classes.
        grey: the model takes pictures of one channel.

    Returns:
        One entry a picture: image, and classes with probabilities or shares of the area.
    """
    generator = np.random.default_rng(0)
    results: list[dict[str, Any]] = []
    for path in image_files(Path(source)):
        picture = read_image(path)
        shown = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)[:, :, None] if grey else picture
        sample = apply(transforms, Sample(shown.astype(np.float32)), generator)
        scores = predict(np.ascontiguousarray(sample.image.transpose(2, 0, 1)[None], np.float32))[0]
        if task == "classification":
            results.append({"image": str(path), "classes": ranked(scores, class_names)})
            continue
        classes = classes_of(scores, sample)
        write_prediction(picture, classes, Path(save_dir), _below(path, Path(source)))
        shares = np.bincount(classes.ravel(), minlength=1) / classes.size
        named = {_class_name(i, class_names): float(share) for i, share in enumerate(shares) if share}
        results.append({"image": str(path), "area": named})
    return results


def _below(path: Path, source: Path) -> Path:
    """Where a picture lies below the folder, or the folder of the list file, that it came from."""
    folder = (source if source.is_dir() else source.parent).resolve()
    path = path.resolve()  # a list may name pictures as ../a.png
    return path.relative_to(folder) if path.is_relative_to(folder) else Path(path.name)


def write_prediction(picture: np.ndarray, classes: np.ndarray, save_dir: Path, name: Path) -> None:
    """Overlay (60 % picture, 40 % colour) and palette picture of a prediction."""
    indices = (classes % len(PALETTE)).astype(np.uint8)
    colors = Image.fromarray(indices).convert("P")
    colors.putpalette(PALETTE.tobytes())
    overlay = Image.fromarray(overlaid(picture, indices))
    for folder, image in (("added_prediction", overlay), ("pseudo_color_prediction", colors)):
        with atomic_path(save_dir / folder / name.with_suffix(".png")) as temporary:
            image.save(temporary)


def overlaid(picture: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """60 % picture and 40 % the colours of the classes, uint8 (H, W, 3)."""
    return (0.6 * picture + 0.4 * PALETTE[classes.astype(np.int64) % len(PALETTE)]).astype(np.uint8)


def ranked(scores: np.ndarray, names: Sequence[str], count: int = 5) -> list[Mapping[str, Any]]:
    """The likeliest classes of logits (classes,), with their soft-max probabilities."""
    shares = np.exp(scores - scores.max())
    shares /= shares.sum()
    order = np.argsort(-shares)[:count]
    return [{"class": _class_name(int(i), names), "probability": float(shares[i])} for i in order]


def _class_name(index: int, names: Sequence[str]) -> str:
    return names[index] if index < len(names) else str(index)
