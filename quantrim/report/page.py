"""One self-contained HTML page from the JSON results of the verbs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, select_autoescape

from quantrim.files import write_text
from quantrim.report.charts import bars, curve, histogram

_HISTOGRAMS = 24
_NAMES = {"openvino": "OpenVINO", "onnxruntime": "ONNX Runtime", "tensorrt": "TensorRT"}


def write_report(path: str | Path, title: str, result: Mapping[str, Any]) -> None:
    """Write the page of one result; sections without data are left out.

    Args:
        path: .html file.
        title: heading.
        result: JSON value of ``ptq`` or ``demo``: engines, size_mb, histograms, layers, accuracy, samples,
            machine (see :meth:`quantrim.post_training.PtqResult.to_json`).
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=select_autoescape(), trim_blocks=True
    )
    page = environment.get_template("page.html").render(
        title=title,
        result=result,
        engines=[_engine(engine) for engine in result.get("engines", ())],
        layers=_layers(result.get("layers", ())),
        histograms=_histograms(result.get("histograms", ())),
    )
    write_text(path, page)


def _engine(engine: Mapping[str, Any]) -> dict[str, Any]:
    times = engine["latency_ms"]
    rows = [(name.upper(), times[name], name) for name in ("fp32", "bf16", "int8") if times.get(name)]
    return {**engine, "name": _NAMES.get(engine["verdict"]["engine"], "?"), "chart": bars(rows, "ms")}


def _layers(layers: Sequence[Mapping[str, Any]]) -> Any:
    """SQNR of the tensors that linear layers make, in order of execution."""
    chosen = [layer for layer in layers if layer["op"] in ("Conv", "Gemm", "MatMul", "ConvTranspose")]
    return curve([(layer["node"], layer["sqnr_db"]) for layer in chosen], "dB") if chosen else None


def _histograms(histograms: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [
        {"tensor": one["tensor"], "low": one["low"], "high": one["high"],
         "chart": histogram(one["edges"], one["counts"], one["low"], one["high"])}
        for one in histograms[:_HISTOGRAMS]
    ]  # fmt: skip
