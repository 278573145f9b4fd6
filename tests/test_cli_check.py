"""`vdisk check`: its exit statuses, and its repairs, with qemu-img check as the judge."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from random import Random

import pytest

import qemu
from cli import done, refused, vdisk
from harness import sfdisk

MIB = 1 << 20


@pytest.fixture
def image(tmp_path: Path) -> tuple[Path, bytearray]:
    """A VDI image made and written by QEMU's tools, and what it holds."""
    path, content = tmp_path / "disk.vdi", bytearray(16 * MIB)
    qemu.create(path, "vdi", len(content))
    qemu.scatter(path, "vdi", content, Random(2), 9)
    return path, content


def set_number(path: Path, offset: int, number: int) -> int:
    """Write a 32-bit number into a file; the one that was there."""
    with path.open("r+b") as file:
        file.seek(offset)
        (before,) = struct.unpack("<I", file.read(4))
        file.seek(offset)
        file.write(struct.pack("<I", number))
    return int(before)


COUNT = 0x184  # The header's count of allocated blocks.
MAP = 0x200  # Where qemu-img puts the block map.


def test_a_sound_image_is_told_so(image: tuple[Path, bytearray], tmp_path: Path) -> None:
    path, _ = image
    assert done("check", path) == f"{path}: no problems found\n"
    assert json.loads(done("check", "--json", path)) == {
        "address": str(path), "format": "vdi", "repaired": [], "problems": [],
    }  # fmt: skip
    raw = tmp_path / "raw.img"
    raw.write_bytes(bytes(MIB))
    done("check", raw)
    done("check", "--repair", raw)


def test_a_count_that_is_too_low_is_a_corruption_and_is_repaired(
    image: tuple[Path, bytearray],
) -> None:
    path, content = image
    count = set_number(path, COUNT, 1)
    ended = vdisk("check", path)
    assert ended.returncode == 4
    lines = ended.stdout.decode().splitlines()
    assert lines[0].startswith(f"{path}: corruption: the header counts 1 blocks")
    assert "--repair" in lines[-1]
    row = json.loads(vdisk("check", "--json", path).stdout)["problems"][0]
    assert (row["kind"], row["repairable"]) == ("corruption", True)
    said = done("check", "--repair", path)
    assert "repaired: the header counts 1" in said
    assert "no problems found" in said
    assert set_number(path, COUNT, count) == count
    qemu.expect(path, "vdi", content)
    qemu.check(path, "vdi")


def test_leaks_are_another_status_than_corruption(image: tuple[Path, bytearray]) -> None:
    path, content = image
    count = set_number(path, COUNT, 16)
    assert vdisk("check", path).returncode == 3
    # A place that no block is in: the block that was there is forgotten.
    set_number(path, COUNT, count)
    index = next(n for n in range(16) if any(content[n * MIB : (n + 1) * MIB]))
    set_number(path, MAP + 4 * index, 0xFFFFFFFF)
    content[index * MIB : (index + 1) * MIB] = bytes(MIB)
    assert vdisk("check", path).returncode in (3, 4)
    done("check", "--repair", path)
    qemu.expect(path, "vdi", content)
    qemu.check(path, "vdi")


def test_what_cannot_be_repaired_is_left_and_told(image: tuple[Path, bytearray]) -> None:
    """Two blocks in one place: nobody can say whose it is."""
    path, content = image
    used = [n for n in range(16) if any(content[n * MIB : (n + 1) * MIB])]
    with path.open("rb") as file:
        file.seek(MAP + 4 * used[0])
        (place,) = struct.unpack("<I", file.read(4))
    set_number(path, MAP + 4 * used[1], place)
    before = path.read_bytes()
    ended = vdisk("check", path)
    assert ended.returncode == 4
    assert b"as another does" in ended.stdout
    assert vdisk("check", "--repair", path).returncode in (1, 4)
    assert path.read_bytes() == before


def test_what_cannot_be_checked_is_an_error(image: tuple[Path, bytearray], tmp_path: Path) -> None:
    path, _ = image
    refused("check", tmp_path / "none.vdi")
    disk = tmp_path / "disk.img"
    disk.write_bytes(bytes(4 * MIB))
    sfdisk(disk, "2048,\n")
    assert f"vdisk check {disk}" in refused("check", f"{disk}/p1")
    set_number(path, 0x44, 0x00020000)
    assert "version 2.0" in refused("check", path)
