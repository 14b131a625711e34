"""PaddleSlim's quantization settings, understood and checked.

The keys are those of ``paddleslim.quant.quant_aware`` and ``paddleslim.dygraph.quant.QAT`` (2.0 to 2.6), which
PaddleSeg and PaddleDetection hand through.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
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
_SWITCHES = (
    "for_tensorrt",
    "is_full_quantize",
    "onnx_format",
    "quant_post_first",
    "scale_trainable",
    "fuse_conv_bn",
)
#: Legal values that ask for what is done in any case, or for what a file can't have.
_IDLE = (
    (
        "quant_post_first",
        True,
        "ranges always start from a calibration; call calibrate() with data, as qat does.",
    ),
    ("onnx_format", False, "files are ONNX with QuantizeLinear and DequantizeLinear."),
)
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
#: Paddle's operators → canonical ops, for post-training quantization and training alike. Every name of
#: PaddleSlim's lists is here; what a target runs of it is the target's matter. Comparisons stay float.
OPERATORS: Mapping[str, frozenset[str]] = {
    name: frozenset(ops.split())
    for names, ops in (
        ("conv2d depthwise_conv2d", "conv"),
        ("conv2d_transpose", "conv_transpose"),
        ("mul fc", "linear"),
        ("matmul matmul_v2", "linear matmul"),
        ("pool2d", "max_pool avg_pool global_avg_pool"),
        ("elementwise_add", "add"),
        ("elementwise_mul", "mul"),
        ("elementwise_sub", "sub"),
        ("concat", "concat"),
        ("scale", "mul add"),
        ("mean", "mean"),  # of all values; reduce_mean has axes
        ("reduce_mean", "global_avg_pool mean"),
        ("bilinear_interp nearest_interp trilinear_interp", "resize"),
        ("reshape reshape2", "reshape"),
        ("transpose transpose2", "transpose"),
        ("flatten flatten2", "flatten"),
        ("squeeze", "squeeze"),
        ("slice", "slice"),
        ("gather", "gather"),
        ("pad2d", "pad"),
        ("batch_norm", "batch_norm"),
        ("relu", "relu"),
        ("relu6", "clip"),
        ("leaky_relu", "leaky_relu"),
        ("sigmoid", "sigmoid"),
        ("swish", "swish"),
        ("tanh", "tanh"),
        ("softmax", "softmax"),
        ("argmax", "argmax"),
        ("equal not_equal less_than less_equal greater_than greater_equal", ""),
    )
    for name in names.split()
}
#: What PaddleSlim quantizes where nothing is said.
DEFAULT_OPERATORS = ("conv2d", "depthwise_conv2d", "mul")
_BACKENDS: Mapping[str | None, str] = {
    None: "portable",
    "tensorrt": "tensorrt",
    "mkldnn": "openvino",
    "onednn": "openvino",
}


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

    Activations are quantized affine (u8) where the target wants it; the scale follows the key's method. With
    ``fuse_conv_bn`` BatchNorms keep their running statistics from the first step, as if they were folded;
    ``scale_trainable`` makes the scales learned steps (LSQ).

    Raises:
        ConfigError: unknown key or illegal value, with a suggestion.

    Warns:
        UserWarning: a legal value that changes nothing here, with the reason.
    """
    if settings is not None and not isinstance(settings, Mapping):
        raise ConfigError(f"a quantization config is a dictionary, not a {type(settings).__name__}.")
    given = dict(settings or {})
    for key in given:
        if key not in _KEYS:
            raise ConfigError(f"unknown quantization key {key!r}{did_you_mean(key, _KEYS)}")
    _require(given, "dtype", ("int8",), "int8")
    for key in _SWITCHES:
        if not isinstance(given.get(key, False), bool):
            raise ConfigError(f"{key} is {given[key]!r}; legal: True, False.", field=key)
    for key, value, reason in _IDLE:
        if given.get(key) is value:
            warnings.warn(f"{key}={value} changes nothing here: {reason}", stacklevel=2)
    _require_consistent(given)
    target = _target(given)
    weight, per_channel = _choice(given, "weight_quantize_type", _WEIGHTS, "channel_wise_abs_max")
    activation = _choice(given, "activation_quantize_type", _ACTIVATIONS, "moving_average_abs_max")
    if _choice(given, "activation_preprocess_type", {None: None, "PACT": "pact"}, None):
        activation = "pact"
    if given.get("scale_trainable"):
        weight, activation = "lsq", "lsq"
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
        freeze_batch_norm_at=0 if given.get("fuse_conv_bn") else None,
    )
    return PaddleSettings(config, target)


def _require_consistent(given: Mapping[str, Any]) -> None:
    """Refuse a key that another one would silently win over."""
    trained = bool(given.get("scale_trainable"))
    pact = given.get("activation_preprocess_type") == "PACT"
    backend = given.get("deploy_backend")
    measured = ("range_abs_max", "abs_max")
    for wrong, key, other in (
        (trained and pact, "scale_trainable", "activation_preprocess_type 'PACT' learns the scales, too"),
        ((trained or pact) and given.get("activation_quantize_type") in measured, "activation_quantize_type",
         "the scales are learned; only moving_average_abs_max, its start, goes with that"),
        (trained and given.get("weight_quantize_type") in ("range_abs_max", "moving_average_abs_max"),
         "weight_quantize_type", "scale_trainable learns the steps; only (channel_wise_)abs_max goes with it"),
        (bool(given.get("for_tensorrt")) and backend is not None and str(backend).lower() != "tensorrt",
         "deploy_backend", "for_tensorrt names another engine"),
        ("quantize_op_types" in given and given.get("quantizable_layer_type") is not None, "quantize_op_types",
         "quantizable_layer_type says the same by layers; give one of the two"),
    ):  # fmt: skip
        if wrong:
            raise ConfigError(f"{key} is {given[key]!r}, but {other}.", field=key)


