"""One reader of images: upright, 8 bits, and nothing that is no image or would fill the memory."""

import contextlib
import io
import os
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from quantrim.errors import DataError
from quantrim.graph.feeds import ImagePreprocess, image_files
from quantrim.images import ImageError, decode_image, read_image, read_labels
from quantrim.vision.data.sample import Sample, resized


def encoded(pixels: np.ndarray, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def png_of(width: int, height: int) -> bytes:
    """A PNG whose header promises any size, in less than 100 bytes."""

    def part(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + part(b"IHDR", header)
        + part(b"IDAT", zlib.compress(b"\0" * 9))
        + part(b"IEND", b"")
    )


PHOTO = cv2.resize(np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8), (121, 83))


@pytest.mark.parametrize("subsampling", [0, 1, 2])
def test_jpeg_gives_the_pixels_that_opencv_gives(subsampling):
    data = encoded(PHOTO, "JPEG", subsampling=subsampling)
    theirs = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[:, :, ::-1]
    np.testing.assert_array_equal(decode_image(data), theirs)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_every_exif_orientation_gives_the_upright_image(orientation, kind):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(PHOTO, kind, exif=exif)
    undone = {1: PHOTO, 2: PHOTO[:, ::-1], 3: PHOTO[::-1, ::-1], 4: PHOTO[::-1], 5: PHOTO.transpose(1, 0, 2),
              6: np.rot90(PHOTO, -1), 7: np.rot90(PHOTO, 2).transpose(1, 0, 2), 8: np.rot90(PHOTO)}  # fmt: skip
    got = decode_image(data)
    assert got.shape == undone[orientation].shape
    if kind == "PNG":
        np.testing.assert_array_equal(got, undone[orientation])


@pytest.mark.parametrize(
    ("width", "height"), [(1, 40_000_000), (20_000, 20_000), (2**31 - 1, 2**31 - 1), (0, 5)]
)
def test_a_header_that_asks_for_too_much_is_refused_before_it_is_decoded(width, height, tmp_path):
    (tmp_path / "a.png").write_bytes(png_of(width, height))
    with pytest.raises(ImageError, match=r"a\.png: "):
        read_image(tmp_path / "a.png")


def test_an_image_of_absurd_proportions_is_not_scaled_to_gigabytes(tmp_path):
    Image.new("RGB", (30_000, 1)).save(tmp_path / "line.png")
    with pytest.raises(DataError, match=r"line\.png: scaling"):
        ImagePreprocess().image(tmp_path / "line.png", 224, 224, 3)
    with pytest.raises(DataError, match="scaling"):
        resized(Sample(np.zeros((1, 4, 3), np.float32)), 200_000, 200_000)


def test_a_file_that_another_program_would_decode_is_refused(tmp_path):
    """Pillow hands EPS to Ghostscript, whatever the file is called."""
    (tmp_path / "a.png").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
    )
    with pytest.raises(ImageError, match="no known format"):
        read_image(tmp_path / "a.png")


def test_pipes_devices_and_folders_are_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    for path in (tmp_path / "pipe.png", tmp_path / "folder.png", "/dev/zero"):
        with pytest.raises(DataError, match="no regular file"):
            read_image(path)
    Image.new("RGB", (3, 3)).save(tmp_path / "a.png")
    assert image_files(tmp_path) == [tmp_path / "a.png"]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM"])
def test_damaged_files_of_every_format_are_refused_or_read_and_never_crash(kind):
    data, generator = encoded(PHOTO, kind), np.random.default_rng(1)
    for _ in range(60):
        bad = bytearray(data)
        for _ in range(int(generator.integers(1, 5))):
            bad[int(generator.integers(len(bad)))] ^= 1 << int(generator.integers(8))
        with contextlib.suppress(ImageError):
            assert decode_image(bytes(bad[: int(generator.integers(1, len(bad) + 1))])).shape[2] == 3


def test_masks_keep_their_indices_and_lose_their_alpha(tmp_path):
    labels = np.arange(12, dtype=np.uint8).reshape(3, 4)
    palette = Image.fromarray(labels).convert("P")
    palette.putpalette(bytes(range(256)) * 3)
    palette.save(tmp_path / "p.png")
    np.testing.assert_array_equal(read_labels(tmp_path / "p.png"), labels)
    Image.fromarray(np.stack([labels] * 4, axis=2)).save(tmp_path / "a.png")
    assert read_labels(tmp_path / "a.png").shape == (3, 4, 3)
