"""docs/results.md from measured rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]
Rows = Mapping[str, Row]
_ENGINES = {"openvino": "OpenVINO", "onnxruntime": "ONNX Runtime"}

_HEAD = """# Results

Written by `python benchmarks/results.py`; every number was measured by that command, none is typed in.
"""


def page(rows: Rows, missing: Sequence[str]) -> str:
    """The Markdown page; tables without rows are left out."""
    parts = [_HEAD, _machines(rows), *(part for table in _TABLES if (part := table(rows)))]
    if missing:
        kinds = Counter(name.split("/")[0] for name in missing)
        counts = ", ".join(f"{count} of {kind}" for kind, count in kinds.items())
        parts.append(f"## Not measured yet\n\nRows: {counts} (`python benchmarks/results.py --list`).\n")
    return "\n".join(parts)


def _machines(rows: Rows) -> str:
    lines: dict[str, int] = {}
    for row in rows.values():
        lines[row["machine"]] = lines.get(row["machine"], 0) + 1
    return "".join(f"- {line}: {count} rows\n" for line, count in sorted(lines.items()))


def _select(rows: Rows, kind: str) -> dict[tuple[str, ...], Row]:
    """Rows of one kind by what follows it in their ids."""
    chosen = ((name.split("/"), row) for name, row in rows.items())
    return {tuple(words[1:]): row for words, row in chosen if words[0] == kind}


def _table(head: Sequence[str], lines: Sequence[Sequence[str]], left: int = 1) -> str:
    marks = ["---" if index < left else "---:" for index in range(len(head))]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, marks, *lines)) + "\n"


def _classifier_accuracy(rows: Rows) -> str:
    found = _select(rows, "accuracy")
    if not found:
        return ""
    facts = _span(found, "iterations"), _span(found, "qat_iterations"), _span(found, "images")
    text = (
        "## I. Accuracy of classifiers: FP32, fake-quant, INT8\n\n"
        "The table of Paddle's INT8 tutorial. The pretrained ImageNet weights of these networks can't be had "
        "here, so each "
        f"network was trained on Fashion-MNIST at 32x32 for {facts[0]} iterations of 64 images, then "
        f"{facts[1]} iterations with quantization, and judged on {facts[2]} validation images in Paddle's "
        "binary format. *Fake-quant* is the module with quantizers in torch, *INT8* the exported file on its "
        "engine; the difference of the two is what conversion costs. Such short training does not reach the "
        "networks' best accuracy; the differences between columns are what the table is for.\n\n"
    )
    for key in ("top1", "top5"):
        head = [f"model ({key})", "FP32", "PTQ INT8", "QAT fake-quant", "QAT INT8 OpenVINO", "ONNX Runtime",
                "native runner", "INT8 - fake-quant"]  # fmt: skip
        columns = ("fp32", "ptq int8", "fake-quant", "int8 openvino", "int8 onnxruntime", "int8 native")
        lines = []
        for (name,), row in sorted(found.items()):
            metrics = row["metrics"]
            cells = [f"{metrics[c][key]:.2%}" if c in metrics else "-" for c in columns]
            change = metrics["int8 openvino"][key] - metrics["fake-quant"][key]
            lines.append([name, *cells, f"{change:+.2%}"])
        text += _table(head, lines) + "\n"
    return text + _same_files(found)


def _same_files(found: Mapping[tuple[str, ...], Row]) -> str:
    """Accuracy, time and size of the very same files, side by side."""
    lines = []
    for (name,), row in sorted(found.items()):
        files, metrics = row.get("same_files"), row["metrics"]
        if not files:
            continue
        judged = {"fp32": "fp32", "ptq int8": "ptq int8", "qat int8": "int8 openvino"}
        for kind, key in judged.items():
            one, plain = files[kind], files["fp32"]
            times = (f"{one[e]:.3f} ({plain[e] / one[e]:.2f}x)" for e in _ENGINES)
            lines.append([name, kind, f"{metrics[key]['top1']:.2%}", *times, f"{one['mb']:.2f}"])
    if not lines:
        return ""
    head = ["model", "file", "top1", *(f"{name}, ms an image" for name in _ENGINES.values()), "MB"]
    return (
        "### Accuracy and speed of the same files\n\nAt 32x32, batch 1, one thread, medians of 50 runs in "
        "turns; top1 of OpenVINO, FP32's of torch.\n\n" + _table(head, lines, left=2) + "\n"
    )


def _agreement(rows: Rows) -> str:
    lines = [
        [name, str(row["images"]), *(f"{row['agreement'][key]:.1%}" for key in row["agreement"])]
        for (name,), row in _select(rows, "agreement").items()
    ]
    if not lines:
        return ""
    return (
        "### A network with ImageNet weights\n\n"
        "No labelled ImageNet images are here, so this is how often the INT8 file of PTQ gives the first "
        "class that FP32 gives, on crops of real photographs.\n\n"
        + _table(["model", "crops", "fake-quant", "INT8 OpenVINO", "INT8 ONNX Runtime"], lines)
    )


def _classifier_speed(rows: Rows) -> str:
    found = _select(rows, "speed")
    if not found:
        return ""
    lines = []
    for (name, engine, threads), row in sorted(found.items()):
        cells = [name, _ENGINES[engine], threads]
        for key in ("python_ms", "native_ms"):
            times = row[key]
            cells += _rates(times, row["batch_size"]) if times else ["-", "-", "-"]
        lines.append(cells)
    head = ["model", "engine", "threads", "FP32 img/s", "INT8 img/s", "ratio"]
    body = _table([*head, "native FP32", "native INT8", "ratio"], lines, left=2)
    return (
        "## II. Speed of classifiers: images per second\n\n"
        f"The second table of Paddle's INT8 tutorial, at 224x224, batch {_span(found, 'batch_size')}, from the "
        "median of "
        f"{_span(found, 'runs')} runs. Weights are random, which changes no latency. FP32 and INT8 take turns. "
        "Each engine has the INT8 file of its own target. *native* is `cpp/quantrim_bench`.\n\n" + body
    )


def _rates(times: Mapping[str, float], batch_size: int) -> list[str]:
    fp32, int8 = (1e3 * batch_size / times[key] for key in ("fp32", "int8"))
    return [f"{fp32:.1f}", f"{int8:.1f}", f"{int8 / fp32:.2f}"]


def _segmentation_accuracy(rows: Rows) -> str:
    found = _select(rows, "miou")
    if not found:
        return ""
    columns = ("fp32", "fake-quant", "int8 openvino", "int8 onnxruntime")
    lines = []
    for (name,), row in sorted(found.items()):
        values = [row["metrics"][column]["mIoU"] for column in columns]
        lines.append([name, *(f"{value:.4f}" for value in values), f"{values[2] - values[0]:+.4f}"])
    head = ["model (mIoU)", "FP32", "fake-quant", "INT8 OpenVINO", "INT8 ONNX Runtime", "INT8 - FP32"]
    return (
        "## III. Accuracy of segmentation models after PTQ\n\n"
        f"Each was trained for {_span(found, 'iterations')} iterations of 8 images on the generated "
        f"optic-disc set at {_span(found, 'size')} pixels, calibrated on 100 training images, and judged on "
        f"{_span(found, 'images')} others. *Fake-quant* is the INT8 file with float arithmetic between its "
        "quantizers.\n\n" + _table(head, lines)
    )


def _segmentation_latency(rows: Rows) -> str:
    found = _select(rows, "latency")
    text = ""
    for size in dict.fromkeys(key[1] for key in found):
        lines = []
        for (name, _, engine, threads), row in sorted(item for item in found.items() if item[0][1] == size):
            cells = [*_gain(row["python_ms"]), *_gain(row["native_ms"])]
            lines.append([name, _ENGINES[engine], threads, *cells, str(row["runs"])])
        head = ["model", "engine", "threads", "FP32 ms", "INT8 ms", "speed-up", "saved",
                "native FP32", "native INT8", "speed-up", "saved", "runs"]  # fmt: skip
        text += f"### {size}\n\n" + _table(head, lines, left=2) + "\n"
    if not text:
        return ""
    return (
        "## IV. Latency of segmentation models, FP32 and INT8\n\n"
        "The tables of PaddleSeg's tutorials, on this CPU instead of their V100 with TensorRT. Batch 1, "
        "19 "
        "classes, logits at full size; copying them out is part of Python's time, not of the native runner's. "
        "Weights are random, which changes no latency; accuracy: table III. *saved* is the tutorials' "
        "speed-up, "
        "(FP32 - INT8) / FP32.\n\n" + text
    )


def _gain(times: Mapping[str, float] | None) -> list[str]:
    """FP32, INT8, a/b and (a - b)/a; dashes where it wasn't measured."""
    if not times:
        return ["-"] * 4
    fp32, int8 = times["fp32"], times["int8"]
    return [f"{fp32:.1f}", f"{int8:.1f}", f"{fp32 / int8:.2f}x", f"{(fp32 - int8) / fp32:.2%}"]


