import numpy as np
import pytest
import torch
from PIL import Image

from quantrim.errors import DataError
from quantrim.graph.feeds import ImagePreprocess, calibration_feeds, image_files
from quantrim.graph.ports import Port

PORT = Port("image", (None, 3, 8, 8), np.dtype(np.float32))


def count(feeds) -> int:
    return sum(len(feed["image"]) for feed in feeds)


@pytest.fixture
def picture_folder(tmp_path):
    generator = np.random.default_rng(0)
    for index in range(5):
        pixels = generator.integers(0, 255, (20, 30, 3), dtype=np.uint8)
        (tmp_path / "sub").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / ("sub" if index % 2 else ".") / f"{index}.png")
    return tmp_path


def test_a_folder_gives_every_image_once_prepared_for_the_input(picture_folder):
    feeds = list(calibration_feeds(picture_folder, [PORT], batch_size=2))
    assert [len(feed["image"]) for feed in feeds] == [2, 2, 1]
    assert feeds[0]["image"].shape == (2, 3, 8, 8)
    assert feeds[0]["image"].dtype == np.float32


def test_few_samples_of_a_folder_are_spread_over_it_and_of_a_list_are_its_first(tmp_path):
    for index in range(10):  # two classes of five, one after the other
        (tmp_path / f"class_{index // 5}").mkdir(exist_ok=True)
        Image.new("L", (8, 8), 20 * index).save(tmp_path / f"class_{index // 5}" / f"{index}.png")
    (tmp_path / "list.txt").write_text("\n".join(f"class_{index // 5}/{index}.png" for index in range(10)))
    plain = ImagePreprocess(mean=(0, 0, 0), std=(1 / 255,) * 3, fit="stretch")

    def greys(source, samples):
        feeds = calibration_feeds(source, [PORT], samples=samples, preprocess=plain)
        return [round(float(image.mean()) / 20) for feed in feeds for image in feed["image"]]

    assert greys(tmp_path, 4) == [0, 2, 5, 7]
    assert greys(tmp_path, 99) == list(range(10))
    assert greys(tmp_path / "list.txt", 4) == [0, 1, 2, 3]


def test_preprocessing_scales_and_normalises_in_rgb_order(tmp_path):
    Image.new("RGB", (8, 8), (255, 0, 51)).save(tmp_path / "a.png")
    pre = ImagePreprocess(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), fit="stretch")
    array = pre.image(tmp_path / "a.png", 8, 8, 3)
    np.testing.assert_allclose(array[:, 0, 0], [1.0, -1.0, -0.6], atol=1e-6)


def test_a_list_file_names_images_relative_to_itself(picture_folder):
    (picture_folder / "list.txt").write_text("0.png 3\nsub/1.png 4\n")
    assert count(calibration_feeds(picture_folder / "list.txt", [PORT])) == 2


def test_arrays_in_npy_and_npz_are_read_by_input_name(tmp_path):
    data = np.zeros((7, 3, 8, 8), np.float32)
    np.save(tmp_path / "a.npy", data)
    np.savez(tmp_path / "b.npz", other=data[:1], image=data)
    assert count(calibration_feeds(tmp_path / "a.npy", [PORT])) == 7
    assert count(calibration_feeds(tmp_path / "b.npz", [PORT])) == 7


@pytest.mark.parametrize(
    "source",
    [
        [np.zeros((3, 8, 8), np.float32)] * 5,
        [np.zeros((2, 3, 8, 8), np.float32), np.zeros((3, 3, 8, 8), np.float32)],
        [(torch.zeros(5, 3, 8, 8), torch.zeros(5))],
        [{"image": np.zeros((5, 3, 8, 8), np.float32)}],
    ],
    ids=["samples", "batches", "loader with labels", "dicts"],
)
def test_iterables_of_samples_and_batches_are_understood_and_no_partial_batch_is_lost(source):
    assert count(calibration_feeds(source, [PORT], batch_size=3)) == 5


def test_samples_limits_what_is_read():
    assert count(calibration_feeds(np.zeros((9, 3, 8, 8), np.float32), [PORT], samples=4)) == 4


def test_a_fixed_batch_is_filled_by_repeating_the_last_sample():
    fixed = Port("image", (4, 3, 8, 8), np.dtype(np.float32))
    feeds = list(calibration_feeds(np.arange(6 * 192, dtype=np.float32).reshape(6, 3, 8, 8), [fixed]))
    assert [len(feed["image"]) for feed in feeds] == [4, 4]
    np.testing.assert_array_equal(feeds[1]["image"][1], feeds[1]["image"][3])


