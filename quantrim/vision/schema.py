"""What a configuration may say: PaddleSeg's keys as pydantic models, read once and used as they are.

Keys of PaddleSeg that change nothing here are legal, so that its configurations are read as they are. What the
arguments of a model may be, its constructor knows (:mod:`quantrim.vision.models.resolve`).
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    create_model,
    field_validator,
    model_validator,
)

from quantrim.detection import VocStyle
from quantrim.errors import DataError, did_you_mean
from quantrim.vision import losses
from quantrim.vision.detection import DETECTION_LOSSES
from quantrim.vision.fields import Classes, ConfigSection, Count, Pair, Positive, Share, Transforms


class DataSpec(ConfigSection):
    """Keys of every data set; ``edge`` is PaddleSeg's and asks for outlines, which no model here uses."""

    type: str
    dataset_root: Path = Path(".")
    mode: str = "train"
    transforms: Transforms = ()
    num_classes: Classes | None = None
    ignore_index: int = 255
    edge: bool = False

    @classmethod
    def hint(cls, name: str) -> str:
        """The data set that knows the key, which comes from a base of another type."""
        owner = next((kind for kind, one in DATASETS.items() if name in one.model_fields), None)
        return f"; it is one of {owner}, and '_inherited_: False' leaves out what a base says." if owner else ""


class _Split(DataSpec):
    """A set with two parts, of which "test" is the second."""

    mode: Literal["train", "val", "test"] = "train"


class SyntheticOpticDisc(_Split):
    """Generated fundus images."""

    type: Literal["SyntheticOpticDisc"]
    count: Count | None = None
    size: Annotated[int, Field(ge=8, le=2**13)] = 256
    seed: Annotated[int, Field(ge=0)] = 0
    difficulty: Annotated[float, Field(ge=0, le=1)] = 0.6


class OpticDiscSeg(DataSpec):
    """PaddleSeg's optic disc set."""

    type: Literal["OpticDiscSeg"]
    separator: str | None = None


class Cityscapes(DataSpec):
    """Street scenes."""

    type: Literal["Cityscapes"]


class PascalVOC(DataSpec):
    """PASCAL VOC 2012."""

    type: Literal["PascalVOC"]


class _Paths(DataSpec):
    """A set whose parts are named by ``{mode}_path``, whatever the mode."""

    train_path: str | None = None
    val_path: str | None = None
    test_path: str | None = None
    model_config = ConfigDict(extra="allow")

    @classmethod
    def legal_keys(cls, given: Mapping[str, Any]) -> set[str]:
        """The path of the mode besides."""
        return {*cls.model_fields, f"{given.get('mode')}_path"}

    def part(self, default: str) -> Path:
        """The list, or the folder, of the mode: as PaddleSeg opens it, as it is written; else below the root.

        Raises:
            DataError: a path was given, and neither is there.
        """
        given: str | None = getattr(self, f"{self.mode}_path", None)
        if given is None:
            return self.dataset_root / default.format(self.mode)
        places = [Path(given), self.dataset_root / given]
        found = next((place for place in places if place.exists()), None)
        if found is None:
            raise DataError(f"{self.mode}_path: neither {places[0]} nor {places[1]} exists.")
        return found


class _Listed(_Paths):
    """A set named by lists; an image has the channels of its file, whatever ``img_channels`` says."""

    separator: str | None = None
    img_channels: Literal[1, 3] = 3


class Dataset(_Listed):
    """Lists of image and mask."""

    type: Literal["Dataset"]
    num_classes: Classes


class ImageList(_Listed):
    """Lists of image and label."""

    type: Literal["ImageList"]
    num_classes: Classes = 1000


class ImageFolder(_Paths):
    """A folder a class."""

    type: Literal["ImageFolder"]


class TarShards(_Paths):
    """Tar files in WebDataset's layout: an image and its class number, name.jpg and name.cls."""

    type: Literal["TarShards"]
    shards: str = "{mode}-*.tar"
    num_classes: Classes = 1000


