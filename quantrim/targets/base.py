"""What an engine runs in INT8, as data. One file an engine holds one :class:`Target`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from quantrim.errors import ConfigError, did_you_mean


@dataclass(frozen=True, slots=True)
class Target:
    """Rules of one engine (or of several at once).

    Attributes:
        name: what the user types.
        engines: engines that the file must load on.
        activation: "u8" affine (zero point anywhere in 0..255) or "s8" symmetric (zero point 0).
        compute: ops with a constant weight that run INT8, and start everything else.
        join: ops of several activations that run INT8 when all their inputs arrive as INT8.
        follow: ops of one activation that run INT8 when their input does, with a scale of their own.
        carry: ops that run INT8 and keep the scale of their input.
        fuse: activations computed inside the compute op before them; the quantizer stands behind.
        shared_scale: joins whose inputs and output have one scale.
        needs_output: compute ops that run INT8 only with a quantizer behind them. When it is empty,
            quantizers stand on inputs alone.
        carries_codes: what a carry op or a shared-scale join moves needs no second quantizer: the engine
            sees that the codes are still those of its inputs.
        residual: "both" inputs of an add are quantized, or only the "identity" branch, the other one
            being fused into the convolution that makes it.
        bias: "int32" with scale s_x * s_w, or "float".
        int8_matmul: products of two activations run INT8.
        misread: ops behind which an engine computes something else where they read, in float, a quantizer's
            result as it is or moved; a concat only where one of its operands is a constant.
        notes: where each rule was seen: rule → engine version and source.
    """

    name: str
    engines: tuple[str, ...]
    activation: Literal["u8", "s8"]
    compute: frozenset[str]
    join: frozenset[str]
    follow: frozenset[str]
    carry: frozenset[str]
    fuse: frozenset[str]
    shared_scale: frozenset[str]
    needs_output: frozenset[str]
    carries_codes: bool
    residual: Literal["both", "identity"]
    bias: Literal["int32", "float"]
    int8_matmul: bool
    notes: Mapping[str, str]
    misread: frozenset[str] = frozenset()

    @property
    def runs_int8(self) -> frozenset[str]:
        """Every op that may run INT8."""
        matmul = frozenset({"matmul"}) if self.int8_matmul else frozenset()
        return self.compute | self.join | self.follow | self.carry | matmul

    def require_ops(self, names: Iterable[str]) -> None:
        """Raise ConfigError for a canonical op that never runs INT8 here."""
        for op in names:
            if op not in self.runs_int8:
                why = f"target {self.name!r} can't run it in INT8{did_you_mean(op, self.runs_int8)}"
                raise ConfigError(f"op_types {op!r}: {why}", field="op_types")


def ops(names: str) -> frozenset[str]:
    """Set of canonical ops from their names, separated by blanks."""
    return frozenset(names.split())
