"""PaddleSlim's class API for post-training quantization, over :func:`quantrim.post_training.ptq`.

The same three calls and argument names, early and late, for people who come from there. What a file or an
engine outside of Paddle has no place for is refused by its name; what was silently wrong there is an error.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from quantrim.errors import ConfigError, did_you_mean
from quantrim.files import atomic_path
from quantrim.graph.load import model_in_folder
from quantrim.paddle.settings import DEFAULT_OPERATORS, ops_of, target_of
from quantrim.post_training import PtqConfig, PtqResult, ptq
from quantrim.post_training.quantize import ranges_path
from quantrim.ranges import Algo
from quantrim.scratch import scratch_folder

if TYPE_CHECKING:
    import torch

_ALGOS = {"KL": "kl", "direct": "abs_max", **{name: name for name in get_args(Algo)}}
#: Arguments that are understood with one value only, and why there is no other.
_FIXED: dict[str, tuple[Any, str]] = {
    "activation_bits": (8, "files hold 8 bits; train with quantrim.paddle.QAT to simulate others"),
    "weight_bits": (8, "files hold 8 bits; train with quantrim.paddle.QAT to simulate others"),
    "activation_quantize_type": ("range_abs_max", "algo decides the ranges"),
    "learning_rate": (0.001, "the step of adaround is its own"),
    "freeze_model": (True, "weights are always codes in the file"),
    "cache_dir": (None, "statistics are sketches in memory, there is no cache"),
    "scale_dict": (None, "scales come from the calibration"),
    "return_graph": (False, "quantize() returns a result, save_quantized_model() writes the file"),
}
#: Arguments of which one value asks for what is not there to be switched.
_IDLE = {
    "onnx_format": (False, "the file is ONNX with QuantizeLinear and DequantizeLinear in any case"),
    "optimize_model": (False, "batch norms are folded in any case"),
    "is_use_cache_file": (True, "statistics are sketches in memory, there is no cache"),
}
_LATE = (*_FIXED, *_IDLE, "skip_tensor_list", "same_scale_tensor_list", "round_type", "deploy_backend")


class PostTrainingQuantization:
    """``PostTrainingQuantization(...).quantize()``, then ``.save_quantized_model(path)``.

    Args:
        executor: not read, calibration runs on the CPU; or the model itself: .onnx file, folder of an inference
            model, or nn.Module.
        sample_generator: function that returns an iterator of single samples, float32 (C, H, W), or of tuples
            that begin with one; or such an iterator.
        model_dir: folder of a Paddle inference model, of one .onnx file, or the file.
        model_filename: file in ``model_dir``.
        params_filename: weights in ``model_dir``, for a Paddle model.
        batch_size: samples a batch of ``sample_generator``.
        batch_nums: batches to use; None for all.
        scope: not read.
        algo: KL (default), direct, abs_max, min_max, avg, hist, mse or emd.
        quantizable_op_type: Paddle operator names.
        is_full_quantize: quantize every op that the target runs in INT8.
        batch_generator: like ``sample_generator``, for batches.
        data_loader: iterable of batches or (batch, label) pairs.
        hist_percent: for hist.
        bias_correction: correct the bias.
        weight_quantize_type: channel_wise_abs_max or abs_max.
        target: rules of the engine; ``deploy_backend`` is another way to name it.
        example_inputs: for an nn.Module: tensors to export it with.
        late: PaddleSlim's later arguments. ``skip_tensor_list`` and ``same_scale_tensor_list`` take names of
            tensors, ``round_type`` round or adaround; the others are taken where they ask for what is done.

    Raises:
        ConfigError: unknown argument, algorithm, operator or weight type, or not exactly one data source.
    """

    def __init__(
        self,
        executor: Any = None,
        sample_generator: Callable[[], Iterable[Any]] | Iterable[Any] | str | Path | None = None,
        model_dir: str | Path | torch.nn.Module | None = None,
        model_filename: str | None = None,
        params_filename: str | None = None,
        batch_size: int = 10,
        batch_nums: int | None = None,
        scope: Any = None,
        algo: str = "KL",
        quantizable_op_type: Sequence[str] = DEFAULT_OPERATORS,
        is_full_quantize: bool = False,
        *,
        batch_generator: Callable[[], Iterable[Any]] | Iterable[Any] | None = None,
        data_loader: Iterable[Any] | None = None,
        hist_percent: float = 0.99999,
        bias_correction: bool = False,
        weight_quantize_type: str = "channel_wise_abs_max",
        target: str | None = None,
        example_inputs: Any = None,
        **late: Any,
    ) -> None:
        if isinstance(
            sample_generator, str | Path
        ):  # the later order: executor, model_dir, model_filename, ...
            sample_generator, model_dir, model_filename, params_filename = (
                None, sample_generator, str(model_dir) if model_dir else None, model_filename
            )  # fmt: skip
        for name, word, legal in (
            ("algo", algo, _ALGOS),
            ("weight_quantize_type", weight_quantize_type, ("channel_wise_abs_max", "abs_max")),
            *(("argument", name, _LATE) for name in late),
        ):
            if word not in legal:
                raise ConfigError(f"{name}: unknown {word!r}{did_you_mean(word, legal)}", field=name)
        _check_late(late)
        self._model = _model(executor, model_dir, model_filename, params_filename)
        self._data, samples = _source(sample_generator, batch_generator, data_loader, batch_size, batch_nums)
        self._example = example_inputs
        rules = _rules(target, late.get("deploy_backend"))
        op_types = None if is_full_quantize else ops_of(quantizable_op_type, rules, "quantizable_op_type")
        rounding = ("adaround",) if late.get("round_type", "round") == "adaround" else ()
        self._config = PtqConfig(
            target=rules,
            algo=_ALGOS[algo],  # type: ignore[arg-type]
            samples=samples,
            hist_percent=hist_percent,
            op_types=op_types,
            refinements=(*rounding, *(("bias",) if bias_correction else ())),  # type: ignore[arg-type]
            per_channel=weight_quantize_type == "channel_wise_abs_max",
            skip_tensors=tuple(late.get("skip_tensor_list") or ()),
            same_scale=tuple(late.get("same_scale_tensor_list") or ()),
        )
        self._file: bytes | None = None
        self._ranges, self._name = "", "model.onnx"
        self.result: PtqResult | None = None

    def quantize(self) -> PtqResult:
        """Calibrate and quantize; the verdict is in the result."""
        with scratch_folder() as folder:
            output = folder / "model.onnx"
            self.result = ptq(
                self._model, self._data, output, config=self._config, example_inputs=self._example
            )
            made = Path(self.result.output)  # its name says where the file is not faithful
            self._name = made.name
            self._file, self._ranges = made.read_bytes(), ranges_path(made).read_text(encoding="utf-8")
        return self.result

    def save_quantized_model(self, save_model_path: str | Path) -> Path:
        """Write ``model.onnx`` and ``model.ranges.json`` into a folder; the path of the former.

        A file that is not faithful to the model is named ``model.unfaithful.onnx``, with a warning.

        Raises:
            ConfigError: :meth:`quantize` was not called.
        """
        if self._file is None or self.result is None:
            raise ConfigError("call quantize() before save_quantized_model().")
        if self._name != "model.onnx":
            warnings.warn(
                f"{self._name}: the INT8 file is not faithful to the model; see result.advice", stacklevel=2
            )
        output = Path(save_model_path) / self._name
        with atomic_path(output) as temporary:
            temporary.write_bytes(self._file)
        with atomic_path(ranges_path(output)) as temporary:
            temporary.write_text(self._ranges, encoding="utf-8")
        return output


def _rules(target: str | None, backend: str | None) -> str:
    """The target that one of two arguments names."""
    if target is not None and backend is not None and target_of(backend) != target:
        raise ConfigError(
            f"deploy_backend is {backend!r}, but target is {target!r}; give one of the two.",
            field="deploy_backend",
        )
    return target or target_of(backend)


def _check_late(late: dict[str, Any]) -> None:
    """Refuse or doubt values of PaddleSlim's later arguments that nothing here can obey."""
    for name, (only, why) in _FIXED.items():
        if late.get(name, only) != only:
            raise ConfigError(f"{name} is {late[name]!r}; only {only!r} is taken: {why}.", field=name)
    for name, (idle, why) in _IDLE.items():
        value = late.get(name)
        if name in late and not isinstance(value, bool):
            raise ConfigError(f"{name} is {value!r}; legal: True, False.", field=name)
        if value is idle:
            warnings.warn(f"{name}={value} changes nothing: {why}", stacklevel=3)
    if late.get("round_type", "round") not in ("round", "adaround"):
        raise ConfigError(f"round_type is {late['round_type']!r}; legal: round, adaround.", field="round_type")
    for name in ("skip_tensor_list", "same_scale_tensor_list"):
        given = late.get(name) or []
        words = [word for entry in given for word in (entry if name.startswith("same") else [entry])]
        if isinstance(given, str) or not all(isinstance(word, str) for word in words):
            raise ConfigError(f"{name} is {given!r}; give names of tensors.", field=name)


