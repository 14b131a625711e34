"""Uploaded bytes to pixels, and what is wrong with bytes that are no picture."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
#: Largest picture, before it is decoded: a few kilobytes of PNG can hold gigabytes of pixels.
MAX_PIXELS = 40_000_000


class PictureError(Exception):
    """A picture that is refused.

    Attributes:
        status: HTTP status: 400 damaged or empty, 413 too large, 415 not a picture.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def decode(data: bytes, channels: int = 3, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Pixels of a picture file, turned as its EXIF tag says, uint8 (H, W, channels).

    Args:
        data: content of a JPEG, PNG, WebP or BMP file.
        channels: 3 for RGB, 1 for grey.
        max_pixels: largest width x height.

    Raises:
        PictureError: no such file, a damaged one, or too many pixels.
    """
    if not data:
        raise PictureError(400, "the picture is empty; send the bytes of a JPEG, PNG, WebP or BMP file.")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as opened:
            _refuse_large(opened.size, max_pixels)
            opened.load()
            upright = ImageOps.exif_transpose(opened)
            pixels = np.asarray(upright.convert("L" if channels == 1 else "RGB"))
    except UnidentifiedImageError as error:
        raise PictureError(415, "not a picture that can be read; send JPEG, PNG, WebP or BMP.") from error
    except Image.DecompressionBombError as error:
        raise PictureError(413, f"the picture has too many pixels; at most {max_pixels} are taken.") from error
    except (OSError, SyntaxError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise PictureError(400, f"the picture is damaged ({reason}); send it again.") from error
    return pixels.reshape(*pixels.shape[:2], channels)


def _refuse_large(size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels:
        raise PictureError(
            413, f"the picture is {width}x{height}, at most {max_pixels} pixels are taken; make it smaller."
        )
