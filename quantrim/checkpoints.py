"""Weights from a file into a model, saying what did not fit."""

from __future__ import annotations

import pickle
import struct
import warnings
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from quantrim.errors import CheckpointError

#: What torch raises for files that it did not write, or not to the end.
_UNREADABLE = (
    pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError, TypeError,
    AttributeError, struct.error,
)  # fmt: skip
#: What DDP and torch's AveragedModel put before every name.
_WRAPPER = "module."


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What became of each entry of a weight file.

    Attributes:
        loaded: names of the model that took their value from the file.
        missing: names of the model that the file lacks; they keep their initial value.
        unexpected: names of the file that the model lacks.
        mismatched: "name: file (shape), model (shape)" of entries whose shapes differ; they keep theirs.
    """

    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    mismatched: tuple[str, ...]

    @property
    def complete(self) -> bool:
        """Whether every name of the model and of the file met its like."""
        return not (self.missing or self.unexpected or self.mismatched)

    def __str__(self) -> str:
        parts = [f"{len(self.loaded)} entries fit"]
        for word in ("missing", "unexpected", "mismatched"):
            names = getattr(self, word)
            if names:
                more = ", ..." if len(names) > 3 else ""
                parts.append(f"{len(names)} {word} ({', '.join(names[:3])}{more})")
        return "; ".join(parts)


def read_state(path: str | Path) -> dict[str, Tensor]:
    """Tensors of a weight file by name.

    Args:
        path: a ``.safetensors`` file, or what ``torch.save`` wrote of a state dict, plain or under the key
            "state_dict" or "model". Names lose the "module." that DDP puts before them.

    Returns:
        Tensors on the CPU by name. As in ``module.state_dict()`` the attribute ``_metadata`` notes the version
        of each module, where the file holds it; safetensors files don't.

    Raises:
        CheckpointError: the file is missing, unreadable, or holds something else.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(
            f"{path}: no such weight file. Give the path of a .pt, .pth or .safetensors file."
        )
    if path.suffix != ".safetensors":
        return _state_of(load_plain(path), path)
    try:
        return _state_of(load_file(path), path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: the file is damaged or cut off ({error}).") from error


def load_plain(path: Path) -> Any:
    """What ``torch.save`` wrote, as long as it is tensors and plain data: nothing in the file is run.

    Raises:
        CheckpointError: the file is missing, empty, cut off, or holds other objects.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such file.") from error
    except _UNREADABLE as error:
        raise CheckpointError(
            f"{path}: {_why_unreadable(path, error)}. Take another copy, or save it with "
            "torch.save(model.state_dict(), path); Paddle's .pdparams must be converted first."
        ) from error


def _why_unreadable(path: Path, error: Exception) -> str:
    """A reason in our words: torch's go over many lines and advise to load unsafely."""
    if path.stat().st_size == 0:
        return "the file is empty"
    if isinstance(error, RuntimeError):
        return "the file is damaged or cut off"
    return "not a weight file that torch reads safely: no tensors, or objects besides them that would run code"


def _state_of(content: Any, path: Path) -> dict[str, Tensor]:
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not content:
        raise CheckpointError(f"{path}: holds {type(content).__name__}, not a state dict of tensors by name.")
    wrong = [name for name, value in content.items() if not isinstance(value, Tensor)]
    if wrong:
        raise CheckpointError(
            f"{path}: entry {wrong[0]!r} is not a tensor. Save model.state_dict() alone, or under 'state_dict'."
        )
    tensors = {str(name).removeprefix(_WRAPPER): value for name, value in content.items()}
    return _with_versions(tensors, _versions(content))


def _versions(state: Mapping[str, Any]) -> dict[str, Any] | None:
    """The notes that torch keeps with a state dict, by module, under the names that the tensors get."""
    notes = getattr(state, "_metadata", None)
    if not isinstance(notes, Mapping):
        return None
    # The wrapper's own note stands under "" and comes first; that of the model in it takes its place.
    return {f"{name}.".removeprefix(_WRAPPER).removesuffix("."): note for name, note in notes.items()}


def _with_versions(tensors: Mapping[str, Tensor], versions: Mapping[str, Any] | None) -> dict[str, Tensor]:
    """A state dict as modules expect it: some, as torchvision's MNASNet, refuse one without their version."""
    state = OrderedDict(tensors)
    if versions is not None:
        state._metadata = versions  # type: ignore[attr-defined]
    return state


def load_state(
    module: nn.Module, state: Mapping[str, Tensor], source: str | Path, *, strict: bool = True
) -> LoadReport:
    """Copy those tensors into a module whose name and shape it has.

    Args:
        module: the model; changed in place, or not at all when an error is raised.
        state: tensors by name. Where it holds no versions (``_metadata``), it counts as written by modules of
            today's.
        source: where they come from, for the messages.
        strict: every name and shape must fit; else what fits is loaded and the rest is told by a warning.

    Returns:
        What was loaded and what was not.

    Raises:
        CheckpointError: ``strict`` and something does not fit, or less than half of the module's entries do, so
            that the weights are of another model.
    """
    own = module.state_dict()
    fitting = {name: value for name, value in state.items() if name in own and own[name].shape == value.shape}
    report = _report(own, state, fitting)
    if 2 * len(fitting) < len(own):
        raise CheckpointError(
            f"{source}: weights of another model than {type(module).__name__}, of whose {len(own)} entries "
            f"{len(fitting)} fit. Give weights of this architecture."
        )
    if strict and not report.complete:
        raise CheckpointError(
            f"{source}: does not fit {type(module).__name__}: {report}. Build the model with the arguments "
            "(num_classes, ...) that it was trained with."
        )
    versions = getattr(state, "_metadata", None)
    _copy_into(module, _with_versions(fitting, versions or own._metadata), source)  # type: ignore[attr-defined]
    if not report.complete:
        warnings.warn(f"{source} fits {type(module).__name__} in part: {report}", stacklevel=2)
    return report


def _copy_into(module: nn.Module, state: Mapping[str, Tensor], source: str | Path) -> None:
    try:
        module.load_state_dict(state, strict=False)
    except (RuntimeError, ValueError) as error:  # of a module that reads its version
        raise CheckpointError(
            f"{source}: {type(module).__name__} refuses it: {' '.join(str(error).split())}. Give weights that "
            "this version of the model wrote."
        ) from error


def _report(
    own: Mapping[str, Tensor], state: Mapping[str, Tensor], fitting: Mapping[str, Tensor]
) -> LoadReport:
    return LoadReport(
        loaded=tuple(fitting),
        missing=tuple(name for name in own if name not in state),
        unexpected=tuple(name for name in state if name not in own),
        mismatched=tuple(
            f"{name}: file {tuple(state[name].shape)}, model {tuple(own[name].shape)}"
            for name in state
            if name in own and name not in fitting
        ),
    )


def require_numbers(module: nn.Module, source: str | Path) -> None:
    """Raise CheckpointError where a weight or a statistic of a module is NaN.

    Args:
        module: with the weights loaded.
        source: file that they came from.
    """
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point() and bool(torch.isnan(tensor).any()):
            raise CheckpointError(f"{source}: {name!r} holds NaN; the training that wrote it has diverged.")


def load_weights(module: nn.Module, path: str | Path, *, strict: bool = True) -> LoadReport:
    """Load a weight file into a model: :func:`read_state`, then :func:`load_state`."""
    return load_state(module, read_state(path), path, strict=strict)
