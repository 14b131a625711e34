"""What was removed, as a file: a fresh model becomes the pruned one by it, without pickled code."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import BaseModel, Field
from torch import nn

from quantrim.checkpoints import load_weights, read_state
from quantrim.errors import CheckpointError, DataError
from quantrim.files import atomic_path, read_json, validated, write_json
from quantrim.modules import named_tensors
from quantrim.pruning.groups.groups import Removal
from quantrim.pruning.groups.walk import Member
from quantrim.pruning.sizes import block_at, size_at
from quantrim.pruning.surgery import inverse, remove

PLAN_FILE, WEIGHT_FILE = "plan.json", "model.pth"
_FORMAT = 1


@dataclass(frozen=True, slots=True)
class PruningPlan:
    """Positions that stay.

    Attributes:
        shapes: sizes of all parameters and buffers of the model that the plan starts from, and numbers in
            attributes that go with them, such as ``num_heads``, as if they were vectors so long; residual
            blocks that go as a whole count as vectors of one.
        kept: positions that stay, rising, by dimension of a tensor; what is not named stays whole.
        facts: figures of the run that made it, for people.
    """

    shapes: Mapping[str, tuple[int, ...]]
    kept: Mapping[Member, tuple[int, ...]]
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def removal(self) -> Removal:
        """Positions that go."""
        return inverse(self.kept, self.shapes)

    def then(self, later: PruningPlan | Removal, facts: Mapping[str, Any] | None = None) -> PruningPlan:
        """This plan followed by another one, or a removal, from the model that it leaves."""
        removal, shapes = (later.removal, later.shapes) if isinstance(later, PruningPlan) else (later, {})
        first_named = {member.tensor for member in removal} - self.shapes.keys()  # attributes untouched so far
        shapes = {**self.shapes, **{name: shapes[name] for name in first_named}}
        kept = dict(self.kept)
        for member, gone in removal.items():
            before = np.asarray(kept.get(member, range(shapes[member.tensor][member.dim])), dtype=np.int64)
            kept[member] = tuple(map(int, np.delete(before, gone)))
        return PruningPlan(shapes, kept, dict(facts if facts is not None else self.facts))

    def apply(self, module: nn.Module) -> nn.Module:
        """Prune a model of the structure that the plan starts from, in place.

        Raises:
            CheckpointError: the model has other tensors or shapes.
        """
        shapes = tensor_shapes(module) | _sizes(module, self.kept)
        if shapes != dict(self.shapes):
            raise CheckpointError(
                f"the plan is of another model than {type(module).__name__}: {self._clash(shapes)}"
            )
        remove(module, self.removal)
        return module

    def _clash(self, shapes: Mapping[str, tuple[int, ...]]) -> str:
        for name, shape in self.shapes.items():
            if name not in shapes:
                return f"it has no {name!r}. Build the model with the arguments that it was trained with."
            if shapes[name] != shape:
                return (
                    f"{name!r} is of shape {shapes[name]}, planned for {shape}. Build the unpruned model "
                    "with the arguments that it was trained with."
                )
        extra = next(name for name in shapes if name not in self.shapes)
        return f"its {extra!r} is not in the plan. Build the model with the arguments that it was trained with."

    def to_json(self) -> dict[str, Any]:
        """Plain JSON value."""
        kept: dict[str, dict[str, list[int]]] = {}
        for member, positions in self.kept.items():
            kept.setdefault(member.tensor, {})[str(member.dim)] = list(positions)
        shapes = {name: list(shape) for name, shape in self.shapes.items()}
        return {"format": _FORMAT, "facts": dict(self.facts), "kept": kept, "shapes": shapes}

    @staticmethod
    def from_json(value: Any, source: str | Path) -> PruningPlan:
        """Plan of a JSON value.

        Raises:
            CheckpointError: it is no plan, or of a format that this version doesn't know.
        """
        if not isinstance(value, dict) or value.get("format") != _FORMAT:
            raise CheckpointError(f"{source}: not a pruning plan of format {_FORMAT}. Prune the model again.")
        stored = validated(_StoredPlan, value, source, "Prune the model again.")
        try:
            shapes = {name: tuple(shape) for name, shape in stored.shapes.items()}
            kept = {
                Member(name, int(dim)): tuple(positions)
                for name, dims in stored.kept.items()
                for dim, positions in dims.items()
            }
            for member, positions in kept.items():
                size = shapes[member.tensor][member.dim]
                if not positions and shapes[member.tensor] == (1,):
                    continue  # a block
                if (
                    not positions
                    or list(positions) != sorted(set(positions))
                    or not 0 <= positions[0] <= positions[-1] < size
                ):
                    raise ValueError(f"positions of {member.tensor!r} are not rising within 0..{size - 1}")
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise CheckpointError(
                f"{source}: damaged pruning plan ({error}). Prune the model again."
            ) from error
        return PruningPlan(shapes, kept, dict(stored.facts or {}))


class _StoredPlan(BaseModel):
    """plan.json. The largest axis of any model is far below the bound."""

    shapes: dict[str, list[Annotated[int, Field(ge=0, le=2**40)]]]
    kept: dict[str, dict[Annotated[str, Field(pattern=r"^\d{1,3}$")], list[Annotated[int, Field(ge=0)]]]]
    facts: dict[str, Any] | None = None


def empty_plan(module: nn.Module) -> PruningPlan:
    """Plan that keeps all of a module."""
    return PruningPlan(tensor_shapes(module), {})


def plan_of(module: nn.Module, removal: Removal) -> PruningPlan:
    """Plan of a removal from a module."""
    return PruningPlan(tensor_shapes(module) | _sizes(module, removal), {}).then(removal)


def _sizes(module: nn.Module, members: Iterable[Member]) -> dict[str, tuple[int, ...]]:
    """Numbers in attributes, and blocks, that are named beside tensors."""
    others = {one.tensor for one in members} - named_tensors(module).keys()
    sizes = {name: size for name in others if (size := size_at(module, name)) is not None}
    blocks = {name: 1 for name in others - sizes.keys() if block_at(module, name) is not None}
    return {name: (size,) for name, size in (sizes | blocks).items()}


def tensor_shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """Sizes of all parameters and buffers by name, tied ones under each name."""
    return {name: tuple(map(int, value.shape)) for name, value in named_tensors(module).items()}


def save_pruned(module: nn.Module, plan: PruningPlan, directory: str | Path) -> None:
    """Write ``model.pth`` (a plain state dict) and ``plan.json`` into a folder."""
    directory = Path(directory)
    content = io.BytesIO()  # torch's own file writer hides that a disk is full
    torch.save(_on_cpu(module.state_dict()), content)
    with atomic_path(directory / WEIGHT_FILE) as temporary:
        temporary.write_bytes(content.getbuffer())
    write_json(directory / PLAN_FILE, plan.to_json())


def _on_cpu(state: dict[str, Any]) -> dict[str, Any]:
    """A state dict on the CPU; it keeps torch's note of each module's version, which some modules ask for."""
    for name, value in state.items():
        state[name] = value.detach().cpu()
    return state


def read_plan(directory: str | Path) -> PruningPlan:
    """The plan of a folder that ``quantrim prune`` wrote.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    path = Path(directory) / PLAN_FILE
    try:
        value = read_json(path)
    except DataError as error:
        raise CheckpointError(f"{error}. Give a folder that 'quantrim prune' wrote.") from error
    return PruningPlan.from_json(value, path)


