"""Data sets: pictures with masks or labels, read one by one, reproducibly transformed."""

from __future__ import annotations

import gzip
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler

from quantrim.errors import DataError
from quantrim.images import read_image, read_labels
from quantrim.vision.data.detection import at_size
from quantrim.vision.data.objects import Objects
from quantrim.vision.data.sample import GeometricStep, Sample, Transform, apply

Task = Literal["segmentation", "classification", "detection"]
#: What is known of an image: a mask, a class, or objects.
Truth = np.ndarray | int | Objects


class Source(Protocol):
    """Raw pictures: RGB uint8 (H, W, 3) with a mask uint8 (H, W) or an integer label."""

    def __len__(self) -> int:
        """Number of pictures."""
        ...

    def __getitem__(self, index: int) -> tuple[np.ndarray, Truth]:
        """Picture and truth."""
        ...


@dataclass(frozen=True)
class VisionData:
    """A source with its transforms.

    Attributes:
        source: raw pictures.
        task: what the truth is.
        num_classes: number of classes.
        transforms: applied in order.
        seed: random transforms depend on (seed, epoch, index) alone, so a resumed run sees the same
            pictures whatever the number of workers.
        ignore_index: label that doesn't count.
        class_names: names for people.
        max_objects: rows of a label of objects.
        batch_sides: a training batch of objects is resized to one of these sides; () for as they are.
    """

    source: Source
    task: Task
    num_classes: int
    transforms: Sequence[Transform] = ()
    seed: int = 0
    ignore_index: int = 255
    class_names: tuple[str, ...] = ()
    max_objects: int = 50
    batch_sides: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: int | tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Image float32 (C, H, W) and its label, of ``index`` or ``(epoch, index)``.

        The label is int64 () or (H, W); of objects float32 (max_objects, 6), see :meth:`Objects.rows`.
        """
        epoch, index = key if isinstance(key, tuple) else (0, key)
        sample, label = self.sample(index, epoch)
        image = torch.from_numpy(np.ascontiguousarray(sample.image.transpose(2, 0, 1), np.float32))
        if self.task == "detection":
            assert sample.objects is not None
            return image, torch.from_numpy(sample.objects.rows(self.max_objects))
        if self.task == "classification":
            assert isinstance(label, int | np.integer)
            return image, torch.tensor(int(label))
        assert sample.mask is not None
        return image, torch.from_numpy(sample.mask.astype(np.int64))

    def __getitems__(self, keys: Sequence[int | tuple[int, int]]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """A batch, which torch's loader asks for at once: with ``batch_sides`` all its images get one side."""
        batch = [self[key] for key in keys]
        if not self.batch_sides:
            return batch
        first = keys[0] if isinstance(keys[0], tuple) else (0, keys[0])
        side = int(np.random.default_rng((self.seed, *first, 1)).choice(self.batch_sides))
        return [at_size(image, rows, side) for image, rows in batch]

    def sample(self, index: int, epoch: int = 0) -> tuple[Sample, Truth]:
        """Transformed sample, and the untouched truth."""
        first, truth = self._untouched(index)
        generator = np.random.default_rng((self.seed, epoch, index))

        def another() -> Sample:
            return self._untouched(int(generator.integers(len(self))))[0]

        return apply(self.transforms, first, generator, another), truth

    def _untouched(self, index: int) -> tuple[Sample, Truth]:
        image, truth = self.source[index]
        self._require_known(truth, index)
        pixels = image.astype(np.float32)
        if isinstance(truth, Objects):
            return Sample(pixels, objects=truth), truth
        return Sample(pixels, truth if isinstance(truth, np.ndarray) else None), truth

    def _require_known(self, truth: Truth, index: int) -> None:
        """Raise DataError unless every label is a class or the one that doesn't count."""
        labels = truth.labels if isinstance(truth, Objects) else np.asarray(truth)
        counted = labels[labels != self.ignore_index] if labels.ndim else labels.reshape(1)
        if counted.size and not 0 <= int(counted.min()) <= int(counted.max()) < self.num_classes:
            wrong = int(counted.max() if counted.max() >= self.num_classes else counted.min())
            raise DataError(
                f"{_origin(self.source, index)}: label {wrong} is no class of 0 to {self.num_classes - 1}"
                + (f" and not ignore_index {self.ignore_index}" if labels.ndim else "")
                + ". Correct the label, or num_classes."
            )

    def steps(self, index: int) -> tuple[GeometricStep, ...]:
        """Geometric changes of a picture, for the way back."""
        return self.sample(index)[0].steps


