"""PaddleSlim's calls for quantization-aware training; everything is done by :mod:`quantrim.qat`.

``QAT(config).quantize(net)``, train, ``save_quantized_model(net, path, input_spec)`` are those of
``paddleslim.dygraph.quant``; :func:`quant_aware` and :func:`convert` are those of ``paddleslim.quant``, with a
module in the place of a program.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from quantrim.errors import ConfigError, ModelError
from quantrim.modules import Inputs, in_mode
from quantrim.paddle.settings import PaddleSettings, config_from_paddle
from quantrim.qat import qat
from quantrim.qat.config import ModuleMaker
from quantrim.qat.export.export import ExportResult

#: Attribute of a quantized module: its :class:`quantrim.qat.QAT`, None until it is called for the first time.
_MADE = "quantrim_training"
#: And its settings, as they were given.
_SETTINGS = "quantrim_settings"


class QAT:
    """Quantization-aware training with PaddleSlim's names.

    Args:
        config: PaddleSlim's dictionary; None for its defaults.
        weight_preprocess: nn.Module class (or another maker) applied to weights first.
        act_preprocess: the same for activations.
        weight_quantize: nn.Module class used instead of quantrim's weight quantizers.
        act_quantize: the same for activations.

    Raises:
        ConfigError: unknown key or illegal value.
    """

    def __init__(
        self,
        config: Mapping[str, Any] | None = None,
        weight_preprocess: ModuleMaker | None = None,
        act_preprocess: ModuleMaker | None = None,
        weight_quantize: ModuleMaker | None = None,
        act_quantize: ModuleMaker | None = None,
    ) -> None:
        settings = config_from_paddle(config)
        chosen = replace(
            settings.config,
            weight_preprocess=weight_preprocess or settings.config.weight_preprocess,
            activation_preprocess=act_preprocess,
            weight_quantizer=weight_quantize,
            activation_quantizer=act_quantize,
        )
        self.settings = replace(settings, config=chosen)
        self._models: WeakSet[nn.Module] = WeakSet()

    def quantize(
        self, model: nn.Module, example_inputs: Inputs | None = None, inplace: bool = True
    ) -> nn.Module:
        """Quantize a model; returns it (or its copy).

        Args:
            model: the network.
            example_inputs: inputs to run it with once, so that functional ops, shared tensors and branches are
                seen, which PaddleSlim's swapping of layers misses. Without them the first batch is taken: the
                model is float until it is called.
            inplace: change ``model`` itself.

        Raises:
            ConfigError: no inputs, and settings with learned thresholds or steps, which must exist before the
                optimizer is made.
        """
        made = _quantized(self.settings, model, example_inputs, inplace)
        setattr(made, _SETTINGS, self.settings)
        self._models.add(made)
        return made

    def save_quantized_model(self, model: nn.Module, path: str | Path, input_spec: Any = None) -> ExportResult:
        """Write ``path`` + ".onnx" with int8 weights.

        Args:
            model: what :meth:`quantize` returned, trained.
            path: file name without or with ".onnx".
            input_spec: a list with one entry an input: a tensor, a shape (None: any batch), or an object with
                ``shape`` (and ``dtype``, ``name``) such as Paddle's InputSpec; for a single input the entry
                alone. By default the inputs that the model was traced with.
        """
        if model not in self._models:
            raise ModelError("this model was not made by quantize() of this object.")
        return save_quantized_model(model, path, input_spec)


def quant_aware(
    program: nn.Module,
    place: Any = None,
    config: Mapping[str, Any] | None = None,
    scope: Any = None,
    for_test: bool = False,
    *,
    example_inputs: Inputs | None = None,
) -> nn.Module:
    """The module with quantizers in its forward, or, ``for_test``, a view of it that runs in evaluation mode.

    Args:
        program: a module; for the view it may be one that was quantized before, whose weights are shared.
        place: a torch device or its name, to which the module is moved; other objects, such as Paddle's places,
            leave it where it is.
        config: PaddleSlim's dictionary.
        scope: not read; a module holds its own variables.
        for_test: make the view.
        example_inputs: as for :meth:`QAT.quantize`.
    """
    if isinstance(place, str | torch.device):
        program.to(place)
    quantized = program
    if not hasattr(program, _MADE):
        quantized = QAT(config).quantize(program, example_inputs)
    elif config is not None and config_from_paddle(config) != getattr(program, _SETTINGS):
        raise ConfigError(
            "config differs from the one that this module was quantized with, and would change nothing. Leave "
            "it out, or quantize a fresh module.",
            field="config",
        )
    return Evaluated(quantized) if for_test else quantized


class Evaluated(nn.Module):
    """A module that runs in evaluation mode whatever its own mode is, which it keeps.

    Args:
        module: shares its weights with this view.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the module computes in evaluation mode, without gradients."""
        with in_mode(self.module, False), torch.no_grad():
            return self.module(*args, **kwargs)


def convert(
    program: nn.Module,
    place: Any = None,
    config: Mapping[str, Any] | None = None,
    scope: Any = None,
    save_int8: bool = False,
) -> nn.Module:
    """The trained module, for good in evaluation mode: ranges stand still and nothing has a gradient.

    Args:
        program: what :func:`quant_aware` returned, trained.
        place: as for :func:`quant_aware`.
        config: not read; the settings are those of :func:`quant_aware`.
        scope: not read.
        save_int8: refused; :func:`save_quantized_model` writes the file, whose weights are int8.

    Raises:
        ModelError: the module was not quantized, or never called since.
    """
    if save_int8:
        raise ConfigError("save_int8: call save_quantized_model(program, path) for a file with int8 weights.")
    module = program.module if isinstance(program, Evaluated) else program
    made = _made(module)
    if isinstance(place, str | torch.device):
        module.to(place)
    made.config = replace(made.config, warm_up=0, freeze_ranges_at=0, freeze_batch_norm_at=0)
    made.advance(0)
    return module.eval().requires_grad_(False)


def save_quantized_model(model: nn.Module, path: str | Path, input_spec: Any = None) -> ExportResult:
    """Write the INT8 file of a module that was quantized here; arguments as :meth:`QAT.save_quantized_model`'s.

    Raises:
        ModelError: the module was not quantized, or never called and ``input_spec`` tells no inputs.
    """
    specs = _specs(input_spec)
    if specs and getattr(model, _MADE, model) is None:
        with in_mode(model, False), torch.no_grad():
            model(*map(_example, specs))
    made = _made(model)
    path = Path(path)
    name = path if path.suffix == ".onnx" else path.with_name(path.name + ".onnx")
    names = [str(getattr(spec, "name", None) or "") for spec in specs]
    examples = tuple(map(_example, specs)) or None
    return made.export(name, examples, input_names=names if names and all(names) else None)


def _specs(given: Any) -> tuple[Any, ...]:
    """One entry an input."""
    if given is None:
        return ()
    if isinstance(given, Sequence) and not all(size is None or isinstance(size, int) for size in given):
        return tuple(given)
    return (given,)


def _example(spec: Any) -> Tensor:
    """A tensor like the one that an entry of ``input_spec`` describes."""
    if isinstance(spec, Tensor):
        return spec.detach()
    shape = getattr(spec, "shape", spec)
    if not isinstance(shape, Sequence) or not all(size is None or isinstance(size, int) for size in shape):
        raise ConfigError(f"input_spec: {spec!r} is no tensor, no shape and has no shape.", field="input_spec")
    sizes = [1 if size is None or (axis == 0 and size < 1) else size for axis, size in enumerate(shape)]
    if any(size is None or size < 1 for size in shape[1:]):
        raise ConfigError(f"input_spec {list(shape)}: only the first axis may be open.", field="input_spec")
    if "int" in str(getattr(spec, "dtype", "float32")):
        return torch.zeros(sizes, dtype=torch.int64)
    return torch.randn(sizes, generator=torch.Generator().manual_seed(0))


def _made(model: nn.Module) -> qat.QAT:
    if not hasattr(model, _MADE):
        raise ModelError(f"this {type(model).__name__} was not quantized by quantize() or quant_aware().")
    made = getattr(model, _MADE)
    if not isinstance(made, qat.QAT):
        raise ModelError(
            "the model was quantized without example_inputs and not called since, so its layers were never "
            "seen. Train it, or give input_spec."
        )
    return made


def _quantized(
    settings: PaddleSettings, model: nn.Module, example_inputs: Inputs | None, inplace: bool
) -> nn.Module:
    if example_inputs is not None:
        made = qat.QAT(model, example_inputs, target=settings.target, config=settings.config, inplace=inplace)
        setattr(made.module, _MADE, made)
        return made.module
    config = settings.config
    learned = {"pact", "lsq"} & {config.activation, config.weight, str(config.weight_preprocess)}
    if learned or model._forward_hooks or model._forward_pre_hooks:
        why = (
            "learned thresholds and steps must exist before the optimizer is made"
            if learned
            else "it has hooks"
        )
        raise ConfigError(f"quantize() needs example_inputs for this model: {why}.", field="example_inputs")
    module = model if inplace else copy.deepcopy(model)
    module.forward = partial(_first, module, settings)  # type: ignore[method-assign]
    setattr(module, _MADE, None)
    return module


def _first(module: nn.Module, settings: PaddleSettings, *args: Any, **kwargs: Any) -> Any:
    """Quantize a module on its first batch, then run it."""
    del module.forward
    bound = inspect.signature(module.forward).bind(*args, **kwargs).arguments if kwargs else args
    inputs: Inputs = tree_map_only(Tensor, Tensor.detach, bound)
    setattr(module, _MADE, qat.QAT(module, inputs, target=settings.target, config=settings.config))
    return module(*args, **kwargs)
