"""The result of placement: which tensors carry a quantizer, who reads it, and what stays float."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class WeightQuantization:
    """Quantizer of a constant weight: symmetric int8 in -127..127.

    Attributes:
        node: name of the linear node.
        tensor: name of the constant.
        axis: output-channel dimension.
        bias: name of the bias, else None.
        source: activation tensor multiplied with the weight; gives the bias its scale.
    """

    node: str
    tensor: str
    axis: int
    bias: str | None
    source: str


@dataclass(frozen=True, slots=True)
class Plan:
    """Where quantizers stand.

    Attributes:
        target: name of the target the plan is for.
        activation: "u8" (affine) or "s8" (symmetric).
        int8_nodes: names of the nodes meant to run INT8.
        groups: quantized tensor → name of its scale group; tensors of a group share scale and zero point.
        reads: (node, tensor) pairs whose node reads the quantized tensor; others read the float one.
        outputs: graph outputs returned through a quantizer.
        weights: quantizers of constants by node name.
        float_nodes: linear nodes that stay float → reason.
    """

    target: str
    activation: Literal["u8", "s8"]
    int8_nodes: frozenset[str]
    groups: Mapping[str, str]
    reads: frozenset[tuple[str, str]]
    outputs: frozenset[str]
    weights: Mapping[str, WeightQuantization]
    float_nodes: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON value; sets become sorted lists."""
        return {
            "target": self.target,
            "activation": self.activation,
            "int8_nodes": sorted(self.int8_nodes),
            "groups": dict(sorted(self.groups.items())),
            "reads": sorted(map(list, self.reads)),
            "outputs": sorted(self.outputs),
            "weights": {name: _weight_json(w) for name, w in sorted(self.weights.items())},
            "float_nodes": dict(sorted(self.float_nodes.items())),
        }


def _weight_json(quantizer: WeightQuantization) -> dict[str, Any]:
    return {name: getattr(quantizer, name) for name in ("node", "tensor", "axis", "bias", "source")}


def plan_from_json(value: Mapping[str, Any]) -> Plan:
    """Plan from what :meth:`Plan.to_json` wrote."""
    return Plan(
        target=value["target"],
        activation=value["activation"],
        int8_nodes=frozenset(value["int8_nodes"]),
        groups=dict(value["groups"]),
        reads=frozenset((node, tensor) for node, tensor in value["reads"]),
        outputs=frozenset(value["outputs"]),
        weights={name: WeightQuantization(**w) for name, w in value["weights"].items()},
        float_nodes=dict(value["float_nodes"]),
    )
