"""Data sets in the layouts that people have on disk."""

import os
import pickle
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from quantrim.errors import ConfigError, DataError
from quantrim.images import read_image
from quantrim.vision.config import build_data, load_config
from quantrim.vision.data.cifar import cifar10
from quantrim.vision.data.datasets import Kept, read_mask
from quantrim.vision.data.folders import cityscapes, class_folders, pascal_voc
from quantrim.vision.data.geometry import Resize, ResizeByLong, ResizeByShort
from quantrim.vision.data.sample import Sample

HEAD = """
iters: 1
model: {type: MobileNetV1}
learning_rate: {value: 0.1}
"""


def picture(path: Path, value: int = 7, shape=(6, 8, 3)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), np.full(shape, value, np.uint8))


def palette_mask(path: Path, labels: np.ndarray) -> None:
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(labels, "P")
    image.putpalette(list(range(256)) * 3)
    image.save(path)


def config_of(tmp_path: Path, dataset: str):
    (tmp_path / "c.yml").write_text(f"{HEAD}\ntrain_dataset: {{{dataset}, dataset_root: {tmp_path}}}\n")
    return load_config(tmp_path / "c.yml")


@pytest.mark.parametrize("inner", ["", "VOC2012", "VOCdevkit/VOC2012"])
def test_pascal_voc_is_read_in_its_own_layout(tmp_path, inner):
    folder = tmp_path / inner
    labels = np.zeros((6, 8), np.uint8)
    labels[2:4, 2:6], labels[0] = 15, 255
    for name in ("2007_000032", "2007_000039"):
        picture(folder / "JPEGImages" / f"{name}.jpg")
        palette_mask(folder / "SegmentationClass" / f"{name}.png", labels)
    lists = folder / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("2007_000032\n2007_000039\n")
    data = build_data(config_of(tmp_path, "type: PascalVOC"))
    assert (len(data), data.num_classes, data.class_names[15]) == (2, 21, "person")
    np.testing.assert_array_equal(data[1][1].numpy(), labels)
    with pytest.raises(DataError, match=r"trainval\.txt"):
        pascal_voc(tmp_path, "trainval")
    (lists / "trainaug.txt").write_text("2007_000032\n")
    with pytest.raises(DataError, match="SegmentationClassAug"):
        pascal_voc(tmp_path, "trainaug")


def test_cityscapes_needs_no_list_and_writes_none(tmp_path):
    picture(tmp_path / "leftImg8bit/val/bonn/bonn_000001_leftImg8bit.png")
    with pytest.raises(DataError, match="labelTrainIds"):
        cityscapes(tmp_path, "val")
    picture(tmp_path / "gtFine/val/bonn/bonn_000001_gtFine_labelTrainIds.png", 3, (6, 8))
    before = sorted(tmp_path.rglob("*"))
    assert cityscapes(tmp_path, "val")[0][1].max() == 3
    assert sorted(tmp_path.rglob("*")) == before


def test_generated_pictures_are_drawn_once_and_kept_within_the_limit():
    class Counted:
        def __len__(self) -> int:
            return 3

        def __getitem__(self, index: int):
            drawn.append(index)
            return np.full((4, 4, 3), index, np.uint8), np.zeros((4, 4), np.uint8)

    drawn: list[int] = []
    kept = Kept(Counted(), limit_bytes=2 * 64)
    for index in (0, 1, 2, 0, 1, 2):
        assert (kept[index][0] == index).all()
    assert drawn == [0, 1, 2, 2]


def test_a_folder_a_class_gives_sorted_classes(tmp_path):
    for name in ("n02", "n01"):
        picture(tmp_path / "train" / name / "a.jpg")
    picture(tmp_path / "train" / "n02" / "b.JPEG")
    (tmp_path / "train" / "n02" / "notes.txt").write_text("no picture")
    data = build_data(config_of(tmp_path, "type: ImageFolder"))
    assert data.class_names == ("n01", "n02")
    assert [int(data[i][1]) for i in range(len(data))] == [0, 1, 1]
    with pytest.raises(DataError, match="no pictures in folders"):
        class_folders(tmp_path / "train" / "n01")


def test_imagenet_s_val_list_is_read(tmp_path):
    picture(tmp_path / "val" / "x.JPEG")
    (tmp_path / "val_list.txt").write_text("val/x.JPEG 65\n")
    data = build_data(config_of(tmp_path, "type: ImageList, mode: val"))
    assert (int(data[0][1]), data.num_classes) == (65, 1000)


def cifar_pictures() -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    return generator.integers(0, 256, (4, 3072), dtype=np.uint8), np.array([3, 0, 9, 1], np.uint8)


