"""Where in the module tree a function is being called.

A call is known by the module call that is running, the canonical op, and how many calls of that op came
before it in the same module call: ``layer1.0.relu@1/relu`` is the first relu of the second call of
``layer1.0.relu`` within one call of ``layer1.0``. The name depends on nothing outside of the enclosing
module call, so a block that gradient checkpointing runs again gets the same names.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class CallFrame:
    """One running module call.

    Attributes:
        path: the module's path ("" for the root).
        name: the path with visit numbers; unique within a call of the root.
        calls: calls so far, by canonical op.
        visits: calls so far of inner modules, by path.
    """

    path: str
    name: str
    calls: dict[str, int] = field(default_factory=dict)
    visits: dict[str, int] = field(default_factory=dict)


class Scope:
    """Stack of the module calls that are running."""

    def __init__(self) -> None:
        self.frames: list[CallFrame] = []

    def enter(self, path: str, name: str | None = None) -> CallFrame:
        """Start of a call of the module at ``path``; ``name`` overrides the frame's name."""
        frame = CallFrame(path, self._name(path) if name is None else name)
        self.frames.append(frame)
        return frame

    def leave(self) -> None:
        """End of the innermost module call."""
        self.frames.pop()

    def site(self, op: str) -> str:
        """Name of a call of ``op`` that happens now; counts it."""
        frame = self.frames[-1]
        count = frame.calls.get(op, 0)
        frame.calls[op] = count + 1
        place = f"{frame.name}/{op}" if frame.name else op
        return f"{place}:{count}" if count else place

    @property
    def path(self) -> str:
        """Path of the innermost module that is running."""
        return self.frames[-1].path

    def _name(self, path: str) -> str:
        if not self.frames:
            return path
        parent = self.frames[-1]
        visit = parent.visits.get(path, 0)
        parent.visits[path] = visit + 1
        inside = not parent.path or path.startswith(parent.path + ".")
        relative = path[len(parent.path) :].lstrip(".") if inside else path
        name = f"{parent.name}{'.' if inside else '>'}{relative}" if parent.name else relative
        return f"{name}@{visit}" if visit else name
