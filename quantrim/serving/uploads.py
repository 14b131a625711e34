"""Uploaded bytes to an image's bytes: bounded in size, in time, and over all clients together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from quantrim.images import ImageError, decode_image, image_size
from quantrim.serving.limits import Refusal, ServiceLimits

FORMATS = "JPEG, PNG, WebP, BMP, TIFF, PPM or GIF"
#: What multipart/form-data may add to an image's bytes.
_FORM_OVERHEAD = 64 * 1024
_STATUS = {"format": 415, "size": 413, "damaged": 400}


@dataclass(slots=True)
class UploadRoom:
    """Memory for unfinished uploads, shared by all requests of one event loop.

    Attributes:
        capacity: bytes.
        taken: bytes in use.
    """

    capacity: int
    taken: int = 0

    @contextmanager
    def share(self) -> Iterator[Share]:
        """A share that grows with an upload and is given back at the end."""
        share = Share(self)
        try:
            yield share
        finally:
            self.taken -= share.size


@dataclass(slots=True)
class Share:
    """What one upload takes of the room."""

    room: UploadRoom
    size: int = 0

    def grow(self, count: int) -> None:
        """Take more of the room.

        Raises:
            Refusal: 503, others fill it.
        """
        if self.room.taken + count > self.room.capacity:
            raise Refusal(503, "other uploads fill the memory of the service; try again later.")
        self.room.taken += count
        self.size += count


async def image_bytes(request: Request, limits: ServiceLimits, share: Share) -> bytes:
    """The image that a request carries: its body, or the form field ``image``.

    Raises:
        Refusal: 408 too slow, 413 too large, 400 a broken form, 503 no memory for it.
        starlette.requests.ClientDisconnect: the client has gone.
    """
    form = media_type(request.headers) == "multipart/form-data"
    try:
        async with asyncio.timeout(limits.body_s):
            body = await _body(request, limits.max_bytes, _FORM_OVERHEAD if form else 0, share)
    except TimeoutError as error:
        raise Refusal(408, f"the upload took longer than {limits.body_s:g} s.") from error
    return await _form_image(request.headers, body, limits.max_bytes) if form else body


def media_type(headers: Headers) -> str:
    """Type of a body without its parameters, in small letters: media types have no case (RFC 9110, 8.3.1)."""
    return headers.get("content-type", "").split(";")[0].strip().lower()


async def _body(request: Request, limit: int, overhead: int, share: Share) -> bytes:
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and len(announced) < 20 and int(announced) > limit + overhead:
        raise _too_large(limit)
    data = bytearray()
    async for part in request.stream():
        share.grow(len(part))
        data += part
        if len(data) > limit + overhead:
            raise _too_large(limit)
    return bytes(data)


async def _form_image(headers: Headers, body: bytes, limit: int) -> bytes:
    async def whole() -> AsyncIterator[bytes]:
        yield body

    try:
        parser = MultiPartParser(headers, whole(), max_files=1, max_fields=8)  # type: ignore[arg-type]
        parser.spool_max_size = limit + _FORM_OVERHEAD  # never to the disk
        form = await parser.parse()
    except MultiPartException as error:
        raise Refusal(400, f"the form is damaged ({error.message.rstrip('.')}).") from error
    except (ValueError, KeyError, LookupError) as error:  # an unknown charset, a broken header
        raise Refusal(400, f"the form is damaged ({' '.join(str(error).split())[:100]}).") from error
    try:
        image = form.get("image")
        if not isinstance(image, UploadFile):
            raise Refusal(400, "the form has no file 'image'; send -F image=@photo.jpg.")
        data = await image.read()
    finally:
        await form.close()
    if len(data) > limit:
        raise _too_large(limit)
    return data


def _too_large(limit: int) -> Refusal:
    return Refusal(413, f"the upload is larger than {limit / 1e6:g} MB; make the image smaller.")


def header_size(data: bytes, max_pixels: int) -> tuple[int, int]:
    """(width, height) that an image's header states; nothing is decoded.

    Raises:
        Refusal: 400 empty or damaged, 413 too many pixels, 415 no image.
    """
    if not data:
        raise Refusal(400, f"the image is empty; send the bytes of a {FORMATS} file.")
    try:
        return image_size(data, max_pixels=max_pixels)
    except ImageError as error:
        raise _refused(error) from error


def pixels_of(data: bytes, channels: int, max_pixels: int) -> np.ndarray:
    """Pixels of an image, upright, uint8 (H, W, channels).

    Raises:
        Refusal: as :func:`header_size`.
    """
    try:
        return decode_image(data, channels, max_pixels=max_pixels)
    except ImageError as error:
        raise _refused(error) from error


def _refused(error: ImageError) -> Refusal:
    if error.fault == "format":
        return Refusal(415, f"not an image that can be read; send {FORMATS}.")
    return Refusal(
        _STATUS[error.fault], str(error) if error.fault == "size" else f"the image is damaged: {error}"
    )
