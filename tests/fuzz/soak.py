"""A soak of the service: a bounded rate of good and bad requests for a long time, its memory and ends watched.

    python -m tests.fuzz.soak [--minutes 30] [--rate 12] [--seed 0] [--json FILE]

Besides the damaged requests of the campaign there come clients that drip their body, that vanish before the
answer, header bombs (a PNG of 69 bytes of 40,000,000 pixels a side, a head without an end), pipelined and
chunked requests. At the end, and before it in services of their own, SIGTERM comes while slow clients hang on.
The exit code is 1 where memory grew, a good request was not answered, a traceback was written or an end took
longer than ten seconds.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import socket
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from quantrim.engines.machine import describe_machine
from quantrim.files import write_json
from tests.fuzz.requests import bad_request, free_port, good_request, memory_mb, send, small_artefact, started

#: Clients at once; the rate says how many come a second.
_CLIENTS = 64
_SAMPLE_S = 10.0
#: Growth of the median of the last third over that of the second one that still counts as flat, MB.
_FLAT_MB = 15.0
_STOP_S = 10.0
_HEAD = b"POST /predict HTTP/1.1\r\nHost: x\r\n"


def _bomb() -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 40_000_000, 40_000_000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    )


def _header_bomb(port: int, rnd: random.Random) -> str:
    if rnd.random() < 0.5:
        return send(port, _HEAD + b"X-A: " + b"a" * rnd.choice([20_000, 2_000_000]) + b"\r\n\r\n")
    body = _bomb()
    return send(port, _HEAD + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body)


def _vanished(port: int, rnd: random.Random) -> str:
    """Gone in the middle of the body, or right after it."""
    body = good_request()
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 10) as client:
        client.sendall(body if rnd.random() < 0.5 else body[: rnd.randrange(1, len(body))])
        if rnd.random() < 0.5:  # a reset instead of an end
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    return "vanished"


def _dripping(port: int, rnd: random.Random) -> str:
    """A byte now and then, for longer than the service has patience with."""
    head = _HEAD + b"Content-Length: 10000\r\n\r\n" if rnd.random() < 0.7 else _HEAD
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 60) as client:
        client.sendall(head)
        client.settimeout(0.5)
        until = time.monotonic() + 25
        while time.monotonic() < until:
            with contextlib.suppress(TimeoutError):
                answer = client.recv(4096)
                return f"dripping: {answer.split(b' ')[1].decode()}" if b" " in answer else "dripping: cut"
            client.sendall(b"a")
    return "dripping: cut"


def _pipelined(port: int, rnd: random.Random) -> str:
    health = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n" * rnd.randrange(1, 30)
    return "pipelined " + send(port, health + good_request())


def _chunked(port: int, rnd: random.Random) -> str:
    size = rnd.choice([b"ffffffffffffffff", b"-5", b"zz", b"5", b"0"])
    return "chunked " + send(
        port,
        _HEAD + b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n" + size + b"\r\nhello\r\n0\r\n\r\n",
    )


def _good(port: int, rnd: random.Random) -> str:
    return "good " + send(port, good_request())


#: What a client does, and how often.
CLIENTS: dict[Callable[[int, random.Random], str], float] = {
    _good: 0.45,
    lambda port, rnd: send(port, bad_request(rnd)): 0.3,
    _vanished: 0.08,
    _header_bomb: 0.06,
    _dripping: 0.03,
    _pipelined: 0.04,
    _chunked: 0.04,
}


def soak(port: int, seconds: float, rate: float, rnd: random.Random, look: Callable[[], None]) -> Counter[str]:
    """Statuses of the requests that came, ``rate`` a second; ``look`` is called every ten seconds."""
    kinds, weights = list(CLIENTS), list(CLIENTS.values())
    begin = time.monotonic()
    done, seen, number = [], begin, 0
    with ThreadPoolExecutor(_CLIENTS) as pool:
        while (now := time.monotonic()) - begin < seconds:
            kind, one = rnd.choices(kinds, weights)[0], random.Random(rnd.randrange(2**62))
            done.append(pool.submit(kind, port, one))
            number += 1
            if now - seen >= _SAMPLE_S:
                seen = now
                look()
            time.sleep(max(0.0, begin + number / rate - time.monotonic()))
    return Counter(future.result() for future in done)


def stop_seconds(service: subprocess.Popen[bytes], port: int, slow: int = 8) -> float:
    """From SIGTERM to the end of the process, while so many clients have begun an upload and never end it."""
    clients = [socket.create_connection(("127.0.0.1", port), 5) for _ in range(slow)]
    for client in clients:
        client.sendall(_HEAD + b"Content-Length: 10000\r\n\r\nabc")
    time.sleep(0.3)
    begin = time.monotonic()
    service.terminate()
    try:
        service.wait(60)
    finally:
        for client in clients:
            client.close()
    return time.monotonic() - begin


def stopped_in(folder: Path, log: object, slow: int, load: bool, rnd: random.Random) -> float:
    """The time to end of a service of its own, with slow clients, idle or under load."""
    port = free_port()
    service = started(folder, port, log)
    try:
        with ThreadPoolExecutor(16) as pool:
            if load:
                for _ in range(200):
                    pool.submit(send, port, bad_request(random.Random(rnd.randrange(2**62))))
            return stop_seconds(service, port, slow)
    finally:
        service.kill()
        service.wait()


def main() -> int:
    """Run it; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--rate", type=float, default=12.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    rnd, memory, faults = random.Random(given.seed), [], []
    with tempfile.TemporaryDirectory(prefix="soak-") as name:
        folder = small_artefact(Path(name))
        with (folder / "log").open("w+") as log:
            cases = ((0, False), (8, False), (0, True), (8, True))
            ends = [stopped_in(folder, log, slow, load, rnd) for slow, load in cases]
            port = free_port()
            service = started(folder, port, log)
            try:
                send(port, good_request())
                seconds = 60 * given.minutes
                counts = soak(port, seconds, given.rate, rnd, lambda: memory.append(memory_mb(service)))
                if send(port, good_request()) != "200":
                    faults.append("a good request is not answered at the end")
                ends.append(stop_seconds(service, port))
            finally:
                service.kill()
                service.wait()
            log.seek(0)
            text = log.read()
    if "Traceback" in text:
        faults.append(text[text.index("Traceback") :][:2000])
    thirds = [float(np.median(part)) for part in np.array_split(memory, 3)] if len(memory) >= 3 else []
    if thirds and thirds[2] - thirds[1] > _FLAT_MB:
        faults.append(f"memory grew from {thirds[1]:.0f} to {thirds[2]:.0f} MB")
    if max(ends) > _STOP_S:
        faults.append(f"an end took {max(ends):.1f} s")
    faults += [f"{count} good requests: {found}" for found, count in counts.items() if _failed(found)]
    _tell(counts, memory, thirds, ends, faults)
    if given.json:
        facts = {"minutes": given.minutes, "counts": dict(counts), "memory_mb": memory, "ends_s": ends}
        write_json(given.json, {**facts, "faults": faults, "machine": describe_machine().to_json()})
    return int(bool(faults))


def _failed(found: str) -> bool:
    return found.startswith("good") and found != "good 200"


def _tell(
    counts: Counter[str], memory: list[float], thirds: list[float], ends: list[float], faults: list[str]
) -> None:
    print(f"{sum(counts.values())} requests:", ", ".join(f"{n} {found}" for found, n in counts.most_common()))
    if memory:
        print(
            f"memory: {memory[0]:.0f} MB at first, {max(memory):.0f} MB at most, {memory[-1]:.0f} MB at last;",
            end=" ",
        )
        print("medians of thirds", ", ".join(f"{value:.0f}" for value in thirds), "MB")
    print(
        "ends after SIGTERM, s (idle; 8 slow clients; load; both; after the soak):", *(f"{s:.1f}" for s in ends)
    )
    print(*faults, sep="\n")


if __name__ == "__main__":
    sys.exit(main())
