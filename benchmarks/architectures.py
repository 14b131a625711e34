"""Some ninety architectures through ptq: loaded, faithful or not, share of INT8, speed; beside the peers.

    python benchmarks/architectures.py [--only resnet swin] [--peers] [--size 96]   # goes on where it stopped
    python benchmarks/architectures.py --table    # what build/architectures.jsonl holds

Random weights, with batch-norm statistics of the images, so that ranges are sane: latency, placement and
faithfulness are real, accuracy is not measured here. Every quantizer gets the same crops of photographs; a
file is judged on others, by the judges of `quantrim ptq`. The share of INT8 is told twice: as the engine says,
and as a count of the products of the file whose two operands are dequantized, which asks no engine.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from photos import crops
from ptq_latency import quantize_nncf_onnx, quantize_nncf_openvino, quantize_onnxruntime
from torch import nn
from zoo import settle_batch_norm

from quantrim.engines import open_session
from quantrim.engines.compare import compare
from quantrim.engines.machine import describe_machine
from quantrim.engines.race import race
from quantrim.errors import QuantrimError
from quantrim.graph import graph_from_onnx, read_onnx
from quantrim.graph.from_torch import export_onnx
from quantrim.graph.ops import PRODUCT_OPS
from quantrim.graph.view import macs
from quantrim.post_training import ptq

ROWS = Path("build/architectures.jsonl")
TORCHVISION = (
    "alexnet convnext_tiny densenet121 efficientnet_b0 efficientnet_v2_s googlenet inception_v3 maxvit_t "
    "mnasnet0_5 mobilenet_v2 mobilenet_v3_large mobilenet_v3_small regnet_x_400mf regnet_y_400mf resnet18 "
    "resnet50 resnext50_32x4d shufflenet_v2_x0_5 shufflenet_v2_x1_0 squeezenet1_0 squeezenet1_1 swin_t "
    "swin_v2_t vgg11 vgg16_bn vit_b_16 wide_resnet50_2 "
)
TIMM = (
    "botnet26t_256 cait_xxs24_224 coat_tiny coatnet_pico_rw_224 convmixer_768_32 convnextv2_atto "
    "crossvit_tiny_240 cspdarknet53 cspresnet50 deit_tiny_patch16_224 dla34 dpn68 edgenext_xx_small "
    "efficientformer_l1 efficientnet_lite0 efficientvit_b0 ese_vovnet19b_dw fastvit_t8 fbnetc_100 "
    "focalnet_tiny_srf gcresnet33ts gernet_s ghostnet_100 gmlp_s16_224 hardcorenas_a hgnetv2_b0 "
    "hrnet_w18_small inception_next_tiny lcnet_050 levit_128s mixer_s16_224 mobilenetv1_100 "
    "mobilenetv4_conv_small mobileone_s0 mobilevit_xxs nf_regnet_b0 nfnet_l0 pit_ti_224 poolformer_s12 "
    "pvt_v2_b0 regnetz_b16 repvgg_a0 res2net50_14w_8s resnest14d resnetv2_50 rexnet_100 sebotnet33ts_256 "
    "seresnet33ts skresnet18 starnet_s1 tf_efficientnetv2_b0 tiny_vit_5m_224 tinynet_e twins_pcpvt_small "
    "visformer_tiny xception41 xcit_nano_12_p16_224 "
)
#: Models of quantrim itself, with 4 classes.
OWN = ("BiSeNetV2", "FastSCNN", "UNet", "HarDNet", "MobileNetV1")
#: Inputs of models that take one size alone.
FIXED = {
    "botnet26t_256": 256,
    "sebotnet33ts_256": 256,
    "crossvit_tiny_240": 240,
    "inception_v3": 96,
    "maxvit_t": 224,
}
_FIXED_224 = (
    *(
        "alexnet",
        "cait",
        "coat",
        "deit",
        "efficientformer",
        "focalnet",
        "gmlp",
        "levit",
        "mixer",
        "pit",
        "swin",
    ),
    *("tiny_vit", "twins", "vgg", "visformer", "vit_b", "xcit"),
)


class _Head(nn.Module):
    """First of a model's outputs, or the one called "out"."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found = self.model(x)
        return (
            found["out"] if isinstance(found, dict) else found[0] if isinstance(found, list | tuple) else found
        )


def _torchvision(name: str) -> nn.Module:
    import torchvision

    if name in ("googlenet", "inception_v3"):
        return getattr(torchvision.models, name)(weights=None, init_weights=True, aux_logits=False)
    return getattr(torchvision.models, name)(weights=None)


def _timm(name: str) -> nn.Module:
    import timm

    return timm.create_model(name, num_classes=100)


def _own(name: str) -> nn.Module:
    from quantrim.vision.models import MODELS

    return _Head(MODELS[name](num_classes=4))


def _segmentation(name: str) -> nn.Module:
    import torchvision

    make = getattr(torchvision.models.segmentation, name)
    return _Head(make(weights=None, weights_backbone=None, num_classes=21))


def architectures() -> dict[str, Callable[[], nn.Module]]:
    """Every architecture by name."""
    found: dict[str, Callable[[], nn.Module]] = {}
    for maker, names in (
        (_torchvision, TORCHVISION.split()), (_timm, TIMM.split()), (_own, OWN),
        (_segmentation, ("deeplabv3_mobilenet_v3_large", "lraspp_mobilenet_v3_large", "fcn_resnet50")),
    ):  # fmt: skip
        for name in names:
            found[name] = lambda maker=maker, name=name: maker(name)
    from zoo import _SsdBody

    return found | {"ssdlite320 (body)": _SsdBody}


def size_of(name: str, usual: int) -> int:
    """Side of the input."""
    if name.startswith("ssdlite"):
        return 320
    return FIXED.get(name, 224 if name.startswith(_FIXED_224) else usual)


