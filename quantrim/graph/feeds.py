"""Calibration data from wherever it lies: image folder, list file, arrays, or a Python iterable.

Every source becomes an iterator of feeds (input name → float32 batch). Images are decoded and prepared
in a thread pool while the model runs on the batch before.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from quantrim.errors import DataError
from quantrim.files import absence, open_regular
from quantrim.graph.arrays import stored_arrays
from quantrim.graph.items import Array, fit, named_arrays, samples_of_rows, single_samples
from quantrim.graph.ports import Feed, Port, counting_samples, samples_in, spell
from quantrim.images import ImageError, read_image, require_size

IMAGE_SUFFIXES = frozenset({".jpeg", ".jpg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff"})
#: Longest list of images: some million lines.
MAX_LIST_BYTES = 2**28
_WORKERS = 4
#: Decoded samples that wait for the model at most.
_AHEAD = 32


@dataclass(frozen=True, slots=True)
class ImagePreprocess:
    """How an image becomes the model's input: RGB, resized, (x / 255 - mean) / std, CHW float32.

    Attributes:
        mean: per channel, in 0..1.
        std: per channel, in 0..1.
        fit: "crop": short side to 256/224 of the input size, then the centre; "stretch": resize to the
            input size whatever the aspect.
    """

    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    fit: Literal["crop", "stretch"] = "crop"

    def image(self, path: Path, height: int, width: int, channels: int) -> np.ndarray:
        """Float32 array (channels, height, width) of an image file.

        Raises:
            DataError: the file can't be decoded.
        """
        pixels = self.pixels(path, height, width, channels).astype(np.float32)
        mean, std = (np.asarray(v[:channels], np.float32) for v in (self.mean, self.std))
        return np.ascontiguousarray(((pixels / 255 - mean) / std).transpose(2, 0, 1))

    def pixels(self, path: Path, height: int, width: int, channels: int) -> np.ndarray:
        """The same in its size alone: uint8 (height, width, channels), 0..255.

        Raises:
            DataError: the file can't be decoded.
        """
        decoded = read_image(path, channels)
        picture = Image.fromarray(decoded[:, :, 0] if channels == 1 else decoded)
        try:
            fitted = self._fitted(picture, height, width)
        except ImageError as error:
            raise ImageError(error.fault, f"{path}: {error}") from error
        return np.asarray(fitted, np.uint8).reshape(height, width, channels)

    def _fitted(self, picture: Image.Image, height: int, width: int) -> Image.Image:
        if self.fit == "stretch":
            return picture.resize((width, height), Image.Resampling.BILINEAR)
        ratio = max(width / picture.width, height / picture.height) * 256 / 224
        size = (max(width, round(picture.width * ratio)), max(height, round(picture.height * ratio)))
        require_size(*size)
        picture = picture.resize(size, Image.Resampling.BILINEAR)
        left, top = (size[0] - width) // 2, (size[1] - height) // 2
        return picture.crop((left, top, left + width, top + height))


IMAGENET = ImagePreprocess()
Decode = Callable[[Path], np.ndarray]


def calibration_feeds(
    source: Any,
    ports: Sequence[Port],
    *,
    samples: int | None = 100,
    batch_size: int = 10,
    preprocess: ImagePreprocess | Decode = IMAGENET,
    shape: tuple[int, ...] | None = None,
    used: int = 0,
    shard: tuple[int, int] = (0, 1),
    seed: int | None = None,
) -> Iterator[Feed]:
    """Batches for a model from any source.

    Args:
        source: folder of images, list file (first column: paths relative to it), .npy/.npz of ready
            arrays, or an iterable of samples or batches (arrays, tensors, (input, label) pairs, or dicts
            by input name).
        ports: inputs of the model.
        samples: use at most so many samples; None for all. Those of a folder are spread over its sorted files,
            which often lie class by class; anything else is taken from its beginning.
        batch_size: samples a batch where the model's batch axis is open.
        preprocess: for images: a :class:`ImagePreprocess`, or a function path → CHW float32 array.
        shape: shape of the first input, where its height and width are dynamic.
        used: leave out the samples that a call with ``samples=used`` gave. An iterator that can't start again
            goes on where it stands.
        shard: (i, n): of those samples, the i-th and every n-th behind it.
        seed: draw the images of a folder or list at random by it.

    Yields:
        Feeds; the last may be smaller. A model with a fixed batch gets the last sample repeated.

    Raises:
        DataError: no sample, an unreadable file, or a sample of the wrong shape.
    """
    if samples is not None and samples < 1:
        raise DataError(f"samples is {samples}; calibration needs at least one.")
    counted = counting_samples(ports)
    fixed = next((port.shape[0] for port in ports if port.name in counted), None)
    arrays = _samples(source, ports, preprocess, shape, samples, used, shard, seed)
    count = 0
    for group in _grouped(arrays, fixed or batch_size, counted):
        count += len(group)
        group = group + [group[-1]] * ((fixed or 0) - len(group))
        yield {
            name: np.stack([sample[name] for sample in group]) if name in counted else first
            for name, first in group[0].items()
        }
    if count == 0 and not used:
        raise DataError(f"{_describe(source)}: no sample found; calibration needs at least one.")


def _grouped(items: Iterator[Feed], size: int, counted: Collection[str]) -> Iterator[list[Feed]]:
    """Lists of at most ``size`` samples that fit into one batch.

    A change of shape, or of an input that all samples of a batch share, starts a new list.
    """
    group: list[Feed] = []
    for item in items:
        if group and (len(group) == size or not _alike(group[0], item, counted)):
            yield group
            group = []
        group.append(item)
    if group:
        yield group


def _alike(one: Feed, other: Feed, counted: Collection[str]) -> bool:
    return all(
        array.shape == other[name].shape and (name in counted or np.array_equal(array, other[name]))
        for name, array in one.items()
    )


def _samples(
    source: Any,
    ports: Sequence[Port],
    preprocess: ImagePreprocess | Decode,
    shape: tuple[int, ...] | None,
    count: int | None,
    used: int,
    shard: tuple[int, int],
    seed: int | None,
) -> Iterator[Feed]:
    """Single samples (without batch axis) by input name."""
    first, step = shard
    files = _files_of(source, ports)
    if files is not None:
        if seed is not None and count is not None:
            drawn = np.random.default_rng(seed).permutation(len(files))[: used + count]
            files = [files[number] for number in sorted(drawn[used:])]
        elif Path(source).is_dir():
            taken = set(evenly(files, used)) if used else set()
            files = evenly([file for file in files if file not in taken], count)
        else:
            files = files[used:][:count]
        return _decoded(files[first::step], ports[0], _decoder(ports[0], preprocess, shape))
    return islice(_array_samples(source, ports, used), first, count, step)


def _files_of(source: Any, ports: Sequence[Port]) -> list[Path] | None:
    """Images that a source names; None where it holds arrays."""
    if not isinstance(source, str | Path) or Path(source).suffix in (".npy", ".npz"):
        return None
    if len(ports) > 1:
        raise DataError(f"{source}: the model has {len(ports)} inputs; give an .npz with one array each.")
    return image_files(Path(source))


def _array_samples(source: Any, ports: Sequence[Port], used: int) -> Iterator[Feed]:
    if isinstance(source, str | Path):
        path = Path(source)
        if not path.is_file():
            raise DataError(f"{path}: {absence(path)}")
        return samples_of_rows(_load_arrays(path, ports), ports, path, used)
    if isinstance(source, np.ndarray):
        return samples_of_rows({ports[0].name: source}, ports, "array", used)
    if isinstance(source, Mapping):
        return samples_of_rows(named_arrays(source, ports, "the data"), ports, "arrays", used)
    if isinstance(source, Iterable):
        return islice(single_samples(source, ports), used if iter(source) is not source else 0, None)
    raise DataError(f"can't read calibration data from a {type(source).__name__}.")


def evenly(files: list[Path], count: int | None) -> list[Path]:
    """So many of the files, evenly over their order; all of them where there are fewer."""
    if count is None or count >= len(files):
        return files
    return [files[number * len(files) // count] for number in range(count)]


def image_files(path: Path) -> list[Path]:
    """Image files of a folder (recursive, sorted), of a list file, or the file itself.

    Raises:
        DataError: the path is missing, the folder holds no image, or a listed file does not exist.
    """
    if path.is_dir():
        named = (p for p in path.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
        files = sorted(p for p in named if p.is_file())  # a pipe or device is no image, whatever its name
        if not files:
            raise DataError(
                f"{path}: no image in this folder (looked for {', '.join(sorted(IMAGE_SUFFIXES))})."
            )
        return files
    if not path.is_file():
        raise DataError(f"{path}: no such file or folder.")
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return [path]
    try:
        with open_regular(path, MAX_LIST_BYTES) as listed:
            lines = [line.split() for line in listed.read().decode().splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: neither an image, an .npy/.npz file, nor a text list of images.") from error
    files = [path.parent / line[0] for line in lines]
    if not files:
        raise DataError(f"{path}: the list names no image.")
    missing = next((file for file in files if not file.is_file()), None)
    if missing is not None:
        raise DataError(f"{path}: listed image {missing} does not exist.")
    return files


def _decoder(port: Port, preprocess: ImagePreprocess | Decode, shape: tuple[int, ...] | None) -> Decode:
    if not isinstance(preprocess, ImagePreprocess):
        return preprocess
    size = shape or port.shape
    if len(size) != 4 or any(d is None for d in size[1:]):
        raise DataError(
            f"input {port.name!r} has shape {spell(size)}; to fill it with images give input_shape, "
            "e.g. 1,3,224,224.",
            field="input_shape",
        )
    axes = [int(d or 0) for d in size[1:]]
    channels_last = axes[0] not in (1, 3) and axes[2] in (1, 3)
    height, width, channels = axes if channels_last else (*axes[1:], axes[0])
    if channels not in (1, 3):
        raise DataError(f"input {port.name!r} has {channels} channels; images have 1 or 3. Pass an .npz file.")
    raw = np.issubdtype(port.dtype, np.integer)  # the model prepares images itself

    def decode(path: Path) -> np.ndarray:
        if raw:
            array = preprocess.pixels(path, height, width, channels).transpose(2, 0, 1)
        else:
            array = preprocess.image(path, height, width, channels)
        return array.transpose(1, 2, 0) if channels_last else array

    return decode


def _decoded(files: Iterable[Path], port: Port, decode: Decode) -> Iterator[Feed]:
    """Samples of image files, decoded ahead of their use in a few threads, in order."""
    waiting: deque[Future[np.ndarray]] = deque()

    def ready(file: Path) -> np.ndarray:
        return fit(decode(file), port, port.shape[1:], f"{file} after its preprocessing")

    with ThreadPoolExecutor(_WORKERS) as pool:
        try:
            for file in files:
                waiting.append(pool.submit(ready, file))
                if len(waiting) >= _AHEAD:
                    yield {port.name: waiting.popleft().result()}
            while waiting:
                yield {port.name: waiting.popleft().result()}
        finally:
            for future in waiting:
                future.cancel()


def _load_arrays(path: Path, ports: Sequence[Port]) -> Mapping[str, Array]:
    arrays: Mapping[str, Array] = stored_arrays(path)
    if path.suffix == ".npy":
        return {ports[0].name: arrays[""]}
    return named_arrays(arrays, ports, path)


def _describe(source: Any) -> str:
    return str(source) if isinstance(source, str | Path) else f"calibration {type(source).__name__}"


#: Calibration samples kept for agreement, latency and refinement, and their bytes at most: outputs of many kept
#: samples are held at once, and those of a segmentation model are several times as large as its inputs.
KEPT_SAMPLES, KEPT_BYTES = 32, 64_000_000


def kept_batches(feed: Mapping[str, np.ndarray]) -> int:
    """Batches like this one that are kept."""
    samples, size = samples_in(feed), sum(array.nbytes for array in feed.values())
    return max(1, min(-(-KEPT_SAMPLES // samples), KEPT_BYTES // size))
