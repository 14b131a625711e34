"""The written file on the engines of its target, beside the module as it is evaluated.

Codes are compared layer by layer on ONNX Runtime (:mod:`quantrim.qat.export.agreement`). An engine that runs
the file with kernels of its own may still compute something else, or not load it; so each one that is installed
is asked, and compared with the module's plain evaluation.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils._pytree import tree_leaves

from quantrim.engines import EngineName, installed_engines, open_session
from quantrim.errors import EngineError, ModelError
from quantrim.qat.export.labels import tensors_of
from quantrim.qat.interceptor import LiveModule
from quantrim.targets import Target

#: Relative L2 distance of an output that codes at ties explain in any case.
TIES = 0.02
#: What they explain in a deep or untrained network, which spreads each of them, over the distance between its
#: quantized and its float outputs: a code more or less is the noise that quantization itself makes.
TIES_SHARE = 1.5


@dataclass(frozen=True, slots=True)
class EngineAgreement:
    """An engine beside the module.

    Attributes:
        engine: its name.
        difference: largest relative L2 distance of a float output from the module's; infinite where the engine
            doesn't run the file.
        limit: largest one that codes at ties explain.
        refusal: why the engine doesn't run the file; "" where it does.
    """

    engine: EngineName
    difference: float
    limit: float
    refusal: str = ""

    @property
    def agrees(self) -> bool:
        """Whether the engine computes what the module computes."""
        return self.difference <= self.limit

    def __str__(self) -> str:
        if self.refusal:
            return self.refusal
        return f"{self.engine} is {self.difference:.2g} (relative L2) from the trained module"


def ask_engines(
    live: LiveModule, path: str | Path, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[EngineAgreement, ...]:
    """Run a file on every installed engine of its target.

    Args:
        live: the trained module.
        path: the file.
        args: positional inputs of the module.
        kwargs: keyword inputs of the module.
    """
    wanted = _evaluated(live, args, kwargs, quantizing=True)
    unquantized = _evaluated(live, args, kwargs, quantizing=False)
    limit = max(TIES, TIES_SHARE * _farthest(unquantized, wanted))
    values = [v.detach().cpu().numpy() for v in tensors_of(args, kwargs)]
    return tuple(_ask(engine, path, values, wanted, limit) for engine in _engines(live.target))


def _engines(target: Target) -> list[EngineName]:
    return [engine for engine in installed_engines() if engine in target.engines]


def _ask(
    engine: EngineName, path: str | Path, values: Sequence[np.ndarray], wanted: Sequence[Any], limit: float
) -> EngineAgreement:
    try:
        session = open_session(path, engine)
        feed = {port.name: value for port, value in zip(session.inputs, values, strict=True)}
        found = session.run(feed)
    except EngineError as error:
        return EngineAgreement(engine, float("inf"), limit, str(error))
    outputs = [found[port.name] for port in session.outputs]
    return EngineAgreement(engine, _farthest(wanted, outputs), limit)


def _evaluated(
    live: LiveModule, args: Sequence[Any], kwargs: Mapping[str, Any], *, quantizing: bool
) -> list[np.ndarray]:
    """Outputs of the module as a user sees them, with or without its quantizers."""
    before = live.quantizers.quantizing
    live.quantizers.quantizing = quantizing
    try:
        with live.evaluating():
            leaves = tree_leaves(live.module(*args, **kwargs))
    finally:
        live.quantizers.quantizing = before
    return [leaf.detach().float().cpu().numpy() for leaf in leaves if isinstance(leaf, Tensor)]


def _farthest(wanted: Sequence[np.ndarray], found: Sequence[np.ndarray]) -> float:
    return max((_distance(w, f) for w, f in zip(wanted, found, strict=True)), default=0.0)


def _distance(wanted: np.ndarray, found: np.ndarray) -> float:
    """||wanted - found|| / ||wanted||; 0 for classes, where two near ties may stand far apart."""
    if not np.issubdtype(found.dtype, np.floating):
        return 0.0
    wanted, found = wanted.astype(np.float64), found.astype(np.float64)
    distance = float(np.linalg.norm(wanted - found) / max(float(np.linalg.norm(wanted)), 1e-12))
    return distance if np.isfinite(distance) else float("inf")


def require_one(answers: Sequence[EngineAgreement], path: str | Path) -> None:
    """Refuse a file that no engine of its target computes right; warn of one that some don't.

    Raises:
        ModelError: every engine that was asked computes something else, or doesn't run the file.
    """
    wrong = [answer for answer in answers if not answer.agrees]
    told = "; ".join(map(str, wrong))
    advice = "Skip the layers before the outputs that differ, or choose a target without that engine."
    if wrong and len(wrong) == len(answers):
        raise ModelError(f"{path}: {told}. {advice}")
    if wrong:
        warnings.warn(f"{path}: {told}. {advice}", stacklevel=4)
