"""``quantrim serve``: answer HTTP requests with a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from quantrim.errors import ConfigError


def serve(
    model: Annotated[Path, typer.Argument(help=".onnx file with deploy.yaml beside it.")],
    deploy: Annotated[Path | None, typer.Option(help="deploy.yaml that lies elsewhere.")] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 for all, behind a proxy.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535)] = 8000,
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads of the engine; all by default.")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Batches that run in parallel.")] = 1,
    decoders: Annotated[int, typer.Option(min=1, help="Images that are decoded in parallel.")] = 2,
    max_batch: Annotated[int, typer.Option(min=1, help="Images of a batch; 1: no batching.")] = 8,
    max_wait_ms: Annotated[float, typer.Option(min=0, help="How long an image waits for others.")] = 2.0,
    max_waiting: Annotated[int, typer.Option(min=1, help="More waiting images are refused with 503.")] = 256,
    max_mb: Annotated[float, typer.Option(min=0.001, help="Largest upload.")] = 20.0,
    max_megapixels: Annotated[float, typer.Option(min=0.001, help="Largest image, by its header.")] = 16.0,
    resize: Annotated[bool, typer.Option("--resize", help="Stretch images to a fixed model size.")] = False,
    score: Annotated[float, typer.Option(min=0, max=1, help="Detection: boxes below are not told.")] = 0.25,
    log_level: Annotated[str, typer.Option(help="debug, info, warning or error.")] = "info",
) -> None:
    """Serve MODEL over HTTP: POST an image to /predict."""
    try:
        from quantrim.serving import ServiceLimits, load_artefact
        from quantrim.serving import serve as run
    except ImportError as error:
        raise ConfigError(
            f"the service needs {error.name}. Install it: pip install 'quantrim[serve]'."
        ) from error

    if log_level not in ("debug", "info", "warning", "error"):
        raise ConfigError(f"log_level is {log_level!r}; legal: debug, info, warning, error.")
    limits = ServiceLimits(
        max_batch=max_batch,
        max_wait_ms=max_wait_ms,
        max_waiting=max_waiting,
        workers=workers,
        decoders=decoders,
        max_bytes=int(max_mb * 1e6),
        max_pixels=int(max_megapixels * 1e6),
    )
    artefact = load_artefact(model, deploy, threads=threads, streams=workers, resize=resize, score=score)
    run(artefact, limits, host=host, port=port, log_level=log_level)