def exported(name: str, make: Callable[[], nn.Module], folder: Path, images: np.ndarray) -> Path:
    torch.manual_seed(0)
    module = make()
    settle_batch_norm(module, torch.from_numpy(images[:4]))
    path = folder / "float.onnx"
    export_onnx(module, torch.from_numpy(images[:1]), path, dynamic_batch=False, input_names=["image"])
    return path


def counted_share(path: Path, feed: dict[str, np.ndarray]) -> float:
    """Share of the multiply-accumulates whose two operands are dequantized, by the file alone."""
    proto = onnx.load(path, load_external_data=False).graph
    stored = {o for node in proto.node if node.op_type == "DequantizeLinear" for o in node.output}
    integer = {node.name for node in proto.node if {*node.input[:2]} <= stored and len(node.input) > 1}
    graph = graph_from_onnx(read_onnx(path), feed)
    work = {node.name: macs(graph, node) for node in graph.nodes if node.op in PRODUCT_OPS}
    return sum(size for name, size in work.items() if name in integer) / max(sum(work.values()), 1)


def rows_of(name: str, images: np.ndarray, count: int, *, peers: bool) -> Iterator[dict[str, Any]]:
    """A row for each engine and quantizer."""
    calibration, judged = images[:count], images[count:]
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        source = exported(name, architectures()[name], folder, images)
        for engine in ("openvino", "onnxruntime"):
            start = time.perf_counter()
            result = ptq(source, calibration, folder / "q.onnx", target=engine, judge_data=judged)
            one = result.engines[0]
            yield {
                "quantizer": "quantrim", "engine": engine, "faithful": one.faithful,
                "share": one.verdict.int8_mac_share,
                "counted": counted_share(Path(result.output), {"image": calibration[:1]}),
                "sqnr_db": one.agreement[0].sqnr_db, "notes": list(result.notes),
                "reasons": list(one.judgement.reasons), "seconds": time.perf_counter() - start,
                "ms": {key: value.median for key, value in one.times.latencies.items()},
            }  # fmt: skip
            if peers:
                yield from _peers(source, folder, engine, calibration, judged)


def _peers(
    source: Path, folder: Path, engine: str, calibration: np.ndarray, judged: np.ndarray
) -> Iterator[dict[str, Any]]:
    nncf = quantize_nncf_openvino if engine == "openvino" else quantize_nncf_onnx
    for quantizer, make in (("nncf", nncf), ("ort", quantize_onnxruntime)):
        row: dict[str, Any] = {"quantizer": quantizer, "engine": engine}
        try:
            path = make(source, folder, calibration)
            feeds = [{"image": image[None]} for image in judged]
            judgement = compare(open_session(source, engine), open_session(path, engine), feeds)
            times = race(source, path, engine, feeds[0], bf16=False)  # type: ignore[arg-type]
            row |= {"faithful": judgement.faithful, "sqnr_db": judgement.outputs[0].sqnr_db,
                    "ms": {key: value.median for key, value in times.latencies.items()}}  # fmt: skip
        except Exception as error:  # a peer may fail in any way; that is a result
            row["failed"] = " ".join(str(error).split())[:160]
        yield row


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    head = "architecture|engine|quantizer|faithful|INT8 MACs, by the engine|by the file|FP32 ms|BF16 ms|INT8 ms"
    titles = [*head.split("|"), "INT8+BF16 ms", "SQNR dB"]
    lines = ["| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]
    for row in rows:
        if "failed" in row:
            where = f"{row.get('engine', '-')} | {row.get('quantizer', '-')}"
            lines.append(f"| {row['name']} | {where} | {row['failed']} |||||||")
            continue
        times = [
            f"{row['ms'][key]:.2f}" if key in row["ms"] else "-"
            for key in ("fp32", "bf16", "int8", "int8_bf16")
        ]
        shares = [f"{row[key]:.1%}" if key in row else "-" for key in ("share", "counted")]
        mended = ", mended" if any(note.startswith("Mended") for note in row.get("notes", ())) else ""
        cells = [
            row["name"],
            row["engine"],
            row["quantizer"],
            ("yes" if row["faithful"] else "no") + mended,
            *shares,
            *times,
        ]
        lines.append("| " + " | ".join([*cells, f"{row['sqnr_db']:.1f}"]) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", help="names that contain one of these")
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--samples", type=int, default=16, help="crops that calibrate; as many judge")
    parser.add_argument("--peers", action="store_true")
    parser.add_argument("--table", action="store_true")
    arguments = parser.parse_args()
    ROWS.parent.mkdir(exist_ok=True)
    known = [json.loads(line) for line in ROWS.read_text().splitlines()] if ROWS.exists() else []
    if arguments.table:
        print(describe_machine().line() + ", one thread, batch 1\n\n" + table(known))
        return
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    done = {row["name"] for row in known}
    for name in architectures():
        if name in done or (arguments.only and not any(part in name for part in arguments.only)):
            continue
        images = crops(2 * arguments.samples, size_of(name, arguments.size), seed=0)
        try:
            found = list(rows_of(name, images, arguments.samples, peers=arguments.peers))
        except (QuantrimError, RuntimeError, ValueError, TypeError, AssertionError) as error:
            found = [{"failed": " ".join(str(error).split())[:160]}]
        with ROWS.open("a") as file:
            for row in found:
                file.write(json.dumps({"name": name, **row}) + "\n")
        for row in found:
            told = (
                row.get("failed")
                or f"{'faithful' if row['faithful'] else 'NOT faithful'} {row['sqnr_db']:.1f} dB"
            )
            print(f"{name:32}{row.get('quantizer', ''):10}{row.get('engine', ''):13}{told}", flush=True)


if __name__ == "__main__":
    main()
