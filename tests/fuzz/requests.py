"""Damaged requests against a service in a process of its own: statuses counted, memory watched."""

from __future__ import annotations

import http.client
import io
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
from onnx import helper
from PIL import Image

from tests.fuzz.files import damaged
from tests.fuzz.models import small_model

DEPLOY = "Deploy: {model: m.onnx, task: classification, transforms: [{type: Normalize}]}\n"
LINES = (
    b"GET / HTTP/1.1", b"POST /predict HTTP/1.0", b"POST /predict?answer=mask HTTP/1.1",
    b"POST /predict HTTP/9.9",
    b"BREW /predict HTTP/1.1", b"GET /metrics HTTP/1.1", b"POST /predict?answer=" + b"a" * 9000 + b" HTTP/1.1",
)  # fmt: skip


def ask(count: int, rnd: random.Random, parallel: int = 200, port: int = 0) -> tuple[Counter[str], list[str]]:
    """Statuses of ``count`` requests from ``parallel`` clients at once, and what was wrong with the service."""
    with tempfile.TemporaryDirectory() as name:
        folder = small_artefact(Path(name))
        port = port or free_port()
        with (folder / "log").open("w+") as log:
            service = started(folder, port, log)
            try:
                send(port, good_request())
                before = memory_mb(service)
                with ThreadPoolExecutor(parallel) as pool:
                    found = Counter(
                        pool.map(lambda seed: send(port, bad_request(random.Random(seed))), _seeds(rnd, count))
                    )
                faults = _faults(service, port, before)
            finally:
                service.kill()
                service.wait()
            log.seek(0)
            if "Traceback" in (text := log.read()):
                faults.append(text[text.index("Traceback") :][:2000])
    return found, faults


def small_artefact(folder: Path) -> Path:
    """The folder, with a model to serve in it."""
    model = small_model()
    shape = model.graph.input[0].type.tensor_type.shape
    shape.CopyFrom(helper.make_tensor_type_proto(onnx.TensorProto.FLOAT, [1, 3, 16, 16]).tensor_type.shape)
    (folder / "m.onnx").write_bytes(model.SerializeToString())
    (folder / "deploy.yaml").write_text(DEPLOY)
    return folder


def _seeds(rnd: random.Random, count: int) -> list[int]:
    return [rnd.randrange(2**62) for _ in range(count)]


def free_port() -> int:
    """A TCP port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def started(folder: Path, port: int, log: io.TextIOBase) -> subprocess.Popen[bytes]:
    """A service that is ready."""
    command = [
        sys.executable,
        "-m",
        "quantrim",
        "serve",
        str(folder / "m.onnx"),
        "--port",
        str(port),
        "--threads",
        "1",
    ]
    service = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"})
    for _ in range(600):
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            connection.request("GET", "/readyz")
            if connection.getresponse().status == 200:
                return service
        except OSError:
            time.sleep(0.1)
    raise RuntimeError("the service did not start")


def _faults(service: subprocess.Popen[bytes], port: int, before: float) -> list[str]:
    faults = []
    if service.poll() is not None:
        return [f"the service ended with {service.returncode}"]
    if (status := send(port, good_request())) != "200":
        faults.append(f"a good request gets {status} afterwards")
    if (grown := memory_mb(service) - before) > 400:
        faults.append(f"{grown:.0f} MB more than before")
    print(f"memory of the service: {before:.0f} MB before, {before + grown:.0f} MB after")
    slow = socket.create_connection(("127.0.0.1", port), 5)
    slow.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 10000\r\n\r\nabc")
    time.sleep(0.3)
    begin = time.monotonic()
    service.terminate()
    try:
        service.wait(10)
        print(f"ended {time.monotonic() - begin:.1f} s after SIGTERM, with a slow client")
    except subprocess.TimeoutExpired:
        faults.append("alive 10 s after SIGTERM")
    return faults


def memory_mb(service: subprocess.Popen[bytes]) -> float:
    """Resident memory, MB."""
    pages = int(Path(f"/proc/{service.pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def _image(rnd: random.Random) -> bytes:
    file = io.BytesIO()
    pixels = np.full((16, 16, 3), rnd.randrange(256), np.uint8)
    Image.fromarray(pixels).save(file, rnd.choice(["PNG", "JPEG"]))
    return file.getvalue()


def good_request() -> bytes:
    """A request that is answered with 200."""
    body = _image(random.Random(0))
    return (
        b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(body)
        + body
    )


def bad_request(rnd: random.Random) -> bytes:
    """A request in which the line, the headers, the body or the whole is damaged; a fifth of them are good."""
    kind = rnd.randrange(5)
    if kind == 0:
        return good_request()
    body = damaged(_image(rnd), rnd) if kind < 3 else rnd.randbytes(rnd.randrange(3000))
    if rnd.random() < 0.3:
        start = b'--B\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
        form = start + body + b"\r\n--B--\r\n"
        body = form if rnd.random() < 0.5 else damaged(form, rnd)
    length = len(body) if rnd.random() < 0.8 else rnd.choice([0, 5, -1, 10**12, 2 * len(body) + 1])
    line = b"POST /predict HTTP/1.1" if kind < 4 else rnd.choice(LINES)
    head = b"Host: x\r\nConnection: close\r\nContent-Type: %s\r\nContent-Length: %d\r\n" % (
        rnd.choice([b"image/png", b"multipart/form-data; boundary=B", b"Multipart/Form-Data", b"\xff"]),
        length,
    )
    whole = line + b"\r\n" + head + b"\r\n" + body
    return damaged(whole, rnd) if rnd.random() < 0.2 else whole


def send(port: int, request: bytes) -> str:
    """Status of a request, or how it ended."""
    try:
        with socket.create_connection(("127.0.0.1", port), 40) as client:
            client.sendall(request)
            answer = b""
            while part := client.recv(65536):
                answer += part
    except TimeoutError:
        return "no answer"
    except OSError:
        return "cut"
    return answer.split(b" ")[1][:3].decode("ascii", "replace") if b" " in answer else "closed"
