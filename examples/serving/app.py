"""The service: POST a picture to /predict, ask /health and /metrics."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, Response
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from examples.serving.answers import area_shares, mask_png, pixel_classes, top_classes
from examples.serving.artefact import Artefact, UnfitPicture
from examples.serving.batcher import MicroBatcher, Overloaded
from examples.serving.pictures import MAX_PIXELS, PictureError, decode
from examples.serving.statistics import Statistics
from quantrim.vision.data.sample import Sample

#: What multipart/form-data may add to a picture's bytes.
_FORM_OVERHEAD = 64 * 1024


@dataclass(frozen=True, slots=True)
class Settings:
    """How the service works.

    Attributes:
        max_batch: images of a batch; 1 turns batching off.
        max_wait_ms: how long an image waits for others.
        max_waiting: images that may wait before requests are refused with 503.
        workers: batches that run in parallel; the artefact should have as many streams.
        max_bytes: largest upload.
        max_pixels: largest picture.
    """

    max_batch: int = 8
    max_wait_ms: float = 2.0
    max_waiting: int = 256
    workers: int = 1
    max_bytes: int = 20_000_000
    max_pixels: int = MAX_PIXELS


class Service:
    """The artefact behind its batcher; it lives as long as the application runs."""

    def __init__(self, artefact: Artefact, settings: Settings) -> None:
        self.artefact, self.settings = artefact, settings
        self.statistics = Statistics()
        predicts = artefact.predictors(settings.workers)
        for predict in predicts:
            artefact.warm_up(predict, range(1, settings.max_batch + 1))
        self.batcher = MicroBatcher(
            predicts,
            max_batch=settings.max_batch,
            max_wait_ms=settings.max_wait_ms,
            max_waiting=settings.max_waiting,
            on_batch=self.statistics.batch,
        )

    async def scores(self, data: bytes) -> tuple[np.ndarray, Sample]:
        """Scores of a picture, and the picture as the model saw it.

        Raises:
            PictureError, UnfitPicture, Overloaded: the request is refused.
        """
        sample, image = await run_in_threadpool(self._prepared, data)
        return await asyncio.wrap_future(self.batcher.submit(image)), sample

    def _prepared(self, data: bytes) -> tuple[Sample, np.ndarray]:
        sample = self.artefact.prepare(decode(data, self.artefact.channels, self.settings.max_pixels))
        return sample, np.ascontiguousarray(sample.image.transpose(2, 0, 1), np.float32)


def create_app(artefact: Artefact, settings: Settings | None = None) -> FastAPI:
    """The application around one artefact."""
    settings = settings or Settings()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.service = service = Service(artefact, settings)
        yield
        service.batcher.close()

    app = FastAPI(title="quantrim serving example", lifespan=lifespan)
    app.add_exception_handler(HTTPException, _http_error)
    _add_routes(app)
    return app


def _add_routes(app: FastAPI) -> None:
    @app.post("/predict")
    async def predict(request: Request, answer: str = "shares") -> Response:
        """The picture's top-5 classes, shares of its area, or (answer=mask) its mask as a palette PNG."""
        service: Service = request.app.state.service
        start = time.perf_counter()
        try:
            response = await _answer(service, await _body(request, service.settings.max_bytes), answer)
        except (PictureError, UnfitPicture, Overloaded) as error:
            response = _refusal(error)
        service.statistics.request(response.status_code, time.perf_counter() - start)
        return response

    @app.get("/health")
    async def health(request: Request) -> dict[str, Any]:
        """Which model answers, and that it does."""
        artefact = request.app.state.service.artefact
        port = artefact.session.inputs[0]
        return {"status": "ok", "model": artefact.path.name, "task": artefact.task, "input": port.shape,
                "classes": len(artefact.classes)}  # fmt: skip

    @app.get("/metrics")
    async def metrics(request: Request) -> dict[str, Any]:
        """Requests by status, batches by size, latency of the newest requests."""
        service: Service = request.app.state.service
        return {**service.statistics.to_json(), "waiting": service.batcher.waiting}


async def _answer(service: Service, data: bytes, answer: str) -> Response:
    artefact = service.artefact
    if answer not in ("shares", "mask"):
        raise PictureError(400, f"answer={answer!r} is unknown; legal: shares, mask.")
    if artefact.task == "classification" and answer == "mask":
        raise PictureError(
            400, "this model classifies whole pictures; it has no mask. FakeQuantOptions answer=mask out."
        )
    scores, sample = await service.scores(data)
    if artefact.task == "classification":
        return JSONResponse({"classes": top_classes(artefact, scores)})
    classes = await run_in_threadpool(pixel_classes, scores, sample)
    if answer == "mask":
        return Response(await run_in_threadpool(mask_png, classes), media_type="image/png")
    height, width = classes.shape
    return JSONResponse({"width": width, "height": height, "area": area_shares(artefact, classes)})


async def _body(request: Request, limit: int) -> bytes:
    """The picture's bytes: the body itself, or the form field ``image``; never more than the limit is kept."""
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        return await _stream(request, limit)
    announced = request.headers.get("content-length", "")
    if not announced.isdecimal():
        raise PictureError(411, "a form needs a Content-Length header.")
    if int(announced) > limit + _FORM_OVERHEAD:
        raise _too_large(limit)
    async with request.form(max_files=1) as form:
        picture = form.get("image")
        if not isinstance(picture, UploadFile):
            raise PictureError(400, "the form has no file 'image'; send -F image=@photo.jpg.")
        if (picture.size or 0) > limit:
            raise _too_large(limit)
        return await picture.read()


async def _stream(request: Request, limit: int) -> bytes:
    data = bytearray()
    async for part in request.stream():
        data += part
        if len(data) > limit:
            raise _too_large(limit)
    return bytes(data)


def _too_large(limit: int) -> PictureError:
    return PictureError(413, f"the upload is larger than {limit / 1e6:g} MB; make the picture smaller.")


def _refusal(error: Exception) -> JSONResponse:
    if isinstance(error, Overloaded):
        return JSONResponse({"error": str(error)}, 503, {"Retry-After": "1"})
    status = error.status if isinstance(error, PictureError) else 400
    return JSONResponse({"error": str(error)}, status)


async def _http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, error.status_code)
