"""``python -m examples.serving MODEL``: serve one model."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
import uvicorn

from examples.serving.app import Settings, create_app
from examples.serving.artefact import load_artefact
from quantrim.errors import QuantrimError


def main(
    model: Annotated[Path, typer.Argument(help=".onnx file with deploy.yaml beside it.")],
    deploy: Annotated[Path | None, typer.Option(help="deploy.yaml that lies elsewhere.")] = None,
    host: str = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535)] = 8000,
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads of the engine; all by default.")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Batches that run in parallel.")] = 1,
    max_batch: Annotated[int, typer.Option(min=1, help="Images of a batch; 1: no batching.")] = 8,
    max_wait_ms: Annotated[float, typer.Option(min=0, help="How long an image waits for others.")] = 2.0,
    max_waiting: Annotated[int, typer.Option(min=1, help="More waiting images are refused with 503.")] = 256,
    max_mb: Annotated[float, typer.Option(min=0.001, help="Largest upload.")] = 20.0,
    resize: Annotated[bool, typer.Option("--resize", help="Stretch pictures to a fixed model size.")] = False,
) -> None:
    """Serve MODEL over HTTP."""
    settings = Settings(max_batch, max_wait_ms, max_waiting, workers, int(max_mb * 1e6))
    try:
        artefact = load_artefact(model, deploy, threads=threads, streams=workers, resize=resize)
    except QuantrimError as error:
        print(f"serving: error: {error}", file=sys.stderr)
        sys.exit(1)
    uvicorn.run(create_app(artefact, settings), host=host, port=port, log_level="warning")


if __name__ == "__main__":
    typer.run(main)
