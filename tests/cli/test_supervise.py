"""Verbs end within a moment of a signal, leave nothing behind, and a crash of an engine takes one line."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

PROGRAM = """
import os, sys, time, signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
import quantrim.cli as cli
from quantrim.scratch import scratch_folder
def verb():
    with scratch_folder() as folder:
        (folder / "x").write_text("1")
        print("ready", flush=True)
        {body}
cli.app = verb
sys.argv = ["quantrim", "{name}"]
cli.main()
"""


def start(body: str, folder: Path, name: str = "ptq", **environment: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM.format(body=body, name=name)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"TMPDIR": str(folder)} | environment,
    )


def ended(process: subprocess.Popen, seconds: float = 20) -> tuple[int, str]:
    _, errors = process.communicate(timeout=seconds)
    return process.returncode, errors


@pytest.mark.parametrize("name", ["ptq", "train"], ids=["in a child", "in the process"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_the_verb_and_its_temporary_files(name, number, tmp_path):
    process = start("time.sleep(60)", tmp_path, name)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    code, errors = ended(process)
    assert code == 128 + number
    assert errors.strip() == ("quantrim: terminated" if number == signal.SIGTERM else "quantrim: interrupted")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", "an engine crashed on these files (SIGSEGV)"),
        ("os.abort()", "an engine crashed on these files (SIGABRT)"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "want of memory"),
    ],
)
def test_a_crash_is_one_line_and_leaves_nothing(body, words, tmp_path):
    code, errors = ended(start(body, tmp_path))
    assert code == 1
    assert errors.startswith("quantrim: error: ")
    assert words in errors
    assert errors.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("deaf", ["pass", "signal.signal(signal.SIGTERM, signal.SIG_IGN)"])
def test_a_verb_that_hangs_meets_the_time_limit(deaf, tmp_path):
    begin = time.monotonic()
    code, errors = ended(start(f"{deaf}; time.sleep(60)", tmp_path, QUANTRIM_TIME_LIMIT="0.5"))
    assert code == 1
    assert "no end within 0.5 s" in errors
    assert time.monotonic() - begin < 15
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA counts on Linux alone")
def test_a_verb_that_fills_the_memory_meets_its_limit(tmp_path):
    code, errors = ended(start("bytearray(10**10)", tmp_path, QUANTRIM_MEMORY_LIMIT="2"))
    assert code == 1
    assert errors.startswith("quantrim: error: not enough memory")


def test_a_limit_that_is_no_number_is_refused(tmp_path):
    code, errors = ended(start("pass", tmp_path, QUANTRIM_TIME_LIMIT="soon"))
    assert code == 1
    assert errors == "quantrim: error: QUANTRIM_TIME_LIMIT is 'soon'; it must be a positive number.\n"


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux for a signal at the parent's death")
def test_no_orphan_computes_on_when_the_parent_is_killed(tmp_path):
    process = start("print(os.getpid(), flush=True); time.sleep(60)", tmp_path)
    process.stdout.readline()
    child = int(process.stdout.readline())
    process.kill()
    process.wait()
    until = time.monotonic() + 10
    while Path(f"/proc/{child}").exists() and time.monotonic() < until:
        time.sleep(0.02)
    state = Path(f"/proc/{child}/stat")
    assert not state.exists() or state.read_text().split()[2] == "Z"


@pytest.mark.parametrize("name", ["ptq", "train"])
@pytest.mark.parametrize(
    ("body", "code"), [("sys.exit(2)", 2), ("pass", 0), ("sys.exit()", 0), ("sys.exit('x')", 1)]
)
def test_exit_codes_pass_through(name, body, code, tmp_path):
    assert ended(start(body, tmp_path, name))[0] == code


def test_an_internal_error_keeps_its_traceback(tmp_path):
    code, errors = ended(start("1 / 0", tmp_path))
    assert code == 70
    assert errors.rstrip().endswith("ZeroDivisionError: division by zero")


def test_the_command_line_loads_no_engine_before_the_child_is_there():
    """What a child loads may crash or leave files (ONNX Runtime's ``.ses``) with the child alone."""
    program = "import sys, quantrim.cli; print(*{'onnxruntime', 'openvino', 'torch'} & set(sys.modules))"
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == []
