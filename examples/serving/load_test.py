"""Load test: start the service, ask it from many clients at once, print a Markdown table.

    python -m examples.serving.load_test MODEL [--clients 1,4,16] [--seconds 5] [--threads 1]

Two services run, one with batching and one without, and take turns at each level of concurrency. Clients and
service share this machine's cores, so the figures are lower than those of a service that has it for itself.
"""

from __future__ import annotations

import asyncio
import io
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import httpx
import numpy as np
import typer
from PIL import Image, ImageFilter
from prometheus_client.parser import text_string_to_metric_families

from quantrim.engines.machine import describe_machine
from quantrim.errors import EngineError
from quantrim.files import write_json

_START_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class Load:
    """What a level of concurrency measured.

    Attributes:
        batching: whether requests could share a batch.
        clients: requests in flight.
        images_per_second: answered requests over the time of the level.
        latency_ms: "p50", "p90", "p99" as the clients saw them.
        images_per_batch: mean size of the batches that ran.
        errors: answers other than 200.
    """

    batching: bool
    clients: int
    images_per_second: float
    latency_ms: dict[str, float]
    images_per_batch: float
    errors: int


@contextmanager
def running_service(model: Path, options: list[str]) -> Iterator[str]:
    """Address of a service in a process of its own, stopped at the end.

    Raises:
        EngineError: it stopped at once, or doesn't answer in two minutes.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    quiet = ("--log-level", "warning")
    command = [sys.executable, "-m", "quantrim", "serve", str(model), "--port", str(port), *quiet, *options]
    process = subprocess.Popen(command)
    try:
        url = f"http://127.0.0.1:{port}"
        _wait_for(url, process)
        yield url
    finally:
        process.terminate()
        process.wait(timeout=30)


def _wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + _START_SECONDS
    while time.monotonic() < until:
        if process.poll() is not None:
            raise EngineError(f"the service stopped with code {process.returncode}; its error stands above.")
        try:
            if httpx.get(f"{url}/readyz").status_code == 200:
                return
        except httpx.ConnectError:
            time.sleep(0.1)
    raise EngineError(f"{url} does not answer after {_START_SECONDS:.0f} s.")


def example_picture(url: str) -> bytes:
    """A JPEG of blurred noise in the model's size, 256x256 where that is open."""
    _, _, height, width = httpx.get(f"{url}/health").json()["input"]
    noise = np.random.default_rng(0).integers(0, 256, (height or 256, width or 256, 3)).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).filter(ImageFilter.GaussianBlur(4)).save(file, "JPEG", quality=90)
    return file.getvalue()


async def press(url: str, picture: bytes, clients: int, seconds: float) -> tuple[list[float], int, float]:
    """Ask without a pause from many clients.

    Returns:
        Milliseconds of each good answer, number of other answers, seconds from first to last.
    """
    latencies: list[float] = []
    errors = 0
    start = time.perf_counter()
    limits = httpx.Limits(max_connections=clients, max_keepalive_connections=clients)
    async with httpx.AsyncClient(base_url=url, limits=limits, timeout=60) as client:

        async def ask() -> None:
            nonlocal errors
            while (begin := time.perf_counter()) - start < seconds:
                response = await client.post("/predict", content=picture)
                if response.status_code == 200:
                    latencies.append((time.perf_counter() - begin) * 1e3)
                else:
                    errors += 1

        await asyncio.gather(*(ask() for _ in range(clients)))
    return latencies, errors, time.perf_counter() - start


def level(url: str, picture: bytes, clients: int, seconds: float, batching: bool) -> Load:
    """Measure one level of concurrency, after a short warm-up."""
    asyncio.run(press(url, picture, clients, min(1.0, seconds)))
    before = _batches(url)
    latencies, errors, took = asyncio.run(press(url, picture, clients, seconds))
    after = _batches(url)
    runs = sum(after.values()) - sum(before.values())
    images = sum(size * count for size, count in after.items()) - sum(s * c for s, c in before.items())
    shares = {f"p{q}": float(np.percentile(latencies, q)) for q in (50, 90, 99)} if latencies else {}
    return Load(batching, clients, len(latencies) / took, shares, images / max(runs, 1), errors)


def _batches(url: str) -> dict[int, int]:
    """Batches by size, from the cumulative buckets of Prometheus's histogram."""
    families = text_string_to_metric_families(httpx.get(f"{url}/metrics").text)
    buckets = [s for family in families for s in family.samples if s.name == "quantrim_batch_images_bucket"]
    found: dict[int, int] = {}
    for sample in buckets[:-1]:  # the last one is "+Inf"
        found[int(float(sample.labels["le"]))] = int(sample.value) - sum(found.values())
    return found


def table(rows: list[Load]) -> str:
    """Markdown."""
    lines = [
        "| clients | batching | images/s | p50 ms | p90 ms | p99 ms | images a batch | errors |",
        "|---:|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        times = " | ".join(f"{row.latency_ms[p]:.1f}" if row.latency_ms else "-" for p in ("p50", "p90", "p99"))
        lines.append(
            f"| {row.clients} | {'on' if row.batching else 'off'} | {row.images_per_second:.1f} | {times} "
            f"| {row.images_per_batch:.2f} | {row.errors} |"
        )
    return "\n".join(lines)


def main(
    model: Annotated[Path, typer.Argument(help=".onnx file with deploy.yaml beside it.")],
    image: Annotated[Path | None, typer.Option(help="Picture to send; blurred noise by default.")] = None,
    clients: Annotated[str, typer.Option(help="Levels of concurrency.")] = "1,4,16",
    seconds: Annotated[float, typer.Option(min=0.1, help="Length of a level.")] = 5.0,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of the engine.")] = 1,
    max_batch: Annotated[int, typer.Option(min=2)] = 8,
    max_wait_ms: Annotated[float, typer.Option(min=0)] = 2.0,
    output: Annotated[Path | None, typer.Option("--json", help="Also write the figures here.")] = None,
) -> None:
    """Start the service for MODEL with batching on and off, press it, print a table."""
    levels = [int(part) for part in clients.split(",")]
    rows: list[Load] = []
    options = ["--threads", str(threads), "--max-wait-ms", str(max_wait_ms), "--max-batch"]
    picture = image.read_bytes() if image else None
    try:
        with (
            running_service(model, [*options, "1"]) as off,
            running_service(model, [*options, str(max_batch)]) as on,
        ):
            picture = picture or example_picture(on)
            for count in levels:  # by turns, so that a noisy machine is noisy for both
                rows.append(level(off, picture, count, seconds, batching=False))
                rows.append(level(on, picture, count, seconds, batching=True))
    except EngineError as error:
        print(f"load_test: error: {error}", file=sys.stderr)
        sys.exit(1)
    machine = describe_machine()
    print(f"{model.name} on {machine.line()}; {threads} engine thread(s), batches of at most {max_batch},")
    print(f"an image waits at most {max_wait_ms:g} ms, {seconds:g} s a level; clients on the same machine.\n")
    print(table(rows))
    if output is not None:
        write_json(output, {"machine": machine.to_json(), "rows": [_json(row) for row in rows]})


def _json(row: Load) -> dict[str, Any]:
    return {name: getattr(row, name) for name in Load.__dataclass_fields__}


if __name__ == "__main__":
    typer.run(main)
