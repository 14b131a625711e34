"""A detector for its users: predict, infer and the service tell the same boxes of the same images."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from fastapi.testclient import TestClient
from PIL import Image
from typer.testing import CliRunner

from quantrim.cli import app
from quantrim.errors import ConfigError
from quantrim.serving import create_app, load_artefact
from quantrim.vision.config import build_model, load_config
from quantrim.vision.data.scenes import Scenes

CONFIG = """
batch_size: 2
iters: 2
train_dataset: &data
  type: SyntheticScenes
  count: 4
  size: 64
  transforms: [{type: Letterbox, target_size: [64, 64]}, {type: Normalize}]
val_dataset: {<<: *data, mode: val}
optimizer: {type: adamw}
lr_scheduler: {type: CosineAnnealingDecay, learning_rate: 0.001}
test_config: {metric: VOC, nms_threshold: 0.6}
model: {type: YOLOX, depth: 0.1, width: 0.125, depthwise: true}
"""


def run(*words: object) -> str:
    result = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=True)
    assert result.exit_code == 0, result.exception or result.output
    return result.output


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a configuration, weights whose heads say something, a decoded file and images."""
    folder = tmp_path_factory.mktemp("detector")
    (folder / "c.yml").write_text(CONFIG)
    torch.manual_seed(0)
    model = build_model(load_config(folder / "c.yml"), 6)
    for name in model.head_outputs:
        torch.nn.init.normal_(model.get_submodule(name).bias, 0.5, 0.7)
    torch.save(model.state_dict(), folder / "model.pth")
    run("export", "-c", folder / "c.yml", "--weights", folder / "model.pth", "-o", folder / "model.onnx",
        "--output-op", "decoded")  # fmt: skip
    (folder / "images").mkdir()
    for index in range(2):
        Image.fromarray(Scenes(2, 90)[index][0][: 60 + 20 * index]).save(folder / "images" / f"{index}.png")
    (folder / "list.txt").write_text("images/0.png\nimages/1.png\n")
    return folder


def told(folder: Path, *words: object) -> list[dict]:
    """What predict says, and the boxes that its file in COCO's format holds."""
    run("predict", "-c", folder / "c.yml", "--score", 0.2, "--json", folder / "told.json", *words)
    return json.loads((folder / "told.json").read_text())["results"]


def same(one: list[dict], other: list[dict], tolerance: float) -> None:
    assert [box["class"] for box in one] == [box["class"] for box in other]
    for key in ("score", "box"):
        np.testing.assert_allclose([b[key] for b in one], [b[key] for b in other], atol=tolerance, rtol=1e-3)


def test_predict_takes_a_folder_a_list_and_an_image_and_writes_cocos_results(made: Path, tmp_path: Path):
    words = ("--weights", made / "model.pth", "--save-dir", tmp_path)
    folder = told(made, *words, "--images", made / "images")
    assert [len(one["boxes"]) > 0 for one in folder] == [True, True]
    coco = json.loads((tmp_path / "coco_results.json").read_text())
    assert len(coco) == sum(len(one["boxes"]) for one in folder)
    first, box = coco[0], folder[0]["boxes"][0]
    assert (first["image_id"], first["category_id"]) == (1, box["index"] + 1)
    x, y, width, height = first["bbox"]
    np.testing.assert_allclose([x, y, x + width, y + height], box["box"], atol=2e-3)
    assert Image.open(tmp_path / "added_prediction" / "0.png").size == (90, 60)
    assert [one["boxes"] for one in told(made, *words, "--images", made / "list.txt")] == [
        one["boxes"] for one in folder
    ]
    assert told(made, *words, "--images", made / "images" / "1.png")[0]["boxes"] == folder[1]["boxes"]


def test_infer_and_the_service_tell_the_same_boxes_by_deploy_yaml_alone(made: Path, tmp_path: Path):
    section = yaml.safe_load((made / "deploy.yaml").read_text())["Deploy"]
    assert section["decoder"] == {"type": "boxes", "num_classes": 6, "form": "xyxy", "normalized": False,
                                  "background": False}  # fmt: skip
    assert section["transforms"][0]["type"] == "Letterbox"
    assert section["thresholds"]["iou"] == 0.6
    expected = told(made, "--weights", made / "model.pth", "--save-dir", tmp_path, "--images", made / "images")
    run("infer", made / "model.onnx", "--images", made / "images", "--score", 0.2, "--save-dir", tmp_path / "i")
    found = json.loads((tmp_path / "i" / "infer.json").read_text())["results"]
    assert (tmp_path / "i" / "coco_results.json").is_file()
    artefact = load_artefact(made / "model.onnx", threads=1, score=0.2)
    with TestClient(create_app(artefact)) as client:
        for index, one in enumerate(expected):
            content = (made / "images" / f"{index}.png").read_bytes()
            answer = client.post("/predict", content=content, headers={"content-type": "image/png"})
            assert answer.status_code == 200, answer.text
            same(answer.json()["boxes"], one["boxes"], 0.05)
            same(found[index]["boxes"], one["boxes"], 0.05)
        blank = io.BytesIO()
        Image.new("RGB", (64, 64)).save(blank, "PNG")
        refused = client.post("/predict?answer=mask", content=blank.getvalue())
        assert refused.status_code == 400
        assert "this model tells boxes" in refused.json()["error"]


def test_a_detector_without_decoder_or_with_odd_thresholds_is_not_served(made: Path, tmp_path: Path):
    content = yaml.safe_load((made / "deploy.yaml").read_text())
    for change, words in (
        ({"decoder": None}, "decoder is missing"),
        ({"thresholds": {"iuo": 1}}, "mean 'iou'"),
    ):
        path = tmp_path / "deploy.yaml"
        path.write_text(yaml.safe_dump({"Deploy": content["Deploy"] | change}))
        with pytest.raises(ConfigError, match=words):
            load_artefact(made / "model.onnx", path)
