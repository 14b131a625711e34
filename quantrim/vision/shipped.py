"""Configurations and example programs that come with the package: found by name, listed, copied."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Literal

from quantrim.errors import ConfigError, did_you_mean
from quantrim.files import atomic_path

Kind = Literal["configs", "examples"]

#: In a clone these folders are links to those beside the package; in a wheel they hold the files.
_PACKAGE = Path(__file__).resolve().parents[1]
_SUFFIXES = {"configs": (".yml",), "examples": (".py", ".md")}


def shipped(kind: Kind) -> list[str]:
    """Names of what is shipped, such as ``quick_start/bisenet_synthetic_disc_256x256.yml``, sorted."""
    root = _PACKAGE / kind
    files = (path for suffix in _SUFFIXES[kind] for path in root.glob(f"**/*{suffix}"))
    return sorted(path.relative_to(root).as_posix() for path in files)


def shipped_file(kind: Kind, name: str) -> Path:
    """Where a shipped file lies.

    Args:
        kind: "configs" or "examples".
        name: as :func:`shipped` lists it; ``configs/`` before it and the suffix may be there or not.

    Raises:
        ConfigError: nothing of this name is shipped.
    """
    names = shipped(kind)
    wanted = Path(name).as_posix().removeprefix(f"{kind}/")
    found = [one for one in names if wanted in (one, one.rpartition(".")[0])]
    found = found or [one for one in names if wanted in (Path(one).name, Path(one).stem)]
    if len(found) == 1:
        return _PACKAGE / kind / found[0]
    near = f"; it is one of {', '.join(found)}." if found else did_you_mean(wanted, names)
    raise ConfigError(f"{name}: nothing of this name is shipped{near}")


def copy_shipped(kind: Kind, names: list[str], folder: str | Path) -> list[Path]:
    """Copy shipped files to ``folder/configs`` or ``folder/examples``, where the documents name them.

    Args:
        kind: "configs" or "examples".
        names: of files; empty for all.
        folder: made where it is missing.

    Raises:
        ConfigError: a name is unknown, or another file stands in the way.
    """
    root, made = _PACKAGE / kind, []
    for source in [shipped_file(kind, name) for name in names or shipped(kind)]:
        target = Path(folder) / kind / source.relative_to(root)
        if target.is_file() and target.read_bytes() != source.read_bytes():
            raise ConfigError(f"{target}: another file stands there already. Give another folder.")
        with atomic_path(target) as temporary:
            shutil.copyfile(source, temporary)
        made.append(target)
    return made


def config_path(path: Path) -> Path:
    """The file itself; where it is missing and begins with ``configs/``, the shipped file of this name."""
    if path.exists() or path.parts[:1] != ("configs",):
        return path
    inside = _PACKAGE / path
    return inside if inside.is_file() and ".." not in path.parts else path
