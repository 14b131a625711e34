"""Weights by address: fetched once into a cache, checked where the address says how."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

from quantrim.errors import CheckpointError
from quantrim.files import atomic_path

#: Seconds without an answer, and bytes that are too many.
_PATIENCE, _LIMIT = 30, 2**33


def cache_folder() -> Path:
    """Where downloads are kept: ``$XDG_CACHE_HOME/quantrim``, ``~/.cache/quantrim`` by default."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "quantrim"


def local_file(address: str | Path) -> Path:
    """A file on this disk: the path itself, or a copy of what stands at an http(s) address.

    Args:
        address: path or address; ``#sha256=HEX`` behind it, or its first eight digits or more, is compared with
            the file.

    Raises:
        CheckpointError: the address can't be read, or the file is another one than the check sum says.
    """
    if not re.match(r"\w+:/", str(address)):
        return Path(address)
    text = str(address)
    parts = urlsplit(text if "://" in text else text.replace(":/", "://", 1))  # Path() merges two slashes
    name = Path(parts.path).name
    if parts.scheme not in ("http", "https") or not name:
        raise CheckpointError(f"{text}: weights are downloaded from http and https addresses of files only.")
    if name.endswith(".pdparams"):
        raise CheckpointError(
            f"{text}: Paddle's .pdparams is not downloaded; convert it to a torch state dict and give its path."
        )
    url = parts._replace(fragment="").geturl()
    path = cache_folder() / hashlib.sha256(url.encode()).hexdigest()[:16] / name
    if not path.is_file():
        _download(url, path)
    wanted = re.fullmatch(r"sha256=([0-9a-fA-F]{8,64})", parts.fragment)
    if wanted and not sha256_of(path).startswith(wanted[1].lower()):
        path.unlink()
        raise CheckpointError(f"{url}: the file at this address is another one than its sha256 says.")
    return path


def sha256_of(path: Path) -> str:
    """Check sum of a file, 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _download(url: str, path: Path) -> None:
    try:
        with urllib.request.urlopen(url, timeout=_PATIENCE) as answer, atomic_path(path) as temporary:
            if int(answer.headers.get("Content-Length") or 0) > _LIMIT:
                raise CheckpointError(f"{url}: the file is larger than {_LIMIT >> 30} GB.")
            with temporary.open("wb") as file:
                shutil.copyfileobj(answer, file, 2**20)
    except (urllib.error.URLError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{url}: can't be downloaded ({getattr(error, 'reason', error)}). Fetch it where there is "
            "network and give the path."
        ) from error
