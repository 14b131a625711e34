"""Where INT8 does not pay: what to deploy instead, and what would help, from the measured numbers alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from quantrim.engines.race import RACERS

_VNNI = frozenset({"avx_vnni", "avx512_vnni", "amx_int8"})
#: Below this, calls and memory traffic outweigh arithmetic on every CPU we measured.
_TINY_MS = 1.0
_MANY_CONVERSIONS = 0.15
_MUCH_FLOAT = 0.05


def fastest(latency_ms: Mapping[str, float | None]) -> str:
    """Precision with the smallest latency: "fp32", "bf16", "int8" or "int8_bf16"."""
    measured = {name: value for name, value in latency_ms.items() if value is not None}
    return min(measured, key=lambda name: measured[name])


def recommendation(latency_ms: Mapping[str, float | None]) -> str:
    """What to deploy, with the numbers that say so."""
    best = fastest(latency_ms)
    fp32, winner = latency_ms["fp32"], latency_ms[best]
    assert fp32 is not None
    assert winner is not None
    if best == "fp32":
        return f"Deploy FP32: {fp32:.2f} ms is the fastest that was measured."
    return f"Deploy {RACERS[best]}: {winner:.2f} ms, {fp32 / winner:.2f}x as fast as FP32."


def what_would_help(engine: Mapping[str, Any], target: str | None, flags: Sequence[str] | None) -> list[str]:
    """Reasons why INT8 is slow and what to try; empty where INT8 is the fastest.

    Args:
        engine: an engine's part of a result: verdict and latency_ms.
        target: rules that the file was made by; None where unknown.
        flags: the CPU's INT8 features; None where unknown.
    """
    times, verdict = engine["latency_ms"], engine["verdict"]
    if fastest(times) in ("int8", "int8_bf16"):
        return []
    hints = []
    if flags is not None and not _VNNI.intersection(flags):
        hints.append("This processor has no VNNI, so INT8 gains little here; measure on the one you deploy on.")
    if target not in (None, verdict["engine"]):
        hints.append(
            f"The file was made for target {target}; target {verdict['engine']} puts quantizers where this "
            "engine wants them, which matters for SiLU, HardSwish and squeeze-and-excitation."
        )
    float_share = 1.0 - verdict["int8_mac_share"]
    if float_share > _MUCH_FLOAT:
        worst = verdict["fallbacks"][0]
        hints.append(
            f"{100 * float_share:.0f} % of the multiply-accumulates ran in float, most of them in "
            f"{worst['node']} ({worst['reason']})."
        )
    if verdict["layers"] and verdict["conversions"] / verdict["layers"] > _MANY_CONVERSIONS:
        hints.append(
            f"{verdict['conversions']} of {verdict['layers']} layers only convert between types. Keep whole "
            "stretches float (skip), so that there are fewer borders."
        )
    if times["fp32"] < _TINY_MS:
        hints.append(
            f"At {times['fp32']:.2f} ms the model is so small that calls and memory traffic outweigh "
            "arithmetic: larger batches or several streams bring more than INT8."
        )
    hints.append("Pruning (quantrim prune) makes a model faster in every precision.")
    return hints
