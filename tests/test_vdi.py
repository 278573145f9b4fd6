"""VDI: what qemu-img makes is read and written here, and the reverse; geometry; differencing."""

from __future__ import annotations

import os
import struct
from itertools import pairwise
from pathlib import Path
from random import Random

import pytest

import qemu
from cli import done, refused
from format_cases import scattered
from vdisk.errors import Corrupt, InvalidFormat, NotFound, Unsupported
from vdisk.extent import Kind
from vdisk.open import OpenOptions, open_image, resize_disk

MIB = 1 << 20
SIZE = 20 * MIB
SUBFORMATS = ["dynamic", "fixed"]


@pytest.mark.parametrize("static", ["on", "off"])
def test_an_image_that_qemu_scattered_reads_the_same_and_maps_the_same(
    tmp_path: Path, static: str
) -> None:
    image = qemu.create(tmp_path / "d.vdi", "vdi", SIZE, static=static)
    content = bytearray(SIZE)
    qemu.scatter(image, "vdi", content, Random(static), 40)
    with open_image(image, writable=False) as disk:
        assert disk.read(0, SIZE) == content
        assert disk.size == qemu.info(image, "vdi")["virtual-size"]
        # QEMU's map counts an allocated block as data, whatever its host file's holes are.
        runs = [e for e in disk.image.map(0, SIZE) if e.kind is Kind.DATA]
        assert [(e.guest_offset, e.guest_end, e.host_offset) for e in runs] == (
            qemu.data_runs(image, "vdi")
        )


@pytest.mark.parametrize("static", ["on", "off"])
def test_an_image_that_qemu_made_is_written_in_place(tmp_path: Path, static: str) -> None:
    image = qemu.create(tmp_path / "d.vdi", "vdi", SIZE, static=static)
    content = bytearray(SIZE)
    random = Random(static)
    for _ in range(3):
        qemu.scatter(image, "vdi", content, random, 5)
        with open_image(image, writable=True) as disk:
            scattered(disk, content, random, 8)
        qemu.expect(image, "vdi", content)
        qemu.check(image, "vdi")


@pytest.mark.parametrize("subformat", SUBFORMATS)
def test_an_image_made_written_and_resized_here_is_one_to_qemu(
    tmp_path: Path, subformat: str
) -> None:
    image = tmp_path / "d.vdi"
    done("create", image, "--size", "20M", "-o", f"subformat={subformat}")
    content = bytearray(SIZE)
    random = Random(subformat)
    for size in (SIZE, 33 * MIB + 512, 4 * MIB, 700 * MIB, 7 * MIB):
        with open_image(image, writable=True) as disk:
            resize_disk(disk, size)
            del content[size:]
            content.extend(bytes(size - len(content)))
            small = memoryview(content)[: 30 * MIB]
            part = bytearray(small)
            small.release()
            scattered(disk, part, random, 12)
            content[: len(part)] = part
        qemu.check(image, "vdi")
        assert qemu.info(image, "vdi")["virtual-size"] == size
    qemu.expect(image, "vdi", content)


def test_a_map_without_room_moves_the_first_blocks_and_loses_nothing(tmp_path: Path) -> None:
    """QEMU leaves no room after the map: 512 bytes of it are 128 blocks."""
    image = qemu.create(tmp_path / "d.vdi", "vdi", 100 * MIB)
    content = bytearray(100 * MIB)
    qemu.scatter(image, "vdi", content, Random(3), 30)
    with open_image(image, writable=True) as disk:
        resize_disk(disk, 3000 * MIB)
        assert disk.read(0, len(content)) == content
        disk.write(2999 * MIB, b"end")
    qemu.check(image, "vdi")
    with open_image(image, writable=True) as disk:
        resize_disk(disk, 100 * MIB)
    qemu.check(image, "vdi")
    qemu.expect(image, "vdi", content)


def test_a_fixed_image_has_all_its_space_and_a_dynamic_one_none(tmp_path: Path) -> None:
    for subformat, blocks in (("fixed", 20), ("dynamic", 0)):
        image = tmp_path / f"{subformat}.vdi"
        done("create", image, "--size", "20M", "-o", f"subformat={subformat}")
        assert image.stat().st_blocks * 512 // MIB == blocks
        assert f"subformat: {subformat}" in " ".join(done("info", image).split())


