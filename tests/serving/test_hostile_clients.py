"""Clients that are slow, greedy, rude or gone: each gets one line or is cut, and the service goes on."""

import http.client
import json
import logging
import socket
import threading
import time
from contextlib import contextmanager

import httpx
import numpy as np
import pytest
from fastapi.testclient import TestClient
from torch import nn

from quantrim.errors import ConfigError
from quantrim.recipes.loading import Loaded
from quantrim.recipes.runs import export
from quantrim.serving import ServiceLimits, create_app, load_artefact
from quantrim.serving.server import JsonLines, server_of
from quantrim.vision.config import load_config
from quantrim.vision.data.datasets import VisionData
from quantrim.vision.shipped import shipped_file
from tests.base.test_images import encoded, png_of

IMAGE = encoded(np.zeros((32, 32, 3), np.uint8))
LIMITS = ServiceLimits(
    header_s=0.4, body_s=0.6, stop_s=1.0, max_bytes=50_000, upload_bytes=120_000, max_waiting=4
)


@pytest.fixture(scope="module")
def artefact(tmp_path_factory):
    path = tmp_path_factory.mktemp("s") / "model.onnx"
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    data = VisionData([(np.zeros((32, 32, 3), np.uint8), 0)], "classification", 4)
    export(
        Loaded(load_config(shipped_file("configs", "quick_start/demo.yml")), net, data),
        path,
    )
    return load_artefact(path, threads=1)


@contextmanager
def running(artefact, limits):
    server = server_of(artefact, limits, "127.0.0.1", 0)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


@pytest.fixture(scope="module")
def port(artefact):
    with running(artefact, LIMITS) as port:
        yield port


def connected(port: int) -> socket.socket:
    client = socket.create_connection(("127.0.0.1", port), 5)
    client.settimeout(5)
    return client


def everything(client: socket.socket) -> bytes:
    """What comes until the service closes the connection."""
    data = b""
    try:
        while part := client.recv(65536):
            data += part
    except ConnectionResetError:
        pass
    return data


def test_a_client_that_never_ends_its_head_is_cut(port):
    for start in (b"", b"POST /predict HTTP/1.1\r\nHost: x\r\n"):
        client, begin = connected(port), time.monotonic()
        client.sendall(start)
        assert everything(client) == b""
        assert time.monotonic() - begin < 3


def test_a_second_request_has_no_more_time_than_the_first(port):
    client = connected(port)
    client.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
    answer = b""
    while not answer.endswith(b"}"):
        answer += client.recv(65536)
    client.sendall(b"GET /heal")
    begin = time.monotonic()
    assert everything(client) == b""
    assert time.monotonic() - begin < 3


@pytest.mark.parametrize("head", [b"/?" + b"a" * 40_000, b"/healthz HTTP/1.1\r\n" + b"X: a\r\n" * 9_000])
def test_a_huge_head_is_refused_even_if_it_comes_at_once(port, head):
    end = b"" if b"HTTP" in head else b" HTTP/1.1\r\n"
    client = connected(port)
    client.sendall(b"GET " + head + end + b"Host: x\r\n\r\n")
    assert b" 431 " in everything(client).split(b"\r\n")[0]


@pytest.mark.parametrize("head", [b"Content-Length: 9999\r\n", b"Transfer-Encoding: chunked\r\n"])
@pytest.mark.parametrize(("path", "status"), [(b"/predict", b"408"), (b"/nowhere", b"404")])
def test_a_body_that_drips_is_refused_and_the_connection_closed(port, head, path, status):
    client = connected(port)
    client.sendall(b"POST " + path + b" HTTP/1.1\r\nHost: x\r\n" + head + b"\r\n")
    stop = threading.Event()

    def drip() -> None:
        while not stop.wait(0.1):
            try:
                client.sendall(b"1\r\na\r\n")
            except OSError:
                return

    thread = threading.Thread(target=drip)
    thread.start()
    begin = time.monotonic()
    answer = everything(client)
    stop.set()
    thread.join()
    assert answer.startswith(b"HTTP/1.1 " + status)
    assert time.monotonic() - begin < 5


def test_a_refused_upload_gets_its_answer_although_it_was_not_read_to_the_end(port):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("POST", "/predict", b"x" * 400_000)
    response = connection.getresponse()
    assert (response.status, response.headers["connection"]) == (413, "close")
    assert "0.05 MB" in json.loads(response.read())["error"]


def test_all_uploads_together_take_no_more_memory_than_they_may(port):
    waiting = [connected(port) for _ in range(3)]
    for client in waiting[:2]:
        client.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 50000\r\n\r\n" + b"x" * 49_000)
    time.sleep(0.2)
    third = httpx.post(f"http://127.0.0.1:{port}/predict", content=b"x" * 40_000)
    assert third.status_code == 503
    assert third.headers["retry-after"] == "1"
    for client in waiting:
        client.close()
    time.sleep(0.2)
    assert httpx.post(f"http://127.0.0.1:{port}/predict", content=IMAGE).status_code == 200