def _origin(source: Source, index: int) -> str:
    """The file of a truth, where it has one of its own."""
    if isinstance(source, MaskFiles):
        return str(source.pairs[index][1])
    return str(source.rows[index][0]) if isinstance(source, LabelFiles) else f"sample {index}"


def read_mask(path: str | Path) -> np.ndarray:
    """Label picture uint8 (H, W); palette pictures give their indices, not their colours.

    Raises:
        DataError: the file can't be decoded, or shows colours instead of class numbers.
    """
    labels = read_labels(path)
    if labels.ndim == 2:
        return labels
    if (labels != labels[:, :, :1]).any():
        raise DataError(
            f"{path}: a mask in colours. Save class numbers, as a grey or a palette picture (mode L or P)."
        )
    return labels[:, :, 0]


@dataclass(frozen=True)
class MaskFiles:
    """Pictures and their masks, read when they are asked for.

    Attributes:
        pairs: files of picture and mask.
    """

    pairs: tuple[tuple[Path, Path], ...]

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Picture and mask."""
        image, mask = self.pairs[index]
        picture, labels = read_image(image), read_mask(mask)
        if picture.shape[:2] != labels.shape:
            raise DataError(f"{mask}: mask is {labels.shape}, its picture {image} is {picture.shape[:2]}.")
        return picture, labels


@dataclass(frozen=True)
class LabelFiles:
    """Pictures and their class numbers.

    Attributes:
        rows: file of the picture, and label.
    """

    rows: tuple[tuple[Path, int], ...]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        """Picture and label."""
        path, label = self.rows[index]
        return read_image(path), label


def listed_masks(root: Path, list_file: Path, separator: str | None = None) -> MaskFiles:
    """Pictures and masks named by a list file, ``image mask`` a line, relative to ``root``.

    Raises:
        DataError: the list or a listed file is missing, or a line has not two names.
    """
    pairs = tuple((root / image, root / mask) for image, mask in _rows(list_file, 2, separator))
    require_files(list_file, [path for pair in pairs for path in pair])
    return MaskFiles(pairs)


def listed_labels(root: Path, list_file: Path, separator: str | None = None) -> LabelFiles:
    """Pictures and class numbers named by a list file, ``image label`` a line, as ImageNet's val_list.txt.

    Raises:
        DataError: the list or a listed file is missing, or a line has not a name and a number.
    """
    try:
        rows = tuple((root / name, int(label)) for name, label in _rows(list_file, 2, separator))
    except ValueError as error:
        raise DataError(f"{list_file}: a label is no number ({error}).") from error
    require_files(list_file, [path for path, _ in rows])
    return LabelFiles(rows)


def _rows(path: Path, columns: int, separator: str | None) -> list[list[str]]:
    if not path.is_file():
        raise DataError(f"{path}: no such list file.")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: no text file in UTF-8 ({error.reason}).") from error
    rows = []
    for number, line in enumerate(lines, 1):
        row = line.split(separator)
        if line.strip() and len(row) != columns:
            raise DataError(
                f"{path}: line {number} has {len(row)} columns, not {columns}: {line[:80]!r}. "
                "Where names hold spaces, set 'separator' in the configuration."
            )
        if line.strip():
            rows.append(row)
    if not rows:
        raise DataError(f"{path}: the list is empty.")
    return rows


def require_files(source: Path, paths: Sequence[Path]) -> None:
    """Raise DataError, in the name of ``source``, unless all files are there."""
    missing = next((path for path in paths if not path.is_file()), None)
    if missing is not None:
        raise DataError(f"{source}: listed file {missing} does not exist.")


@dataclass(frozen=True)
class Arrays:
    """Pictures (N, H, W) or (N, H, W, 3) uint8 and labels (N,) that fit in memory."""

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        """Picture (H, W, C) and label."""
        image = self.images[index]
        return image if image.ndim == 3 else image[:, :, None], int(self.labels[index])


@dataclass(frozen=True)
class Kept:
    """A source that keeps in memory what it gave, for pictures that take longer to make than to keep.

    Attributes:
        source: makes the pictures; each must be the same whenever it is asked for.
        limit_bytes: pictures and masks are kept until they fill so much.
    """

    source: Source
    limit_bytes: int = 2**28
    _kept: dict[int, tuple[np.ndarray, Truth]] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[np.ndarray, Truth]:
        """Picture and truth."""
        found = self._kept.get(index)
        if found is None:
            found = self.source[index]
            truth = found[1].boxes if isinstance(found[1], Objects) else np.asarray(found[1])
            if (len(self._kept) + 1) * (found[0].nbytes + truth.nbytes) <= self.limit_bytes:
                self._kept[index] = found
        return found


FASHION_MNIST = tuple(
    ["T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot"]
)


def fashion_mnist(root: str | Path, split: Literal["train", "val"]) -> Arrays:
    """Fashion-MNIST from its idx.gz files (Debian: dataset-fashion-mnist).

    Args:
        root: folder of the four files.
        split: "train" (60,000) or "val" (10,000).

    Raises:
        DataError: a file is missing or damaged.
    """
    name = "train" if split == "train" else "t10k"
    images = _idx(Path(root) / f"{name}-images-idx3-ubyte.gz")
    return Arrays(images, _idx(Path(root) / f"{name}-labels-idx1-ubyte.gz"))


def _idx(path: Path) -> np.ndarray:
    """Array of an idx file: two zero bytes, type 8 (uint8), number of axes, sizes big-endian, values."""
    try:
        with gzip.open(path) as file:
            data = file.read()
    except OSError as error:
        raise DataError(
            f"{path}: can't be read ({error}). Install Debian's dataset-fashion-mnist or set dataset_root."
        ) from error
    axes = data[3]
    shape = np.frombuffer(data, ">u4", axes, 4).astype(int)
    values = np.frombuffer(data, np.uint8, offset=4 + 4 * axes)
    if values.size != np.prod(shape):
        raise DataError(f"{path}: holds {values.size} values, its head says {'x'.join(map(str, shape))}.")
    return values.reshape(shape)


def batches_per_epoch(length: int, batch_size: int, world: int = 1) -> int:
    """Iterations in which ``world`` processes see a data set once; what fills no batch is left out."""
    return max(1, length // (batch_size * world))


class IterationSampler(Sampler[list[tuple[int, int]]]):
    """Batches of (epoch, index) keys from a given iteration on: a resumed run goes on where it was.

    Args:
        length: size of the data set.
        batch_size: samples of this process in a batch.
        iterations: where to stop.
        start: first iteration.
        seed: of the shuffling.
        rank: number of this process.
        world: number of processes; together they see each sample once an epoch.
    """

    def __init__(
        self, length: int, batch_size: int, iterations: int, *, start: int = 0, seed: int = 0, rank: int = 0,
        world: int = 1,
    ) -> None:  # fmt: skip
        self.length, self.batch_size, self.iterations = length, batch_size, iterations
        self.start, self.seed, self.rank, self.world = start, seed, rank, world
        self.per_epoch = batches_per_epoch(length, batch_size, world)

    def __len__(self) -> int:
        return self.iterations - self.start

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order, known = np.empty(0, np.int64), -1
        for iteration in range(self.start, self.iterations):
            epoch, step = divmod(iteration, self.per_epoch)
            if epoch != known:
                order, known = np.random.default_rng((self.seed, epoch)).permutation(self.length), epoch
            first = (step * self.world + self.rank) * self.batch_size
            yield [(epoch, int(i)) for i in np.take(order, range(first, first + self.batch_size), mode="wrap")]


def training_batches(
    data: VisionData, batch_size: int, iterations: int, *, start: int = 0, seed: int = 0, workers: int = 0,
    rank: int = 0, world: int = 1,
) -> DataLoader[tuple[torch.Tensor, torch.Tensor]]:  # fmt: skip
    """Endless shuffled batches, cut to the iterations that are left."""
    sampler = IterationSampler(
        len(data), batch_size, iterations, start=start, seed=seed, rank=rank, world=world
    )
    own = torch.Generator().manual_seed(seed)  # else the loader draws from the generator that dropout uses
    return DataLoader(data, batch_sampler=sampler, num_workers=workers, generator=own)  # type: ignore[arg-type]
