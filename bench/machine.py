"""What the figures were measured on."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from bench.contenders import Contender

_PACKAGES = ("pyfuse3", "trio")


def describe_machine() -> dict[str, str | int | float]:
    """Processor, memory, kernel and load.  Nothing that names the machine or its user."""
    return {
        "processor": _field("/proc/cpuinfo", "model name") or platform.machine(),
        "processors": len(os.sched_getaffinity(0)),
        "memory_bytes": int(_field("/proc/meminfo", "MemTotal").split()[0]) * 1024,
        "kernel": platform.release(),
        "root": int(os.geteuid() == 0),
        "load_at_start": round(os.getloadavg()[0], 2),
    }


def _field(path: str, name: str) -> str:
    for line in Path(path).read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return ""


def versions(contenders: Sequence[Contender]) -> dict[str, str]:
    """Versions of fio, Python, the servers and what vdisk stands on, as each tells its own."""
    found = {"python": platform.python_version(), "fio": _first_line(["fio", "--version"])}
    for contender in contenders:
        if contender.version_command:
            found[contender.name] = _first_line(contender.version_command)
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "unknown"
    return found


def _first_line(command: Sequence[str]) -> str:
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=20,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    lines = done.stdout.splitlines()
    return lines[0].strip() if lines else "unknown"
