"""PaddleSlim's quantization settings, understood and checked.

The keys are those of ``paddleslim.quant.quant_aware`` and ``paddleslim.dygraph.quant.QAT`` (2.0 to 2.6), which
PaddleSeg and PaddleDetection hand through.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from quantrim.errors import ConfigError, did_you_mean
from quantrim.qat.config import QATConfig
from quantrim.targets import target_named

_KEYS = frozenset(
    {"weight_preprocess_type", "activation_preprocess_type", "weight_quantize_type", "activation_quantize_type",
     "weight_bits", "activation_bits", "not_quant_pattern", "quantize_op_types", "quantizable_layer_type",
     "dtype", "window_size", "moving_rate", "for_tensorrt", "is_full_quantize", "deploy_backend", "onnx_format",
     "quant_post_first", "scale_trainable", "fuse_conv_bn"}
)  # fmt: skip
_WEIGHTS = {
    "channel_wise_abs_max": ("abs_max", True),
    "abs_max": ("abs_max", False),
    "range_abs_max": ("range_abs_max", False),
    "moving_average_abs_max": ("moving_average", False),
}
_ACTIVATIONS = {
    "moving_average_abs_max": "moving_average",
    "range_abs_max": "range_abs_max",
    "abs_max": "abs_max",
}
_LAYERS = {
    "Conv2D": "conv",
    "Linear": "linear",
    "Conv2DTranspose": "conv_transpose",
}
#: Their op → our canonical ops; "" for what engines compute inside the op before.
_OPS = {
    "conv2d": "conv",
    "depthwise_conv2d": "conv",
    "conv2d_transpose": "conv_transpose",
    "mul": "linear",
    "matmul": "linear matmul",
    "matmul_v2": "linear matmul",
    "fc": "linear",
    "pool2d": "max_pool avg_pool global_avg_pool",
    "elementwise_add": "add",
    "elementwise_mul": "mul",
    "concat": "concat",
    **dict.fromkeys(("bilinear_interp", "nearest_interp", "trilinear_interp"), "resize"),
    **dict.fromkeys(("relu", "relu6", "leaky_relu", "sigmoid", "swish", "tanh", "batch_norm", "scale"), ""),
    **dict.fromkeys(("reshape", "reshape2", "transpose", "transpose2", "flatten", "flatten2"), ""),
    **dict.fromkeys(("squeeze", "slice", "mean", "softmax", "pad2d", "gather", "elementwise_sub"), ""),
    **dict.fromkeys(("equal", "not_equal", "less_than", "less_equal", "argmax"), ""),
    **dict.fromkeys(("greater_than", "greater_equal"), ""),
}
_BACKENDS = {None: "portable", "tensorrt": "tensorrt", "mkldnn": "openvino", "onednn": "openvino"}


@dataclass(frozen=True, slots=True)
class PaddleSettings:
    """What a PaddleSlim dictionary means here.

    Attributes:
        config: the settings.
        target: name of the target.
    """

    config: QATConfig
    target: str


def config_from_paddle(settings: Mapping[str, Any] | None) -> PaddleSettings:
    """Settings from a PaddleSlim dictionary; missing keys keep PaddleSlim's defaults, None is all of them.

    Activations are quantized affine (u8) where the target wants it; the scale follows the key's method.

    Raises:
        ConfigError: unknown key or illegal value, with a suggestion.
    """
    if settings is not None and not isinstance(settings, Mapping):
        raise ConfigError(f"a quantization config is a dictionary, not a {type(settings).__name__}.")
    given = dict(settings or {})
    for key in given:
        if key not in _KEYS:
            raise ConfigError(f"unknown quantization key {key!r}{did_you_mean(key, _KEYS)}")
    _require(given, "dtype", ("int8",), "int8")
    for key in ("for_tensorrt", "is_full_quantize", "onnx_format", "quant_post_first", "scale_trainable"):
        _require(given, key, (True, False), False)
    target = _target(given)
    weight, per_channel = _choice(given, "weight_quantize_type", _WEIGHTS, "channel_wise_abs_max")
    activation = _choice(given, "activation_quantize_type", _ACTIVATIONS, "moving_average_abs_max")
    if _choice(given, "activation_preprocess_type", {None: None, "PACT": "pact"}, None):
        activation = "pact"
    config = QATConfig(
        weight=weight,
        weight_per_channel=per_channel,
        activation=activation,
        weight_preprocess=_choice(given, "weight_preprocess_type", {None: None, "PACT": "pact"}, None),
        weight_bits=given.get("weight_bits", 8),
        activation_bits=given.get("activation_bits", 8),
        window_size=given.get("window_size", 10_000),
        moving_rate=given.get("moving_rate", 0.9),
        skip=_patterns(given.get("not_quant_pattern", ())),
        op_types=_op_types(given, target),
    )
    return PaddleSettings(config, target)


def _require(given: Mapping[str, Any], key: str, legal: tuple[Any, ...], default: Any) -> Any:
    value = given.get(key, default)
    if value not in legal:
        raise ConfigError(f"{key} is {value!r}; legal: {', '.join(map(repr, legal))}.")
    return value


def _choice(given: Mapping[str, Any], key: str, legal: Mapping[Any, Any], default: Any) -> Any:
    value = given.get(key, default)
    if value not in legal:
        raise ConfigError(f"{key} is {value!r}{did_you_mean(str(value), map(str, legal))}")
    return legal[value]


def _target(given: Mapping[str, Any]) -> str:
    if given.get("for_tensorrt"):
        return "tensorrt"
    backend = given.get("deploy_backend")
    return str(
        _choice(
            {"deploy_backend": str(backend).lower() if backend else None}, "deploy_backend", _BACKENDS, None
        )
    )


def _patterns(patterns: str | list[str] | tuple[str, ...]) -> tuple[str, ...]:
    """Globs for PaddleSlim's substrings; "skip_quant", its default, is what the attribute is for."""
    words = [patterns] if isinstance(patterns, str) else patterns
    return tuple(f"*{word}*" for word in words if word != "skip_quant")


def _op_types(given: Mapping[str, Any], target: str) -> frozenset[str] | None:
    """Canonical ops that may be quantized; ops that only carry values along are always among them."""
    rules = target_named(target)
    layers, names = given.get("quantizable_layer_type"), given.get("quantize_op_types")
    if given.get("is_full_quantize") or (layers is None and names is None):
        return None
    if layers is not None:
        chosen = {_word("quantizable_layer_type", name, _LAYERS) for name in layers}
        return frozenset(chosen & rules.runs_int8) | rules.join | rules.follow | rules.carry
    chosen = {op for name in names or () for op in _word("quantize_op_types", name, _OPS).split()}
    return frozenset(chosen & rules.runs_int8) | rules.carry - {"max_pool", "resize"}


def _word(key: str, name: str, legal: Mapping[str, str]) -> str:
    if name not in legal:
        raise ConfigError(f"{key} {name!r}{did_you_mean(name, legal)}")
    return legal[name]