class FashionMNIST(_Split):
    """Fashion-MNIST's four files."""

    type: Literal["FashionMNIST"]


class Cifar10(_Split):
    """CIFAR-10's batches."""

    type: Literal["Cifar10"]


class _Boxes(DataSpec):
    """A set of boxes.

    A training batch is resized to one of ``batch_sides``, whatever the aspect; of more than ``max_objects``
    objects the largest are learned.
    """

    max_objects: Count = 50
    batch_sides: tuple[Annotated[int, Field(ge=32, le=2**13)], ...] = ()


class SyntheticScenes(_Boxes):
    """Generated scenes; ``items`` is the folder of Fashion-MNIST, ``photographs`` one of grounds."""

    type: Literal["SyntheticScenes"]
    mode: Literal["train", "val", "test"] = "train"
    count: Count | None = None
    size: Annotated[int, Field(ge=32, le=2**12)] = 192
    seed: Annotated[int, Field(ge=0)] = 0
    difficulty: Annotated[float, Field(ge=0, le=1)] = 0.5
    items: Path | None = None
    photographs: Path | None = None


class VOCDataSet(_Boxes):
    """PASCAL VOC's XML: a list of names or of image and annotation, and PaddleDetection's label list."""

    type: Literal["VOCDataSet"]
    anno_path: str | None = None
    label_list: str | None = None


class COCODataSet(_Boxes):
    """COCO's JSON and the folder of its images."""

    type: Literal["COCODataSet"]
    anno_path: str
    image_dir: str = ""


AnyData = Annotated[
    SyntheticOpticDisc
    | OpticDiscSeg
    | Cityscapes
    | PascalVOC
    | Dataset
    | ImageList
    | ImageFolder
    | TarShards
    | FashionMNIST
    | Cifar10
    | SyntheticScenes
    | VOCDataSet
    | COCODataSet,
    Field(discriminator="type"),
]
#: What ``type:`` of a data set may say.
DATASETS: Mapping[str, type[DataSpec]] = {
    one.__name__: one for one in typing.get_args(typing.get_args(AnyData)[0])
}


class ModelSpec(BaseModel):
    """A model and its arguments, which its constructor checks."""

    model_config = ConfigDict(extra="allow", frozen=True)
    type: str
    num_classes: Classes | None = None

    def arguments(self) -> dict[str, Any]:
        """What was written, ``type`` included."""
        return self.model_dump(exclude_unset=True)


def _small(given: Any) -> Any:
    return given.lower() if isinstance(given, str) else given


def _listed(given: Any) -> Any:
    return given if isinstance(given, list) else [given]


class OptimizerSpec(ConfigSection):
    """``momentum`` is for sgd."""

    type: Annotated[Literal["sgd", "momentum", "adam", "adamw"], BeforeValidator(lambda v: str(v).lower())] = (
        "sgd"
    )
    momentum: Share = 0.9
    weight_decay: Share = 0.0


class Schedule(ConfigSection):
    """Keys of every schedule; rates are absolute, steps are iterations.

    ``last_epoch`` and ``verbose`` are Paddle's, of which only the values that change nothing are taken.
    """

    learning_rate: Positive
    warmup_iters: Annotated[int, Field(ge=0)] = 0
    warmup_start_lr: Share = 0.0
    last_epoch: Literal[-1] = -1
    verbose: bool = False


class Polynomial(Schedule):
    """Down to ``end_lr`` within ``decay_steps`` after the warm-up; within the whole run by default."""

    type: Literal["PolynomialDecay"]
    power: float = 0.9
    end_lr: Share = 0.0
    decay_steps: Count | None = None
    cycle: Literal[False] = False


class Cosine(Schedule):
    """Down to ``eta_min`` within ``T_max`` steps after the warm-up; within the whole run by default."""

    type: Literal["CosineAnnealingDecay", "Cosine"]
    T_max: Count | None = None
    eta_min: Share = 0.0


