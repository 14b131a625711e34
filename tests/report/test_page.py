import shutil
import subprocess

import pytest

from quantrim.post_training import ptq
from quantrim.report import write_report
from quantrim.report.charts import bars, histogram


@pytest.fixture(scope="module")
def result(residual_onnx, images, tmp_path_factory):
    return ptq(residual_onnx, images, tmp_path_factory.mktemp("r") / "int8.onnx").to_json()


def test_the_page_stands_alone_and_says_the_headline_first(result, tmp_path):
    write_report(tmp_path / "r.html", "a <b>title</b>", result)
    page = (tmp_path / "r.html").read_text()
    assert result["engines"][0]["headline"] in page
    assert "a &lt;b&gt;title" in page
    for outside in ("<script", "http://", "https://", "<link"):
        assert outside not in page


def test_bars_are_as_long_as_their_values():
    svg = str(bars([("FP32", 2.0, "fp32"), ("INT8", 1.0, "int8")], "ms"))
    assert 'width="380.0"' in svg
    assert 'width="190.0"' in svg


def test_a_histogram_shades_the_range_that_is_kept():
    assert '<rect x="50.0" y="0" width="100.0"' in str(histogram([0, 1, 2, 3, 4], [1, 2, 2, 1], 1, 3))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed")
@pytest.mark.parametrize("width", [1280, 500])
def test_the_page_does_not_overflow_in_a_browser(result, tmp_path, width):
    write_report(tmp_path / "r.html", "title", result)
    page = (tmp_path / "r.html").read_text()
    probe = "<script>document.title=document.documentElement.scrollWidth+' '+innerWidth</script></body>"
    (tmp_path / "r.html").write_text(page.replace("</body>", probe))
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
               f"--window-size={width},900", "--dump-dom", f"file://{tmp_path}/r.html"]  # fmt: skip
    dom = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True).stdout
    scroll, inner = map(int, dom.split("<title>")[1].split("</title>")[0].split())
    assert scroll <= inner
