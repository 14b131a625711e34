import json

import pytest

from quantrim.errors import ConfigError
from quantrim.recipes.demo import demo


@pytest.mark.parametrize("task", ["segmentation", "detection"])
def test_the_demo_tells_the_whole_story_on_a_few_iterations(tmp_path, task):
    lines = []
    result = demo(tmp_path, task=task, iterations=4, images=2, say=lines.append)
    assert {"torch FP32", "openvino INT8", "onnxruntime INT8"} <= set(result.accuracy)
    shown = json.loads((tmp_path / "result.json").read_text())["pictures"]
    assert [view["name"] for view in shown[0]["views"]] == ["truth", "FP32", "INT8"]
    assert any("INT8" in line for line in lines)
    page = (tmp_path / "report.html").read_text()
    assert "data:image/png" in page
    assert {"segmentation": "(mIoU)", "detection": "(mAP)"}[task] in page


def test_a_demo_of_another_task_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="no demo of task 'detecton'; did you mean 'detection'"):
        demo(tmp_path, task="detecton")
