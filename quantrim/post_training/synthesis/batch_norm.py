"""Images that a network's BatchNorm layers take for their training data.

A BatchNorm remembers the mean and the variance of what reached it in training. Images that start as noise and
follow the gradient until every layer sees those means and variances again give activations the ranges that
real images give them (Cai et al., "ZeroQ", CVPR 2020; Haroush et al., "The Knowledge Within", CVPR 2020).

The gradient is followed in frequencies scaled by 1/f, the spectrum of natural images: pixel by pixel it would
add high-frequency noise that deceives the statistics (Olah et al., "Feature Visualization", Distill 2017).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from quantrim.errors import DataError
from quantrim.modules import in_mode

#: Images that are made together; their statistics, not those of each, are to be the layers'.
TOGETHER = 16
#: Steps of Adam for a group, and the learning rate at the first; it falls to zero along a cosine.
STEPS, LEARNING_RATE = 10, 0.02
#: What a variance is never smaller than where something is divided by it; channels that died have none.
_SMALL = 1e-6


def layers_with_statistics(module: nn.Module) -> list[_BatchNorm]:
    """BatchNorm layers that remember something: not those that were never trained, or track nothing."""
    found = (one for one in module.modules() if isinstance(one, _BatchNorm) and one.running_var is not None)
    return [one for one in found if not _fresh(one)]


def _fresh(layer: _BatchNorm) -> bool:
    """Whether means and variances are those that a layer is born with."""
    assert layer.running_mean is not None
    assert layer.running_var is not None
    return bool((layer.running_mean == 0).all() and (layer.running_var == 1).all())


def images_of_statistics(
    module: nn.Module,
    start: np.ndarray,
    *,
    steps: int = STEPS,
    learning_rate: float = LEARNING_RATE,
    on_images: Callable[[int], None] | None = None,
) -> np.ndarray:
    """Images at whose sight every BatchNorm sees what it saw in training.

    Args:
        module: with layers that remember statistics; neither changed nor left in another mode.
        start: float32 (N, C, H, W): where the images start, in the values that the module takes.
        steps: of the optimiser, for each group of :data:`TOGETHER` images; each runs forward and backward.
        learning_rate: at the first step, in the units of the images.
        on_images: progress callback, called with the number of images made.

    Returns:
        float32 (N, C, H, W).

    Raises:
        DataError: the statistics lead nowhere: the images turn to NaN.
    """
    layers = layers_with_statistics(module)
    device = next(module.parameters()).device
    made = []
    with in_mode(module, False), _frozen(module), torch.enable_grad():
        for first in range(0, len(start), TOGETHER):
            group = torch.from_numpy(start[first : first + TOGETHER]).to(device)
            made.append(_followed(module, layers, group, steps, learning_rate).cpu().numpy())
            if on_images is not None:
                on_images(len(group))
    images = np.concatenate(made)
    if not np.isfinite(images).all():
        raise DataError(
            "images made from BatchNorm statistics turned to NaN; the model's statistics are damaged."
        )
    return images


def _followed(
    module: nn.Module, layers: Sequence[_BatchNorm], start: Tensor, steps: int, learning_rate: float
) -> Tensor:
    low, high = (edge(start, (0, 2, 3), keepdim=True) for edge in (torch.amin, torch.amax))
    scale = _natural(start.shape[-2], start.shape[-1]).to(start.device)
    waves = torch.view_as_real(torch.fft.rfft2(start, norm="ortho") / scale).requires_grad_()
    optimizer = torch.optim.Adam([waves], learning_rate)

    def images() -> Tensor:
        spectrum = torch.view_as_complex(waves) * scale
        made = torch.fft.irfft2(spectrum, s=start.shape[-2:], norm="ortho")
        return torch.clamp(made, low, high)  # an image has a darkest and a lightest value

    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    with _Watch.on(layers) as watch:
        for _ in range(steps):
            optimizer.zero_grad(set_to_none=True)
            watch.distances.clear()
            module(images())
            torch.stack(watch.distances).mean().backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    with torch.no_grad():
        return images()


def _natural(height: int, width: int) -> Tensor:
    """Amplitudes of natural images, float32 (height, width // 2 + 1): 1/f, of mean square 1."""
    frequencies = torch.hypot(torch.fft.fftfreq(height)[:, None], torch.fft.rfftfreq(width)[None, :])
    falling = 1 / frequencies.clamp(min=1 / max(height, width))
    return falling / falling.square().mean().sqrt()


@dataclass
class _Watch:
    """Distances of what layers see from what they remember, one for each call since they were cleared."""

    distances: list[Tensor] = field(default_factory=list)

    @staticmethod
    @contextmanager
    def on(layers: Sequence[_BatchNorm]) -> Iterator[_Watch]:
        watch = _Watch()
        handles = [layer.register_forward_pre_hook(watch.see) for layer in layers]
        try:
            yield watch
        finally:
            for handle in handles:
                handle.remove()

    def see(self, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(layer, _BatchNorm)
        self.distances.append(distance(layer, inputs[0]))


def distance(layer: _BatchNorm, values: Tensor) -> Tensor:
    """How far the statistics of a batch are from those that a layer remembers, in its own units.

    Args:
        layer: with running mean and variance, both (C,).
        values: float (N, C, ...), what the layer is given.

    Returns:
        Scalar: ((mean - running mean) / running std)^2 + (std / running std - 1)^2, averaged over channels.
    """
    assert layer.running_mean is not None
    assert layer.running_var is not None
    axes = [axis for axis in range(values.ndim) if axis != 1]
    variance, mean = torch.var_mean(values, axes, correction=0)
    scale = (layer.running_var + _SMALL).rsqrt()
    off_mean = (mean - layer.running_mean) * scale
    off_std = (variance + _SMALL).sqrt() * scale - 1
    return (off_mean.square() + off_std.square()).mean()


@contextmanager
def _frozen(module: nn.Module) -> Iterator[None]:
    """Parameters without gradients: those of the images alone are wanted."""
    asked = {parameter: parameter.requires_grad for parameter in module.parameters()}
    try:
        module.requires_grad_(False)
        yield
    finally:
        for parameter, wanted in asked.items():
            parameter.requires_grad_(wanted)
