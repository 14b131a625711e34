"""What the ops alone tell of the sign and size of a tensor, and so of the codes it needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from quantrim.graph.ops import having
from quantrim.graph.view import Graph, Node
from quantrim.qat.config import QATConfig
from quantrim.qat.quantizers.activations import Codes, codes_for


@dataclass(frozen=True, slots=True)
class Sign:
    """What is known of a tensor.

    Attributes:
        non_negative: no value is below zero.
        cap: largest value that can occur, None when unknown.
    """

    non_negative: bool
    cap: float | None


def sign_facts(graph: Graph) -> dict[str, Sign]:
    """What is known of the sign and size of each tensor from the ops alone."""
    facts = dict.fromkeys(graph.inputs, Sign(False, None))
    for node in graph.nodes:
        sources = [facts.get(name, Sign(False, None)) for name in node.inputs]
        fact = _sign(node, sources)
        facts.update(dict.fromkeys(node.outputs, fact))
    return facts


def _sign(node: Node, sources: Sequence[Sign]) -> Sign:
    inherited = bool(sources) and all(fact.non_negative for fact in sources)
    cap = None
    if node.op in having("bounded"):
        caps = [fact.cap for fact in sources]
        cap = None if None in caps or not caps else max(c for c in caps if c is not None)
    if node.op == "clip":
        low, high = node.attributes.get("low"), node.attributes.get("high")
        return Sign((low is not None and low >= 0) or inherited, high)
    if node.op in having("non_negative"):
        return Sign(True, 1.0 if node.op != "relu" else cap)
    constant = node.attributes.get("constant_operand", False)
    bicubic = node.attributes.get("mode") == "bicubic"  # overshoots
    negative = node.op == "pad" and node.attributes.get("value", 0) < 0
    keeps = node.op in having("keeps_sign") and not constant and not bicubic and not negative
    return Sign(keeps and inherited, cap if keeps and inherited else None)


def group_codes(
    groups: Mapping[str, str], signs: Sequence[Mapping[str, Sign]], activation: str, config: QATConfig
) -> dict[str, Codes]:
    """Codes of each group: unsigned from zero where no member is ever negative.

    Args:
        groups: quantized tensor → group.
        signs: facts of each run.
        activation: "u8" or "s8".
        config: gives the width.
    """
    members: dict[str, list[Sign]] = {}
    known = config.activation_preprocess is None  # a module of the user's may give any values
    for tensor, group in groups.items():
        facts = [each[tensor] for each in signs if tensor in each]
        members.setdefault(group, []).extend(facts if known else [Sign(False, None)] * len(facts))
    codes = {}
    for group, facts in members.items():
        non_negative = bool(facts) and all(fact.non_negative for fact in facts)
        caps = [fact.cap for fact in facts]
        cap = max(c for c in caps if c is not None) if non_negative and None not in caps else None
        kind = "u8" if activation == "u8" else "s8"
        codes[group] = codes_for(kind, config.activation_bits, non_negative, cap)  # type: ignore[arg-type]
    return codes
