"""Foreign architectures under QAT: a few training steps, export, and the file beside the module on each engine.

    python benchmarks/qat_architectures.py --json FILE [--only NAME,...] [--size 64]   # resumes where FILE ends
    python benchmarks/qat_architectures.py --json FILE --table

Architectures of torchvision, timm and, where it is installed, segmentation-models-pytorch, untrained, at
small inputs. Each is quantized with the default method for the portable target, calibrated, trained for
three steps on noise and exported. The table tells: layers quantized and left float; the share of equal
integer codes, layer by layer, on ONNX Runtime, and how many differ otherwise than at a tie; and the
relative L2 distance of the outputs of ONNX Runtime and OpenVINO from the module's plain evaluation, beside
"noise", the distance of the quantized module from the float one. Ties that fall differently are noise of
that size in an untrained network.
"""

from __future__ import annotations

import argparse
import importlib.util
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from quantrim.engines.machine import describe_machine
from quantrim.errors import QuantrimError
from quantrim.files import read_json, write_json
from quantrim.qat import QAT
from quantrim.qat.export.engines import TIES_SHARE

TORCHVISION = (
    "alexnet densenet121 efficientnet_b0 efficientnet_v2_s googlenet mnasnet0_5 mobilenet_v2 "
    "mobilenet_v3_small regnet_x_400mf regnet_y_400mf resnet18 resnet50 resnext50_32x4d "
    "shufflenet_v2_x0_5 squeezenet1_1 swin_t vgg11 vgg11_bn convnext_tiny maxvit_t:224 vit_b_16:32x16 "
    "lraspp_mobilenet_v3_large deeplabv3_mobilenet_v3_large fcn_resnet50"
)
TIMM = (
    "botnet26t_256 cait_xxs24_224 coat_tiny coatnet_nano_rw_224 convit_tiny convmixer_768_32 "
    "convnextv2_atto crossvit_tiny_240:240 cspresnet50 deit_tiny_patch16_224 dla34 dpn48b "
    "edgenext_xx_small efficientformer_l1:224 efficientvit_b0 fastvit_t8 focalnet_tiny_srf gcresnet33ts "
    "gernet_s ghostnetv2_100 hardcorenas_a hgnet_tiny hrnet_w18_small inception_v3:96 lambda_resnet26t "
    "lcnet_050 levit_128s:224 mixer_s16_224:224 mobilenetv4_conv_small mobileone_s0 mobilevit_xxs "
    "mobilevitv2_050 nf_resnet50 nfnet_f0 pit_ti_224 poolformer_s12 pvt_v2_b0 regnetz_b16 repghostnet_050 "
    "repvgg_a0 repvit_m0_9 res2net50_26w_4s resmlp_12_224:224 resnest14d resnetv2_50 rexnet_100 "
    "sebotnet33ts_256 selecsls42b semnasnet_075 skresnet18 tf_mobilenetv3_small_minimal_100 "
    "tiny_vit_5m_224 tinynet_e tresnet_m twins_svt_small vit_tiny_patch16_224 vovnet39a xception41 "
    "xcit_nano_12_p16_224"
)
SMP = "unet fpn linknet pspnet pan manet deeplabv3plus upernet segformer"


def architectures(size: int) -> dict[str, tuple[Callable[[], nn.Module], int]]:
    """Name → how to build it, and its input size."""
    found: dict[str, tuple[Callable[[], nn.Module], int]] = {}
    for library, names in (("torchvision", TORCHVISION), ("timm", TIMM), ("smp", SMP)):
        if importlib.util.find_spec({"smp": "segmentation_models_pytorch"}.get(library, library)) is None:
            continue
        for entry in names.split():
            name, _, own = entry.partition(":")
            pixels = int(own.split("x")[0]) if own else size
            found[f"{library} {name}"] = (partial(build, library, name, pixels), pixels)
    return found


def build(library: str, name: str, size: int) -> nn.Module:
    torch.manual_seed(0)
    if library == "torchvision":
        import torchvision

        options = {"image_size": size} if name.startswith("vit") else {}
        segments = name.startswith(("lraspp", "deeplab", "fcn"))
        options |= {"weights_backbone": None} if segments else {}
        return torchvision.models.get_model(name, weights=None, num_classes=10, **options)
    if library == "timm":
        import timm

        try:  # transformers want to know
            return timm.create_model(name, num_classes=10, img_size=size)
        except TypeError:
            return timm.create_model(name, num_classes=10)
    import segmentation_models_pytorch as smp

    return smp.create_model(name, encoder_name="resnet18", encoder_weights=None, classes=3)


def measure(make: Callable[[], nn.Module], size: int) -> dict:
    """One row of the table."""
    start = time.perf_counter()
    x = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    qat = QAT(make(), x)
    qat.calibrate([x])
    steps(qat, x)
    qat.module.eval()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        result = qat.export(Path(folder) / "net.onnx")
    engines = {answer.engine: answer for answer in result.engines}
    said = [str(w.message) for w in told if "relative L2" in str(w.message) or "can't load" in str(w.message)]
    return {
        "int8": len(qat.plan.weights),
        "float": len(qat.plan.float_nodes),
        "codes": result.agreement.codes,
        "equal": result.agreement.share,
        "beyond": result.agreement.beyond_edge,
        "onnxruntime": engines["onnxruntime"].difference,
        "openvino": engines["openvino"].difference,
        "noise": max(0.0, engines["openvino"].limit / TIES_SHARE),
        "warned": " ".join(said)[:300],
        "seconds": round(time.perf_counter() - start, 1),
    }


def steps(qat: QAT, x: Tensor, count: int = 3) -> None:
    optimizer = torch.optim.SGD(qat.parameter_groups(0.01), momentum=0.9)
    qat.module.train()
    for _ in range(count):
        optimizer.zero_grad()
        outputs = [leaf for leaf in tree_leaves(qat.module(x)) if isinstance(leaf, Tensor)]
        torch.stack([output.square().mean() for output in outputs]).sum().backward()
        nn.utils.clip_grad_norm_(qat.module.parameters(), 1.0)  # some untrained networks explode
        optimizer.step()


def table(rows: dict[str, dict]) -> str:
    lines = [
        "| architecture | INT8 | float | equal codes | beyond a tie | ONNX Runtime | OpenVINO | noise |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        if "error" in row:
            lines.append(f"| {name} | {row['error']} | | | | | | |")
            continue
        cells = [f"{row[key]:.1e}" for key in ("onnxruntime", "openvino", "noise")]
        share = f"{100 * row['equal']:.4f} %"
        lines.append(
            f"| {name} | {row['int8']} | {row['float']} | {share} | {row['beyond']} | {' | '.join(cells)} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--only", default="")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    record = read_json(options.json) if options.json.is_file() else {"rows": {}}
    wanted = [name for name in options.only.split(",") if name]
    for name, (make, size) in architectures(options.size).items():
        if (
            options.table
            or (wanted and name.split()[1] not in wanted)
            or (name in record["rows"] and not wanted)
        ):
            continue
        try:
            row = measure(make, size)
        except (QuantrimError, RuntimeError, AssertionError, TypeError, ValueError) as error:
            row = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"}
        record["rows"][name] = row
        print(name, row, flush=True)
        write_json(options.json, record | {"machine": describe_machine().to_json()})
    print(table(record["rows"]))


if __name__ == "__main__":
    main()
