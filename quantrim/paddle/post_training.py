"""PaddleSlim's class API for post-training quantization, over :func:`quantrim.post_training.ptq`.

The same three calls and argument names, for people who come from there. What made no sense outside
Paddle (executor, scope, cache files) is not accepted; what was silently wrong there is an error here.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from quantrim.errors import ConfigError, did_you_mean
from quantrim.files import atomic_path
from quantrim.post_training import PtqResult, ptq
from quantrim.post_training.quantize import ranges_path
from quantrim.ranges import Algo

if TYPE_CHECKING:
    import torch

#: Paddle's operator names → canonical ops.
OPERATORS = {
    "conv2d": "conv",
    "depthwise_conv2d": "conv",
    "conv2d_transpose": "conv_transpose",
    "mul": "linear",
    "matmul": "linear",
    "matmul_v2": "linear",
    "pool2d": "avg_pool",
    "elementwise_add": "add",
    "concat": "concat",
}
_ALGOS = {"KL": "kl", "direct": "abs_max", **{name: name for name in get_args(Algo)}}


class PostTrainingQuantization:
    """``PostTrainingQuantization(...).quantize()``, then ``.save_quantized_model(path)``.

    Args:
        model: .onnx file, Paddle inference model folder, or nn.Module.
        sample_generator: function that returns an iterator of single samples, float32 (C, H, W).
        batch_generator: the same for batches.
        data_loader: iterable of batches or (batch, label) pairs.
        batch_size: samples a batch of ``sample_generator``.
        batch_nums: batches to use; None for all.
        algo: KL (default), direct, abs_max, min_max, avg, hist, mse or emd.
        hist_percent: for hist.
        quantizable_op_type: Paddle operator names.
        is_full_quantize: quantize every op that the target runs in INT8.
        bias_correction: correct the bias.
        weight_quantize_type: channel_wise_abs_max or abs_max.
        target: rules of the engine.

    Raises:
        ConfigError: unknown algorithm, operator or weight type, or not exactly one data source.
    """

    def __init__(
        self,
        model: str | Path | torch.nn.Module,
        *,
        sample_generator: Callable[[], Iterable[Any]] | None = None,
        batch_generator: Callable[[], Iterable[Any]] | None = None,
        data_loader: Iterable[Any] | None = None,
        batch_size: int = 10,
        batch_nums: int | None = None,
        algo: str = "KL",
        hist_percent: float = 0.99999,
        quantizable_op_type: Sequence[str] = ("conv2d", "depthwise_conv2d", "mul"),
        is_full_quantize: bool = False,
        bias_correction: bool = False,
        weight_quantize_type: str = "channel_wise_abs_max",
        target: str = "portable",
        example_inputs: Any = None,
    ) -> None:
        sources = [s for s in (sample_generator, batch_generator, data_loader) if s is not None]
        if len(sources) != 1:
            raise ConfigError("give exactly one of sample_generator, batch_generator and data_loader.")
        for name, word, legal in (
            ("algo", algo, _ALGOS),
            ("weight_quantize_type", weight_quantize_type, ("channel_wise_abs_max", "abs_max")),
            *(("quantizable_op_type", operator, OPERATORS) for operator in quantizable_op_type),
        ):
            if word not in legal:
                raise ConfigError(f"{name}: unknown {word!r}{did_you_mean(word, legal)}")
        self._model, self._target, self._example = model, target, example_inputs
        self._data = data_loader if data_loader is not None else sources[0]()  # type: ignore[operator]
        self._samples = None if batch_nums is None else batch_size * batch_nums
        self._options: dict[str, Any] = {
            "algo": _ALGOS[algo],
            "hist_percent": hist_percent,
            "op_types": None if is_full_quantize else sorted({OPERATORS[o] for o in quantizable_op_type}),
            "refinements": ("bias",) if bias_correction else (),
            "per_channel": weight_quantize_type == "channel_wise_abs_max",
        }
        self._file: bytes | None = None
        self._ranges = ""
        self.result: PtqResult | None = None

    def quantize(self) -> PtqResult:
        """Calibrate and quantize; the verdict is in the result."""
        with tempfile.TemporaryDirectory() as folder:
            output = Path(folder) / "model.onnx"
            self.result = ptq(
                self._model,
                self._data,
                output,
                target=self._target,
                samples=self._samples,
                example_inputs=self._example,
                **self._options,
            )
            self._file, self._ranges = output.read_bytes(), ranges_path(output).read_text(encoding="utf-8")
        return self.result

    def save_quantized_model(self, save_model_path: str | Path) -> Path:
        """Write ``model.onnx`` and ``model.ranges.json`` into a folder; the path of the former.

        Raises:
            ConfigError: :meth:`quantize` was not called.
        """
        if self._file is None:
            raise ConfigError("call quantize() before save_quantized_model().")
        output = Path(save_model_path) / "model.onnx"
        with atomic_path(output) as temporary:
            temporary.write_bytes(self._file)
        with atomic_path(ranges_path(output)) as temporary:
            temporary.write_text(self._ranges, encoding="utf-8")
        return output
