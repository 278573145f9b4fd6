"""`vdisk convert` and `vdisk compare`: what qemu-img makes, reads and compares."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

import qemu
from cli import MAIN, done, environment, output, refused, vdisk
from devices import loop_mounted
from harness import PATIENCE, sfdisk
from model import host_folder
from vdisk.contents import PIECE_BYTES, ZERO_UNIT
from vdisk.convert import convert, plan_conversion
from vdisk.create import NewDisk, create_image, plan_disk
from vdisk.errors import InvalidArgument
from vdisk.formats import registry
from vdisk.formats.creation import Creation, Piece
from vdisk.geometry import Geometry
from vdisk.open import open_disk
from vdisk.options import OpenOptions

MIB = 1 << 20
SIZE = 12 * MIB
# Each change of the new image takes a while, so that there is a middle to be interrupted in.
SLOW_WRITES = """
import time
from vdisk.image_disk import ImageDisk
write = ImageDisk.write
def slowly(self, offset, data):
    time.sleep(0.02)
    write(self, offset, data)
ImageDisk.write = slowly
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    """In memory: it has holes, and takes no time."""
    with host_folder("memory") as made:
        yield made


def scattered(path: Path, format_name: str, seed: int = 0, size: int = SIZE) -> bytearray:
    """An image made and written by QEMU's tools; what it holds."""
    content = bytearray(size)
    qemu.create(path, format_name, size)
    qemu.scatter(path, format_name, content, Random(seed), 12)
    return content


@pytest.mark.parametrize(("one", "other"), [("vdi", "raw"), ("raw", "vdi"), ("vdi", "vdi"),
                                            ("raw", "raw")])  # fmt: skip
def test_a_converted_disk_is_the_same_to_qemu(folder: Path, one: str, other: str) -> None:
    source, target = folder / f"source.{one}", folder / f"target.{other}"
    content = scattered(source, one)
    before = source.read_bytes()
    done("convert", source, target, "--from-format", one)
    qemu.expect(target, other, content)
    if other == "vdi":
        qemu.check(target, other)
    assert source.read_bytes() == before
    assert target.stat().st_blocks * 512 <= source.stat().st_blocks * 512 + 2 * MIB
    assert done("compare", source, target) == ""


@pytest.mark.parametrize("target", ["target.raw", "target.vdi"])
def test_zeros_among_the_data_take_no_space(folder: Path, target: str) -> None:
    """A fixed VDI holds every zero; 64 KiB at a time they become holes (blocks of 1 MiB in a VDI).
    """
    source = folder / "source.vdi"
    done("create", source, "--size", "16M", "-o", "subformat=fixed")
    done("write", source, "--offset", "3M", stdin=b"x" * 70000)
    done("convert", source, folder / target)
    taken = (folder / target).stat().st_blocks * 512
    assert taken <= (128 << 10) + (0 if target == "target.raw" else 2 * MIB)
    content = bytes(3 * MIB) + b"x" * 70000 + bytes(13 * MIB - 70000)
    qemu.expect(folder / target, target[-3:], content)


def test_a_partition_becomes_a_disk_and_goes_back_into_one(folder: Path) -> None:
    disk, part, vdi = folder / "disk.img", folder / "part.vdi", folder / "whole.vdi"
    disk.write_bytes(bytes(SIZE))
    sfdisk(disk, "2048,8192\n10240,+\n")
    first, second = Random(1).randbytes(8192 * 512), Random(2).randbytes(1000)
    done("write", f"{disk}/p1", stdin=first)
    done("write", f"{disk}/p2", stdin=second)
    done("convert", f"{disk}/p1", part)
    qemu.expect(part, "vdi", first)
    done("convert", disk, vdi)
    done("write", f"{vdi}/p1", stdin=bytes(len(first)))
    # Into a partition of a VDI; the second one, and all else, stays.
    done("convert", part, f"{vdi}/p1", "--into")
    qemu.expect(vdi, "vdi", disk.read_bytes())
    qemu.check(vdi, "vdi")


def test_what_was_there_is_replaced_and_what_lies_behind_stays(folder: Path) -> None:
    """Also where the source has holes: nothing of the old disk may shine through."""
    for name in ("target.img", "target.vdi"):
        source, target = folder / "source.vdi", folder / name
        content = scattered(source, "vdi", seed=5)
        done("create", target, "--size", str(SIZE + MIB))
        done("write", target, stdin=b"\xee" * (SIZE + MIB))
        done("convert", source, target, "--into")
        qemu.expect(target, {"img": "raw"}.get(name[-3:], "vdi"), content + b"\xee" * MIB)
        source.unlink()


