"""Time and memory of a training step: FP32, quantrim's QAT, torchao's and Brevitas' beside it.

    python benchmarks/qat_cost.py [--nets resnet50,bisenetv2] [--batch 8] [--size 128] [--json FILE]
    python benchmarks/qat_cost.py --kernels             # one tensor: torch's fake_quantize kernel beside ours

One thread; steps of all variants take turns, so that a noisy machine is noisy for everybody, and what counts
is the median of the process's CPU time. Peak memory is that of a process of its own that makes two steps,
network and optimizer included. torchao and Brevitas are measured where they can be imported and can take the
network; they need no place in the environment::

    pip install --target peers --no-deps torchao brevitas dependencies==2.0.1 unfoldNd
    PYTHONPATH=peers taskset -c 1 python benchmarks/qat_cost.py
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import importlib.util
import json
import resource
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck

from quantrim.engines.machine import describe_machine
from quantrim.files import write_json
from quantrim.qat import QAT, method
from quantrim.qat.quantizers.fake_quantize import FakeQuantOptions, fake_quantize
from quantrim.vision.models import BiSeNetV2

Step = Callable[[], None]


def network(name: str) -> nn.Module:
    torch.manual_seed(0)
    return BiSeNetV2(2) if name == "bisenetv2" else torchvision.models.get_model(name, weights=None)


def fp32(net: nn.Module, x: Tensor) -> tuple[nn.Module, list]:
    return net, [{"params": list(net.parameters())}]


def quantrim(kind: str, frozen: bool = False) -> Callable[[nn.Module, Tensor], tuple[nn.Module, list]]:
    def prepare(net: nn.Module, x: Tensor) -> tuple[nn.Module, list]:
        qat = QAT(net, x[:2], config=method(kind, freeze_ranges_at=0 if frozen else None))
        return qat.module, qat.parameter_groups(1e-4)

    return prepare


def torchao(net: nn.Module, x: Tensor) -> tuple[nn.Module, list]:
    from torchao.quantization.pt2e import move_exported_model_to_train
    from torchao.quantization.pt2e.quantize_pt2e import prepare_qat_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    for module in net.modules():  # its quantizer refuses in-place functions
        if isinstance(module, nn.ReLU):
            module.inplace = False
    Bottleneck.forward = _out_of_place
    settings = x86.get_default_x86_inductor_quantization_config(is_qat=True)
    exported = torch.export.export(net.train(), (x,)).module()
    prepared = prepare_qat_pt2e(exported, x86.X86InductorQuantizer().set_global(settings))
    move_exported_model_to_train(prepared)
    prepared.train = lambda mode=True: prepared
    return prepared, [{"params": list(prepared.parameters())}]


def _out_of_place(self: Bottleneck, x: Tensor) -> Tensor:
    out = torch.relu(self.bn1(self.conv1(x)))
    out = self.bn3(self.conv3(torch.relu(self.bn2(self.conv2(out)))))
    return torch.relu(out + (x if self.downsample is None else self.downsample(x)))


def brevitas(net: nn.Module, x: Tensor) -> tuple[nn.Module, list]:
    from brevitas.graph.quantize import preprocess_for_quantize, quantize

    traced = preprocess_for_quantize(net.eval(), trace_model=True, merge_bn=False)
    made = quantize(traced).train()
    made(x)
    return made, [{"params": list(made.parameters())}]


VARIANTS = {
    "FP32": fp32,
    "quantrim": quantrim("default"),
    "quantrim, ranges frozen": quantrim("default", frozen=True),
    "quantrim, pact": quantrim("pact"),
    "quantrim, lsq": quantrim("lsq"),
    "torchao": torchao,
    "brevitas": brevitas,
}


def step_of(name: str, variant: str, batch: int, size: int) -> Step:
    x = torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0))
    net, groups = VARIANTS[variant](network(name), x)
    net.train()
    optimizer = torch.optim.SGD(groups, lr=1e-4, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad()
        outputs = net(x)
        sum(
            o.square().mean() for o in (outputs if isinstance(outputs, (list, tuple)) else [outputs])
        ).backward()
        optimizer.step()

    return step


def available(variant: str) -> bool:
    return variant not in ("torchao", "brevitas") or importlib.util.find_spec(variant) is not None


def measure(name: str, batch: int, size: int, repeat: int) -> list[dict]:
    steps, failed = {}, {}
    for variant in filter(available, VARIANTS):
        try:
            steps[variant] = step_of(name, variant, batch, size)
            steps[variant]()
        except Exception as error:  # a peer that can't take the network is a result, too
            if variant.startswith(("FP32", "quantrim")):
                raise
            failed[variant] = str(error).strip().splitlines()[0][:80]
            steps.pop(variant, None)
    times = {variant: [] for variant in steps}
    for _ in range(repeat):
        for variant, step in steps.items():
            start = time.process_time()
            step()
            times[variant].append(time.process_time() - start)
    steps.clear()
    medians = {variant: float(np.median(seconds)) for variant, seconds in times.items()}
    peaks = {variant: peak_mb(name, variant, batch, size) for variant in medians}
    rows = [
        {
            "net": name,
            "variant": variant,
            "step_ms": 1e3 * seconds,
            "ratio": seconds / medians["FP32"],
            "peak_mb": peaks[variant],
            "peak_ratio": peaks[variant] / peaks["FP32"],
        }
        for variant, seconds in medians.items()
    ]
    return rows + [{"net": name, "variant": variant, "error": reason} for variant, reason in failed.items()]


def peak_mb(name: str, variant: str, batch: int, size: int) -> float:
    """Peak resident memory of a step in a process of its own, 10^6 bytes above the idle one."""
    command = [sys.executable, __file__, "--peak", variant, "--nets", name]
    command += ["--batch", str(batch), "--size", str(size)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.strip().splitlines()[-1])


def print_peak(name: str, variant: str, batch: int, size: int) -> None:
    idle = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    step = step_of(name, variant, batch, size)
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # what tracing has left
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    step()
    step()
    lines = Path("/proc/self/status").read_text().splitlines()
    peak = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    print((peak - idle) / 1e6)


def compare_kernels(repeat: int = 30) -> None:
    """Forward of one activation whose gradient is wanted: torch's kernel and ours, in turns."""
    x = torch.randn(8, 64, 56, 56, requires_grad=True)
    scale, leave = torch.tensor(0.02), FakeQuantOptions(marked=True)
    variants: dict[str, Callable[[], Tensor]] = {
        "torch.fake_quantize_per_tensor_affine": lambda: torch.fake_quantize_per_tensor_affine(
            x, float(scale), 128, 0, 255
        ),
        "quantrim": lambda: fake_quantize(x, scale, -128.0, 127.0, leave),
    }
    times: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(repeat):
        for name, run in variants.items():
            start = time.process_time()
            run()
            times[name].append(time.process_time() - start)
    print(f"median for {x.numel() / 1e6:.1f} million values, 1 thread, torch {torch.__version__}")
    for name, found in times.items():
        print(f"{name:40}{1e3 * float(np.median(found)):8.2f} ms")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", default="resnet50,bisenetv2")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--kernels", action="store_true")
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    if arguments.peak:
        print_peak(arguments.nets, arguments.peak, arguments.batch, arguments.size)
        return
    if arguments.kernels:
        print(describe_machine().line())
        compare_kernels()
        return
    rows = []
    for name in arguments.nets.split(","):
        rows += measure(name, arguments.batch, arguments.size, arguments.repeat)
    print(
        f"batch {arguments.batch}, {arguments.size}x{arguments.size}, 1 thread, torch {torch.__version__}",
        end="",
    )
    print("".join(f", {peer} {version(peer)}" for peer in ("torchao", "brevitas") if available(peer)))
    print(json.dumps(describe_machine().to_json()))
    print("| net | variant | step ms | x FP32 | peak MB | x FP32 |\n|---|---|---|---|---|---|")
    for row in rows:
        if "error" in row:
            print(f"| {row['net']} | {row['variant']} | {row['error']} | | | |")
        else:
            print(
                f"| {row['net']} | {row['variant']} | {row['step_ms']:.0f} | {row['ratio']:.2f} "
                f"| {row['peak_mb']:.0f} | {row['peak_ratio']:.2f} |"
            )
    if arguments.json:
        write_json(arguments.json, rows)


if __name__ == "__main__":
    main()
