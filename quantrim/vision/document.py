"""YAML read as data of a stranger: merged along ``_base_``, with the line of every key, within limits.

A small file can ask for a lot: nested aliases grow exponentially, deep nesting ends the interpreter's stack, a
number of a million digits takes minutes. Every limit here is far above what a configuration needs.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from quantrim.errors import ConfigError
from quantrim.vision.shipped import config_path

MAX_BYTES = 2**17
#: Keys and values of a file after its aliases have been put in.
MAX_NODES = 20_000
MAX_DEPTH = 40
MAX_DIGITS = 64
#: Files that a configuration may inherit from, one from the other.
MAX_BASES = 16
_PLAIN = frozenset(
    f"tag:yaml.org,2002:{kind}" for kind in ("str", "int", "float", "bool", "null", "map", "seq")
)
_MERGE = "tag:yaml.org,2002:merge"

Key = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Document:
    """What a file and its bases say.

    Attributes:
        path: the file.
        values: merged plain values.
        lines: file and line of a key, by the keys that lead to it; places in lists count as keys "0", "1".
    """

    path: Path
    values: dict[str, Any]
    lines: dict[Key, tuple[Path, int]]

    def fail(self, key: str, message: str, line_key: str | None = None) -> ConfigError:
        """Error that names the file, the line and the key.

        Args:
            key: dotted; empty for the whole file.
            message: what is wrong.
            line_key: the key whose line is told, or that of the nearest key above it; ``key`` by default.
        """
        parts = tuple((key if line_key is None else line_key).split("."))
        known = next((parts[:n] for n in range(len(parts), 0, -1) if parts[:n] in self.lines), None)
        where = str(self.path) if known is None else "{}:{}".format(*self.lines[known])
        return ConfigError(": ".join(filter(None, (where, key, message))))


def read_document(path: str | Path, overrides: Sequence[str] = ()) -> Document:
    """Read a file, its bases, and put overrides in.

    Args:
        path: .yml or .yaml file; ``configs/...`` that is not there is the shipped one.
        overrides: ``key.inner=value`` texts; values are YAML.

    Raises:
        ConfigError: a file is missing, no YAML mapping or over a limit, a key stands twice, ``_base_`` runs in
            a circle, an override leads nowhere.
    """
    document = _with_bases(config_path(Path(path)), ())
    for text in overrides:
        _override(document, text)
    return document


def _with_bases(path: Path, seen: tuple[Path, ...]) -> Document:
    if path.suffix not in (".yml", ".yaml"):
        raise ConfigError(f"{path}: a configuration is a .yml or .yaml file.")
    if not path.is_file():
        raise ConfigError(
            f"{path}: no such configuration. `quantrim configs list` names those that are shipped."
        )
    if path.resolve() in seen:
        raise ConfigError(f"{path}: _base_ runs in a circle: {' -> '.join(one.name for one in (*seen, path))}.")
    if len(seen) > MAX_BASES:
        raise ConfigError(f"{path}: _base_: a chain of more than {MAX_BASES} files. Inherit from fewer.")
    lines: dict[Key, tuple[Path, int]] = {}
    values = _Reader(path, lines).read(_text(path))
    document = Document(path, values, lines)
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: a configuration is a YAML mapping, this is a {type(values).__name__}.")
    base = values.pop("_base_", None)
    if base is None:
        return Document(path, _without_marks(values), lines)
    if not isinstance(base, str):
        raise document.fail("_base_", f"is {base!r}; it must be the path of a configuration.")
    inherited = _with_bases(path.parent / base, (*seen, path.resolve()))
    merged = _merge(_without_length(inherited.values, values), values)
    return Document(path, merged, inherited.lines | lines)


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise ConfigError(f"{path}: is larger than {MAX_BYTES // 1024} kB, so it is no configuration.")
        return data.decode("utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: can't be read ({error.strerror}).") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: no text file in UTF-8 ({error.reason}).") from error


class _Loader(yaml.SafeLoader):
    """Stops at the depth that is legal, before the stack does; leaves dates as the text that they are."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """The next node."""
        if self.depth > MAX_DEPTH:
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.MarkedYAMLError(problem=f"nested deeper than {MAX_DEPTH} levels", problem_mark=mark)
        self.depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in rules if tag in _PLAIN or tag == _MERGE]
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


class _Reader:
    """Plain values of one text.

    Args:
        where: the file, or what else the text comes from, for messages.
        lines: gets the line of every key; None where there is no file.
    """

    def __init__(self, where: Path | str, lines: dict[Key, tuple[Path, int]] | None = None) -> None:
        self.where, self.lines = where, lines

    def read(self, text: str) -> Any:
        try:
            loader = _Loader(text)
            node = loader.get_single_node()
            if node is None:
                return None
            if self._weigh(node, {}) > MAX_NODES:
                raise ConfigError(f"{self.where}: more than {MAX_NODES} values with its aliases put in.")
            return self._plain(loader, node, ())
        except yaml.MarkedYAMLError as error:
            at = error.problem_mark or error.context_mark
            line = "" if at is None else f":{at.line + 1}"
            problem = " ".join(filter(None, (error.context, error.problem)))
            raise ConfigError(f"{self.where}{line}: no valid YAML ({problem}).") from error
        except yaml.YAMLError as error:
            raise ConfigError(f"{self.where}: no valid YAML ({' '.join(str(error).split())}).") from error

    def _weigh(self, node: yaml.Node, known: dict[int, int]) -> int:
        """Nodes below this one with its aliases put in; each is visited once."""
        if id(node) not in known:
            known[id(node)] = 0  # under way
            inner = node.value if isinstance(node, yaml.CollectionNode) else ()
            children = [one for each in inner for one in (each if isinstance(each, tuple) else (each,))]
            known[id(node)] = 1 + sum(self._weigh(child, known) for child in children)
        elif known[id(node)] == 0:
            raise yaml.MarkedYAMLError(problem="an alias holds itself", problem_mark=node.start_mark)
        return known[id(node)]

    def _plain(self, loader: _Loader, node: yaml.Node, at: Key) -> Any:
        if node.tag not in _PLAIN:
            raise yaml.MarkedYAMLError(problem=f"{node.tag} is not allowed", problem_mark=node.start_mark)
        if at and self.lines is not None:
            self.lines.setdefault(at, (Path(self.where), node.start_mark.line + 1))
        if isinstance(node, yaml.MappingNode):
            return self._mapping(loader, node, at)
        if isinstance(node, yaml.SequenceNode):
            return [self._plain(loader, one, (*at, str(n))) for n, one in enumerate(node.value)]
        if len(node.value) > MAX_DIGITS and not node.tag.endswith(":str"):
            raise yaml.MarkedYAMLError(
                problem=f"{'.'.join(at)}: a number of {len(node.value)} characters; {MAX_DIGITS} at most",
                problem_mark=node.start_mark,
            )
        try:
            return loader.construct_object(node)
        except (ValueError, KeyError) as error:  # "!!int x" and the like
            raise yaml.MarkedYAMLError(
                problem=f"{node.value[:40]!r} is no {node.tag.rpartition(':')[2]}", problem_mark=node.start_mark
            ) from error

    def _mapping(self, loader: _Loader, node: yaml.MappingNode, at: Key) -> dict[str, Any]:
        first: dict[str, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode) or key.tag not in _PLAIN | {_MERGE}:
                raise yaml.MarkedYAMLError(problem="a key that is no text", problem_mark=key.start_mark)
            if key.value in first:
                dotted = ".".join((*at, key.value))
                raise ConfigError(
                    f"{self.where}:{line}: {dotted}: the key stands twice, first in line {first[key.value]}."
                )
            first[key.value] = line
        loader.flatten_mapping(node)
        values: dict[str, Any] = {}
        for key, value in node.value:
            if self.lines is not None:
                self.lines[(*at, key.value)] = Path(self.where), key.start_mark.line + 1
            values[key.value] = self._plain(loader, value, (*at, key.value))
        return values


def _without_length(values: dict[str, Any], new: Mapping[str, Any] | Sequence[str]) -> dict[str, Any]:
    """The values, without iters and epochs if a new value sets one of them: the two exclude each other."""
    return {k: v for k, v in values.items() if k not in _LENGTHS} if _LENGTHS & set(new) else values


_LENGTHS = frozenset({"iters", "epochs"})


def _merge(base: dict[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Values of ``new`` over ``base``; a mapping with ``_inherited_: False`` replaces instead of merging."""
    merged = copy.deepcopy(base)
    for key, value in new.items():
        if isinstance(value, dict) and value.get("_inherited_", True) and isinstance(merged.get(key), dict):
            merged[key] = _merge(merged[key], value)
        else:
            merged[key] = _without_marks(value)
    merged.pop("_inherited_", None)
    return merged


