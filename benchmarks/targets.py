"""Targets learned from this machine's engines beside those that quantrim brings: do they place the same?

    python benchmarks/targets.py [--models 20] [--race] [--json FILE]

Models of torchvision with random weights at 128 pixels: placement asks for the graph alone. With --race, the
files of both targets run against each other where they differ; below 1 the learned one is faster.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision

from quantrim.engines import EngineName, open_session
from quantrim.engines.machine import describe_machine
from quantrim.files import write_json
from quantrim.graph import Graph, graph_from_onnx, normalize, read_onnx
from quantrim.graph.from_torch import export_onnx
from quantrim.placement import Plan, place
from quantrim.post_training import ptq
from quantrim.probing import learn_target
from quantrim.rewrites.duel import duel
from quantrim.targets import TARGETS, Target, differences, save_target

MODELS = (
    "alexnet", "vgg11_bn", "resnet18", "resnet50", "resnext50_32x4d", "wide_resnet50_2", "densenet121",
    "googlenet", "inception_v3", "squeezenet1_1", "mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large",
    "mnasnet1_0", "shufflenet_v2_x1_0", "efficientnet_b0", "efficientnet_v2_s", "regnet_x_400mf",
    "regnet_y_400mf",
    "convnext_tiny", "vit_b_16", "swin_t",
)  # fmt: skip
_SIDE = 128


def model_file(name: str, folder: Path) -> Path:
    path = folder / f"{name}.onnx"
    if not path.exists():
        options: dict[str, Any] = {"image_size": _SIDE} if name.startswith("vit") else {}
        module = torchvision.models.get_model(name, weights=None, **options).eval()
        export_onnx(module, (torch.zeros(1, 3, _SIDE, _SIDE),), path)
    return path


def apart(graph: Graph, mine: Plan, written: Plan) -> str:
    """What runs INT8 in one plan alone, by op."""
    if mine.int8_nodes == written.int8_nodes and set(mine.groups) == set(written.groups):
        groups = len(set(mine.groups.values())) - len(set(written.groups.values()))
        return f"{groups:+d} scales" if groups else "same"
    words = []
    for sign, names in (
        ("+", mine.int8_nodes - written.int8_nodes),
        ("-", written.int8_nodes - mine.int8_nodes),
    ):
        words += [f"{sign}{count} {op}" for op, count in Counter(graph.by_name[n].op for n in names).items()]
    return ", ".join(words) or f"{len(mine.groups) - len(written.groups):+d} quantizers"


def raced(path: Path, images: np.ndarray, learned: Path, written: str, engine: EngineName) -> float:
    """Time of the learned target's file over that of the written one's."""
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / name for name in ("written.onnx", "learned.onnx")]
        for file, target in zip(files, (written, str(learned)), strict=True):
            ptq(path, images, file, target=target, engines=(), refinements=())
        sessions = [open_session(file, engine, threads=1) for file in files]
        return duel(*sessions, {sessions[0].inputs[0].name: images[:1]}, seconds=5.0).ratio


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=int, default=len(MODELS))
    parser.add_argument("--race", action="store_true")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    folder = Path("build/targets")
    folder.mkdir(parents=True, exist_ok=True)
    images = np.random.default_rng(0).standard_normal((4, 3, _SIDE, _SIDE)).astype(np.float32)
    print(describe_machine().line())
    rows = []
    learned: dict[str, Target] = {}
    for name in ("openvino", "onnxruntime", "portable"):
        learned[name], answers = learn_target(f"{name}-learned", TARGETS[name].engines)
        save_target(learned[name], folder / f"{name}.json")
        print(f"{name}: {len(answers)} answers")
        for line in differences(learned[name]):
            print(f"  {line}")
    for model in MODELS[: arguments.models]:
        path = model_file(model, folder)
        normalized = normalize(read_onnx(path))
        graph = graph_from_onnx(normalized, {graph_input(normalized): images[:1]})
        for name, target in learned.items():
            said = apart(graph, place(graph, target), place(graph, TARGETS[name]))
            row = {"model": model, "target": name, "placement": said}
            if arguments.race and said != "same":
                row["ratio"] = {
                    engine: round(raced(path, images, folder / f"{name}.json", name, engine), 3)
                    for engine in target.engines
                }
            rows.append(row)
            print(f"{model:22}{name:13}{said:60}{row.get('ratio', '')}", flush=True)
    same = sum(row["placement"] == "same" for row in rows)
    print(f"{same} of {len(rows)} placements are the same")
    if arguments.json:
        write_json(arguments.json, {"machine": describe_machine().to_json(), "rows": rows})


def graph_input(model: Any) -> str:
    return str(model.graph.inputs[0].name)


if __name__ == "__main__":
    main()
