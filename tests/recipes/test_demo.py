import json

from quantrim.recipes.demo import demo


def test_the_demo_tells_the_whole_story_on_a_few_iterations(tmp_path):
    lines = []
    result = demo(tmp_path, iterations=4, images=2, say=lines.append)
    assert {"torch FP32", "openvino INT8", "onnxruntime INT8"} <= set(result.accuracy)
    assert json.loads((tmp_path / "result.json").read_text())["pictures"]
    assert any("INT8" in line for line in lines)
    assert "data:image/png" in (tmp_path / "report.html").read_text()
