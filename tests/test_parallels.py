"""Parallels: images of qemu-img and of Parallels Desktop, read and written in place."""

from __future__ import annotations

import struct
from pathlib import Path
from random import Random

import pytest

import qemu
from cli import refused
from format_cases import scattered
from samples import unpacked
from vdisk.errors import Corrupt, InvalidFormat, ReadOnly, Unsupported
from vdisk.extent import Kind, merged
from vdisk.formats.base import ProblemKind
from vdisk.geometry import Geometry
from vdisk.open import OpenOptions, open_image, resize_disk

MIB = 1 << 20
SIZE = 10 * MIB + 512
IN_USE, CLOSED = 0x746F6E59, 0x312E3276


def numbers(image: Path, form: str, at: int) -> tuple[int, ...]:
    return struct.unpack_from(form, image.read_bytes(), at)


def patch(image: Path, at: int, form: str, *values: int | bytes) -> None:
    with image.open("r+b") as file:
        file.seek(at)
        file.write(struct.pack(form, *values))


def test_an_image_that_qemu_made_is_read_mapped_and_written_in_place(tmp_path: Path) -> None:
    image = qemu.create(tmp_path / "d.hds", "parallels", SIZE)
    content = bytearray(SIZE)
    random = Random(1)
    for _ in range(2):
        qemu.scatter(image, "parallels", content, random, 5)
        with open_image(image, writable=True) as disk:
            assert disk.read(0, SIZE) == content
            runs = [e for e in merged(disk.image.map(0, SIZE)) if e.kind is Kind.DATA]
            assert [(e.guest_offset, e.guest_end, e.host_offset) for e in runs] == (
                qemu.data_runs(image, "parallels")
            )
            assert numbers(image, "<I", 44) != (IN_USE,)
            scattered(disk, content, random, 5)
            assert numbers(image, "<I", 44) == (IN_USE,)
            assert list(disk.image.check()) == []
        assert numbers(image, "<I", 44) == (CLOSED,)
        qemu.check(image, "parallels")
        qemu.expect(image, "parallels", content)


def test_an_image_of_parallels_desktop_reads_as_qemu_reads_it(tmp_path: Path) -> None:
    image = unpacked("parallels-v2", tmp_path / "d.hds")
    raw = tmp_path / "raw"
    qemu.qemu("qemu-img", "convert", "-f", "parallels", "-O", "raw", image, raw)
    content = bytearray(raw.read_bytes())
    assert any(content)
    with open_image(image, writable=True) as disk:
        assert disk.read(0, disk.size) == content
        assert disk.image.header_geometry == Geometry(8, 16, 32)
        scattered(disk, content[: disk.size], Random(1), 3)
        disk.write(2 * MIB - 5, b"12345")
        content = bytearray(disk.read(0, disk.size))
    qemu.check(image, "parallels")
    qemu.expect(image, "parallels", content)


@pytest.mark.parametrize("cluster", [63, 504, 2048])
def test_an_older_image_counts_sectors_and_begins_its_clusters_anywhere(
    tmp_path: Path, cluster: int
) -> None:
    """Clusters of 63 sectors, and a first one that is right behind the table."""
    sectors = 5 * cluster + 7
    data = 3
    image = tmp_path / "d.hds"
    first = Random(1).randbytes(cluster * 512)
    head = struct.pack("<16sIIIIIQIIIQ", b"WithoutFreeSpace", 2, 16, sectors // 512 or 1, cluster,
                       6, sectors, 0, 0 if cluster == 63 else data, 0, 0)  # fmt: skip
    place = 1 if cluster == 63 else data
    image.write_bytes((head + struct.pack("<6I", 0, 0, place, 0, 0, 0)).ljust(place * 512, b"\0")
                      + first)  # fmt: skip
    content = bytearray(sectors * 512)
    content[2 * cluster * 512 : 3 * cluster * 512] = first
    qemu.expect(image, "parallels", content)
    with open_image(image, writable=True) as disk:
        assert disk.read(0, disk.size) == content
        scattered(disk, content, Random(2), 6)
        assert list(disk.image.check()) == []
    with open_image(image, writable=False) as disk:
        assert disk.read(0, disk.size) == content
        assert list(disk.image.check()) == []
    qemu.expect(image, "parallels", content)