def test_an_existing_disk_is_only_written_over_when_that_is_said(folder: Path) -> None:
    source, target = folder / "source.img", folder / "target.img"
    source.write_bytes(b"s" * MIB)
    target.write_bytes(b"t" * MIB)
    assert "--into" in refused("convert", source, target)
    assert "--into" in refused("convert", source, f"{target}/p1")
    assert target.read_bytes() == b"t" * MIB
    assert "no such file" in refused("convert", source, folder / "none.img", "--into")
    target.write_bytes(b"t" * (MIB - 512))
    assert "vdisk resize" in refused("convert", source, target, "--into")
    assert target.read_bytes() == b"t" * (MIB - 512)


def converted(source: Path, target: Path, **asked: Any) -> Geometry:
    """The geometry of what `source` was converted to."""
    with open_disk(source) as disk:
        new = plan_conversion(disk, target, OpenOptions(**asked))
        convert(disk, target, new, lambda count: None)
    with open_disk(target) as disk:
        return disk.geometry


def test_the_geometry_goes_along_unless_only_the_size_told_it(folder: Path) -> None:
    source = folder / "source.img"
    create_image(source, plan_disk(chs="20/8/17"))
    assert converted(source, folder / "1.vdi") == Geometry(20, 8, 17)
    assert converted(source, folder / "2.vdi", chs="10/16/17") == Geometry(10, 16, 17)
    pc98 = folder / "pc98.hdi"
    assert converted(source, pc98, chs="20/16/17", sector_size=256) == Geometry(20, 16, 17, 256)
    # And the sectors of 256 bytes that a PC-98's drive has, where the target can hold them.
    assert converted(pc98, folder / "back.nhd") == Geometry(20, 16, 17, 256)
    with pytest.raises(InvalidArgument, match="512 bytes, not 256"):
        converted(pc98, folder / "3.vdi")
    assert converted(pc98, folder / "3.vdi", sector_size=512).sector_size == 512
    plain = folder / "plain.img"
    plain.write_bytes(bytes(5 * MIB))
    assert converted(plain, folder / "4.nhd") == Geometry(76, 8, 17)


