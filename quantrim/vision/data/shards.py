"""Images in tar files, as WebDataset lays them out: ``000123.jpg`` and ``000123.cls`` beside each other.

The headers are read once; a sample is then read from its place in its file, so that shards are shuffled, split
over processes and resumed like any other data set, and nothing is unpacked (github.com/webdataset/webdataset).
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from quantrim.errors import DataError, first_line
from quantrim.images import ImageError, decode_image

_IMAGES = frozenset({"jpg", "jpeg", "png", "webp", "bmp", "ppm"})
#: A label is a number; more bytes are something else.
_LABEL_BYTES = 20


@dataclass(frozen=True, slots=True)
class Place:
    """Where an image lies.

    Attributes:
        shard: index of its file.
        name: its member's name.
        offset: of its first byte in the file.
        size: in bytes.
        label: its class.
    """

    shard: int
    name: str
    offset: int
    size: int
    label: int


@dataclass(frozen=True)
class TarImages:
    """Images and labels in tar files, read when they are asked for.

    Attributes:
        shards: the files.
        places: of every image.
    """

    shards: tuple[Path, ...]
    places: tuple[Place, ...]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        """Image and label.

        Raises:
            DataError: the image can't be decoded.
        """
        place = self.places[index]
        shard = self.shards[place.shard]
        with open(shard, "rb") as file:
            file.seek(place.offset)
            data = file.read(place.size)
        try:
            return decode_image(data), place.label
        except ImageError as error:
            raise ImageError(error.fault, f"{shard}: {place.name}: {error} Write the shard again.") from error


def tar_images(shards: Sequence[Path]) -> TarImages:
    """Index of uncompressed tar files.

    Args:
        shards: the files, in the order of the data set.

    Raises:
        DataError: there is none, one is damaged or compressed, or a sample has no image or no label.
    """
    places = [place for number, shard in enumerate(shards) for place in _places(number, shard)]
    if not places:
        raise DataError("the tar files hold no image with a label (name.jpg beside name.cls).")
    return TarImages(tuple(shards), tuple(places))


def _places(number: int, shard: Path) -> Iterator[Place]:
    """Places of a file's images; the parts of a sample stand next to each other and share a name."""
    images: dict[str, tarfile.TarInfo] = {}
    labels: dict[str, int] = {}
    try:
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                key, _, kind = _split(member.name)
                if member.isfile() and kind in _IMAGES:
                    images[key] = member
                elif member.isfile() and kind == "cls":
                    labels[key] = _label(tar, member, shard)
    except (tarfile.TarError, OSError, EOFError) as error:
        raise DataError(f"{shard}: no tar file that can be read in place: {first_line(error)}.") from error
    if images.keys() != labels.keys():
        key = min(images.keys() ^ labels.keys())
        raise DataError(f"{shard}: sample {key!r} has {'no label' if key in images else 'no image'}.")
    for key, member in images.items():
        yield Place(number, member.name, member.offset_data, member.size, labels[key])


def _split(name: str) -> tuple[str, str, str]:
    """Key and kind of a member: everything up to the first dot of its last part, and what stands behind."""
    folder, slash, last = name.rpartition("/")
    stem, dot, kind = last.partition(".")
    return f"{folder}{slash}{stem}", dot, kind.lower()


def _label(tar: tarfile.TarFile, member: tarfile.TarInfo, shard: Path) -> int:
    file = tar.extractfile(member)
    text = file.read(_LABEL_BYTES) if file is not None else b""
    try:
        return int(text)
    except ValueError as error:
        raise DataError(f"{shard}: {member.name} holds {text!r}, no class number.") from error
