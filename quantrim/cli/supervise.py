"""Signals and child processes: SIGTERM ends a verb as Ctrl-C does, and an engine that crashes takes one line.

Engines are C++ and read files that others made. A verb that gives them such a file runs in a fork of the
process, made before anything heavy is imported (3 ms): a segmentation fault or a kill for want of memory is
told in one line, and the temporary files of the child go with it, however it ends.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import NoReturn

from quantrim.errors import ConfigError
from quantrim.scratch import end_with, scratch_folder

#: Verbs that hand files of others to engines.
SUPERVISED = frozenset(
    {"bench", "compress", "evaluate", "infer", "inspect", "predict", "ptq", "report", "verify"}
)
#: Environment variables with limits for files that nobody vouches for: seconds, and 10^9 bytes.
TIME_LIMIT, MEMORY_LIMIT = "QUANTRIM_TIME_LIMIT", "QUANTRIM_MEMORY_LIMIT"
_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if os.name == "posix" else (signal.SIGINT,)
#: A terminal and the parent both pass Ctrl-C on; the second within so many seconds is the same one.
_SAME_S = 1.0
#: How long a child may take to clean up after its time is over, seconds.
_GRACE_S = 5.0


class Stopped(KeyboardInterrupt):
    """A signal asked the process to end.

    Attributes:
        signal: its number.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.signal = number


class Stop:
    """Handler of the signals that end a verb; remembers which one came."""

    def __init__(self) -> None:
        self.process, self.number, self.since = os.getpid(), 0, float("-inf")
        self.settled = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Raise :class:`Stopped` in this process; helpers forked from it end as they would without us."""
        if os.getpid() != self.process:
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        if self.settled or time.monotonic() - self.since < _SAME_S:
            return
        self.number, self.since = number, time.monotonic()
        raise Stopped(number)


def settled() -> None:
    """The result stands in its place: a signal from here on must not make a good run look failed."""
    for number in _STOPPING:
        stop = signal.getsignal(number)
        if isinstance(stop, Stop):
            stop.settled = True


@contextlib.contextmanager
def stopping() -> Iterator[Stop]:
    """SIGTERM and SIGHUP end the block as SIGINT does: with an exception, so that it can clean up."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.getsignal(number) for number in _STOPPING}
    for number, old in before.items():
        if old is not signal.SIG_IGN:  # nohup ignores SIGHUP for us
            signal.signal(number, stop)
    try:
        yield stop
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def supervised(run: Callable[[], int]) -> int:
    """Exit code of a function that runs in a child process, with the limits of the environment.

    Args:
        run: what the child does; its exit code.

    Returns:
        The child's exit code; 1 after one line on stderr where it crashed or met a limit.
    """
    if not _can_fork():
        return run()
    seconds, memory = _limit(TIME_LIMIT), _limit(MEMORY_LIMIT)
    with scratch_folder() as folder:
        sys.stdout.flush()
        sys.stderr.flush()
        parent = os.getpid()
        child = os.fork()
        if child == 0:
            _become_child(run, parent, folder, memory)
        status, late = _wait(child, seconds)
    if late:
        return _told(f"no end within {seconds:g} s ({TIME_LIMIT}).")
    if not os.WIFSIGNALED(status):
        if os.name == "posix":  # the child's answer is the answer, whatever comes while this process ends
            signal.pthread_sigmask(signal.SIG_BLOCK, _STOPPING)
        return os.waitstatus_to_exitcode(status)
    number = os.WTERMSIG(status)
    return 128 + number if number in _STOPPING else _told(_cause_of_death(number))


def _can_fork() -> bool:
    """Not on Windows, and not within a program that has threads or takes our output for itself."""
    try:
        own = (sys.stdout.fileno(), sys.stderr.fileno()) == (1, 2)
    except (OSError, AttributeError, ValueError):
        own = False
    return own and hasattr(os, "fork") and threading.active_count() == 1


def _limit(name: str) -> float | None:
    text = os.environ.get(name)
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e9:
        raise ConfigError(f"{name} is {text!r}; it must be a positive number.")
    return value


def _become_child(run: Callable[[], int], parent: int, folder: Path, memory: float | None) -> NoReturn:
    """Everything that happens in the child; it never returns into the parent's stack."""
    code = 70  # an internal error, after its traceback
    try:
        end_with(parent)
        os.environ["TMPDIR"] = tempfile.tempdir = str(folder)
        if memory is not None:
            import resource

            size = int(memory * 1e9)
            resource.setrlimit(resource.RLIMIT_DATA, (size, size))
        code = run()
    finally:
        leave(code)


def leave(code: int) -> NoReturn:
    """Leave with the exit code, having printed the traceback of whatever is under way.

    The libraries are not taken apart object by object: with torch and the engines that takes 1 to 4 s.
    """
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    kind, error, trace = sys.exc_info()
    if error is not None and kind is not None and not isinstance(error, SystemExit):
        sys.excepthook(kind, error, trace)
        sys.stderr.flush()
    os._exit(code)


def _wait(child: int, seconds: float | None) -> tuple[int, bool]:
    """Status of the child, and whether its time was over; signals are passed on to it."""

    def pass_on(number: int, frame: FrameType | None) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, number)

    before = {number: signal.getsignal(number) for number in _STOPPING}
    for number, old in before.items():
        if old is not signal.SIG_IGN:
            signal.signal(number, pass_on)
    try:
        if seconds is None:
            return os.waitpid(child, 0)[1], False
        return _wait_until(child, seconds)
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def _wait_until(child: int, seconds: float) -> tuple[int, bool]:
    for number, limit in ((signal.SIGTERM, seconds), (signal.SIGKILL, _GRACE_S)):
        until = time.monotonic() + limit
        while time.monotonic() < until:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                return status, number == signal.SIGKILL
            time.sleep(0.02)
        os.kill(child, number)
    return os.waitpid(child, 0)[1], True


def _cause_of_death(number: int) -> str:
    name = signal.Signals(number).name
    if number == signal.SIGKILL:
        return "the process was killed, most likely for want of memory. Use a smaller model, input or batch."
    return f"an engine crashed on these files ({name}): they are damaged, or the engine has a defect."


def _told(words: str) -> int:
    print(f"quantrim: error: {words}", file=sys.stderr)
    return 1
