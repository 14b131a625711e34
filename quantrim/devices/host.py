"""Names of other machines, as users write them: ``ssh://[user@]host[:port][/path/of/quantrim]``."""

from __future__ import annotations

import os
import re
import shlex
from dataclasses import dataclass
from pathlib import PurePosixPath
from urllib.parse import unquote, urlsplit

from quantrim.errors import ConfigError

#: Environment variable with another ssh client, and options for it, as git has its GIT_SSH_COMMAND.
SSH = "QUANTRIM_SSH"
#: Seconds until a host that does not answer is given up: to connect, and in the middle of the work.
_CONNECT_S, _ALIVE_S, _ALIVE_COUNT = 10, 5, 3
#: No word that ssh could take for an option.
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*|\[[0-9A-Fa-f:.]+\]")
_NATIVE = "quantrim_bench"


@dataclass(frozen=True, slots=True)
class Host:
    """A machine that ssh reaches.

    Attributes:
        address: as the user wrote it.
        destination: ``user@host`` or ``host``, which may be an alias of the user's ssh configuration.
        port: None for what that configuration says, else 22.
        program: command to run there: ``quantrim``, or the path of one or of the native runner.
    """

    address: str
    destination: str
    port: int | None
    program: str

    @property
    def label(self) -> str:
        """Short name for files: the host, and the port where it was given."""
        name = self.destination.rpartition("@")[2].replace(":", "-")
        return name if self.port is None else f"{name}-{self.port}"

    @property
    def native(self) -> bool:
        """Whether the native runner is to be run."""
        return PurePosixPath(self.program).name == _NATIVE

    def command(self, script: str) -> list[str]:
        """Words that run a shell script on the host; they never ask for a password."""
        options = {
            "BatchMode": "yes",
            "ConnectTimeout": _CONNECT_S,
            "ServerAliveInterval": _ALIVE_S,
            "ServerAliveCountMax": _ALIVE_COUNT,
        }
        words = shlex.split(os.environ.get(SSH) or "ssh")
        words += [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
        if self.port is not None:
            words += ["-p", str(self.port)]
        return [*words, "-T", "--", self.destination, f"exec sh -c {shlex.quote(script)}"]


def host_named(text: str) -> Host:
    """Read an address.

    Raises:
        ConfigError: not of the form ``ssh://[user@]host[:port][/path/of/quantrim]``.
    """
    wrong = ConfigError(
        f"on {text!r}: not of the form ssh://[user@]host[:port][/path/of/quantrim].", field="on"
    )
    try:
        parts = urlsplit(text.strip())
        port = parts.port
    except ValueError as error:
        raise wrong from error
    login, at, place = parts.netloc.rpartition("@")
    name = re.sub(r":\d*$", "", place)
    if parts.scheme != "ssh" or parts.query or parts.fragment or not _NAME.fullmatch(name):
        raise wrong
    if at and not _NAME.fullmatch(login):  # no passwords: ssh takes none
        raise wrong
    destination = f"{login}@{name.strip('[]')}" if at else name.strip("[]")
    return Host(text.strip(), destination, port, unquote(parts.path).rstrip("/") or "quantrim")


def device_named(text: str) -> tuple[Host, ...]:
    """Hosts that are alike, with commas between: the next one takes over where one dies.

    Raises:
        ConfigError: as of :func:`host_named`.
    """
    return tuple(host_named(word) for word in text.split(","))