def _model(executor: Any, folder: Any, model: str | None, params: str | None) -> Any:
    """The model that ``model_dir`` and its file names, or the first argument, stand for."""
    if folder is None or not isinstance(folder, str | Path):
        for name, word in (("model_filename", model), ("params_filename", params)):
            if word is not None:
                raise ConfigError(f"{name} {word!r}: there is no model_dir that it lies in.", field=name)
    if folder is None:
        if executor is None:
            raise ConfigError("model_dir is missing: the folder or the file of the model.", field="model_dir")
        return executor
    if not isinstance(folder, str | Path):
        return folder
    if params is not None and not (Path(folder) / params).is_file():
        raise ConfigError(f"params_filename {params!r}: no such file in {folder}.", field="params_filename")
    if model is None:
        return model_in_folder(folder)
    if not (Path(folder) / model).is_file():
        raise ConfigError(f"model_filename {model!r}: no such file in {folder}.", field="model_filename")
    return Path(folder) / model


def _source(
    samples: Any, batches: Any, loader: Any, batch_size: int, batch_nums: int | None
) -> tuple[Iterable[Any], int | None]:
    """The calibration data, and how many samples of them count."""
    named = {"sample_generator": samples, "batch_generator": batches, "data_loader": loader}
    given = {name: source for name, source in named.items() if source is not None}
    if len(given) != 1:
        raise ConfigError("give exactly one of sample_generator, batch_generator and data_loader.")
    if batch_nums is not None and batch_nums < 1:
        raise ConfigError(f"batch_nums is {batch_nums}; it must be at least 1.", field="batch_nums")
    ((name, source),) = given.items()
    data = source() if callable(source) and name != "data_loader" else source
    if not isinstance(data, Iterable):
        raise ConfigError(
            f"{name}: a {type(data).__name__} gives no samples; hand over a function.", field=name
        )
    if name == "sample_generator" or batch_nums is None:
        return data, None if batch_nums is None else batch_size * batch_nums
    return islice(data, batch_nums), None
