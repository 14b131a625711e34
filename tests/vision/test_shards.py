"""Images in tar files: the same samples as those of the folders that they were made of."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from quantrim.errors import DataError
from quantrim.images import read_image
from quantrim.vision.config import build_data, load_config
from quantrim.vision.data.shards import tar_images

CONFIG = """
batch_size: 4
iters: 8
train_dataset: {{type: TarShards, dataset_root: {root}, mode: train, num_classes: 3, transforms: []}}
val_dataset: {{type: TarShards, dataset_root: {root}, mode: val, num_classes: 3, transforms: []}}
model: {{type: torchvision.models.mobilenet_v3_small, num_classes: 3}}
optimizer: {{type: sgd}}
lr_scheduler: {{type: PolynomialDecay, learning_rate: 0.01}}
loss: {{types: [{{type: CrossEntropyLoss}}], coef: [1]}}
"""


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def shard(path: Path, members: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


@pytest.fixture
def images() -> list[np.ndarray]:
    return list(np.random.default_rng(0).integers(0, 256, (10, 32, 32, 3)).astype(np.uint8))


@pytest.fixture
def folder(images: list[np.ndarray], tmp_path: Path) -> Path:
    for number in range(2):
        mine = range(number * 5, number * 5 + 5)
        parts = {f"a.b/{i:06d}.png": png(images[i]) for i in mine}
        parts |= {f"a.b/{i:06d}.cls": b"%d" % (i % 3) for i in mine}
        shard(tmp_path / f"train-{number:03d}.tar", dict(sorted(parts.items())))
    shard(tmp_path / "val-000.tar", {"x.png": png(images[0]), "x.cls": b"2\n", "x.json": b"{}"})
    return tmp_path


def test_samples_are_those_that_were_written(folder: Path, images: list[np.ndarray]):
    found = tar_images(sorted(folder.glob("train-*.tar")))
    assert len(found) == 10
    for index, image in enumerate(images):
        pixels, label = found[index]
        assert np.array_equal(pixels, image)
        assert label == index % 3


def test_a_configuration_reads_them(folder: Path, tmp_path: Path):
    (tmp_path / "config.yml").write_text(CONFIG.format(root=folder))
    config = load_config(tmp_path / "config.yml")
    train, val = build_data(config, "train_dataset"), build_data(config, "val_dataset")
    assert (len(train), len(val)) == (10, 1)
    assert (train.task, train.num_classes) == ("classification", 3)
    image, label = val[0]
    assert tuple(image.shape) == (3, 32, 32)
    assert int(label) == 2


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"x.png": b"?"}, "sample 'x' has no label"),
        ({"x.cls": b"1"}, "sample 'x' has no image"),
        ({"x.png": b"?", "x.cls": b"cat"}, "holds b'cat', no class number"),
        ({"readme.txt": b"?"}, "hold no image with a label"),
    ],
)
def test_what_is_no_sample_is_named(members: dict[str, bytes], message: str, tmp_path: Path):
    with pytest.raises(DataError, match=message):
        tar_images([shard(tmp_path / "x.tar", members)])


def test_damaged_files_are_named(folder: Path, images: list[np.ndarray], tmp_path: Path):
    (tmp_path / "cut.tar").write_bytes((folder / "train-000.tar").read_bytes()[:700])
    with pytest.raises(DataError, match=r"cut\.tar"):
        tar_images([tmp_path / "cut.tar"])
    packed = shard(tmp_path / "x.tar", {"x.png": png(images[0]), "x.cls": b"1"}, "w:gz")
    with pytest.raises(DataError, match=r"x\.tar: no tar file that can be read in place"):
        tar_images([packed])
    broken = tar_images([shard(tmp_path / "y.tar", {"y.png": b"no image", "y.cls": b"1"})])
    with pytest.raises(DataError, match=r"y\.tar: y\.png: "):
        broken[0]


def test_one_reader_reads_all_images(folder: Path, images: list[np.ndarray], tmp_path: Path):
    (tmp_path / "one.png").write_bytes(png(images[3]))
    assert np.array_equal(
        tar_images(sorted(folder.glob("train-*.tar")))[3][0], read_image(tmp_path / "one.png")
    )