def write_python_batch(path: Path, protocol: int) -> None:
    pixels, labels = cifar_pictures()
    content = {b"batch_label": b"testing batch 1 of 1", b"labels": labels.tolist(), b"data": pixels,
               b"filenames": [b"a.png"] * 4}  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content, protocol))


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_both_versions_of_cifar10_give_the_same_pictures(tmp_path, protocol):
    pixels, labels = cifar_pictures()
    np.concatenate([labels[:, None], pixels], axis=1).tofile(tmp_path / "test_batch.bin")
    write_python_batch(tmp_path / "python" / "cifar-10-batches-py" / "test_batch", protocol)
    binary, python = cifar10(tmp_path, "val"), cifar10(tmp_path / "python", "val")
    np.testing.assert_array_equal(binary.images, python.images)
    np.testing.assert_array_equal(binary.labels, python.labels)
    assert binary.images[2, 5, 6, 1] == pixels[2, 1024 + 5 * 32 + 6]


def test_a_batch_pickled_by_python_2_is_read(tmp_path):
    # Python 2 pickles str as bytes-like SHORT_BINSTRING, which the encoding "bytes" keeps: as in the real file.
    pixels, _ = cifar_pictures()
    text = b"".join(b"U" + bytes([len(key)]) + key for key in (b"data",))
    array = pickle.dumps(pixels, 2)[2:-1]  # without protocol and stop
    labels = b"U\x06labels](K\x03K\x00K\x09K\x01e"
    (tmp_path / "test_batch").write_bytes(b"\x80\x02}(" + text + array + labels + b"u.")
    assert cifar10(tmp_path, "val").labels.tolist() == [3, 0, 9, 1]


class Evil:
    def __reduce__(self):
        return os.system, (f"touch {os.environ['EVIL_FILE']}",)


def test_a_batch_that_wants_to_run_something_is_refused_and_nothing_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("EVIL_FILE", str(tmp_path / "ran"))
    (tmp_path / "test_batch").write_bytes(pickle.dumps({b"data": Evil(), b"labels": []}))
    with pytest.raises(DataError, match=r"asks for \w+\.system"):
        cifar10(tmp_path, "val")
    assert not (tmp_path / "ran").exists()


SHORT = pickle.dumps({b"data": np.zeros((2, 9), np.uint8), b"labels": [0, 1]})


@pytest.mark.parametrize(
    "content", [b"", b"no pickle", pickle.dumps([1, 2]), pickle.dumps({b"data": 1}), SHORT]
)
def test_damaged_batches_are_told_in_one_line(tmp_path, content):
    (tmp_path / "test_batch").write_bytes(content)
    with pytest.raises(DataError, match="test_batch") as caught:
        cifar10(tmp_path, "val")
    assert "\n" not in str(caught.value)


def test_missing_cifar_says_what_to_unpack(tmp_path):
    with pytest.raises(DataError, match=r"cifar-10-binary\.tar\.gz"):
        cifar10(tmp_path, "train")


def test_a_data_set_without_its_number_of_classes_is_a_config_error(tmp_path):
    with pytest.raises(ConfigError, match=r"train_dataset.num_classes: is missing"):
        build_data(config_of(tmp_path, "type: Dataset"))


def test_a_mask_in_colours_is_refused_and_a_grey_one_with_three_channels_is_read(tmp_path):
    grey = np.repeat(np.arange(4, dtype=np.uint8).reshape(2, 2, 1), 3, axis=2)
    for values in (grey, np.concatenate([grey, np.full((2, 2, 1), 255, np.uint8)], axis=2)):
        Image.fromarray(values).save(tmp_path / "m.png")
        np.testing.assert_array_equal(read_mask(tmp_path / "m.png"), grey[:, :, 0])
    colours = grey.copy()
    colours[0, 0] = (128, 0, 0)
    Image.fromarray(colours).save(tmp_path / "m.png")
    with pytest.raises(DataError, match="a mask in colours"):
        read_mask(tmp_path / "m.png")


def test_a_jpeg_that_is_cut_off_is_refused(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    whole = cv2.imencode(".jpg", noise)[1].tobytes()
    (tmp_path / "a.jpg").write_bytes(whole)
    assert read_image(tmp_path / "a.jpg").shape == (64, 64, 3)
    (tmp_path / "a.jpg").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="cut off"):
        read_image(tmp_path / "a.jpg")


def test_a_picture_of_one_pixel_goes_through_every_resize():
    line = Sample(np.zeros((1, 500, 3), np.float32), np.zeros((1, 500), np.uint8))
    for transform in (ResizeByLong(32), ResizeByShort(32), Resize((8, 8))):
        assert min(transform(line, np.random.default_rng(0)).image.shape[:2]) >= 1
