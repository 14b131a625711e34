"""What this machine is: processor, its INT8 features, memory, versions. Figures without it mean little."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

#: CPU flags that decide how fast and how exact INT8 runs on x86 (Linux names).
INT8_FLAGS = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16")
PACKAGES = ("quantrim", "numpy", "onnx", "onnxruntime", "openvino", "tensorrt", "torch", "torchvision")


@dataclass(frozen=True, slots=True)
class Machine:
    """Description of the machine that made a figure.

    Attributes:
        processor: model name.
        cores: logical cores this process may use.
        memory_gb: physical memory, 10^9 bytes.
        flags: the CPU's INT8 and BF16 features.
        system: operating system and release.
        versions: installed packages that matter.
        date: ISO date (UTC).
    """

    processor: str
    cores: int
    memory_gb: float
    flags: tuple[str, ...]
    system: str
    versions: dict[str, str]
    date: str

    def to_json(self) -> dict[str, Any]:
        """Plain JSON value."""
        return asdict(self)

    def line(self) -> str:
        """One line for the head of a table."""
        flags = ", ".join(flag for flag in self.flags if flag not in ("avx2", "avx512f")) or "no VNNI"
        return f"{self.processor} ({flags}), {counted(self.cores, 'core')}, {self.date}"


def counted(number: int, noun: str) -> str:
    """``1 core``, ``2 cores``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def describe_machine() -> Machine:
    """Describe the machine this process runs on."""
    info = _cpuinfo()
    present = set(info.get("flags", "").split())
    return Machine(
        processor=info.get("model name") or platform.processor() or platform.machine(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        memory_gb=round(_memory_bytes() / 1e9, 1),
        flags=tuple(flag for flag in INT8_FLAGS if flag in present),
        system=f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        versions=_versions(),
        date=datetime.now(UTC).date().isoformat(),
    )


def has_vnni(machine: Machine) -> bool:
    """Whether u8 x s8 products are summed without 16-bit saturation (VNNI or AMX)."""
    return any(flag in machine.flags for flag in ("avx_vnni", "avx512_vnni", "amx_int8"))


def _cpuinfo() -> dict[str, str]:
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return {}
    first = path.read_text().split("\n\n", 1)[0]
    pairs = (line.split(":", 1) for line in first.splitlines() if ":" in line)
    return {key.strip(): value.strip() for key, value in pairs}


def _memory_bytes() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return 0


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def expectations(machine: Machine) -> list[str]:
    """What INT8 and BF16 can bring on this processor, from its peak rates.

    One core multiplies and adds, each cycle, 32 float32 pairs with AVX-512 (2 FMA units), 128 int8 pairs
    with VNNI and 1,024 with AMX, so the ceilings over FP32 are 4x and 32x; memory-bound layers gain less.
    """
    lines = []
    if "amx_int8" in machine.flags:
        lines.append("AMX-INT8: large convolutions may run 8x to 11x as fast as FP32, depthwise ones 2x to 3x.")
    elif has_vnni(machine):
        lines.append(
            "VNNI: INT8 convolutions run at most 4x as fast as FP32, small or depthwise ones 2x to 3x."
        )
    elif "avx2" in machine.flags:
        lines.append(
            "No VNNI: INT8 gains little (1.2x to 1.5x); u8 x s8 sums saturate at 16 bits: use reduce_range."
        )
    else:
        lines.append("No INT8 instructions known to quantrim on this processor; measure before you quantize.")
    if "amx_bf16" in machine.flags:
        lines.append("AMX-BF16: BF16 alone may be several times as fast as FP32; compare INT8 with it.")
    elif "avx512_bf16" in machine.flags:
        lines.append("AVX512-BF16 without AMX: BF16 inference is often slower than FP32 here.")
    return lines
