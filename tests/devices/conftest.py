"""An sshd on a loopback port with keys of its own, and programs for it to run."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@pytest.fixture(scope="session")
def sshd(tmp_path_factory):
    """Port of a running sshd that lets this user in by a key; ``QUANTRIM_SSH`` names its client."""
    program = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")
    if program is None or shutil.which("ssh") is None:
        pytest.skip("OpenSSH's server is not installed (Debian: apt-get install openssh-server)")
    if os.geteuid() == 0:  # as the service's own start does
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    folder = tmp_path_factory.mktemp("sshd")
    for key in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / key], check=True)
    port = free_port()
    (folder / "sshd_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/host\nPidFile none\nUsePAM no\n"
        f"AuthorizedKeysFile {folder}/user.pub\nStrictModes no\nPasswordAuthentication no\n"
        f"PermitRootLogin prohibit-password\nSetEnv PYTHONPATH={ROOT} OMP_NUM_THREADS=1\n"
    )
    public = (folder / "host.pub").read_text()
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {public}")
    (folder / "config").write_text(
        f"Host *\n  HostName 127.0.0.1\n  User {getpass.getuser()}\n  IdentityFile {folder}/user\n"
        f"  IdentitiesOnly yes\n  UserKnownHostsFile {folder}/known_hosts\n"
    )
    log = (folder / "log").open("w")
    server = subprocess.Popen([program, "-D", "-e", "-f", folder / "sshd_config"], stderr=log)
    until = time.monotonic() + 10
    while socket.socket().connect_ex(("127.0.0.1", port)):
        if server.poll() is not None or time.monotonic() > until:
            pytest.skip(f"sshd does not start: {(folder / 'log').read_text().strip()}")
        time.sleep(0.05)
    yield port, f"ssh -F {folder}/config"
    server.terminate()
    server.wait()


@pytest.fixture
def port(sshd, monkeypatch):
    monkeypatch.setenv("QUANTRIM_SSH", sshd[1])
    return sshd[0]


@pytest.fixture
def program(tmp_path):
    """Makes an executable script that stands for a program on the host."""

    def make(name: str, text: str) -> Path:
        path = tmp_path / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return path

    return make


@pytest.fixture
def quantrim(program):
    return program("quantrim", f'exec {sys.executable} -m quantrim "$@"')


@pytest.fixture
def closed_port():
    """A port that nobody listens on."""
    return free_port()