def test_samples_of_different_sizes_go_into_different_batches():
    open_port = Port("image", (None, 3, None, None), np.dtype(np.float32))
    source = [np.zeros((3, 8, 8), np.float32)] * 2 + [np.zeros((3, 4, 6), np.float32)]
    shapes = [feed["image"].shape for feed in calibration_feeds(source, [open_port])]
    assert shapes == [(2, 3, 8, 8), (1, 3, 4, 6)]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (np.zeros((0, 3, 8, 8), np.float32), "no sample"),
        ([], "no sample"),
        (np.zeros((2, 3, 9, 8), np.float32), "sample 0 has shape 3x9x8"),
        (np.full((2, 3, 8, 8), np.nan, np.float32), "NaN"),
        (np.zeros((2, 3, 8, 8), np.uint8), "preprocessing"),
        (np.array([["a"] * 3]), "sample 0"),
        (7, "can't read calibration data from a int"),
    ],
)
def test_bad_data_give_one_clear_line(source, message):
    with pytest.raises(DataError, match=message) as caught:
        list(calibration_feeds(source, [PORT]))
    assert "\n" not in str(caught.value)


def test_an_unreadable_image_is_named(picture_folder):
    (picture_folder / "broken.jpg").write_bytes(b"\xff\xd8 not really")
    with pytest.raises(DataError, match=r"broken\.jpg: can't be decoded"):
        list(calibration_feeds(picture_folder, [PORT]))


def test_a_folder_without_images_and_a_missing_path_are_named(tmp_path):
    with pytest.raises(DataError, match="no image in this folder"):
        image_files(tmp_path)
    with pytest.raises(DataError, match="no such file"):
        image_files(tmp_path / "nowhere")


def test_images_for_a_dynamic_input_need_a_shape(picture_folder):
    open_port = Port("image", (None, 3, None, None), np.dtype(np.float32))
    with pytest.raises(DataError, match="input_shape"):
        list(calibration_feeds(picture_folder, [open_port]))
    feeds = list(calibration_feeds(picture_folder, [open_port], shape=(1, 3, 16, 12)))
    assert feeds[0]["image"].shape[1:] == (3, 16, 12)


def npz(folder, **arrays):
    np.savez(folder / "a.npz", **arrays)
    return folder / "a.npz"


def test_the_images_of_an_npz_are_found_beside_its_labels(tmp_path):
    images = np.random.default_rng(0).random((2, 3, 8, 8), np.float32)
    path = npz(tmp_path, labels=np.arange(2), images=images)
    np.testing.assert_array_equal(next(calibration_feeds(path, [PORT]))["image"], images)


def test_an_npz_with_several_or_no_likely_arrays_says_what_it_holds(tmp_path):
    images = np.zeros((2, 3, 8, 8), np.float32)
    for arrays in ({"a": images, "b": images}, {"labels": np.arange(2), "ids": np.arange(2)}):
        with pytest.raises(DataError, match=r"no array named 'image'; it holds .*Name the array"):
            list(calibration_feeds(npz(tmp_path, **arrays), [PORT]))


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.npz", b"PK\x03\x04 cut off", "can't be read as npz"),
        ("a.npz", b"", "can't be read as npz"),
        ("a.npy", b"\x93NUMPY", "can't be read as npy"),
        ("a.txt", b"\n \n", "names no image"),
        ("a.txt", bytes(range(256)), "neither an image"),
        ("a.txt", b"nowhere.png\n", "listed image .*nowhere.png does not exist"),
    ],
)
def test_damaged_files_are_named(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=words) as caught:
        list(calibration_feeds(tmp_path / name, [PORT]))
    assert str(tmp_path / name) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_arrays_in_files_are_blamed_with_the_file_and_the_sample(tmp_path):
    images = np.zeros((3, 3, 8, 8), np.float32)
    images[2, 0, 0, 0] = np.nan
    np.save(tmp_path / "a.npy", images)
    with pytest.raises(DataError, match=r"a\.npy: sample 2 holds NaN"):
        list(calibration_feeds(tmp_path / "a.npy", [PORT]))
    np.save(tmp_path / "a.npy", np.float32(3))
    with pytest.raises(DataError, match=r"a\.npy: no samples for input 'image'"):
        list(calibration_feeds(tmp_path / "a.npy", [PORT]))


@pytest.mark.parametrize("mode", ["CMYK", "RGBA", "LA", "P", "1"])
def test_pictures_of_every_mode_and_of_one_pixel_are_read(tmp_path, mode):
    suffix = ".jpg" if mode == "CMYK" else ".png"
    Image.new("RGB", (1, 1), (200, 200, 200)).convert(mode).save(tmp_path / f"a{suffix}")
    feed = next(calibration_feeds(tmp_path, [PORT], preprocess=ImagePreprocess((0, 0, 0), (1, 1, 1))))
    assert feed["image"].shape == (1, 3, 8, 8)
    assert mode == "1" or np.allclose(feed["image"], 200 / 255, atol=0.03)