def geometry(image: Path, at: int) -> tuple[int, int, int, int]:
    """C/H/S and bytes per sector at an offset of the header (VDICore.h, VDIDISKGEOMETRY)."""
    found = struct.unpack_from("<IIII", image.read_bytes()[:512], at)
    return found[0], found[1], found[2], found[3]


def test_the_geometry_is_kept_in_the_header_and_believed(tmp_path: Path) -> None:
    image = tmp_path / "d.vdi"
    done("create", image, "--chs", "615/4/17")
    assert geometry(image, 0x1C8) == geometry(image, 0x15C) == (615, 4, 17, 512)
    assert "615/4/17 (source: header)" in done("info", image)
    assert "user.vdisk.geometry" not in os.listxattr(image)
    done("resize", image, "40M")
    assert geometry(image, 0x1C8) == (1204, 4, 17, 512)
    qemu.check(image, "vdi")


def test_an_image_of_qemu_has_no_geometry_and_gets_one(tmp_path: Path) -> None:
    """Its header is too short for one; the room is there, so it is made longer."""
    image = qemu.create(tmp_path / "d.vdi", "vdi", SIZE)
    with open_image(image, writable=False) as disk:
        assert disk.image.header_geometry is None
        wanted = disk.geometry
    with open_image(image, writable=True) as disk:
        disk.set_geometry(wanted)
    assert struct.unpack_from("<I", image.read_bytes()[:512], 0x48) == (0x190,)
    with open_image(image, writable=False) as disk:
        assert disk.image.header_geometry == wanted
    qemu.check(image, "vdi")


def chain(folder: Path, layers: int) -> list[Path]:
    paths = [folder / f"{number}.vdi" for number in range(layers)]
    done("create", paths[0], "--size", "8M")
    for base, overlay in pairwise(paths):
        with open_image(base, writable=True) as disk:
            disk.write(MIB * int(base.stem), base.stem.encode() * 1000)
        done("create", overlay, "--parent", base)
    return paths


def test_a_write_goes_into_the_overlay_and_leaves_its_parents_alone(tmp_path: Path) -> None:
    paths = chain(tmp_path, 4)
    before = [path.read_bytes() for path in paths[:-1]]
    with open_image(paths[-1], writable=True) as disk:
        expected = bytearray(disk.read(0, disk.size))
        assert [expected[MIB * n] for n in range(3)] == [0x30, 0x31, 0x32]
        scattered(disk, expected, Random(1), 30)
        assert disk.read(0, disk.size) == expected
    assert [path.read_bytes() for path in paths[:-1]] == before
    with open_image(paths[-1], writable=False) as disk:
        assert disk.read(0, disk.size) == expected
        assert list(disk.image.check()) == []


def test_an_overlay_that_is_larger_than_its_parent_has_zeros_there(tmp_path: Path) -> None:
    """The parent ends inside a block of the overlay; what was cut off and added is zeros too."""
    base = tmp_path / "base.vdi"
    done("create", base, "--size", str(MIB + 512))
    with open_image(base, writable=True) as disk:
        disk.write(0, b"b" * (MIB + 512))
    overlay = tmp_path / "overlay.vdi"
    done("create", overlay, "--parent", base, "--size", "4M")
    content = bytearray(b"b" * (MIB + 512) + bytes(3 * MIB - 512))
    with open_image(overlay, writable=True) as disk:
        assert disk.read(MIB + 600, 100) == bytes(100)
        disk.write(MIB + 1000, b"x")
        content[MIB + 1000] = ord("x")
        assert disk.read(0, disk.size) == content
        for size in (1024, 4 * MIB):
            resize_disk(disk, size)
            del content[size:]
            content.extend(bytes(size - len(content)))
        assert disk.read(0, disk.size) == content
    with open_image(overlay, writable=False) as disk:
        assert disk.read(0, disk.size) == content


def test_a_parent_is_known_by_its_uuid_whatever_it_is_called(tmp_path: Path) -> None:
    base, overlay = chain(tmp_path, 2)
    base.rename(tmp_path / "other name.vdi")
    with open_image(overlay, writable=False) as disk:
        assert disk.read(0, 3) == b"000"
    (tmp_path / "other name.vdi").rename(tmp_path.parent / f"{tmp_path.name}-elsewhere.vdi")
    with pytest.raises(NotFound, match="--allow-parent"):
        open_image(overlay, writable=False)
    allowing = OpenOptions(allow_parent=(tmp_path.parent,))
    with open_image(overlay, writable=False, options=allowing) as disk:
        assert disk.read(0, 3) == b"000"