@pytest.mark.parametrize(
    "rude",
    [
        b"\0" * 500, b"GET / HTTP/9.9\r\n\r\n", b"GET " + b"/" * 40_000 + b" HTTP/1.1\r\n\r\n",
        b"POST /predict HTTP/1.1\r\nContent-Length: -3\r\n\r\n", b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 9000,
        b"POST /predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"GET /metrics HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
    ],
)  # fmt: skip
def test_bytes_that_are_no_request_leave_the_service_well(port, rude):
    client = connected(port)
    try:
        client.sendall(rude)
        client.shutdown(socket.SHUT_WR)
        everything(client)
    except OSError:  # cut while we were sending
        pass
    assert httpx.get(f"http://127.0.0.1:{port}/healthz").status_code == 200


def test_clients_that_leave_are_counted_and_logged_without_a_traceback(artefact, caplog):
    caplog.set_level(logging.INFO, "quantrim.serving")
    with running(artefact, LIMITS) as port:
        for _ in range(3):
            client = connected(port)
            client.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 10000\r\n\r\nabc")
            time.sleep(0.05)
            client.close()
        time.sleep(0.3)
        text = httpx.get(f"http://127.0.0.1:{port}/metrics").text
    assert 'quantrim_requests_total{route="/predict",status="499"} 3.0' in text
    assert "Traceback" not in caplog.text
    assert [r.status for r in caplog.records if r.getMessage() == "request"].count(499) == 3


def test_the_service_ends_in_time_although_a_client_is_slow(artefact, caplog):
    begin = time.monotonic()
    patient = ServiceLimits(stop_s=1.0)  # 20 s for a body
    with running(artefact, patient) as port:
        slow = connected(port)
        slow.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 10000\r\n\r\nabc")
        time.sleep(0.2)
    assert time.monotonic() - begin < 6
    assert b" 503 " in everything(slow)
    assert "Traceback" not in caplog.text


def test_a_request_keeps_the_id_that_a_proxy_gave_it_if_that_forges_nothing(port):
    url = f"http://127.0.0.1:{port}/healthz"
    assert httpx.get(url, headers={"x-request-id": "abc-1.2"}).headers["x-request-id"] == "abc-1.2"
    for forged in ("a b", "x" * 65, 'a"},{"event":"b'):
        given = httpx.get(url, headers={"x-request-id": forged}).headers["x-request-id"]
        assert given != forged
        assert len(given) == 32


def test_an_unexpected_error_is_a_500_with_an_id_and_a_traceback_in_the_log(artefact, monkeypatch, caplog):
    app = create_app(artefact)
    monkeypatch.setattr(app.state.service, "answer", None)
    with TestClient(app) as client:
        response = client.post("/predict", content=IMAGE)
    assert response.status_code == 500
    assert response.headers["x-request-id"] in response.json()["error"]
    assert "TypeError" in caplog.text


@pytest.mark.parametrize("size", [(31, 32), (1, 16_000_000), (3000, 3000)])
def test_an_image_that_cannot_fit_is_refused_by_its_header(artefact, size, monkeypatch):
    monkeypatch.setattr("quantrim.serving.app.pixels_of", None)  # it would be a 500 to decode
    with TestClient(create_app(artefact)) as client:
        assert client.post("/predict", content=png_of(*size)).status_code in (400, 413)


@pytest.mark.parametrize("kind", ["Multipart/Form-Data; boundary=B", "MULTIPART/FORM-DATA ;boundary=B"])
def test_media_types_have_no_case(artefact, kind):
    part = b'Content-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n'
    form = b"--B\r\n" + part + IMAGE + b"\r\n--B--\r\n"
    with TestClient(create_app(artefact)) as client:
        assert client.post("/predict", content=form, headers={"content-type": kind}).status_code == 200


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("multipart/form-data", b"--B"), ("multipart/form-data; boundary=B", b"no form"),
        ("multipart/form-data; boundary=B", b"--B\r\nContent-Disposition: form-data\r\n\r\nx\r\n--B--\r\n"),
        ("multipart/form-data; boundary=B; charset=nope", b"--B\r\nx: \xff\r\n\r\nx\r\n--B--\r\n"),
    ],
)  # fmt: skip
def test_a_broken_form_is_refused(artefact, kind, body):
    with TestClient(create_app(artefact)) as client:
        response = client.post("/predict", content=body, headers={"content-type": kind})
    assert response.status_code == 400
    assert "\n" not in response.json()["error"]


def test_a_line_of_the_log_is_one_json_object_whatever_a_client_sends():
    record = logging.makeLogRecord({"msg": "request", "levelname": "INFO", "path": '/a"\n{}', "status": 404})
    line = JsonLines().format(record)
    assert "\n" not in line
    assert json.loads(line)["path"] == '/a"\n{}'


@pytest.mark.parametrize("wrong", [{"max_batch": 0}, {"body_s": 0.0}, {"decoders": 0}, {"stop_s": -1.0}])
def test_limits_that_let_nothing_through_are_refused(wrong):
    with pytest.raises(ConfigError, match="must be at least"):
        ServiceLimits(**wrong)
