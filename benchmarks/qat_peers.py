"""torchao's and Brevitas' quantization-aware training, as the benchmarks of QAT run it beside quantrim's.

Both are used as their documentation says: torchao's PT2E flow with its x86 quantizer, Brevitas' graph mode with
its learned scales and per-channel weights. Bits other than 8 are set in the same quantizers. They need no place
in the environment::

    pip install --target peers --no-deps torchao brevitas dependencies==2.0.1 unfoldNd
    PYTHONPATH=peers python benchmarks/qat_accuracy.py ...
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import resnet

#: A prepared module, and what puts it into training (True) or evaluation mode.
Prepared = tuple[nn.Module, Callable[[bool], Any]]


def available(peer: str) -> bool:
    """Whether a peer can be imported."""
    return importlib.util.find_spec(peer) is not None


def torchao(net: nn.Module, x: Tensor, bits: int = 8) -> Prepared:
    """torchao's PT2E quantization-aware training with its x86 quantizer; any batch size."""
    from torchao.quantization.pt2e import move_exported_model_to_eval, move_exported_model_to_train
    from torchao.quantization.pt2e.quantize_pt2e import prepare_qat_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    out_of_place(net)
    settings = x86.get_default_x86_inductor_quantization_config(is_qat=True)
    if bits != 8:
        half = 2 ** (bits - 1)
        activation = replace(settings.input_activation, quant_max=2**bits - 1)
        weight = replace(settings.weight, quant_min=-half, quant_max=half - 1)
        settings = replace(settings, input_activation=activation, output_activation=activation, weight=weight)
    batch = ({0: torch.export.Dim("batch", min=2, max=1024)},)
    exported = torch.export.export(net.train(), (x,), dynamic_shapes=batch).module()
    prepared = prepare_qat_pt2e(exported, x86.X86InductorQuantizer().set_global(settings))
    prepared.train = prepared.eval = lambda mode=True: prepared  # exported modules refuse both

    def switch(training: bool) -> None:
        (move_exported_model_to_train if training else move_exported_model_to_eval)(prepared)

    return prepared, switch


def brevitas(net: nn.Module, x: Tensor, bits: int = 8) -> Prepared:
    """Brevitas' quantized graph; layer by layer where its tracer can't take the network."""
    from brevitas.graph import quantize as graph
    from brevitas.quant import Int8WeightPerChannelFloat

    def narrowed(name: str, quantizer: Any) -> Any:
        if not name.endswith("quant") or "bias" in name or quantizer is None:
            return quantizer
        if name == "weight_quant":
            quantizer = Int8WeightPerChannelFloat
        return quantizer.let(bit_width=bits)

    def adapted(table: dict[Any, Any]) -> dict[Any, Any]:
        return {
            kind: entry and (entry[0], {name: narrowed(name, value) for name, value in entry[1].items()})
            for kind, entry in table.items()
        }

    try:
        traced = graph.preprocess_for_quantize(net.eval(), trace_model=True, merge_bn=False)
        made = graph.quantize(
            traced,
            quant_identity_map=adapted(graph.QUANT_IDENTITY_MAP),
            compute_layer_map=adapted(graph.COMPUTE_LAYER_MAP),
            quant_act_map=adapted(graph.QUANT_ACT_MAP),
        )
    except (RuntimeError, TypeError, ValueError, AttributeError):  # what its tracer says of such networks
        made = graph.layerwise_quantize(net, compute_layer_map=adapted(graph.LAYERWISE_COMPUTE_LAYER_MAP))
    made.train()(x)
    return made, made.train


def brevitas_calibrated(net: nn.Module) -> AbstractContextManager[Any]:
    """Context in which Brevitas' quantizers take statistics of what the network is shown."""
    from brevitas.graph.calibrate import calibration_mode

    return calibration_mode(net)


def calibrate(peer: str, net: nn.Module, switch: Callable[[bool], Any], batches: Iterable[Tensor]) -> None:
    """Show data to a peer's observers, as its own recipe does before training."""
    switch(False)
    if peer != "brevitas":
        with torch.no_grad():
            for images in batches:
                net(images)
        return
    with torch.no_grad(), brevitas_calibrated(net):
        for images in batches:
            net(images)


def out_of_place(net: nn.Module) -> None:
    """Make activations out of place: torchao's quantizer refuses in-place functions."""
    for module in net.modules():
        if hasattr(module, "inplace"):
            module.inplace = False
        if isinstance(module, resnet.Bottleneck | resnet.BasicBlock):
            kind = _bottleneck if isinstance(module, resnet.Bottleneck) else _basic
            module.forward = partial(kind, module)


def _basic(self: resnet.BasicBlock, x: Tensor) -> Tensor:
    out = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
    return torch.relu(out + (x if self.downsample is None else self.downsample(x)))


def _bottleneck(self: resnet.Bottleneck, x: Tensor) -> Tensor:
    out = torch.relu(self.bn1(self.conv1(x)))
    out = self.bn3(self.conv3(torch.relu(self.bn2(self.conv2(out)))))
    return torch.relu(out + (x if self.downsample is None else self.downsample(x)))
