"""Some ninety architectures through ptq: loaded, faithful or not, share of INT8, speed; beside the peers.

    python benchmarks/architectures.py [--only resnet swin] [--peers] [--size 96]   # goes on where it stopped
    python benchmarks/architectures.py --table    # what build/architectures.jsonl holds

Fresh weights, trained for a moment on crops of 16 photographs (:func:`schooled`): placement, latency and what a
file keeps of its float model are real, accuracy is not measured here. Every quantizer gets the same crops; a
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
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
import torch.nn.functional as F
import torchvision
from photos import crops, photos
from ptq_latency import quantize_nncf_openvino, quantize_onnxruntime
from torch import nn
from zoo import _SsdBody

from quantrim.engines import EngineName, open_session
from quantrim.engines.bench import interleaved
from quantrim.engines.compare import compare
from quantrim.engines.machine import describe_machine
from quantrim.engines.race import computes_in_bf16
from quantrim.engines.verdict import judge
from quantrim.graph import graph_from_onnx, read_onnx
from quantrim.graph.from_torch import export_onnx
from quantrim.graph.ops import PRODUCT_OPS
from quantrim.graph.view import macs
from quantrim.judges import Judgement
from quantrim.judges.judgement import least_of
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
#: Models that make maps: of four bands of brightness.
MAPS = ("deeplabv3_mobilenet_v3_large", "lraspp_mobilenet_v3_large", "fcn_resnet50")
_BANDS = 4
#: Inputs of models that take one size alone; patches of others are laid out for the size that is asked.
FIXED = {"botnet26t_256": 256, "sebotnet33ts_256": 256, "crossvit_tiny_240": 240, "maxvit_t": 224,
         "ssdlite320 (body)": 320, "inception_v3": 128}  # fmt: skip
#: Keyword with which a model is laid out for a size, by how its name begins.
_SIZED = {
    "image_size": ("vit_b",),
    "img_size": (
        *("cait", "coat_tiny", "coatnet", "deit", "focalnet", "gmlp", "levit", "mixer", "pit"),
        *("tiny_vit", "twins", "visformer", "xcit"),
    ),
}
#: Architectures that take minutes, last.
LAST = (
    *("botnet26t_256", "convmixer_768_32", "convnext_tiny", "crossvit_tiny_240", "dpn68", "efficientnet_v2_s"),
    *(
        "fcn_resnet50",
        "gmlp_s16_224",
        "maxvit_t",
        "mixer_s16_224",
        "nfnet_l0",
        "resnest14d",
        "sebotnet33ts_256",
    ),
    *("ssdlite320 (body)", "swin_t", "swin_v2_t", "vgg11", "vgg16_bn", "vit_b_16", "wide_resnet50_2"),
    *("xception41", "cait_xxs24_224", "focalnet_tiny_srf", "coat_tiny"),
)
#: Steps of training, images of a step, and crops that are trained on.
_STEPS, _BATCH, _CROPS = 30, 12, 96
#: Side of the crops of training where a model takes every size.
_SCHOOL = 64


class _Head(nn.Module):
    """First of a model's outputs, or the one called "out"."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _first(self.model(x))


def _first(found: Any) -> torch.Tensor:
    if isinstance(found, dict):
        return found["out"]
    return found[0] if isinstance(found, list | tuple) else found


def _torchvision(name: str, classes: int, **options: int) -> nn.Module:
    if name in ("googlenet", "inception_v3"):
        options |= {"init_weights": True, "aux_logits": False}
    return getattr(torchvision.models, name)(weights=None, num_classes=classes, **options)


def _timm(name: str, classes: int, **options: int) -> nn.Module:
    import timm

    return timm.create_model(name, num_classes=classes, **options)


def _own(name: str, classes: int) -> nn.Module:
    from quantrim.vision.models import MODELS

    return _Head(MODELS[name](num_classes=classes))


def _map(name: str, classes: int) -> nn.Module:
    make = getattr(torchvision.models.segmentation, name)
    return _Head(make(weights=None, weights_backbone=None, num_classes=classes))


def architectures() -> dict[str, Callable[..., nn.Module]]:
    """Every architecture by name: a function of the number of classes."""
    found: dict[str, Callable[..., nn.Module]] = {}
    makers = ((_torchvision, TORCHVISION.split()), (_timm, TIMM.split()), (_own, OWN), (_map, MAPS))
    for maker, names in makers:
        found |= {name: partial(maker, name) for name in names}
    return found | {"ssdlite320 (body)": lambda classes: _SsdBody()}


