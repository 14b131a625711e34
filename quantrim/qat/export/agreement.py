"""Does the exported file make the same integer codes as the trained module?

Two correct implementations disagree where a real value lies on the edge between two codes, since floating
sums depend on their order. One such code changes what later layers
see, and a deep network spreads it. So each layer is compared by itself: the module is run with the file's
own codes put in place of its own after every comparison.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor
from typing_extensions import override

from quantrim.graph.session import reference_session, with_outputs
from quantrim.qat.export.labels import tensors_of
from quantrim.qat.interceptor import LiveModule, QuantizerSet, Simulate, prepared_activation
from quantrim.qat.plan import CallSite, Read, Write
from quantrim.ranges import ActivationScale
from quantrim.ranges.scales import SMALLEST_SCALE

#: Distance from the edge between two codes, in steps, that rounding errors of sums explain.
EDGE = 0.01
#: Largest distance that is explained where a tensor reaches very far, so that large terms have cancelled.
_WIDEST_EDGE = 0.25


@dataclass(frozen=True, slots=True)
class CodeAgreement:
    """Comparison of file and module on one input, layer by layer.

    Attributes:
        codes: how many codes were compared.
        equal: how many are the same.
        beyond_edge: how many differ though their real value is further than :data:`EDGE` steps from the
            edge between two codes; 0 when the file is right.
        worst_tensor: tensor of the trace with the smallest share of equal codes, "" without any.
        worst_share: that share.
        output_difference: largest relative L2 distance of an output, given equal codes before it.
    """

    codes: int
    equal: int
    beyond_edge: int
    worst_tensor: str
    worst_share: float
    output_difference: float

    @property
    def share(self) -> float:
        """Share of equal codes."""
        return self.equal / self.codes if self.codes else 1.0


def agreement(
    live: LiveModule,
    model: ir.Model,
    tensors: Mapping[str, str],
    scales: Mapping[str, ActivationScale],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
) -> CodeAgreement:
    """Compare a written model with the module it came from, on ONNX Runtime.

    Args:
        live: the trained module.
        model: the quantized model.
        tensors: tensor of the file → tensor of the trace.
        scales: what each activation quantizer stands for in the file, by group.
        args: positional inputs of the module.
        kwargs: keyword inputs of the module.
    """
    real = {traced: f"{name}_quantized" for name, traced in tensors.items()}
    session = reference_session(with_outputs(model, real.values()))
    values = [v.detach().cpu().numpy() for v in tensors_of(args, kwargs)]
    feed = {port.name: value for port, value in zip(session.get_inputs(), values, strict=True)}
    names = [port.name for port in session.get_outputs()]
    found = dict(zip(names, session.run(names, feed), strict=True))
    forced = Force(live.quantizers, scales, {traced: found[name] for traced, name in real.items()})
    with live.evaluating(forced):
        outputs, _ = torch.utils._pytree.tree_flatten(live.module(*args, **kwargs))
    returned = [found[str(value.name)] for value in model.graph.outputs]
    distances = [
        _distance(got, want)
        for got, want in zip(returned, (o for o in outputs if isinstance(o, Tensor)), strict=True)
    ]
    return forced.result(max(distances, default=0.0))


def edge_of(steps: Tensor) -> float:
    """Distance from the edge between two codes that rounding errors explain, for values in steps.

    Where a clipped tensor reaches far beyond its codes, values near an edge may be what is left of terms as
    large, each of which float32 holds to 2^-24 of itself.
    """
    reach = float(steps.abs().amax()) if steps.numel() else 0.0
    return min(EDGE + reach * 2.0**-24, _WIDEST_EDGE)


class Force(Simulate):
    """Visitor that compares each tensor's codes with given ones and goes on with those.

    Args:
        quantizers: the quantizers.
        scales: what each of them stands for, by group.
        codes: codes to compare with, by tensor of the trace.
    """

    def __init__(
        self,
        quantizers: QuantizerSet,
        scales: Mapping[str, ActivationScale],
        codes: Mapping[str, np.ndarray],
    ) -> None:
        super().__init__(quantizers, observe=False)
        self.scales, self.codes = scales, codes
        self.counts: dict[str, tuple[int, int, int]] = {}

    @override
    def read(self, x: Tensor, read: Read, site: CallSite) -> Tensor:
        return self._compare(x, read.group, read.tensor)

    @override
    def write(self, x: Tensor, write: Write, site: CallSite) -> Tensor:
        return self._compare(x, write.group, write.tensor)

    @override
    def replaces(self, site: CallSite) -> Callable[[Tensor], Tensor] | None:
        return None

    def _compare(self, x: Tensor, group: str, tensor: str) -> Tensor:
        if tensor not in self.codes or self.codes[tensor].shape != x.shape:
            # a padding that the file has taken into the convolution: it holds the codes from before
            return self._activation(x, group, None)
        scale, zero_point = self.scales[group].scale, self.scales[group].zero_point
        theirs = torch.from_numpy(self.codes[tensor].astype(np.float32)).to(x.device)
        real = torch.div(prepared_activation(self.quantizers, x, group).float(), scale) + zero_point
        ours = torch.round(self._activation(x, group, None).float() / scale) + zero_point
        if scale <= 2 * SMALLEST_SCALE:  # all zeros so far: a rounding error of a sum is many such steps
            theirs = ours
        differs = ours != theirs
        edge = (real - torch.floor(real) - 0.5).abs() <= edge_of(real)
        beyond = differs & ~(edge & ((ours - theirs).abs() == 1))
        self.counts[tensor] = (ours.numel(), int(differs.sum()), int(beyond.sum()))
        return ((theirs - zero_point) * scale).to(x.dtype)

    def result(self, output_difference: float) -> CodeAgreement:
        """Sum over all tensors."""
        shares = {name: 1 - differ / max(count, 1) for name, (count, differ, _) in self.counts.items()}
        worst = min(shares, key=lambda name: shares[name], default="")
        codes = sum(count for count, _, _ in self.counts.values())
        return CodeAgreement(
            codes=codes,
            equal=codes - sum(differ for _, differ, _ in self.counts.values()),
            beyond_edge=sum(beyond for _, _, beyond in self.counts.values()),
            worst_tensor=worst,
            worst_share=shares.get(worst, 1.0),
            output_difference=output_difference,
        )


def _distance(got: np.ndarray, want: Tensor) -> float:
    reference = want.detach().cpu().numpy().astype(np.float64)
    return float(np.linalg.norm(got - reference) / max(float(np.linalg.norm(reference)), 1e-12))
