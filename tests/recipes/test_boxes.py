"""A detector through the recipes: trained a little, exported in three forms, quantized, predicted with."""

import json

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from quantrim.detection import Detections, Thresholds, decoder_from
from quantrim.engines import open_session
from quantrim.errors import ConfigError, ModelError
from quantrim.post_training import ptq
from quantrim.recipes.boxes import boxes_run
from quantrim.recipes.judging import task_judge
from quantrim.recipes.loading import Loaded, load
from quantrim.recipes.predict import Prediction, boxed, predict_files
from quantrim.recipes.runs import best_key, export, train_config
from quantrim.vision.config import build_loss, load_config
from quantrim.vision.data.box_files import coco_boxes, voc_boxes, write_scenes
from quantrim.vision.data.scenes import SHAPES, Scenes
from quantrim.vision.detection.evaluate import detections_of
from quantrim.vision.train import TrainSettings

CONFIG = """
batch_size: 2
iters: 2
train_dataset: {type: SyntheticScenes, count: 4, size: 64, transforms: [{type: Normalize}]}
val_dataset: {type: SyntheticScenes, count: 4, size: 64, transforms: [{type: Normalize}]}
optimizer: {type: adamw}
lr_scheduler: {type: CosineAnnealingDecay, learning_rate: 0.001}
test_config: {metric: VOC, score_threshold: 0.05}
model: MODEL
"""
MODELS = {
    "yolov3": "{type: YOLOv3MobileNetV1, scale: 0.125}",
    "yolox": "{type: YOLOX, depth: 0.1, width: 0.125, depthwise: true}",
    "ssd": "{type: SSDLite, width: 0.35}",
    "pico": "{type: PicoDet, scale: 0.35, channels: 32, convs: 1}",
}


def config_of(folder, model="yolov3", text=CONFIG):
    path = folder / "config.yml"
    path.write_text(text.replace("MODEL", MODELS[model]))
    return load_config(path)


def loud(model: torch.nn.Module) -> torch.nn.Module:
    """A model whose heads say something: their biases are random."""
    generator = torch.Generator().manual_seed(0)
    for name in model.head_outputs:
        bias = model.get_submodule(name).bias
        if bias is not None:  # PicoDet's alignment has a batch norm behind it
            torch.nn.init.normal_(bias.data, 0.5, 0.7, generator=generator)
    return model


FORMS = {"yolov3": "raw", "yolox": "nms", "ssd": "decoded", "pico": "raw"}


