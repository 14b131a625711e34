"""A model card from the record that a verb left beside its file.

The card's head is Hugging Face's metadata (base_model, base_model_relation, tags, model-index), its body what
the engines said (huggingface.co/docs/hub/model-cards).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from quantrim.errors import DataError
from quantrim.files import read_json, write_text

#: Verbs whose records a card is made of, the one that says most first.
_VERBS = ("compress", "ptq", "qat", "shrink", "export")
#: Hugging Face's names of our tasks.
_PIPELINES = {
    "classification": "image-classification", "segmentation": "image-segmentation",
    "detection": "object-detection",
}  # fmt: skip


def record_beside(model: str | Path) -> dict[str, Any]:
    """The record of how a file was made, ``NAME.VERB.json`` beside it, or ``qat.json``.

    Raises:
        DataError: there is none, or it is damaged.
    """
    model = Path(model)
    names = [model.with_name(f"{model.stem}.{verb}.json") for verb in _VERBS] + [model.with_name("qat.json")]
    found = next((name for name in names if name.is_file()), None)
    if found is None:
        raise DataError(
            f"{model}: no record of how it was made lies beside it ({names[1].name}, ...). "
            "Make the file with ptq, qat or compress."
        )
    record = read_json(found)
    if not isinstance(record, dict):
        raise DataError(f"{found}: no record of a verb.")
    return record


def card_of(
    record: Mapping[str, Any], model: str | Path, *, base_model: str | None = None, licence: str | None = None
) -> str:
    """Text of a README.md for a file.

    Args:
        record: JSON of ``ptq``, ``qat`` or ``compress``.
        model: the file.
        base_model: the float model's name on the hub, ``owner/name``.
        licence: of the weights, as the hub spells it ("apache-2.0").
    """
    head = yaml.safe_dump(_metadata(record, Path(model), base_model, licence), sort_keys=False)
    return (
        f"---\n{head}---\n\n# {Path(model).stem}\n\n" + "\n".join(_body(record, Path(model), base_model)) + "\n"
    )


def write_card(
    model: str | Path,
    *,
    base_model: str | None = None,
    licence: str | None = None,
    output: str | Path | None = None,
) -> Path:
    """Write the card of a file, ``NAME.md`` beside it, or elsewhere.

    Raises:
        DataError: there is no record of how the file was made.
    """
    path = Path(output) if output is not None else Path(model).with_suffix(".md")
    write_text(path, card_of(record_beside(model), model, base_model=base_model, licence=licence))
    return path


def _metadata(
    record: Mapping[str, Any], model: Path, base_model: str | None, licence: str | None
) -> dict[str, Any]:
    task = next((str(one["judgement"].get("task", "")) for one in _engines(record) if "judgement" in one), "")
    names = (str(one["verdict"]["engine"]) for one in _engines(record) if "verdict" in one)
    facts: dict[str, Any] = {"library_name": "onnx"}
    if licence:
        facts["license"] = licence
    if base_model:
        facts |= {"base_model": base_model, "base_model_relation": "quantized"}
    if task in _PIPELINES:
        facts["pipeline_tag"] = _PIPELINES[task]
    facts["tags"] = ["quantrim", "int8", "onnx", *dict.fromkeys(names)]
    task_of = {"task": {"type": facts.get("pipeline_tag", "other")}}
    data = {"dataset": {"name": "held-out samples", "type": "own"}}
    results = [
        task_of | data | {"metrics": [{"type": name, "value": value, "name": f"{name} of {which}"}]}
        for which, name, value in _metrics(record)
    ]
    if results:
        facts["model-index"] = [{"name": model.stem, "results": results}]
    return facts


def _metrics(record: Mapping[str, Any]) -> Iterator[tuple[str, str, float]]:
    """What, metric and value, wherever a verb judged by labels."""
    metric = record.get("metric")
    if isinstance(metric, Mapping):
        for which in ("fp32", "int8"):
            if isinstance(metric.get(which), int | float):
                yield which, "metric", round(float(metric[which]), 5)
    for which, value in dict(record.get("metrics") or {}).items():
        if isinstance(value, int | float):
            yield which, str(record.get("key", "metric")), round(float(value), 5)


def _engines(record: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    found = record.get("engines")
    return [one for one in found if isinstance(one, Mapping)] if isinstance(found, list) else []


def _body(record: Mapping[str, Any], model: Path, base_model: str | None) -> Iterator[str]:
    of = f" of {base_model}" if base_model else ""
    words = {"True": "faithful", "False": "**not faithful**: do not deploy it"}
    said = words.get(str(record.get("faithful")), "not judged")
    yield f"INT8 ONNX file{of}, made by `quantrim {record.get('command', '')}`. The verdict: {said}."
    yield ""
    rows = [_row(one) for one in _engines(record)]
    if rows:
        yield "| engine | faithful | INT8 MACs | FP32 ms | INT8 ms | speedup | SQNR dB |"
        yield "|---|---|---:|---:|---:|---:|---:|"
        yield from rows
        yield ""
    for which, name, value in _metrics(record):
        yield f"- {name} of {which}: {value:g}"
    sizes = record.get("size_mb") or {}
    if "int8" in sizes and "fp32" in sizes:
        yield f"- size: {sizes['int8']:.2f} MB (FP32: {sizes['fp32']:.2f} MB)"
    for key, label in (("samples", "calibration samples"), ("algo", "ranges by"), ("target", "target")):
        if record.get(key) is not None:
            yield f"- {label}: {record[key]}"
    for note in record.get("notes") or ():
        yield f"- {note}"
    machine = record.get("machine") or {}
    if machine:
        versions = ", ".join(f"{name} {version}" for name, version in (machine.get("versions") or {}).items())
        yield ""
        where = f"{machine.get('processor')}, {machine.get('cores')} cores, {machine.get('date')}"
        yield f"Measured on {where}: {versions}."
    yield ""
    yield f"`quantrim infer` runs `{model.name}` and prepares images as deploy.yaml says."


def _row(one: Mapping[str, Any]) -> str:
    verdict, times = one.get("verdict") or {}, one.get("latency_ms") or {}
    agreement = (one.get("agreement") or [{}])[0]
    cells = [
        str(verdict.get("engine", "")),
        {"True": "yes", "False": "NO"}.get(str(one.get("faithful")), "-"),
        _spelled(verdict.get("int8_mac_share"), ".1%"),
        _spelled(times.get("fp32"), ".2f"),
        _spelled(times.get("int8"), ".2f"),
        _spelled(one.get("speedup"), ".2f"),
        _spelled(agreement.get("sqnr_db"), ".1f"),
    ]
    return f"| {' | '.join(cells)} |"


def _spelled(value: Any, form: str) -> str:
    if isinstance(value, Mapping):
        value = value.get("median")
    return format(value, form) if isinstance(value, int | float) else "-"