def _require(given: Mapping[str, Any], key: str, legal: tuple[Any, ...], default: Any) -> Any:
    value = given.get(key, default)
    if value not in legal:
        raise ConfigError(f"{key} is {value!r}; legal: {', '.join(map(repr, legal))}.")
    return value


def _choice(given: Mapping[str, Any], key: str, legal: Mapping[Any, Any], default: Any) -> Any:
    value = given.get(key, default)
    if not isinstance(value, str | None) or value not in legal:
        raise ConfigError(f"{key} is {value!r}{did_you_mean(str(value), map(str, legal))}")
    return legal[value]


def _target(given: Mapping[str, Any]) -> str:
    return "tensorrt" if given.get("for_tensorrt") else target_of(given.get("deploy_backend"))


def target_of(backend: str | None) -> str:
    """Target of a ``deploy_backend``; None is the portable one.

    Raises:
        ConfigError: an unknown word, or an engine that is not in scope.
    """
    word = backend.lower() if isinstance(backend, str) else backend
    if word == "arm":
        raise ConfigError(
            "deploy_backend 'ARM': Paddle Lite is not in scope; files are verified on OpenVINO, ONNX Runtime "
            "and TensorRT. Leave the key out for a file that runs on the first two, which have ARM builds.",
            field="deploy_backend",
        )
    return _choice({"deploy_backend": word}, "deploy_backend", _BACKENDS, None)


def _patterns(patterns: str | list[str] | tuple[str, ...]) -> tuple[str, ...]:
    """Globs for PaddleSlim's substrings; "skip_quant", its default, is what the attribute is for."""
    words = [patterns] if isinstance(patterns, str) else patterns
    if not isinstance(words, list | tuple) or not all(isinstance(word, str) for word in words):
        raise ConfigError(
            f"not_quant_pattern is {patterns!r}; it must be a word or a list of words.",
            field="not_quant_pattern",
        )
    return tuple(f"*{word}*" for word in words if word != "skip_quant")


def ops_of(names: Iterable[str], target: str, field: str = "quantize_op_types") -> frozenset[str]:
    """Canonical ops that Paddle's operators stand for on a target, and those that only hand codes on.

    Args:
        names: keys of :data:`OPERATORS`.
        target: name of the target.
        field: where the names stand, for messages.

    Raises:
        ConfigError: an unknown name, or none of them runs in INT8 on the target.

    Warns:
        UserWarning: an operator that the target neither runs in INT8 nor fuses into the operator before it.
    """
    rules, chosen = target_named(target), set[str]()
    for name in names:
        ops = _word(field, name, OPERATORS)
        chosen |= ops & rules.runs_int8
        if not ops & (rules.runs_int8 | rules.fuse | {"batch_norm"}):
            warnings.warn(
                f"{field}: {name!r} stays float, target {target!r} doesn't run it in INT8", stacklevel=3
            )
    _require_some(chosen & (rules.compute | {"matmul"}), field, names, target)
    return frozenset(chosen) | rules.carry - {"max_pool", "resize"}


def _layers_of(names: Iterable[str], target: str) -> frozenset[str]:
    """The same for classes of layers, with every op between them that the target runs in INT8."""
    rules, field, chosen = target_named(target), "quantizable_layer_type", set[str]()
    for name in names:
        op = _word(field, name, _LAYERS)
        if op in rules.compute:
            chosen.add(op)
        else:
            warnings.warn(
                f"{field}: {name!r} stays float, target {target!r} doesn't run it in INT8", stacklevel=3
            )
    _require_some(chosen, field, names, target)
    return frozenset(chosen) | rules.join | rules.follow | rules.carry


def _require_some(chosen: Iterable[str], field: str, names: Iterable[str], target: str) -> None:
    if not chosen:
        listed = ", ".join(names) or "nothing"
        raise ConfigError(
            f"{field}: of {listed}, target {target!r} runs no layer in INT8. Name another operator, or another "
            f"engine by deploy_backend ({', '.join(str(name) for name in _BACKENDS if name)}).",
            field=field,
        )


def _op_types(given: Mapping[str, Any], target: str) -> frozenset[str] | None:
    """Canonical ops that may be quantized; ops that only carry values along are always among them."""
    if given.get("is_full_quantize"):
        return None
    if (layers := given.get("quantizable_layer_type")) is not None:
        return _layers_of(_words("quantizable_layer_type", layers), target)
    return ops_of(_words("quantize_op_types", given.get("quantize_op_types", DEFAULT_OPERATORS)), target)


def _words(key: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not all(isinstance(word, str) for word in value):
        raise ConfigError(f"{key} is {value!r}; give a list of names.", field=key)
    return tuple(value)


def _word(key: str, name: str, legal: Mapping[str, Any]) -> Any:
    if name not in legal:
        raise ConfigError(f"{key} {name!r}{did_you_mean(name, legal)}", field=key)
    return legal[name]
