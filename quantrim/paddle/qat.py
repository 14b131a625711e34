"""PaddleSlim's three calls: ``QAT(config).quantize(net)``, train, ``save_quantized_model``.

For those who come from ``paddleslim.dygraph.quant.QAT``; everything is done by :class:`quantrim.qat.QAT`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from quantrim.errors import ModelError
from quantrim.modules import Inputs
from quantrim.paddle.settings import config_from_paddle
from quantrim.qat import qat
from quantrim.qat.config import ModuleMaker
from quantrim.qat.export.export import ExportResult


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
        self.target = settings.target
        self.config = replace(
            settings.config,
            weight_preprocess=weight_preprocess or settings.config.weight_preprocess,
            activation_preprocess=act_preprocess,
            weight_quantizer=weight_quantize,
            activation_quantizer=act_quantize,
        )
        self._quantized: WeakKeyDictionary[nn.Module, qat.QAT] = WeakKeyDictionary()

    def quantize(self, model: nn.Module, example_inputs: Inputs, inplace: bool = True) -> nn.Module:
        """Quantize a model; returns it (or its copy).

        Args:
            model: the network.
            example_inputs: inputs to run it with once. PaddleSlim needs none, since it swaps layers by type
                and so misses functional ops, shared tensors and branches.
            inplace: change ``model`` itself.
        """
        made = qat.QAT(model, example_inputs, target=self.target, config=self.config, inplace=inplace)
        self._quantized[made.module] = made
        return made.module

    def save_quantized_model(
        self, model: nn.Module, path: str | Path, input_spec: Tensor | Sequence[int | None] | None = None
    ) -> ExportResult:
        """Write ``path`` + ".onnx" with int8 weights.

        Args:
            model: what :meth:`quantize` returned, trained.
            path: file name without or with ".onnx".
            input_spec: example input, or its shape (None: batch); default: the one of :meth:`quantize`.
        """
        if model not in self._quantized:
            raise ModelError("this model was not made by quantize() of this object.")
        if isinstance(input_spec, Sequence):
            input_spec = torch.randn([size or 1 for size in input_spec])
        path = Path(path)
        name = path if path.suffix == ".onnx" else path.with_name(path.name + ".onnx")
        return self._quantized[model].export(name, input_spec)
