"""libvhdi as the witness for VHD and VHDX: it reads differencing images, which QEMU does not.

Its Python binding belongs to the system's Python, so it is asked in a process of its own.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from random import Random
from typing import Any

from format_cases import scattered
from vdisk.open import open_image

MIB = 1 << 20

_PROGRAM = """
import json, sys
import pyvhdi
paths = sys.argv[2:]
files = []
for path in paths:
    file = pyvhdi.file()
    file.open(path)
    if files:
        files[-1].set_parent(file)
    files.append(file)
first = files[0]
if sys.argv[1] == "info":
    print(json.dumps({
        "size": first.get_media_size(), "type": first.get_disk_type(),
        "sector_size": first.get_bytes_per_sector(), "id": first.get_identifier(),
        "parent_identifier": first.get_parent_identifier(),
        "parent_filename": first.get_parent_filename(),
    }))
else:
    left = first.get_media_size()
    while left:
        block = first.read_buffer(min(left, 1 << 20))
        assert block, "it ends early"
        sys.stdout.buffer.write(block)
        left -= len(block)
"""


def libvhdi_info(path: Path) -> dict[str, Any]:
    """Size, type, identifiers and the parent's name as libvhdi has them."""
    found: dict[str, Any] = json.loads(_asked("info", [path]))
    return found


def expect_libvhdi(paths: list[Path], content: bytes) -> None:
    """By libvhdi, the image, on its parents (the nearest first), holds `content`."""
    found = _asked("read", paths)
    assert len(found) == len(content)
    assert found == content


def _asked(what: str, paths: list[Path]) -> bytes:
    line = ["/usr/bin/python3", "-c", _PROGRAM, what, *map(str, paths)]
    ended = subprocess.run(line, capture_output=True, check=False, timeout=60)
    assert ended.returncode == 0, ended.stderr.decode()
    return ended.stdout


def expect_writes_on_top(paths: list[Path]) -> None:
    """Write to the last of a chain of images, of which each began a MiB with its own digit.

    It reads as was written, here and by libvhdi, its parents stay, and `check` finds nothing.
    """
    before = [path.read_bytes() for path in paths[:-1]]
    with open_image(paths[-1], writable=True) as disk:
        content = bytearray(disk.read(0, disk.size))
        assert [content[MIB * n] for n in range(2)] == [0x30, 0x31]
        for salt in range(3):
            scattered(disk, content, Random(salt), 3)
            disk.write(7 * MIB + 3, b"odd")
            content[7 * MIB + 3 : 7 * MIB + 6] = b"odd"
            disk.flush()
        assert disk.read(0, disk.size) == content
    assert [path.read_bytes() for path in paths[:-1]] == before
    with open_image(paths[-1], writable=False) as disk:
        assert disk.read(0, disk.size) == content
        assert list(disk.image.check()) == []
    expect_libvhdi(paths[::-1], bytes(content))
