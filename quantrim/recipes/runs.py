"""What the verbs do: configuration in, trained, evaluated, predicted, exported model out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
import yaml
from torch import Tensor, nn

from quantrim.errors import ConfigError, DataError
from quantrim.files import require_onnx_output, write_text
from quantrim.graph import read_onnx
from quantrim.graph.from_torch import export_onnx
from quantrim.graph.session import save_model
from quantrim.pruning.plan import load_trained
from quantrim.recipes.boxes import deploy_keys, export_detector, finish, require_output_op
from quantrim.recipes.deploy import precision_entry
from quantrim.recipes.fetch import local_file
from quantrim.recipes.judging import KEYS, detection_test, task_judge
from quantrim.recipes.loading import Loaded, example_of
from quantrim.scratch import claiming
from quantrim.vision.config import (
    Config,
    build_data,
    build_loss,
    build_model,
    build_optimizer,
    data_facts,
    export_transforms,
)
from quantrim.vision.train import TrainResult, TrainSettings, train


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
        load_trained(model, local_file(weights))
    optimizer, scheduler = build_optimizer(
        config, model, iterations=settings.iterations, learning_rate=learning_rate
    )
    judge = validation(config) if do_eval and config.spec.val_dataset else None
    return train(
        model,
        settings,
        train_set,
        save_dir,
        loss_fn=build_loss(config, train_set.ignore_index, model),
        optimizer=optimizer,
        scheduler=scheduler,
        validate=judge,
        resume=resume,
        use_tensorboard=use_tensorboard,
        progress=progress,
    )


def validation(config: Config, limit: int | None = None) -> Callable[[nn.Module], dict[str, Any]]:
    """Function module → metrics on the validation set, as ``test_config`` says; of lists, the class IoU."""
    judged = task_judge(config, limit=limit)

    def judge(model: nn.Module) -> dict[str, Any]:
        metrics = judged.of_module(model)
        return {key: value for key, value in metrics.items() if isinstance(value, float) or key == "class_iou"}

    return judge


def best_key(config: Config) -> str:
    """Metric that decides: mIoU for segmentation, top-1 for classification, mAP for detection."""
    return KEYS[data_facts(config).task]


def example_input(loaded: Loaded, shape: tuple[int, ...] | None = None) -> Tensor:
    """First validation image as a batch of one; random values of a given shape, or where no data are here."""
    if shape is not None:
        return torch.randn(shape, generator=torch.Generator().manual_seed(0))
    try:
        return loaded.data[0][0][None]
    except DataError:
        return example_of(loaded.config, loaded.facts)


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
    loaded: Loaded,
    output: str | Path,
    *,
    shape: tuple[int, ...] | None = None,
    output_op: str = "none",
    opset: int = 18,
) -> float:
    """Write ONNX and ``deploy.yaml`` beside it; quantized weights become an INT8 file.

    Args:
        loaded: model and data.
        output: .onnx file.
        shape: fixed input shape; the first picture's with an open batch by default.
        output_op: "none", "argmax" or "softmax"; of a detector "raw" (as "none"), "decoded" or "nms".
        opset: ONNX opset, 17 or newer; 18 or newer for quantized weights.

    Returns:
        Largest absolute difference between torch and ONNX Runtime.

    Raises:
        ConfigError: unknown output_op.
        ModelError: the export fails or computes something else.
    """
    boxes = loaded.facts.task == "detection"
    if boxes:
        require_output_op(output_op)
    elif output_op not in ("none", "argmax", "softmax"):
        raise ConfigError(f"output_op {output_op!r}; legal: none, argmax, softmax.", field="output_op")
    require_onnx_output(output)
    channels = loaded.facts.shape[2]
    if shape is not None and (len(shape) != 4 or shape[1] != channels):
        raise ConfigError(f"input_shape {shape}: the model takes N,{channels},H,W.", field="input_shape")
    if not 17 <= opset <= 24:
        raise ConfigError(f"opset is {opset}; legal: 17 to 24.", field="opset")
    example = example_input(loaded, shape)
    if loaded.qat is not None:
        loaded.qat.module.cpu()
        made = loaded.qat.export(
            output, example, dynamic_batch=shape is None, opset=max(18, opset), input_names=["image"]
        )
        finish_output(made.path, loaded, output_op)
        difference = made.agreement.output_difference
    elif boxes:
        thresholds = detection_test(loaded.config).thresholds
        difference = export_detector(
            loaded.model, example, Path(output), output_op, thresholds, dynamic=shape is None, opset=opset
        )
    else:
        difference = export_onnx(
            _Deployed(loaded.model, output_op),
            example,
            output,
            dynamic_batch=shape is None,
            opset=opset,
            input_names=["image"],
            output_names=["classes" if output_op == "argmax" else "logits"],
        )
    write_deploy(Path(output), loaded, output_op)
    return difference


def finish_output(path: Path, loaded: Loaded, output_op: str) -> None:
    """Put behind the outputs of a quantized file what ``output_op`` says, in float."""
    if loaded.facts.task == "detection":
        finish(path, loaded.model, output_op, detection_test(loaded.config).thresholds)
    else:
        append_output_op(path, output_op)


def append_output_op(path: Path, output_op: str) -> None:
    """Put soft-max or arg max over the classes (axis 1) behind the first output of a file."""
    if output_op == "none":
        return
    model = read_onnx(path)
    logits = model.graph.outputs[0]
    name = str(logits.name)
    logits.name = f"{name}_logits"
    if output_op == "softmax":
        node = ir.node("Softmax", [logits], {"axis": 1}, name=f"{name}_softmax")
        node.outputs[0].dtype = ir.DataType.FLOAT
        node.outputs[0].shape = logits.shape
    else:
        node = ir.node("ArgMax", [logits], {"axis": 1, "keepdims": 0}, name=f"{name}_argmax")
        node.outputs[0].dtype = ir.DataType.INT64
        dims = list(logits.shape or [])
        node.outputs[0].shape = ir.Shape(dims[:1] + dims[2:])
    node.outputs[0].name = name
    model.graph.append(node)
    model.graph.outputs[0] = node.outputs[0]
    save_model(model, path)


def write_deploy(model_path: Path, loaded: Loaded, output_op: str) -> None:
    """``deploy.yaml`` beside a model: its name, preprocessing of validation, output, class names."""
    specs, _ = export_transforms(loaded.config)
    content: dict[str, Any] = {
        "model": model_path.name,
        "task": loaded.facts.task,
        "transforms": [dict(spec) for spec in specs],
        "output": output_op,
        "classes": list(loaded.facts.names),
    }
    content |= precision_entry(model_path)
    if loaded.facts.shape[2] == 1:
        content["channels"] = 1
    if loaded.facts.task == "detection":
        content |= deploy_keys(loaded.model, output_op, detection_test(loaded.config).thresholds)
    write_text(model_path.with_name("deploy.yaml"), yaml.safe_dump({"Deploy": content}, sort_keys=False))
