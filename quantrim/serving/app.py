"""The service: POST an image to /predict; /healthz, /readyz and /metrics for whoever watches over it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from quantrim.serving.answers import area_shares, boxes_told, mask_png, pixel_classes, top_classes
from quantrim.serving.artefact import Artefact
from quantrim.serving.batcher import MicroBatcher
from quantrim.serving.limits import Refusal, ServiceLimits
from quantrim.serving.metrics import Metrics
from quantrim.serving.middleware import Requests
from quantrim.serving.uploads import UploadRoom, header_size, image_bytes, pixels_of
from quantrim.vision.data.sample import Sample

#: What Prometheus expects of its text format.
_METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Service:
    """The artefact behind its batcher; it lives as long as the application runs."""

    def __init__(self, artefact: Artefact, limits: ServiceLimits) -> None:
        self.artefact, self.limits = artefact, limits
        self.room = UploadRoom(limits.upload_bytes)
        self.busy, self.ready = 0, False
        self.metrics = Metrics(limits.max_batch, lambda: self.busy, lambda: self.room.taken)

    def start(self) -> None:
        """Threads, and a first run of every size of batch."""
        predicts = self.artefact.predictors(self.limits.workers)
        for predict in predicts:
            self.artefact.warm_up(predict, range(1, self.limits.max_batch + 1))
        self.decoders = ThreadPoolExecutor(self.limits.decoders, thread_name_prefix="decode")
        self.batcher = MicroBatcher(
            predicts,
            max_batch=self.limits.max_batch,
            max_wait_ms=self.limits.max_wait_ms,
            max_waiting=self.limits.max_waiting,
            on_batch=self.metrics.batch,
        )
        self.ready = True

    def stop(self) -> None:
        """Answer what runs, refuse what waits."""
        self.ready = False
        self.decoders.shutdown(wait=False, cancel_futures=True)
        self.batcher.close(wait_s=1.0)

    async def answer(self, data: bytes, answer: str) -> Response:
        """What the model says of an image.

        Raises:
            Refusal: no image, too large, of the wrong size; or too many wait already.
        """
        if self.busy >= self.limits.max_waiting:
            raise Refusal(503, f"{self.busy} images wait already; try again later.")
        self.busy += 1
        try:
            return await self._answer(data, answer)
        finally:
            self.busy -= 1

    async def _answer(self, data: bytes, answer: str) -> Response:
        artefact, loop = self.artefact, asyncio.get_running_loop()
        artefact.require_header(header_size(data, self.limits.max_pixels), self.limits.answer_bytes)
        sample, image = await loop.run_in_executor(self.decoders, self._prepared, data)
        scores = await asyncio.wrap_future(self.batcher.submit(image))
        if artefact.task == "classification":
            return JSONResponse({"classes": top_classes(artefact, scores)})
        if artefact.task == "detection":
            return JSONResponse({"boxes": boxes_told(artefact, scores, sample)})
        classes = await loop.run_in_executor(self.decoders, pixel_classes, scores, sample)
        if answer == "mask":
            return Response(
                await loop.run_in_executor(self.decoders, mask_png, classes), media_type="image/png"
            )
        height, width = classes.shape
        return JSONResponse({"width": width, "height": height, "area": area_shares(artefact, classes)})

    def _prepared(self, data: bytes) -> tuple[Sample, np.ndarray]:
        sample = self.artefact.prepare(pixels_of(data, self.artefact.channels, self.limits.max_pixels))
        return sample, np.ascontiguousarray(sample.image.transpose(2, 0, 1), np.float32)


def create_app(artefact: Artefact, limits: ServiceLimits | None = None) -> FastAPI:
    """The application around one artefact."""
    service = Service(artefact, limits or ServiceLimits())

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.start()
        yield
        service.stop()

    app = FastAPI(title="quantrim", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.service = service
    app.add_middleware(Requests, answer_s=service.limits.answer_s, count=service.metrics.request)  # type: ignore[arg-type]
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Refusal, _refusal)
    _add_routes(app, service)
    return app


def _add_routes(app: FastAPI, service: Service) -> None:
    async def predict(request: Request, answer: str = "shares") -> Response:
        """The image's top-5 classes, boxes, shares of its area, or (answer=mask) its mask as a palette PNG."""
        _require_answer(service.artefact, answer)
        with service.room.share() as share:
            return await service.answer(await image_bytes(request, service.limits, share), answer)

    async def alive() -> dict[str, str]:
        """The process answers."""
        return {"status": "ok"}

    async def ready() -> Response:
        """Requests may come: 503 before the model is warm and while the service stops."""
        return JSONResponse({"ready": service.ready}, 200 if service.ready else 503)

    async def health() -> dict[str, Any]:
        """Which model answers."""
        artefact = service.artefact
        port = artefact.session.inputs[0]
        return {"status": "ok", "model": artefact.path.name, "task": artefact.task, "input": port.shape,
                "classes": len(artefact.classes)}  # fmt: skip

    async def metrics() -> Response:
        """Requests by route and status, latencies, batches, memory, in Prometheus's format."""
        return Response(service.metrics.text(), media_type=_METRICS_TYPE)

    app.add_api_route("/predict", predict, methods=["POST"])
    probes = {"/healthz": alive, "/readyz": ready, "/health": health, "/metrics": metrics}
    for path, probe in probes.items():
        app.add_api_route(path, probe, methods=["GET"])


def _require_answer(artefact: Artefact, answer: str) -> None:
    if answer not in ("shares", "mask"):
        raise Refusal(400, f"answer={answer[:40]!r} is unknown; legal: shares, mask.")
    if artefact.task != "segmentation" and answer == "mask":
        told = {"classification": "classifies whole images", "detection": "tells boxes"}[artefact.task]
        raise Refusal(400, f"this model {told}; it has no mask. Leave answer=mask out.")


async def _refusal(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, Refusal)
    return JSONResponse(
        {"error": str(error)}, error.status, {"Retry-After": "1"} if error.status == 503 else {}
    )


async def _http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, error.status_code, error.headers)