def size_of(name: str, usual: int) -> int:
    """Side of the input."""
    return FIXED.get(name, usual)


def made(name: str, size: int) -> nn.Module:
    """The architecture with fresh weights, for photographs of a size."""
    torch.manual_seed(0)
    make = architectures()[name]
    classes = _BANDS if name in (*MAPS, *OWN[:-1]) else len(photos())
    return make(classes, **{keyword: size for keyword in _keywords(name)})


def _keywords(name: str) -> list[str]:
    return [keyword for keyword, names in _SIZED.items() if name.startswith(names)]


def schooled(module: nn.Module, size: int, school: int) -> nn.Module:
    """Train briefly: which photograph a crop is of, or how bright each pixel is.

    Deep nets of random weights blow up every error, whoever quantizes them: an untrained MobileNetV2 keeps 8 dB
    of any 8-bit file, NNCF's too. Trained layers are no chaos.

    Args:
        module: fresh.
        size: of the images that it is for, which its batch norms see.
        school: of those that it is trained on.
    """
    pictures = crops(_CROPS, school, seed=1)
    images, photograph = torch.from_numpy(pictures), torch.arange(_CROPS) % len(photos())
    bands = (images.mean(1) * _BANDS / 2 + _BANDS / 2).long().clamp(0, _BANDS - 1)
    normed = any(isinstance(layer, nn.BatchNorm2d) for layer in module.modules())
    rate = 3e-3 if normed else 5e-4
    optimizer = torch.optim.AdamW(module.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=_STEPS)
    module.train()
    for step in range(_STEPS):
        chosen = torch.arange(step * _BATCH, (step + 1) * _BATCH) * 37 % _CROPS
        loss = _loss(module(images[chosen]), photograph[chosen], bands[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    torch.optim.swa_utils.update_bn(torch.from_numpy(crops(_CROPS // 2, size, seed=1)).split(_BATCH), module)
    return module.eval()


def _loss(answers: Any, photograph: torch.Tensor, bands: torch.Tensor) -> torch.Tensor:
    if isinstance(answers, tuple) and answers[0].ndim == 3:  # a detector's body: boxes, and classes of anchors
        boxes, scores = answers
        labels = photograph[:, None].expand(-1, scores.shape[1])
        return F.cross_entropy(scores.transpose(1, 2), labels) + boxes.square().mean()
    scores = _first(answers)
    if scores.ndim == 4:
        return F.cross_entropy(F.interpolate(scores, bands.shape[1:]), bands)
    return F.cross_entropy(scores, photograph)


def exported(name: str, folder: Path, size: int) -> Path:
    """Float file of an architecture, schooled."""
    module = schooled(made(name, size), size, size if name in FIXED or _keywords(name) else _SCHOOL)
    path = folder / "float.onnx"
    export_onnx(module, torch.zeros(1, 3, size, size), path, dynamic_batch=False, input_names=["image"])
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
        source = exported(name, folder, images.shape[-1])
        for quantizer, (make, engines) in QUANTIZERS.items():
            if not (peers or quantizer.startswith("quantrim")):
                continue
            start = time.perf_counter()
            try:
                file: Path | str = make(source, folder, calibration)
            except Exception as error:  # a peer may fail in any way; that is a result
                file = _line(error)
            seconds = time.perf_counter() - start
            for engine in engines:
                yield {"quantizer": quantizer.split()[0], "engine": engine, "seconds": seconds,
                       **_asked(source, file, engine, judged)}  # fmt: skip


def ours(source: Path, folder: Path, calibration: np.ndarray, target: EngineName = "openvino") -> Path:
    """File of `ptq` for one engine; that one is asked as the peers are, without mending."""
    return Path(ptq(source, calibration, folder / f"{target}.onnx", target=target, engines=()).output)


#: How each quantizer makes a file, and the engines that it is for.
QUANTIZERS: dict[str, tuple[Callable[[Path, Path, np.ndarray], Path], tuple[EngineName, ...]]] = {
    "quantrim": (ours, ("openvino",)),
    "quantrim for ONNX Runtime": (partial(ours, target="onnxruntime"), ("onnxruntime",)),
    "NNCF": (quantize_nncf_openvino, ("openvino",)),
    "ORT": (quantize_onnxruntime, ("openvino", "onnxruntime")),
}


def _asked(source: Path, file: Path | str, engine: EngineName, judged: np.ndarray) -> dict[str, Any]:
    """Judgement, shares and race of a file."""
    if isinstance(file, str):
        return {"failed": file}
    feeds = [{"image": image[None]} for image in judged]
    try:
        judgement = compare(open_session(source, engine), open_session(file, engine), feeds)
        times = _times(source, file, engine, feeds[0])
        shares = _shares(file, engine, feeds[0]) if file.suffix == ".onnx" else {}
    except Exception as error:  # as above
        return {"failed": _line(error)}
    return {**_ruling(judgement), **shares, "ms": times}


def _times(source: Path, file: Path, engine: EngineName, feed: dict[str, np.ndarray]) -> dict[str, float]:
    """Milliseconds of one race by racer: what one run in ten reaches, which a shared machine troubles least."""
    sessions = {"fp32": open_session(source, engine, threads=1), "int8": open_session(file, engine, threads=1)}
    if engine == "openvino":
        wide = {name: open_session(path, engine, threads=1, precision="bf16")
                for name, path in (("bf16", source), ("int8_bf16", file))}  # fmt: skip
        sessions |= {name: one for name, one in wide.items() if computes_in_bf16(one)}
    rounds = interleaved([(one, feed) for one in sessions.values()], warmup=4, repeat=30)
    return {name: float(np.quantile(row, 0.1)) for name, row in zip(sessions, rounds, strict=True)}


def _shares(file: Path, engine: EngineName, feed: dict[str, np.ndarray]) -> dict[str, float]:
    """Share of the multiply-accumulates in INT8, by the engine's account and by the file."""
    graph = graph_from_onnx(read_onnx(file), feed)
    verdict = judge(graph, open_session(file, engine, threads=1).layers(feed), engine, {})
    return {"share": verdict.int8_mac_share, "counted": counted_share(file, feed)}


def _ruling(judgement: Judgement) -> dict[str, Any]:
    score = least_of(judgement.scores, judgement.level)
    return {
        "faithful": judgement.faithful, "sqnr_db": judgement.outputs[0].sqnr_db,
        "score": None if score is None else score.value, "reasons": list(judgement.reasons),
    }  # fmt: skip


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:140]}"


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
        cells = [
            row["name"],
            row["engine"],
            row["quantizer"],
            "yes" if row["faithful"] else "no",
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
    parser.add_argument("--part", type=int, nargs=2, default=(0, 1), help="this one of so many processes")
    parser.add_argument("--table", action="store_true")
    arguments = parser.parse_args()
    ROWS.parent.mkdir(exist_ok=True)
    if arguments.table:
        print(describe_machine().line() + ", one thread, batch 1\n\n" + table(known_rows()))
        return
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    part, parts = arguments.part
    for name in sorted(architectures(), key=lambda name: name in LAST)[part::parts]:
        known = any(row["name"] == name for row in known_rows())
        if known or (arguments.only and not any(word in name for word in arguments.only)):
            continue
        start = time.perf_counter()
        images = crops(2 * arguments.samples, size_of(name, arguments.size), seed=0)
        try:
            found = list(rows_of(name, images, arguments.samples, peers=arguments.peers))
        except (
            RuntimeError,
            ValueError,
            TypeError,
            AssertionError,
        ) as error:  # of the architecture or its export
            found = [{"failed": _line(error)}]
        with ROWS.open("a") as file:
            file.writelines(json.dumps({"name": name, "size": images.shape[-1], **row}) + "\n" for row in found)
        for row in found:
            ruling = "faithful" if row.get("faithful") else "NOT faithful"
            said = row.get("failed") or f"{ruling} {row['sqnr_db']:.1f} dB"
            print(f"{name:32}{row.get('quantizer', ''):13}{row.get('engine', ''):13}{said}", flush=True)
        print(f"{name:32}{time.perf_counter() - start:.0f} s", flush=True)


def known_rows() -> list[dict[str, Any]]:
    """What was measured so far."""
    return [json.loads(line) for line in ROWS.read_text().splitlines()] if ROWS.exists() else []


if __name__ == "__main__":
    main()