def test_a_parent_that_was_written_to_since_is_refused(tmp_path: Path) -> None:
    base, overlay = chain(tmp_path, 2)
    with open_image(base, writable=True):
        pass  # Opening alone changes nothing.
    open_image(overlay, writable=False).close()
    with open_image(base, writable=True) as disk:
        disk.write(0, b"x")
    with pytest.raises(Corrupt, match="was written to"):
        open_image(overlay, writable=False)


def test_an_overlay_needs_a_vdi_beneath_it_and_is_not_fixed(tmp_path: Path) -> None:
    done("create", tmp_path / "raw.img", "--size", "1M")
    refused("create", tmp_path / "o.vdi", "--parent", tmp_path / "raw.img")
    base = chain(tmp_path, 1)[0]
    refused("create", tmp_path / "o.vdi", "--parent", base, "-o", "subformat=fixed")
    assert not (tmp_path / "o.vdi").exists()


@pytest.mark.parametrize(
    ("at", "value", "error"),
    [
        (0x40, 0, InvalidFormat),
        (0x44, 0x00010002, Unsupported),
        (0x48, 0x17F, Corrupt),
        (0x4C, 3, Unsupported),
        (0x154, 0, Corrupt),
        (0x158, 513, Corrupt),
        (0x170, 0xFFFFFFFF, Corrupt),
        (0x178, 0, Corrupt),
        (0x178, MIB + 1, Corrupt),
        (0x178, 1 << 31, Corrupt),
        (0x17C, 512, Unsupported),
        (0x180, 0xFFFFFFFF, Corrupt),
        (0x180, 0, Corrupt),
        (0x184, 0xFFFFFFFF, Corrupt),
    ],
)
def test_a_header_that_cannot_be_right_is_refused(
    tmp_path: Path, at: int, value: int, error: type[Exception]
) -> None:
    image = qemu.create(tmp_path / "d.vdi", "vdi", SIZE)
    content = bytearray(image.read_bytes())
    struct.pack_into("<I", content, at, value)
    image.write_bytes(content)
    with pytest.raises(error):
        open_image(image, writable=False, options=OpenOptions(format="vdi"))


def test_two_blocks_in_one_place_are_read_and_not_written(tmp_path: Path) -> None:
    image = qemu.create(tmp_path / "d.vdi", "vdi", SIZE)
    content = bytearray(SIZE)
    qemu.scatter(image, "vdi", content, Random(1), 20)
    header = image.read_bytes()[:512]
    (map_offset,) = struct.unpack_from("<I", header, 0x154)
    with image.open("r+b") as file:
        file.seek(map_offset)
        file.write(struct.pack("<II", 0, 0))
    qemu.qemu("qemu-img", "check", image, status=(2,))
    with open_image(image, writable=True) as disk:
        disk.read(0, SIZE)
        assert any("as another does" in problem.message for problem in disk.image.check())
        with pytest.raises(Corrupt, match="same place"):
            disk.write(0, b"x")


@pytest.mark.parametrize("count", [0, 2, 19])
def test_a_wrong_count_is_found_and_set_right_by_the_next_writer(
    tmp_path: Path, count: int
) -> None:
    """With one that is too low, QEMU gives the next block a place that is in use."""
    image = qemu.create(tmp_path / "d.vdi", "vdi", SIZE)
    content = bytearray(SIZE)
    qemu.scatter(image, "vdi", content, Random(1), 6)
    with image.open("r+b") as file:
        file.seek(0x184)
        file.write(struct.pack("<I", count))
    qemu.qemu("qemu-img", "check", image, status=(2,))
    with open_image(image, writable=True) as disk:
        assert [problem.repair is not None for problem in disk.image.check()] == [True]
        scattered(disk, content, Random(2), 5)
        assert list(disk.image.check()) == []
    qemu.check(image, "vdi")
    qemu.expect(image, "vdi", content)


def test_two_tebibytes_open_at_once_and_in_little_memory(tmp_path: Path) -> None:
    image = tmp_path / "d.vdi"
    done("create", image, "--size", "2T")
    with open_image(image, writable=True) as disk:
        disk.write((2 << 40) - 3, b"end")
        assert disk.read((2 << 40) - 4, 4) == b"\0end"
    qemu.check(image, "vdi")
