import re

import pytest

from quantrim.report.advice import recommendation, what_would_help
from quantrim.report.charts import Bar, Dot, Line, bars, columns, curve, field, histogram, lines, widths


def test_bars_are_as_long_as_their_values_and_whiskers_begin_where_they_end():
    html = str(bars([Bar("FP32", 2.0, "fp32"), Bar("INT8", 1.0, "int8", upper=1.5)], "ms"))
    assert re.findall(r'class="(\w+)" style="([^"]*)"', html) == [
        ("fp32", "width:100.00%"), ("int8", "width:50.00%"), ("whisker", "left:50.00%;width:25.00%"),
    ]  # fmt: skip
    assert "2.00 ms" in html


def test_widths_show_before_pale_and_after_strong_on_one_scale():
    html = str(widths([("a", 64, 32), ("b", 128, 128)]))
    assert re.findall(r"width:([\d.]+)%", html) == ["50.00", "25.00", "100.00", "100.00"]
    assert "64 → 32" in html


def test_lines_go_from_the_lower_left_to_the_upper_right_of_their_data():
    html = str(lines([Line("mIoU", [(10, 0.5), (20, 0.75), (30, 1.0)], "int8")], "iteration"))
    assert 'points="0.0,1000.0 500.0,500.0 1000.0,0.0"' in html
    assert ["<span>1.000</span>" in html, "<span>10</span>" in html, "iteration" in html] == [True] * 3


@pytest.mark.parametrize("points", [[(5, 1.0)], [(1, 2.0), (2, 2.0)]])
def test_a_single_point_or_a_flat_line_is_drawn(points):
    assert "nan" not in str(lines([Line("", points, "int8")], "x"))


def test_columns_name_their_layers():
    html = str(columns([("conv<1>", 30.0), ("conv2", 15.0)], "dB"))
    assert "<title>conv&lt;1&gt;: 30.0 dB</title>" in html
    assert [float(v) for v in re.findall(r'height="([\d.]+)" class="int8"', html)] == [1000.0, 500.0]


def test_a_stair_goes_through_the_labelled_dots_of_a_field_and_only_there():
    dots = [Dot(4.0, 90.0, "fp32", "a", "2"), Dot(2.0, 80.0, "int8", "b", "1"), Dot(3.0, 80.0, "bf16", "c")]
    html = str(field(dots, "ms", floor=85.0))
    (stair,) = re.findall(r'points="([^"]*)" class="line', html)
    xs, ys = zip(*(map(float, pair.split(",")) for pair in stair.split()), strict=True)
    assert list(xs) == pytest.approx([1000 * x / 4.2 for x in (2, 2, 4, 4)] + [1000], abs=0.1)
    assert ys[0] == ys[1] == ys[2] > ys[3] == ys[4]  # down is up
    assert re.findall(r'class="dot (\w+( pale)?)"', html) == [
        ("fp32", ""),
        ("int8", ""),
        ("bf16 pale", " pale"),
    ]
    assert len(re.findall(r'class="at"', html)) == 2


def test_a_field_of_one_dot_is_drawn():
    assert "nan" not in str(field([Dot(1.0, 0.0, "fp32", "a", "1")], "ms", floor=0.0))


def test_a_curve_has_square_root_heights_and_a_mark():
    html = str(curve([(0.0, 0.0), (0.5, 0.25), (1.0, 1.0)], top=1.0, mark=0.25))
    assert 'points="0.0,58.0 100.0,31.0 200.0,4.0"' in html
    assert 'x1="50.0"' in html


def test_a_histogram_shades_the_range_that_is_kept():
    assert '<rect x="50.0" y="0" width="100.0"' in str(histogram([0, 1, 2, 3, 4], [1, 2, 2, 1], 1, 3))


def engine(fp32: float, bf16: float | None, int8: float, **verdict: object) -> dict:
    whole = {"engine": "openvino", "int8_mac_share": 1.0, "fallbacks": (), "conversions": 0, "layers": 50}
    return {"latency_ms": {"fp32": fp32, "bf16": bf16, "int8": int8}, "verdict": whole | verdict}


def test_no_advice_where_int8_is_fastest():
    assert what_would_help(engine(2.0, 3.0, 1.0), "portable", []) == []


@pytest.mark.parametrize(
    ("case", "target", "flags", "words"),
    [
        (engine(5.0, None, 6.0), "openvino", ["avx2"], "no VNNI"),
        (engine(5.0, None, 6.0), "portable", None, "target openvino"),
        (engine(5.0, None, 6.0, int8_mac_share=0.6, fallbacks=[{"node": "conv7", "reason": "asymmetric pads"}]),
         None, None, "40 % of the multiply-accumulates ran in float, most of them in conv7 (asymmetric pads)"),
        (engine(5.0, None, 6.0, conversions=20), None, None, "20 of 50 layers only convert"),
        (engine(0.2, None, 0.3), None, None, "so small that calls and memory traffic"),
    ],
)  # fmt: skip
def test_advice_follows_from_what_was_measured(case, target, flags, words):
    assert any(words in hint for hint in what_would_help(case, target, flags))
    quiet = what_would_help(engine(5.0, None, 6.0), "openvino", ["avx512_vnni"])
    assert not any(words in hint for hint in quiet)


def test_the_recommendation_is_the_fastest_with_its_number():
    assert (
        recommendation({"fp32": 4.0, "bf16": 2.0, "int8": 3.0})
        == "Deploy BF16: 2.00 ms, 2.00x as fast as FP32."
    )
    assert recommendation({"fp32": 1.0, "bf16": None, "int8": 3.0}).startswith("Deploy FP32: 1.00 ms")