class Piecewise(Schedule):
    """``values[i]`` until ``boundaries[i]``."""

    type: Literal["PiecewiseDecay"]
    values: Annotated[list[Positive], Field(min_length=1)]
    boundaries: list[Count]

    @model_validator(mode="after")
    def _one_value_more(self) -> Piecewise:
        if len(self.values) != len(self.boundaries) + 1:
            counts = f"{len(self.values)} values, {len(self.boundaries)} boundaries"
            raise ValueError(f"{counts}; PiecewiseDecay takes one value more than boundaries.")
        return self


class StepDecay(Schedule):
    """``gamma`` times less every ``step_size``."""

    type: Literal["StepDecay"]
    step_size: Count
    gamma: Positive = 0.1


AnySchedule = Annotated[Polynomial | Cosine | Piecewise | StepDecay, Field(discriminator="type")]
#: What ``learning_rate.decay.type`` may say, PaddleSeg's form before 2.1.
_OLD_NAMES = {
    "poly": "PolynomialDecay",
    "piecewise": "PiecewiseDecay",
    "cosine": "CosineAnnealingDecay",
    "stepdecay": "StepDecay",
}


class OldRate(ConfigSection):
    """``learning_rate`` in PaddleSeg's form before 2.1; without ``decay`` it stays as it is."""

    value: Positive
    decay: AnySchedule | None = Field(default=None, validate_default=True)

    @field_validator("decay", mode="before")
    @classmethod
    def _as_schedule(cls, given: Any, info: ValidationInfo) -> Any:
        given = {"type": "poly", "power": 0.0} if given is None else given
        if not isinstance(given, Mapping) or "value" not in info.data:
            return given
        kind = given.get("type", "poly")
        if kind not in _OLD_NAMES:
            raise ValueError(f"unknown type {kind!r}{did_you_mean(kind, _OLD_NAMES)}")
        return {**given, "type": _OLD_NAMES[kind], "learning_rate": info.data["value"]}


#: What ``type:`` of a loss may say, ``MixedLoss`` besides.
LOSSES: Mapping[str, Callable[..., Any]] = {
    "CrossEntropyLoss": losses.cross_entropy,
    "OhemCrossEntropyLoss": losses.ohem_cross_entropy,
    "BootstrappedCrossEntropyLoss": losses.bootstrapped_cross_entropy,
    "DiceLoss": losses.dice_loss,
    "FocalLoss": losses.focal_loss,
    "LovaszSoftmaxLoss": losses.lovasz_softmax,
    "BCELoss": losses.binary_cross_entropy,
}


class LossSpec(ConfigSection):
    """A loss; its arguments are the other fields."""

    type: str

    def arguments(self) -> dict[str, Any]:
        """Arguments that were written."""
        return self.model_dump(exclude_unset=True, exclude={"type"})


def _loss_model(kind: str) -> type[LossSpec]:
    """Model of a loss after the signature of its function: what stands behind logits and labels."""
    function = LOSSES[kind] if kind in LOSSES else DETECTION_LOSSES[kind][0]
    hints = typing.get_type_hints(function)
    taken = [one for one in inspect.signature(function).parameters.values() if one.kind is one.KEYWORD_ONLY]
    fields: dict[str, Any] = {one.name: (hints[one.name], one.default) for one in taken}
    return create_model(kind, __base__=LossSpec, type=(Literal[kind], ...), **fields)  # type: ignore[arg-type]


class MixedLoss(LossSpec):
    """Weighted sum of losses of one output."""

    type: Literal["MixedLoss"]
    losses: list[AnyLoss] = Field(default_factory=list)
    coef: list[float] = Field(default_factory=list)

    @model_validator(mode="after")
    def _one_each(self) -> MixedLoss:
        if not self.losses or len(self.losses) != len(self.coef):
            counts = f"{len(self.losses)} losses, {len(self.coef)} coefficients (coef)"
            raise ValueError(f"MixedLoss has {counts}; give one of each.")
        return self


