"""The service over HTTP: answers equal the engine's own, bad pictures are refused with one line."""

import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families
from torch import nn

from quantrim.engines import open_session
from quantrim.errors import ConfigError
from quantrim.recipes.deployment import load_transforms
from quantrim.recipes.loading import Loaded
from quantrim.recipes.runs import export
from quantrim.serving import ServiceLimits, create_app, load_artefact
from quantrim.vision.config import load_config
from quantrim.vision.data.datasets import VisionData
from quantrim.vision.shipped import shipped_file

CONFIG = shipped_file("configs", "quick_start/demo.yml")
SIZE = 64
NAMES = ("cat", "dog", "bird", "fish", "frog", "horse", "truck")


def png(pixels: np.ndarray, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def pictures(count: int, size: int = SIZE) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (count, size, size, 3)).astype(np.uint8)


def exported(folder: Path, net: nn.Module, task: str, names: tuple[str, ...], output_op: str = "none") -> Path:
    (picture,) = pictures(1)
    truth = 0 if task == "classification" else np.zeros((SIZE, SIZE), np.uint8)
    data = VisionData([(picture, truth)], task, len(names), class_names=names)
    export(Loaded(load_config(CONFIG), net.eval(), data), folder / "model.onnx", output_op=output_op)
    return folder / "model.onnx"


def metrics(client: TestClient) -> dict:
    """Samples of /metrics by name and labels."""
    families = text_string_to_metric_families(client.get("/metrics").text)
    samples = [sample for family in families for sample in family.samples if "le" not in sample.labels]
    return {(s.name, *s.labels.values()) if s.labels else s.name: s.value for s in samples}


@pytest.fixture(scope="module")
def classifier(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(128, 7)
    )
    return exported(tmp_path_factory.mktemp("c"), net, "classification", NAMES)


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory) -> Path:
    torch.manual_seed(1)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, 1, 1), nn.ReLU(), nn.Conv2d(8, 3, 1))
    return exported(tmp_path_factory.mktemp("s"), net, "segmentation", ("sky", "road", "car"))


@pytest.fixture(scope="module")
def client(classifier):
    limits = ServiceLimits(max_batch=4, max_wait_ms=20, max_bytes=200_000, max_pixels=300 * 300)
    with TestClient(create_app(load_artefact(classifier, threads=1), limits)) as client:
        yield client


@pytest.fixture(scope="module")
def segmentation(segmenter):
    artefact = load_artefact(segmenter, threads=1, resize=True)
    with TestClient(create_app(artefact, ServiceLimits(max_batch=2))) as client:
        yield client


def test_the_top_5_of_batched_requests_are_those_of_the_engine_alone(client, classifier):
    images = pictures(12)
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda image: client.post("/predict", content=png(image)).json(), images))
    session, prepare = open_session(classifier, threads=1), load_transforms(classifier.with_name("deploy.yaml"))
    for image, answer in zip(images, answers, strict=True):
        (scores,) = session.run({"image": prepare(image)[None]})["logits"]
        expected = np.exp(scores) / np.exp(scores).sum()
        best = np.argsort(-scores)[:5]
        assert [one["class"] for one in answer["classes"]] == [NAMES[i] for i in best]
        np.testing.assert_allclose([one["probability"] for one in answer["classes"]], expected[best], rtol=1e-4)
    seen = metrics(client)
    assert seen["quantrim_batch_images_sum"] > seen["quantrim_batch_images_count"]
    assert seen["quantrim_requests_total", "/predict", "200"] >= 12
    assert seen["quantrim_request_seconds_sum", "/predict"] > 0
    assert seen["quantrim_waiting"] == seen["quantrim_upload_bytes"] == 0


def test_the_mask_is_the_arg_max_of_the_engine_at_the_pictures_own_size(segmentation, segmenter):
    (image,) = pictures(1)
    response = segmentation.post("/predict?answer=mask", content=png(image))
    assert response.headers["content-type"] == "image/png"
    mask = np.asarray(Image.open(io.BytesIO(response.content)))
    prepare = load_transforms(segmenter.with_name("deploy.yaml"))
    expected = open_session(segmenter).run({"image": prepare(image)[None]})["logits"][0].argmax(axis=0)
    assert np.array_equal(mask, expected)
    area = segmentation.post("/predict", content=png(image)).json()["area"]
    assert {one["class"]: one["share"] for one in area} == pytest.approx(
        {name: float((expected == index).mean()) for index, name in enumerate(("sky", "road", "car"))
         if (expected == index).any()}
    )  # fmt: skip


