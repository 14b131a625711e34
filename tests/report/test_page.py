"""The page as a browser and an HTML parser see it."""

import copy
import json
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
from typer.testing import CliRunner

from quantrim.cli import app
from quantrim.errors import DataError
from quantrim.files import write_json
from quantrim.report import read_result, write_index, write_report

VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """Headings, links, and whether every tag is closed where it should be."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.titles: list[str] = []
        self.links: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)
        if tag == "a":
            self.links.append(dict(attrs)["href"])

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("h1", "h2"):
            self.titles.append(data)


@pytest.fixture
def page(ptq_value, inspect_value, bench_value, compress_value, qat_file, prune_file, tmp_path) -> Path:
    """A page of one result of each kind."""
    found = [
        read_result(qat_file),
        read_result(prune_file),
        bench_value,
        ptq_value,
        inspect_value,
        compress_value,
    ]
    write_report(tmp_path / "page.html", "a <b>title</b>", *found)
    return tmp_path / "page.html"


def test_the_page_of_all_results_is_sound_and_stands_alone(page, ptq_value, compress_value):
    text = page.read_text()
    parsed = Page(text)
    assert "a <b>title</b>" in parsed.titles
    assert ptq_value["engines"][0]["headline"] in text
    assert compress_value["headline"] in text
    assert all(told in text for told in ("Milliseconds against accuracy", "0.8ms"))
    for outside in ("<script src", "http://", "https://", "<link", "@import", "url("):
        assert outside not in text
    expected = ["Accuracy", "Training curve", "OpenVINO", "ONNX Runtime", "The file", "Cost", "Retraining",
                "Channels of each group", "Sensitivity", "Layers that were left alone",
                "Latency: OpenVINO, 1 thread, batch 2", "Activations and the range that is kept",
                "The race", "Every candidate, in the order tried", "Layer by layer",
                "Time by precision", "Signal to quantization noise, layer by layer"]  # fmt: skip
    assert set(expected) <= set(parsed.titles)


def test_links_are_relative_and_lead_to_files(page):
    links = [link for link in Page(page.read_text()).links if not link.startswith("#")]
    assert {
        "qat/qat.json",
        "qat/run.json",
        "prune/prune.json",
        "prune/model.pth",
        "prune/sensitivity.json",
    } <= {*links}
    assert all((page.parent / link).is_file() for link in links)


def test_qat_shows_fp32_fake_quant_and_engine_side_by_side(qat_file, tmp_path):
    write_report(tmp_path / "p.html", "t", read_result(qat_file))
    text = re.sub(r"<[^>]+>", " ", (tmp_path / "p.html").read_text())
    expected = (
        "top1 0.9123 in FP32, 0.9099 in INT8 on the engine (-0.0024)",
        "calibrated only (PTQ)  0.8911",
        "trained (best, iteration 200)  0.9102",
        "INT8 file on OpenVINO  0.9099",
        "Simulation to engine: -0.0003",
        "99.99\N{NO-BREAK SPACE}%",
    )
    for words in expected:
        assert words in text


def test_a_calibrated_state_that_beat_training_is_the_first_thing_said(qat_file, tmp_path):
    value = json.loads(qat_file.read_text()) | {"chosen": "ptq"}
    write_report(tmp_path / "p.html", "t", value)
    assert '<p class="headline">Training did not beat calibration' in (tmp_path / "p.html").read_text()


def test_a_pruned_model_that_is_not_faster_is_the_first_thing_said(prune_file, tmp_path):
    value = json.loads(prune_file.read_text()) | {"latency_ms": {"before": 8.0, "after": 8.5}}
    write_report(tmp_path / "p.html", "t", value)
    assert '<p class="headline">The pruned model is not faster here' in (tmp_path / "p.html").read_text()


def test_the_layers_of_a_chosen_float_file_are_float(compress_value, tmp_path):
    write_report(tmp_path / "p.html", "t", compress_value)
    assert "<td>INT8</td>" in re.sub(r"<td[^>]*>", "<td>", (tmp_path / "p.html").read_text())
    write_report(tmp_path / "p.html", "t", compress_value | {"chosen": "FP32"})
    assert "<td>INT8</td>" not in re.sub(r"<td[^>]*>", "<td>", (tmp_path / "p.html").read_text())


def test_bench_takes_speedups_against_the_first_model_of_an_engine(bench_value, tmp_path):
    write_report(tmp_path / "p.html", "t", bench_value)
    text = re.sub(r"<[^>]+>", " ", (tmp_path / "p.html").read_text())
    assert "int8.onnx on OpenVINO with 1.00 ms" in text  # two images in 2 ms
    assert re.search(r"int8\.onnx\s+2\.00\s+2\.10\s+2\.40\s+0\.10\s+1000\.0\s+4\.00x\s+\+75\.0%", text)
    assert re.search(r"int8\.onnx\s+4\.00\s.*1\.00x\s+\+0\.0%", text)


def test_what_stands_in_a_result_is_escaped(bench_value, tmp_path):
    bench_value[0]["model"] = "<img src=x onerror=alert(1)>.onnx"
    write_report(tmp_path / "p.html", "t", bench_value)
    assert "<img src=x" not in (tmp_path / "p.html").read_text()


@pytest.mark.parametrize(
    "value", [{}, [], [1], {"command": "sing"}, {"command": "export", "output": "x"}, [{"model": "x"}]]
)
def test_json_of_no_known_verb_is_one_clear_error(value, tmp_path):
    with pytest.raises(DataError, match="not a result of ptq, qat, prune, compress, bench"):
        write_report(tmp_path / "p.html", "t", value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["ptq", "qat", "prune", "compress", "inspect"])
def test_a_result_with_missing_keys_is_one_clear_error(command, tmp_path):
    with pytest.raises(DataError, match=f"not a complete result of {command}"):
        write_report(tmp_path / "p.html", "t", {"command": command, "output": "x", "engines": [{}]})
    assert not list(tmp_path.iterdir())


def test_any_missing_key_of_a_real_result_is_a_clear_error_or_a_page(qat_file, prune_file, tmp_path):
    for path in (qat_file, prune_file):
        whole = json.loads(path.read_text())
        for key in whole:
            value = copy.deepcopy(whole)
            del value[key]
            try:
                write_report(tmp_path / "p.html", "t", value)
            except DataError as error:
                assert "\n" not in str(error)  # noqa: PT017 - either outcome is right


def test_the_verb_takes_several_files_and_names_what_it_wrote(qat_file, bench_value, tmp_path):
    (tmp_path / "bench.json").write_text(json.dumps(bench_value))
    words = ["report", str(qat_file), str(tmp_path / "bench.json"), "-o", str(tmp_path / "page.html")]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert done.output.strip() == str(tmp_path / "page.html")
    assert Page((tmp_path / "page.html").read_text()).links[:2] == ["#part1", "#part2"]


FRAMES = """<title>waiting</title><script>
let seen = [];
addEventListener("message", event => { seen.push(event.data); document.title = seen.join(";") });
</script><iframe src="page.html" width="400" height="900" style="border:0"></iframe>
<iframe src="page.html" width="1280" height="900" style="border:0"></iframe>"""
PROBE = """<script>addEventListener("load", () =>
parent.postMessage([innerWidth, document.documentElement.scrollWidth].join(" "), "*"))</script></body>"""


@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed")
def test_nothing_overflows_on_a_phone_or_on_a_desktop(page, tmp_path):
    page.write_text(page.read_text().replace("</body>", PROBE))
    (tmp_path / "frames.html").write_text(FRAMES)
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync",
               "--disable-background-networking", "--disable-component-update", "--window-size=1400,1900",
               f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=5000", "--dump-dom",
               f"file://{tmp_path}/frames.html"]  # fmt: skip
    dom = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True).stdout
    told = dom.split("<title>")[1].split("</title>")[0].split(";")
    sizes = sorted(tuple(map(int, one.split())) for one in told)
    assert [inner for inner, _ in sizes] == [400, 1280]
    assert all(scroll <= inner for inner, scroll in sizes)


def test_an_index_lists_the_results_of_a_folder_newest_first(ptq_value, bench_value, tmp_path):
    write_json(tmp_path / "runs" / "old" / "bench.json", bench_value)
    os.utime(tmp_path / "runs" / "old" / "bench.json", (1e9, 1e9))
    write_json(tmp_path / "runs" / "new" / "result.json", ptq_value)
    write_report(tmp_path / "runs" / "new" / "result.html", "new", ptq_value)
    write_json(tmp_path / "runs" / "new" / "plan.json", {"groups": []})
    write_json(tmp_path / "runs" / "other.json", {"command": "something else"})
    entries = write_index(tmp_path / "runs", tmp_path / "index.html")
    assert [(one.command, one.page) for one in entries] == [("ptq", "runs/new/result.html"), ("bench", None)]
    text = (tmp_path / "index.html").read_text()
    assert 'href="runs/new/result.html"' in text
    assert "something else" not in text
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no result"):
        write_index(tmp_path / "empty", tmp_path / "x.html")


def test_quantized_files_of_one_page_stand_side_by_side(ptq_value, bench_value, tmp_path):
    other = {**ptq_value, "output": "another.onnx"}
    write_report(tmp_path / "two.html", "two", ptq_value, other, bench_value)
    text = (tmp_path / "two.html").read_text()
    assert "Side by side" in text
    assert "another.onnx" in text
    write_report(tmp_path / "one.html", "one", ptq_value, bench_value)
    assert "Side by side" not in (tmp_path / "one.html").read_text()


def test_accuracy_stands_beside_speed_and_no_headline_twice(ptq_value, tmp_path):
    write_report(tmp_path / "p.html", "t", ptq_value | {"metric": {"fp32": 91.0, "int8": 90.5}})
    text = (tmp_path / "p.html").read_text()
    assert "91.00 → 90.50" in text
    assert text.count(ptq_value["engines"][0]["headline"]) == 1
    glance = text.index("At a glance")
    assert glance < text.index(" ms</dd>") < text.index("Signal to") if "Signal to" in text else True