def load_pruned(module: nn.Module, directory: str | Path) -> nn.Module:
    """Turn a freshly built model into the pruned one that a folder holds.

    Args:
        module: the unpruned architecture, with any weights; changed in place.
        directory: with ``plan.json`` and ``model.pth``; the weights are read with ``weights_only=True``.

    Returns:
        The module, pruned and loaded.

    Raises:
        CheckpointError: a file is missing or damaged, or belongs to another model.
    """
    plan, path = read_plan(directory), Path(directory) / WEIGHT_FILE
    state = module.state_dict()  # brings the note of each module's version
    found = read_state(path)
    plan.apply(module)
    state.clear()
    state.update(found)
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        lines = " ".join(line.strip() for line in str(error).splitlines()[1:3])
        raise CheckpointError(f"{path}: does not fit the plan beside it: {lines}") from error
    return module


def plan_beside(weights: str | Path) -> PruningPlan | None:
    """The plan that lies beside a weight file of ``quantrim prune``; None where there is none.

    Raises:
        CheckpointError: the plan is damaged.
    """
    path = Path(weights)
    found = path.name == WEIGHT_FILE and (path.parent / PLAN_FILE).is_file()
    return read_plan(path.parent) if found else None


def load_trained(module: nn.Module, weights: str | Path) -> nn.Module:
    """Load weights into a freshly built model, pruned first where a plan lies beside them.

    Args:
        module: the unpruned architecture; changed in place.
        weights: a weight file, or ``model.pth`` of a folder that ``quantrim prune`` wrote.

    Raises:
        CheckpointError: a file is missing or damaged, or belongs to another model.
    """
    if plan_beside(weights) is not None:
        return load_pruned(module, Path(weights).parent)
    load_weights(module, weights)
    return module