def test_a_picture_of_another_size_is_stretched_and_its_mask_brought_back(segmentation):
    response = segmentation.post("/predict?answer=mask", content=png(pictures(1, 90)[0, :50]))
    assert Image.open(io.BytesIO(response.content)).size == (90, 50)


def test_a_form_upload_answers_like_the_bare_bytes(client):
    (image,) = pictures(1)
    form = client.post("/predict", files={"image": ("photo.png", png(image), "image/png")})
    assert form.json() == client.post("/predict", content=png(image)).json()


def test_a_picture_is_turned_as_its_exif_tag_says(client):
    (image,) = pictures(1)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    turned = client.post("/predict", content=png(np.rot90(image).copy(), exif=exif))
    assert turned.json() == client.post("/predict", content=png(image)).json()


JPEG = png(pictures(1)[0], "JPEG", quality=95)


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (b"", 400, "empty"),
        (b"hello, I am no picture", 415, "not an image"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 30, 415, "not an image"),
        (JPEG[: len(JPEG) // 2], 400, "damaged"),
        (b"%PDF-1.7\n" + b"x" * 500, 415, "not an image"),
        (b"x" * 200_001, 413, "0.2 MB"),
        (png(np.zeros((301, 300, 3), np.uint8)), 413, "300x301"),
        (png(np.zeros((40, 64, 3), np.uint8)), 400, "takes 64x64"),
    ],
)
def test_a_bad_picture_is_refused_with_one_line(client, body, status, words):
    response = client.post("/predict", content=body)
    assert response.status_code == status
    assert words in response.json()["error"]
    assert "\n" not in response.json()["error"]


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        ({"files": {"file": ("a.png", b"x", "image/png")}}, 400, "no file 'image'"),
        ({"files": {"image": ("a.png", b"x" * 400_000, "image/png")}}, 413, "0.2 MB"),
        ({"content": png(pictures(1)[0]), "params": {"answer": "mask"}}, 400, "no mask"),
        ({"content": png(pictures(1)[0]), "params": {"answer": "poem"}}, 400, "legal: shares, mask"),
    ],
)
def test_a_bad_request_is_refused_with_one_line(client, arguments, status, words):
    response = client.post("/predict", **arguments)
    assert response.status_code == status
    assert words in response.json()["error"]


def test_health_names_the_model_and_refusals_are_counted(client):
    client.post("/predict", content=b"no picture")
    assert client.get("/health").json() == {
        "status": "ok",
        "model": "model.onnx",
        "task": "classification",
        "input": [None, 3, 64, 64],
        "classes": 7,
    }
    assert metrics(client)["quantrim_requests_total", "/predict", "415"] >= 1
    assert client.get("/nowhere").json() == {"error": "Not Found"}


def test_a_file_that_ends_with_soft_max_or_arg_max_is_served(tmp_path):
    net = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 7))
    (image,) = pictures(1)
    answers = {}
    for output in ("none", "softmax", "argmax"):
        (tmp_path / output).mkdir()
        model = exported(tmp_path / output, net, "classification", NAMES, output)
        with TestClient(create_app(load_artefact(model, threads=1))) as client:
            answers[output] = client.post("/predict", content=png(image)).json()["classes"]
    assert [a["probability"] for a in answers["softmax"]] == pytest.approx(
        [a["probability"] for a in answers["none"]], rel=1e-4
    )
    assert answers["argmax"] == [{"class": answers["none"][0]["class"], "index": answers["none"][0]["index"]}]


@pytest.mark.parametrize(
    "content",
    [None, "Deploy: 3", "{", "Deploy: {task: classification}", "Deploy: {task: song, transforms: []}"],
)
def test_a_missing_or_wrong_deploy_file_is_one_clear_error(classifier, tmp_path, content):
    deploy = tmp_path / "deploy.yaml"
    if content is not None:
        deploy.write_text(content)
    with pytest.raises(ConfigError, match=r"deploy\.yaml"):
        load_artefact(classifier, deploy)