@pytest.fixture(scope="module", params=FORMS)
def exported(request, tmp_path_factory):
    """A model, the form that its file has, and the file."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp(request.param)
    found = load(config_of(folder, request.param), None)
    loud(found.model)
    export(found, folder / "model.onnx", output_op=FORMS[request.param])
    return found, FORMS[request.param], folder / "model.onnx"


@pytest.fixture(scope="module")
def loaded(tmp_path_factory) -> Loaded:
    torch.manual_seed(0)
    found = load(config_of(tmp_path_factory.mktemp("plain")), None)
    loud(found.model)
    return found


def test_a_file_tells_the_same_boxes_as_the_module(exported):
    loaded, output_op, path = exported
    judge = task_judge(loaded.config, data=loaded.data)
    expected, _ = detections_of(judge.detector(loaded.model), loaded.data, batch_size=2)
    assert sum(map(len, expected)) > 4
    for engine in ("openvino", "onnxruntime"):
        found, _ = detections_of(judge.detector(open_session(path, engine)), loaded.data, batch_size=2)
        for one, other in zip(expected, found, strict=True):
            assert abs(len(one) - len(other)) <= 0.03 * len(one)
            count = min(len(one), len(other), 20)
            np.testing.assert_allclose(one.scores[:count], other.scores[:count], atol=1e-3)
    section = yaml.safe_load(path.with_name("deploy.yaml").read_text())["Deploy"]
    assert section["task"] == "detection"
    assert section["classes"] == list(SHAPES)
    assert section["thresholds"] == {"score": 0.05, "iou": 0.45, "before": 1000, "keep": 100}
    kinds = {"raw": loaded.model.decoder.type, "decoded": "boxes", "nms": "rows"}
    assert decoder_from(section["decoder"]).type == kinds[output_op]


def test_heads_stay_float_and_scores_stay_what_they_are(exported, tmp_path):
    loaded, output_op, path = exported
    if output_op == "nms":
        pytest.skip("suppression stands behind what is quantized")
    images = np.stack([loaded.data[index][0].numpy() for index in range(4)])
    result = ptq(path, images, tmp_path / "int8.onnx", float_heads=True, engines=["openvino"])
    kept = [f.node for f in result.engines[0].verdict.fallbacks if f.reason == "kept float for accuracy"]
    assert len(kept) == len(loaded.model.head_outputs)
    judge = task_judge(loaded.config, data=loaded.data)
    expected, _ = detections_of(judge.detector(loaded.model), loaded.data)
    found, _ = detections_of(judge.detector(open_session(tmp_path / "int8.onnx", "openvino")), loaded.data)
    np.testing.assert_allclose(
        [one.scores[:5].mean() for one in found], [one.scores[:5].mean() for one in expected], atol=0.05
    )


def test_an_unknown_form_of_the_output_is_told(loaded, tmp_path):
    with pytest.raises(ConfigError, match="raw, decoded, nms"):
        export(loaded, tmp_path / "model.onnx", output_op="argmax")


def test_training_runs_the_same_loop_and_map_decides(tmp_path):
    config = config_of(tmp_path, "yolox")
    assert best_key(config) == "mAP"
    settings = TrainSettings(2, 2, 2, log_iters=1, best_key="mAP", device="cpu")
    result = train_config(config, settings, tmp_path / "run", progress=False)
    assert result.iterations == 2
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["result"]["best_iteration"] == 2
    assert {"mAP", "AP", "AP50", "mAP_11point", "mAP_integral", "mAP_area"} <= set(result.history[-1])


def test_a_loss_of_another_model_is_refused(tmp_path):
    text = CONFIG + "loss: {types: [{type: SSDLoss}], coef: [1]}\n"
    config = config_of(tmp_path, "yolov3", text)
    with pytest.raises(ConfigError, match="SSDLoss is no loss of a detector that is decoded by 'yolov3'"):
        build_loss(config, 255)


def test_predictions_are_boxes_of_the_original_image(loaded, tmp_path):
    (tmp_path / "in").mkdir()
    image, _ = Scenes(1, 90)[0]
    Image.fromarray(image[:60]).save(tmp_path / "in" / "scene.png")
    spec = ["val_dataset.transforms=[{type: Letterbox, target_size: [64, 64]}, {type: Normalize}]"]
    transforms = [one.transform for one in load_config(loaded.config.path, spec).spec.val_dataset.transforms]
    run, decoder = boxes_run(loaded, None)
    how = Prediction("detection", transforms, SHAPES, decoder=decoder, thresholds=Thresholds(score=0.1))
    told, _ = predict_files(run, tmp_path / "in", how, tmp_path / "out")
    assert told[0]["boxes"]
    for one in told[0]["boxes"]:
        x1, y1, x2, y2 = one["box"]
        assert 0 <= x1 <= x2 <= 90
        assert 0 <= y1 <= y2 <= 60


def test_scenes_come_back_from_voc_and_coco_files(tmp_path):
    scenes = Scenes(3, 64, seed=5, difficulty=1.0)
    write_scenes(tmp_path, scenes, "val")
    voc, names = voc_boxes(tmp_path, "val", None, "label_list.txt")
    coco, same = coco_boxes(tmp_path, "val.json", "JPEGImages")
    assert names == same == SHAPES
    for index in range(3):
        _, objects = scenes[index]
        for files in (voc, coco):
            image, found = files[index]
            assert image.shape == (64, 64, 3)
            np.testing.assert_allclose(found.boxes, objects.boxes, atol=1)
            np.testing.assert_array_equal(found.labels, objects.labels)
            np.testing.assert_array_equal(found.difficult, objects.difficult)
    (tmp_path / "list.txt").write_text("JPEGImages/val_00000.jpg Annotations/val_00000.xml\n")
    assert len(voc_boxes(tmp_path, "train", "list.txt", "label_list.txt")[0]) == 1


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (
            lambda root: (root / "Annotations/val_00000.xml").write_text("<annotation>"),
            "no annotation of PASCAL",
        ),
        (lambda root: (root / "label_list.txt").write_text("nothing\n"), "is not in the list of 1 classes"),
        (lambda root: (root / "JPEGImages/val_00001.jpg").unlink(), "does not exist"),
        (lambda root: (root / "ImageSets/Main/val.txt").write_text(""), "the list is empty"),
        (lambda root: (root / "val.json").write_text("[]"), "no annotations of COCO"),
    ],
)
def test_damaged_annotations_are_one_clear_error(tmp_path, spoil, words):
    write_scenes(tmp_path, Scenes(2, 64), "val")
    spoil(tmp_path)
    with pytest.raises(Exception, match=words):
        (voc_boxes(tmp_path, "val", None, "label_list.txt"), coco_boxes(tmp_path, "val.json", "JPEGImages"))


def test_a_model_that_is_no_detector_is_told(tmp_path):
    config = config_of(tmp_path)
    other = load_config(config.path, ["model={type: MobileNetV1, scale: 0.25}"])
    with pytest.raises(ModelError, match="no detector"):
        task_judge(other)


def test_drawing_marks_the_box_on_images_that_are_views():
    found = Detections(np.array([[10, 20, 40, 50]], np.float32), np.array([0.9], np.float32), np.array([1]))
    image = np.asarray(boxed(np.zeros((80, 80, 3), np.uint8)[:, :, ::-1], found, SHAPES))
    assert image[50, 20:30].any()
    assert not image[30:45, 15:35].any()