def _pruned(rows: Rows) -> str:
    found = _select(rows, "pruned")
    lines = []
    for (name, size, engine, threads), row in sorted(found.items()):
        whole = row["python_ms"]["0"]
        for ratio, value in row["python_ms"].items():
            flops, params = row["costs"][ratio]["flops"] / 1e9, row["costs"][ratio]["params"] / 1e6
            saved = "-" if ratio == "0" else f"{(whole - value) / whole:.2%}"
            lines.append([name, size, _ENGINES[engine], threads, ratio if ratio != "0" else "-",
                          f"{flops:.2f}", f"{params:.2f}", f"{value:.1f}", saved])  # fmt: skip
    if not lines:
        return ""
    head = ["model", "size", "engine", "threads", "ratio", "GFLOPs", "million parameters", "FP32 ms", "saved"]
    return (
        "## V. Latency of pruned segmentation models\n\n"
        "The second table of PaddleSeg's compression tutorial. Channels go by the L1 norm of random "
        "weights: the "
        "shapes are those of a real "
        "run with these ratios, the accuracy is not measured here.\n\n" + _table(head, lines, left=3)
    )


def _span(found: Mapping[Any, Row], key: str) -> str:
    """The value that all rows share, or the smallest to the largest."""
    values = sorted({row[key] for row in found.values()})
    return str(values[0]) if len(values) == 1 else f"{values[0]} to {values[-1]}"


_TABLES: tuple[Callable[[Rows], str], ...] = (
    _classifier_accuracy,
    _agreement,
    _classifier_speed,
    _segmentation_accuracy,
    _segmentation_latency,
    _pruned,
)