def test_a_16_bit_picture_keeps_its_greys(tmp_path):
    Image.fromarray(np.full((9, 9), 32896, np.uint16)).save(tmp_path / "a.png")
    feed = next(calibration_feeds(tmp_path, [PORT], preprocess=ImagePreprocess((0, 0, 0), (1, 1, 1))))
    np.testing.assert_allclose(feed["image"], 128 / 255)


IMAGE = Port("image", (None, 3, 8, 8), np.dtype(np.float32))
SCALE = Port("scale", (), np.dtype(np.float32))
TABLE = Port("table", (5, 2), np.dtype(np.float32))


def arrays(*shape: int) -> np.ndarray:
    return np.random.default_rng(3).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("ports", [(IMAGE, SCALE, TABLE), (TABLE, SCALE, IMAGE)], ids=["first", "last"])
@pytest.mark.parametrize("form", ["samples", "batches", "rows", "rows of tables"])
def test_inputs_without_a_batch_axis_are_fed_as_given(ports, form):
    images, table, scale = arrays(6, 3, 8, 8), arrays(5, 2), np.float32(1.5)
    source = {
        "samples": [{"image": image, "table": table, "scale": scale} for image in images],
        "batches": [{"image": images[i : i + 3], "table": table, "scale": scale} for i in (0, 3)],
        "rows": {"image": images, "table": table, "scale": scale},
        "rows of tables": {"image": images, "table": np.stack([table] * 6), "scale": np.full(6, scale)},
    }[form]
    feeds = list(calibration_feeds(source, ports, batch_size=4))
    assert [len(feed["image"]) for feed in feeds] == [4, 2]
    for feed in feeds:
        assert list(feed) == [port.name for port in ports]
        np.testing.assert_array_equal(feed["table"], table)
        assert feed["scale"].shape == ()
        assert feed["scale"] == scale
    np.testing.assert_array_equal(np.concatenate([feed["image"] for feed in feeds]), images)


def test_samples_that_share_no_table_are_not_batched_together():
    source = [{"image": arrays(3, 8, 8), "table": arrays(5, 2) + (index // 2)} for index in range(4)]
    feeds = list(calibration_feeds(source, [IMAGE, TABLE], batch_size=4))
    assert [len(feed["image"]) for feed in feeds] == [2, 2]


DEPTH = Port("depth", (None, 1, 8, 8), np.dtype(np.float32))


@pytest.mark.parametrize("labelled", [False, True])
@pytest.mark.parametrize("nested", [False, True])
def test_tuples_fill_several_inputs_in_their_order(labelled, nested):
    pair = (arrays(2, 3, 8, 8), arrays(2, 1, 8, 8))
    item = (pair, np.arange(2)) if nested else (*pair, np.arange(2)) if labelled else pair
    feed = next(calibration_feeds([item], [IMAGE, DEPTH]))
    np.testing.assert_array_equal(feed["image"], pair[0])
    np.testing.assert_array_equal(feed["depth"], pair[1])


def test_a_dict_of_one_array_fills_the_only_input_whatever_its_name():
    item = {"pixel_values": arrays(2, 3, 8, 8), "labels": np.arange(2)}
    assert count(calibration_feeds([item], [IMAGE])) == 2
    with pytest.raises(DataError, match="no array named 'image'"):
        list(calibration_feeds([{"a": arrays(2, 3, 8, 8), "b": arrays(2, 3, 8, 8)}], [IMAGE]))


@pytest.mark.parametrize("item", [arrays(2, 3, 8, 8), (arrays(2, 3, 8, 8),)])
def test_too_few_arrays_for_the_inputs_are_one_clear_line(item):
    with pytest.raises(DataError, match="the model has 2 inputs"):
        list(calibration_feeds([item], [IMAGE, DEPTH]))


BYTES = Port("x", (None, 3, 8, 12), np.dtype(np.uint8))


@pytest.mark.parametrize("shape", [(None, 3, 8, 12), (None, 8, 12, 3)])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_images_fill_inputs_of_bytes_and_of_channels_last(tmp_path, shape, dtype):
    pixels = np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    plain = ImagePreprocess(mean=(0, 0, 0), std=(1, 1, 1), fit="stretch")
    feed = next(calibration_feeds(tmp_path, [Port("x", shape, np.dtype(dtype))], preprocess=plain))
    expected = pixels if dtype == np.uint8 else np.float32(pixels) / 255
    expected = expected if shape[-1] == 3 else expected.transpose(2, 0, 1)
    assert feed["x"].dtype == dtype
    np.testing.assert_allclose(feed["x"][0], expected, atol=1e-6)


def test_values_that_an_integer_input_cannot_hold_are_refused():
    held = next(calibration_feeds(np.full((2, 3, 8, 12), 255, np.int64), [BYTES]))
    assert held["x"].dtype == np.uint8
    assert held["x"].max() == 255
    for values in (np.full((2, 3, 8, 12), 256), arrays(2, 3, 8, 12)):
        with pytest.raises(DataError, match="without preprocessing"):
            list(calibration_feeds(values, [BYTES]))
