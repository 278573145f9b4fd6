"""qemu-img and qemu-io as the witness: they make images, scatter data in them, read and check ours.

Formats have vdisk's names; `QEMU_NAMES` has those that QEMU calls otherwise.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from random import Random
from typing import Any

QEMU_NAMES = {"vhd": "vpc"}


def qemu(tool: str, *words: object, status: tuple[int, ...] = (0,)) -> str:
    """What a tool of QEMU prints; its exit status must be one of `status`."""
    line = [tool, *map(str, words)]
    ended = subprocess.run(line, capture_output=True, text=True, timeout=60)
    assert ended.returncode in status, f"{line}: {ended.stdout}{ended.stderr}"
    return ended.stdout + ended.stderr


def qemu_name(format_name: str) -> str:
    """QEMU's name of a format."""
    return QEMU_NAMES.get(format_name, format_name)


def create(path: Path, format_name: str, size: int, **options: object) -> Path:
    """An image made by qemu-img, with options as that calls them."""
    words = [f"{key}={value}" for key, value in options.items()]
    more = ["-o", ",".join(words)] if words else []
    qemu("qemu-img", "create", "-q", "-f", qemu_name(format_name), *more, path, size)
    return path


def info(path: Path, format_name: str) -> dict[str, Any]:
    """`qemu-img info`."""
    found: dict[str, Any] = json.loads(
        qemu("qemu-img", "info", "-U", "-f", qemu_name(format_name), "--output=json", path)
    )
    return found


def scatter(path: Path, format_name: str, content: bytearray, random: Random, count: int) -> None:
    """Have qemu-io write `count` patterns at random sectors of the image; `content` gets them too.
    """
    commands = []
    for _ in range(count):
        offset = random.randrange(len(content) // 512) * 512
        length = min(random.choice([512, 4096, 65536, 1 << 20]), len(content) - offset)
        byte = random.randrange(1, 256)
        commands += ["-c", f"write -q -P {byte} {offset} {length}"]
        content[offset : offset + length] = bytes([byte]) * length
    qemu("qemu-io", "-f", qemu_name(format_name), *commands, path)


def expect(path: Path, format_name: str, content: bytes | bytearray, *more: object) -> None:
    """By qemu-img compare, the image holds `content` and is exactly that long."""
    plain = path.with_name(path.name + ".expected")
    plain.write_bytes(content)
    qemu("qemu-img", "compare", "-f", "raw", "-F", qemu_name(format_name), *more, plain, path)
    plain.unlink()
    assert info(path, format_name)["virtual-size"] == len(content)


def check(path: Path, format_name: str) -> None:
    """qemu-img check finds nothing, not even a leak."""
    qemu("qemu-img", "check", "-f", qemu_name(format_name), path)


def data_runs(path: Path, format_name: str) -> list[tuple[int, int, int | None]]:
    """(start, end, host offset) of the runs that qemu-img map calls data, neighbours joined."""
    rows = json.loads(
        qemu("qemu-img", "map", "-U", "-f", qemu_name(format_name), "--output=json", path)
    )
    found: list[tuple[int, int, int | None]] = []
    for row in rows:
        if not row["data"]:
            continue
        start, end, place = row["start"], row["start"] + row["length"], row.get("offset")
        if found and found[-1][1] == start and place is not None and found[-1][2] is not None:
            first = found[-1]
            if first[2] is not None and first[2] + first[1] - first[0] == place:
                found[-1] = (first[0], end, first[2])
                continue
        found.append((start, end, place))
    return found