@pytest.mark.parametrize(
    ("number", "status"),
    [
        (signal.SIGTERM, 143),
        (signal.SIGINT, 130),
        pytest.param(signal.SIGHUP, 129, marks=pytest.mark.slow),
    ],
)
def test_an_interrupted_conversion_leaves_nothing_behind(
    folder: Path, number: signal.Signals, status: int
) -> None:
    source, target = folder / "source.vdi", folder / "target.vdi"
    done("create", source, "--size", "24M")
    done("write", source, stdin=b"x" * (24 * MIB))
    line = [sys.executable, "-c", SLOW_WRITES + MAIN, "convert", str(source), str(target)]
    with subprocess.Popen(line, env=environment(), stderr=subprocess.PIPE) as process:
        deadline = time.monotonic() + PATIENCE
        while not target.exists() or target.stat().st_blocks < 8 * 2048:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.005)
        process.send_signal(number)
        _, said = process.communicate(timeout=PATIENCE)
    assert process.returncode == status
    assert b"Traceback" not in said
    assert [path.name for path in folder.iterdir()] == ["source.vdi"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")
@pytest.mark.parametrize("name", ["target.img", "target.vdi"])
def test_a_host_that_is_full_leaves_no_part_of_the_image(folder: Path, name: str) -> None:
    source, small = folder / "source.img", folder / "small"
    source.write_bytes(b"x" * SIZE)
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8M", "tmpfs", small], check=True)
    try:
        assert "No space left" in refused("convert", source, small / name)
        assert list(small.iterdir()) == []
        (small / name).touch()
        done("resize", small / name, str(SIZE), "--format", "raw")
        said = refused("convert", source, small / name, "--into")
        assert "No space left" in said
        assert "partly written over" in said
        assert (small / name).stat().st_size == SIZE
    finally:
        subprocess.run(["umount", small], check=True)


def test_a_source_that_cannot_be_read_leaves_no_part_of_the_image(folder: Path) -> None:
    source, target = folder / "source.vdi", folder / "target.img"
    scattered(source, "vdi")
    with source.open("r+b") as file:
        file.seek(0x200 + 4 * 5)
        file.write(b"\0\1\0\0")  # Block 5 lies in place 256.
    assert "names place 256" in refused("convert", source, target)
    assert not target.exists()


def test_where_blocks_can_be_shared_they_are(tmp_path: Path) -> None:
    """Btrfs, on a loop device: no data move, and both files have the same blocks."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount")
    device, mountpoint = tmp_path / "btrfs", tmp_path / "mnt"
    mountpoint.mkdir()
    device.touch()
    os.truncate(device, 256 * MIB)
    subprocess.run(["mkfs.btrfs", "-q", str(device)], check=True)
    with loop_mounted(device, mountpoint):
        source, target = mountpoint / "source.img", mountpoint / "target.img"
        source.write_bytes(Random(3).randbytes(SIZE))
        done("convert", source, target)
        subprocess.run(["cmp", str(source), str(target)], check=True)
        assert "shared" in output("filefrag", "-v", target)


# A compressing format.  None is needed to show what it is handed.

def test_a_format_that_compresses_is_handed_all_that_is_not_zeros(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = folder / "source.img", folder / "target.img"
    content = bytearray(3 * MIB + 5000)
    for at, length in ((1000, 10), (MIB - 5, 200_000), (len(content) - 1, 1)):
        content[at : at + length] = b"x" * length
    source.write_bytes(content)
    got = bytearray(len(content))
    pieces: list[tuple[int, int]] = []

    def write(creation: Creation, given: Iterator[Piece]) -> None:
        for piece in given:
            pieces.append((piece.offset, piece.offset + len(piece.data)))
            got[piece.offset : piece.offset + len(piece.data)] = piece.data
        creation.host.write(0, bytes(creation.size))

    raw = registry.FORMATS["raw"]
    able = type(raw)(raw.name, raw.open, raw.create, unsigned=True, write_compressed=write)
    monkeypatch.setitem(registry.FORMATS, "raw", able)
    told: list[int] = []
    new = NewDisk(len(content), plan_disk(size_bytes=512).geometry)
    with open_disk(source) as disk:
        convert(disk, target, new, told.append, compress=True)
    assert sum(told) == len(content)
    assert got == content
    for start, end in pieces:
        assert start % ZERO_UNIT == 0
        assert end % ZERO_UNIT == 0 or end == len(content)
        assert (end - 1) // PIECE_BYTES == start // PIECE_BYTES
    assert sum(end - start for start, end in pieces) < MIB


def test_a_format_that_does_not_compress_says_so(folder: Path) -> None:
    source = folder / "source.img"
    source.write_bytes(b"x" * MIB)
    assert "vdi images are not compressed" in refused(
        "convert", "--compress", source, folder / "target.vdi"
    )
    assert [path.name for path in folder.iterdir()] == ["source.img"]


# Comparing


def test_compare_says_where_the_first_difference_is(folder: Path) -> None:
    one, other = folder / "one.vdi", folder / "other.img"
    content = scattered(one, "vdi", seed=9)
    other.write_bytes(content)
    assert done("compare", one, other) == ""
    at = 7 * MIB + 12345
    with other.open("r+b") as file:
        file.seek(at)
        file.write(bytes([content[at] ^ 0x81]))
    ended = vdisk("compare", one, other)
    assert ended.returncode == 1
    said = ended.stdout.decode()
    assert f"byte {at}, LBA {at // 512}, C/H/S " in said
    assert said.endswith(f"{content[at]:#04x}, {content[at] ^ 0x81:#04x}\n")
    assert qemu.qemu("qemu-img", "compare", "-f", "vdi", "-F", "raw", one, other, status=(1,))
    assert vdisk("compare", "-q", one, other).stdout == b""


@pytest.mark.parametrize(
    ("tail", "equal"), [(b"", True), (bytes(1000), True), (bytes(70000) + b"\1", False)]
)
def test_what_one_disk_has_more_must_be_zeros(folder: Path, tail: bytes, equal: bool) -> None:
    one, other = folder / "one.img", folder / "other.img"
    one.write_bytes(b"same" * 30000)
    other.write_bytes(b"same" * 30000 + tail)
    for a, b in ((one, other), (other, one)):
        assert vdisk("compare", a, b).returncode == (0 if equal else 1)
        line = ["qemu-img", "compare", "-f", "raw", "-F", "raw", a, b]
        assert subprocess.run(line, capture_output=True, check=False).returncode == (not equal)
    assert vdisk("compare", "--strict", one, other).returncode == (1 if tail else 0)


def test_a_disk_that_cannot_be_compared_is_another_status(folder: Path) -> None:
    one = folder / "one.img"
    one.write_bytes(b"x" * 512)
    assert "no such file" in refused("compare", one, folder / "none", status=2)
    (folder / "broken.vdi").write_bytes(bytes(100))
    refused("compare", one, folder / "broken.vdi", "--format-b", "vdi", status=2)


def test_an_interrupted_creation_of_any_kind_leaves_nothing(folder: Path) -> None:
    """Whatever filling the new image raises, it is gone."""
    path = folder / "new.vdi"

    def fill() -> None:
        assert path.exists()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        create_image(path, plan_disk(size_bytes=MIB), fill=fill)
    assert list(folder.iterdir()) == []
