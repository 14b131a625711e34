"""The rules of the house that a program can keep: one order of rooms, no circles, one home for a name."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
#: A room imports only from rooms that stand before it; ARCHITECTURE.md draws the same list.
ORDER = [
    *("errors", "scratch", "files", "journal", "images", "modules", "checkpoints", "distillation"),
    *("targets", "ranges", "graph", "placement", "detection", "judges"),
    *("engines", "rewrites", "post_training", "qat", "pruning"),
    *("probing", "compression", "vision", "report", "hub", "paddle", "serving", "devices"),
    *("recipes", "fleet", "cli"),
]
#: Old names that answer for one release and import nothing.
ALIASES = {"paddle_style"}
#: Rooms that solve the same task in three ways and know nothing of each other.
APART = ({"post_training", "qat", "pruning"},)
SOURCES = sorted(path for path in (ROOT / "quantrim").rglob("*.py"))


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_of(path): path for path in SOURCES}


def room_of(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def imports(path: Path) -> Iterator[tuple[str, str]]:
    """(module, name) of each import of the package, those in functions and under TYPE_CHECKING too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names if alias.name.startswith("quantrim"))
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("quantrim"):
            yield from ((str(node.module), alias.name) for alias in node.names)


def target_of(module: str, name: str) -> str:
    return f"{module}.{name}" if f"{module}.{name}" in MODULES else module


def test_every_room_has_a_place_in_the_order() -> None:
    rooms = {room_of(module) for module in MODULES} - {"", "__main__"} - ALIASES
    assert rooms <= set(ORDER), rooms - set(ORDER)


def test_rooms_import_only_from_rooms_before_them() -> None:
    climbs = []
    for module, path in MODULES.items():
        here = room_of(module)
        if here in {"", "__main__", *ALIASES}:  # the package's face imports verbs lazily
            continue
        for source, name in imports(path):
            there = room_of(target_of(source, name))
            if not there:
                continue
            apart = any({here, there} <= rooms and here != there for rooms in APART)
            if ORDER.index(there) > ORDER.index(here) or apart:
                climbs.append(f"{module} imports {source}.{name}")
    assert not climbs, "\n".join(climbs)


def test_no_circle_of_modules() -> None:
    graph = {
        module: {
            target_of(*found)
            for found in imports(path)
            if target_of(*found) in MODULES and target_of(*found) != module
        }
        for module, path in MODULES.items()
        if path.name != "__init__.py"
    }
    done: set[str] = set()

    def walk(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, " -> ".join([*trail[trail.index(module) :], module])
        if module in done:
            return
        for other in sorted(graph.get(module, ())):
            walk(other, (*trail, module))
        done.add(module)

    for module in graph:
        walk(module, ())


def test_private_names_stay_in_their_room() -> None:
    crossed = [
        f"{module} imports {source}.{name}"
        for module, path in MODULES.items()
        for source, name in imports(path)
        if name.startswith("_") and not name.startswith("__") and room_of(source) != room_of(module)
    ]
    assert not crossed, "\n".join(crossed)


def test_libraries_say_no_options_of_the_command_line() -> None:
    said = [
        f"{path.relative_to(ROOT)}: {text}"
        for module, path in MODULES.items()
        if room_of(module) != "cli"
        for text in re.findall(r"(?<![\w-])--[a-z][\w-]*", path.read_text(encoding="utf-8"))
    ]
    assert not said, "\n".join(said)


def test_one_exporter() -> None:
    calls = [path for path in SOURCES if "torch.onnx.export(" in path.read_text(encoding="utf-8")]
    assert [path.name for path in calls] == ["from_torch.py"]


@pytest.mark.parametrize("file", ["ARCHITECTURE.md"])
def test_the_order_is_drawn(file: str) -> None:
    text = (ROOT / file).read_text(encoding="utf-8")
    rooms = {room_of(module) for module in MODULES} - {"", "__main__"}
    drawn = re.search(r"```order\n(.*?)```", text, re.S)
    assert drawn, f"{file} lists the order of rooms in a block of its own"
    listed = re.findall(r"[a-z_]+", drawn[1])
    assert [room for room in ORDER if room in rooms] == [room for room in listed if room in rooms]