if TYPE_CHECKING:
    AnyLoss = LossSpec
else:
    AnyLoss = Annotated[
        Union[(MixedLoss, *map(_loss_model, (*LOSSES, *DETECTION_LOSSES)))],
        Field(discriminator="type"),
    ]
MixedLoss.model_rebuild()


class LossesSpec(ConfigSection):
    """One loss for each output of the model, or one for all, with a coefficient an output."""

    types: Annotated[list[AnyLoss], Field(min_length=1)]
    coef: Annotated[list[float], Field(min_length=1)]

    @model_validator(mode="after")
    def _one_each(self) -> LossesSpec:
        if len(self.types) not in (1, len(self.coef)):
            counts = f"{len(self.types)} types, {len(self.coef)} coefficients"
            raise ValueError(f"{counts}; give one of each an output.")
        return self


class TestSpec(ConfigSection):
    """How a model is judged.

    Scales and flips count with ``aug_eval: True``, crop_size and stride with ``is_slide: True``. The other keys
    are of detectors, in PaddleDetection's words.
    """

    aug_eval: bool = False
    scales: Annotated[tuple[Positive, ...], BeforeValidator(_listed)] = (1.0,)
    flip_horizontal: bool = False
    flip_vertical: bool = False
    is_slide: bool = False
    crop_size: Pair | None = None
    stride: Pair | None = None
    metric: Literal["COCO", "VOC"] = "COCO"
    map_type: VocStyle = "11point"
    score_threshold: Annotated[float, Field(ge=0, le=1)] = 0.01
    nms_threshold: Annotated[float, Field(ge=0, le=1)] = 0.45
    nms_top_k: Count = 1000
    keep_top_k: Count = 100


class KLLoss(ConfigSection):
    """PaddleSeg's distance to the teacher's classes, at temperature 1."""

    type: Literal["KLLoss"]


class DistillSpec(ConfigSection):
    """How much the teacher counts where a student learns from one; outputs count alike."""

    types: Annotated[list[KLLoss], Field(min_length=1, max_length=1)]
    coef: Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=1, max_length=1)]


class ExportSpec(ConfigSection):
    """Preprocessing at deployment where it is not validation's."""

    transforms: Transforms | None = None


class ConfigSpec(ConfigSection):
    """A whole configuration."""

    model: ModelSpec
    train_dataset: AnyData
    val_dataset: AnyData | None = None
    batch_size: Annotated[int, Field(ge=1, le=2**16)] = 1
    iters: Count | None = None
    epochs: Positive | None = None
    optimizer: OptimizerSpec = OptimizerSpec()
    lr_scheduler: AnySchedule | None = None
    learning_rate: OldRate | None = None
    loss: LossesSpec = LossesSpec(types=[{"type": "CrossEntropyLoss"}], coef=[1])  # type: ignore[list-item]
    distill_loss: DistillSpec | None = None
    test_config: TestSpec | None = None
    export: ExportSpec = ExportSpec()
    seed: Annotated[int, Field(ge=0, lt=2**32)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _validation_mode(cls, given: Any) -> Any:
        """The validation set is its part "val" where it names none."""
        held = given.get("val_dataset") if isinstance(given, Mapping) else None
        return {**given, "val_dataset": {"mode": "val", **held}} if isinstance(held, Mapping) else given

    @model_validator(mode="after")
    def _whole(self) -> ConfigSpec:
        if (self.iters is None) == (self.epochs is None):
            raise ValueError("give either 'iters' or 'epochs'.")
        if self.lr_scheduler is None and self.learning_rate is None:
            raise ValueError("neither 'lr_scheduler' nor 'learning_rate' is given.")
        return self

    @property
    def schedule(self) -> Polynomial | Cosine | Piecewise | StepDecay:
        """What ``lr_scheduler`` says, or else the older ``learning_rate``."""
        old = self.learning_rate
        found = old.decay if self.lr_scheduler is None and old is not None else self.lr_scheduler
        assert found is not None  # _whole() has seen to it
        return found