def _without_marks(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_marks(inner) for key, inner in value.items() if key != "_inherited_"}
    return [_without_marks(inner) for inner in value] if isinstance(value, list) else value


def _override(document: Document, text: str) -> None:
    """Put ``a.b=value`` into the values; the key has no line from then on."""
    dotted, separator, value = text.partition("=")
    keys, where = dotted.split("."), f"override {text[:80]!r}"
    if not separator or not all(keys) or len(keys) > MAX_DEPTH:
        raise ConfigError(f"{where} is not of the form key=value.", field="override")
    if keys[0] in _LENGTHS:
        for length in _LENGTHS:
            document.values.pop(length, None)
    values: Any = document.values
    for key in keys[:-1]:
        place = _place(values, key, where)
        values = values[place] if isinstance(values, list) else values.setdefault(place, {})
        if not isinstance(values, dict | list):
            raise ConfigError(f"{where}: {key!r} holds a {type(values).__name__}, no mapping.")
    values[_place(values, keys[-1], where)] = _Reader(where).read(value)
    for known in [known for known in document.lines if known[: len(keys)] == tuple(keys)]:
        del document.lines[known]


def _place(values: Any, key: str, where: str) -> Any:
    """The key itself, or its number where the values are a list."""
    if not isinstance(values, list):
        return key
    if not key.isdecimal() or int(key) >= len(values):
        raise ConfigError(
            f"{where}: {key!r} is no place in a list of {len(values)}; give 0 to {len(values) - 1}."
        )
    return int(key)
