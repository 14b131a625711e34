"""Folders that a process has for itself: temporary ones, always swept, and a lock on those that it writes to.

Both rest on ``flock``: the kernel gives a lock back when its process ends, however it ends. So a temporary
folder whose lock is free is a dead process's, whatever runs under its process id today, or in which container.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import inspect
import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ParamSpec, TypeVar

from quantrim.errors import QuantrimError

try:
    import fcntl
except ImportError:  # Windows: temporary folders go at the end of the process, folders are not locked
    fcntl = None  # type: ignore[assignment]

P = ParamSpec("P")
R = TypeVar("R")
_PREFIX = "quantrim-"
#: Random letters that tempfile.mkdtemp puts behind it.
_RANDOM = 8
_PR_SET_PDEATHSIG = 1
_SCRATCH_LOCK, _FOLDER_LOCK = ".alive", ".quantrim.lock"
#: Folders younger than this may not have their lock yet, seconds.
_YOUNG_S = 60.0
#: A temporary file beside its target is a dead process's when nobody has written to it for so long, seconds.
_ABANDONED_S = 3600.0

#: Folders that this process has claimed: how often (recipes claim a folder, and so do the verbs they call), the
#: lock's descriptor, and whether the folder was made for the claim.
_claimed: dict[Path, tuple[int, int, bool]] = {}
_claiming = threading.Lock()


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    """A temporary folder that is gone when the block ends; that of a killed process goes at the next call."""
    sweep()
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
    handle = _locked(folder / _SCRATCH_LOCK)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if handle is not None:
            os.close(handle)


def end_with(parent: int) -> None:
    """Ask Linux for SIGTERM when the parent of this process is killed, so that no orphan computes on.

    Args:
        parent: its process id, as it knew itself.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)
    if os.getppid() != parent:  # it was killed in between
        os._exit(1)


def sweep() -> int:
    """Remove the temporary folders of this user's dead processes; how many there were."""
    if fcntl is None:
        return 0
    removed = 0
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):  # somebody else's, or another process sweeps it right now
            state = folder.lstat()
            if state.st_uid != os.getuid() or time.time() - state.st_mtime < _YOUNG_S:
                continue
            if len(folder.name) == len(_PREFIX) + _RANDOM and not any(folder.iterdir()):
                # its process was killed before it had the lock
                folder.rmdir()
                removed += 1
                continue
            handle = os.open(folder / _SCRATCH_LOCK, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder)
                removed += 1
            finally:
                os.close(handle)
    return removed


def sweep_beside(path: Path) -> None:
    """Remove the temporary files that killed processes left beside a file of this name."""
    for stale in path.parent.glob(f".{_literal(path.stem)}-????????{_literal(path.suffix)}"):
        with contextlib.suppress(OSError):
            if time.time() - stale.lstat().st_mtime > _ABANDONED_S:
                stale.unlink()


def _literal(text: str) -> str:
    return "".join(f"[{c}]" if c in "*?[" else c for c in text)


@contextlib.contextmanager
def claimed(folder: str | Path) -> Iterator[None]:
    """Keep other runs out of a folder until the block ends; within one process it may be claimed again.

    Args:
        folder: made if it is missing.

    Raises:
        QuantrimError: another process writes there, or the folder can't be written.
    """
    folder = Path(folder)
    if fcntl is None or int(os.environ.get("RANK", "0")) != 0:  # the first process of a group claims for all
        yield
        return
    try:
        with _claiming:
            place = _enter(folder)
    except OSError as error:
        raise QuantrimError(
            f"{folder}: can't be written ({error.strerror or error}). Choose a writable folder."
        ) from error
    try:
        yield
    finally:
        with _claiming:
            _release(place)


def _enter(folder: Path) -> Path:
    """Claim a folder once more; where it stands."""
    for last in (False,) * 99 + (True,):
        made = not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        place = folder.resolve()
        try:
            count, handle, made = _claimed.get(place) or (0, _claim(place), made)
        except FileNotFoundError:  # another process has ended, and took its empty folder away
            if last:
                raise
            continue
        _claimed[place] = count + 1, handle, made
        break
    return place


def _release(place: Path) -> None:
    """Give one claim back; with the last one go the lock, and the folder if it was made for it and is empty."""
    count, handle, made = _claimed.pop(place)
    if count > 1:
        _claimed[place] = count - 1, handle, made
        return
    if handle >= 0:
        (place / _FOLDER_LOCK).unlink(missing_ok=True)
        os.close(handle)
    if made:
        with contextlib.suppress(OSError):  # it holds something, as it should
            place.rmdir()


def claiming(verb: Callable[P, R]) -> Callable[P, R]:
    """Decorator: the folder that the verb's argument ``save_dir`` names is the verb's own until it ends."""
    signature = inspect.signature(verb)

    @functools.wraps(verb)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        with claimed(signature.bind(*args, **kwargs).arguments["save_dir"]):
            return verb(*args, **kwargs)

    return run


def _claim(folder: Path) -> int:
    path = folder / _FOLDER_LOCK
    while True:
        try:
            handle = _locked(path)
        except BlockingIOError:
            raise QuantrimError(
                f"{folder}: {_holder(path)} is writing here. Wait for its end, or choose another folder."
            ) from None
        if handle is None:
            return -1
        if path.exists() and os.path.samestat(os.fstat(handle), path.stat()):  # else its holder just removed it
            os.ftruncate(handle, 0)
            os.write(handle, str(os.getpid()).encode())
            return handle
        os.close(handle)


def _holder(path: Path) -> str:
    with contextlib.suppress(OSError, ValueError):
        return f"process {int(path.read_text())}"
    return "another process"


def _locked(path: Path) -> int | None:
    """Descriptor of a locked file; None where the file system knows no locks.

    Raises:
        BlockingIOError: another process holds it.
    """
    if fcntl is None:
        return None
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(handle)
        if error.errno in (errno.ENOLCK, errno.ENOTSUP, errno.EINVAL):
            return None
        raise
    return handle