def test_it_grows_as_far_as_its_table_has_room_and_shrinks(tmp_path: Path) -> None:
    image = qemu.create(tmp_path / "d.hds", "parallels", SIZE)
    content = bytearray(SIZE)
    for size in (SIZE, 33 * MIB + 512, 4 * MIB, 100 * MIB, 7 * MIB):
        with open_image(image, writable=True) as disk:
            resize_disk(disk, size)
            del content[size:]
            content.extend(bytes(size - len(content)))
            part = content[: 12 * MIB]
            scattered(disk, part, Random(size), 5)
            content[: len(part)] = part
        qemu.check(image, "parallels")
        with open_image(image, writable=False) as disk:
            assert list(disk.image.check()) == []
    qemu.expect(image, "parallels", content)
    assert "its table has room for" in refused("resize", image, "1T")


def test_an_image_in_use_is_set_right_by_the_next_writer(tmp_path: Path) -> None:
    """A cluster that a crash has kept from the file is dropped, as QEMU's check does."""
    image = qemu.create(tmp_path / "d.hds", "parallels", SIZE)
    qemu.qemu("qemu-io", "-f", "parallels", "-c", "write -P 1 0 1M", image)
    patch(image, 44, "<I", IN_USE)
    patch(image, 64 + 12, "<I", 77)
    with image.open("r+b") as file:
        file.truncate(9 * MIB)
    with open_image(image, writable=False) as disk:
        assert {problem.kind for problem in disk.image.check()} == {ProblemKind.UNCLEAN}
    with open_image(image, writable=True) as disk:
        disk.write(5 * MIB, b"x")
    content = bytearray((b"\1" * MIB).ljust(SIZE, b"\0"))
    content[5 * MIB] = ord("x")
    qemu.check(image, "parallels")
    qemu.expect(image, "parallels", content)


def test_what_check_finds_is_repaired(tmp_path: Path) -> None:
    image = qemu.create(tmp_path / "d.hds", "parallels", SIZE)
    patch(image, 44, "<I", IN_USE)
    patch(image, 64 + 12, "<I", 77)
    with image.open("r+b") as file:
        file.truncate(9 * MIB)
    with open_image(image, writable=True) as disk:
        assert len(list(disk.image.check())) == 3
        list(disk.repair())
    with open_image(image, writable=False) as disk:
        assert list(disk.image.check()) == []
    qemu.check(image, "parallels")


@pytest.mark.parametrize("entries", [(1, 1), (0, 3), (0, 0xFFFFFFFF)])
def test_a_cluster_in_a_wrong_place_is_found(tmp_path: Path, entries: tuple[int, int]) -> None:
    image = qemu.create(tmp_path / "d.hds", "parallels", SIZE)
    qemu.qemu("qemu-io", "-f", "parallels", "-c", "write -P 1 1M 1M", image)
    with image.open("r+b") as file:
        file.truncate(2 * MIB)
    patch(image, 64 + 8, "<2I", *entries)
    with open_image(image, writable=True) as disk:
        assert ProblemKind.CORRUPTION in {problem.kind for problem in disk.image.check()}
        if entries != (1, 1):
            with pytest.raises(Corrupt, match="no cluster"):
                disk.write(3 * MIB, b"x")


def test_an_image_with_dirty_bitmaps_is_only_read(tmp_path: Path) -> None:
    image = qemu.create(tmp_path / "d.hds", "parallels", SIZE)
    patch(image, 56, "<Q", 2048)
    with open_image(image, writable=True) as disk, pytest.raises(ReadOnly, match="extension"):
        disk.write(0, b"x")


@pytest.mark.parametrize(
    ("at", "form", "value", "error"),
    [
        (0, "<8s", b"WithoutX", InvalidFormat),
        (16, "<I", 3, Unsupported),
        (28, "<I", 0, Corrupt),
        (28, "<I", 0xFFFFFFFF, Corrupt),
        (32, "<I", 0, Corrupt),
        (32, "<I", 5, Corrupt),
        (32, "<I", 0xFFFFFFFF, Corrupt),
        (36, "<Q", 0, Corrupt),
        (36, "<Q", 1 << 63, Corrupt),
        (44, "<I", 7, Corrupt),
        (48, "<I", 0, Corrupt),
        (48, "<I", 1, Corrupt),
        (52, "<I", 1, Unsupported),
    ],
)
def test_a_header_that_cannot_be_right_is_refused(
    tmp_path: Path, at: int, form: str, value: int | bytes, error: type[Exception]
) -> None:
    image = qemu.create(tmp_path / "d.hds", "parallels", SIZE)
    patch(image, at, form, value)
    with pytest.raises(error):
        open_image(image, writable=False, options=OpenOptions(format="parallels"))
