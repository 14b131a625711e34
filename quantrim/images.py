"""The one reader of image files: what is no image, or would fill the memory, is refused before it is decoded.

Every verb and the service read images here, so that all of them see the same pixels: upright as the EXIF tag
says, 8 bits a channel, without alpha. JPEG gives the very pixels that OpenCV gives (both use libjpeg-turbo).

Only formats whose decoder runs in this process are opened. Pillow would hand others to a program: an EPS file
under the name ``photo.png`` to Ghostscript.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import IO, Literal

import numpy as np
from PIL import Image, ImageOps, TiffImagePlugin, UnidentifiedImageError, WebPImagePlugin  # noqa: F401 - to import them is to register them

from quantrim.errors import DataError
from quantrim.files import open_regular

#: Formats that are opened, by Pillow's names; JPEG takes in MPO, the files of several views that phones write.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "DIB", "PPM", "TIFF", "GIF")
#: Largest width x height, known from the header. Decoded, such an image takes 0.7 GB, as float32 2 GB.
MAX_PIXELS = 178_956_970
#: Longest side; resizing and padding count in 16 bits behind it.
MAX_SIDE = 32_767


#: What Pillow raises for files that are cut off, damaged or absurd; KeyError and the like come from the parsers
#: of odd formats.
_UNDECODABLE = (
    OSError, SyntaxError, ValueError, KeyError, IndexError, TypeError, AttributeError, EOFError, OverflowError,
    ZeroDivisionError, Image.DecompressionBombError,
)  # fmt: skip

Channels = Literal[1, 3]


class ImageError(DataError):
    """Bytes that are refused as an image.

    Attributes:
        fault: "format": no image of a known format; "size": too large; "damaged": anything else.
    """

    def __init__(self, fault: Literal["format", "size", "damaged"], message: str) -> None:
        super().__init__(message)
        self.fault = fault


def read_image(path: str | Path, channels: int = 3, *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Pixels of an image file, uint8 (H, W, channels), RGB or grey.

    Args:
        path: the file.
        channels: 3 for RGB, 1 for grey.
        max_pixels: largest width x height.

    Raises:
        DataError: no regular file, can't be read, or :class:`ImageError` of its content.
    """
    with open_regular(path) as file:
        try:
            return _decoded(file, channels, max_pixels)
        except ImageError as error:
            raise ImageError(error.fault, f"{path}: {error} Remove or replace it.") from error


def decode_image(data: bytes, channels: int = 3, *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """As :func:`read_image`, of the bytes of a file."""
    return _decoded(io.BytesIO(data), channels, max_pixels)


def read_labels(path: str | Path) -> np.ndarray:
    """Values of a mask as they are stored: (H, W), or (H, W, channels) of an image in colours, without alpha.

    Indices of a palette stay indices. A mask lies as its image is stored, so its EXIF tag is obeyed, too.

    Raises:
        DataError: as :func:`read_image`.
    """
    with open_regular(path) as file:
        try:
            with _opened(file, MAX_PIXELS) as image:
                values, transparent = np.asarray(_upright(image)), image.mode.endswith("A")
        except ImageError as error:
            raise ImageError(error.fault, f"{path}: {error} Remove or replace it.") from error
    return values[:, :, :-1] if transparent and values.ndim == 3 else values


def image_size(data: bytes, *, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """(width, height) that the header of a file states, before its EXIF tag is obeyed; nothing is decoded.

    Raises:
        ImageError: no image, or a larger one than is taken.
    """
    with _opened(io.BytesIO(data), max_pixels) as image:
        return image.size


def _decoded(file: IO[bytes], channels: int, max_pixels: int) -> np.ndarray:
    with _opened(file, max_pixels) as image:
        upright = _eight_bits(_upright(image)).convert("L" if channels == 1 else "RGB")
        pixels = np.asarray(upright)
    return pixels.reshape(*pixels.shape[:2], channels)


class _opened:  # noqa: N801 - a context manager, used like a function
    """An image whose header was checked; faults of decoding, too, become ImageError."""

    def __init__(self, file: IO[bytes], max_pixels: int) -> None:
        self.file, self.max_pixels = file, max_pixels

    def __enter__(self) -> Image.Image:
        try:
            self.image = Image.open(self.file, formats=FORMATS)
        except UnidentifiedImageError as error:
            raise ImageError("format", "can't be decoded as an image (no known format).") from error
        except Image.DecompressionBombError as error:
            raise ImageError("size", f"too many pixels; at most {self.max_pixels} are taken.") from error
        except _UNDECODABLE as error:
            raise ImageError("damaged", f"can't be decoded as an image ({_reason(error)}).") from error
        _refuse_large(self.image.size, self.max_pixels)
        return self.image

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self.image.close()
        if isinstance(error, _UNDECODABLE) and not isinstance(error, ImageError):
            raise ImageError("damaged", f"can't be decoded as an image ({_reason(error)}).") from error


def require_size(width: int, height: int, max_pixels: int = MAX_PIXELS) -> None:
    """Refuse a size that an image of absurd proportions would be scaled or padded to.

    Raises:
        ImageError: more pixels than are taken.
    """
    if width * height > max_pixels:
        raise ImageError(
            "size", f"scaling or padding would make an image of {width}x{height}; at most {max_pixels} pixels."
        )


def _refuse_large(size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels or max(size) > MAX_SIDE:
        raise ImageError(
            "size",
            f"the image is {width}x{height}; at most {max_pixels} pixels and {MAX_SIDE} a side are taken.",
        )


def _upright(image: Image.Image) -> Image.Image:
    image.load()
    try:
        return ImageOps.exif_transpose(image)
    except _UNDECODABLE:  # a damaged tag says nothing of the pixels
        return image


def _eight_bits(image: Image.Image) -> Image.Image:
    """A 16-bit grey image scaled to 8 bits; Pillow alone would clip it to white."""
    if not image.mode.startswith("I"):
        return image
    return Image.fromarray((np.clip(np.asarray(image), 0, 65535) / 257).round().astype(np.uint8))


def _reason(error: BaseException) -> str:
    if "truncated" in str(error):
        return "it is cut off"
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__
