"""Amiga rigid disk blocks: those that parted writes, and those laid out word by word.

The layout of the latter is that of the Amiga's `devices/hardblocks.h`, written here once more.
"""

from __future__ import annotations

import json
import re
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cli import done, refused, vdisk
from table_images import MIB, blank, only_problem, partition, run, scan_bytes, scan_file, slices
from vdisk.geometry import CHS, Geometry, Source
from vdisk.open import open_disk
from vdisk.recognise import recognise
from vdisk.tables import guess_sector_size

END = 0xFFFFFFFF
SIZE = 20 * MIB


def block(name: bytes, fields: dict[int, int | bytes], size: int = 512) -> bytes:
    """A block of 64 summed words with these words (or bytes) at these places, and a right sum."""
    words = bytearray(size)
    struct.pack_into(">4sI", words, 0, name, 64)
    struct.pack_into(">I", words, 12, 7)
    for at, value in fields.items():
        if isinstance(value, bytes):
            words[at : at + len(value)] = value
        else:
            struct.pack_into(">I", words, 4 * at, value)
    struct.pack_into(">I", words, 8, -sum(struct.unpack_from(">64I", words)) % 2**32)
    return bytes(words)


def rigid_disk(first: int = 1, *, size: int = 512) -> bytes:
    cylinders, heads, sectors = 320, 4, 32
    return block(
        b"RDSK", {4: size, 6: END, 7: first, 8: END, 16: cylinders, 17: sectors, 18: heads,
                  33: 127, 34: 1, 35: cylinders - 1, 36: heads * sectors}, size,
    )  # fmt: skip


def part(
    low: int, high: int, following: int = END, *, heads: int = 4, sectors: int = 32,
    name: bytes = b"DH0", dos_type: int = 0x444F5303, flags: int = 0, size: int = 512,
) -> bytes:
    return block(
        b"PART", {4: following, 5: flags, 36: bytes([len(name)]) + name, 32: 16, 33: size // 4,
                  35: heads, 37: sectors, 38: 2, 41: low, 42: high, 48: dos_type}, size,
    )  # fmt: skip


def disk(blocks: dict[int, bytes], size: int = 512, total: int = SIZE) -> bytearray:
    content = bytearray(total)
    for number, data in blocks.items():
        content[number * size : number * size + len(data)] = data
    return content


def parted_rows(path: Path) -> list[tuple[int, int, str, bool]]:
    """(start, sectors, name, bootable) as parted reads them, by their places."""
    said = run("parted", "-m", "-s", path, "unit", "s", "print").stdout
    lines = (line.rstrip(";").split(":") for line in said.splitlines())
    rows = [line for line in lines if line[0].isdecimal()]
    return sorted(
        (int(start[:-1]), int(sectors[:-1]), name, "boot" in flags)
        for _, start, _, sectors, _, name, flags in rows
    )


def test_the_partitions_that_parted_makes_are_there(tmp_path: Path) -> None:
    path = blank(tmp_path / "disk.img", SIZE)
    run("parted", "-s", path, "mklabel", "amiga")
    scan = scan_file(path)
    assert scan.table is not None
    assert (scan.table.kind, scan.slices) == ("rdb", ())
    for line in ("mkpart DH0 affs1 1MiB 8MiB", "mkpart DH1 ext2 8MiB 12MiB",
                 "mkpart DH2 linux-swap 12MiB 100%", "set 2 boot on", "rm 1", "name 2 Work",
                 "mkpart DH9 affs2 2MiB 4MiB"):  # fmt: skip
        before = scan
        run("parted", "-s", path, *line.split())
        scan = scan_file(path)
        assert scan.table is not None
        assert not scan.table.problems
        # parted lists by place, the kernel (and this) by the order of the list.
        found = sorted((p.start_lba, p.sectors, p.name, p.bootable) for p in scan.slices)
        assert found == parted_rows(path)
        assert scan.table != before.table
    assert len(scan.slices) == 3


def test_the_disk_has_the_geometry_that_parted_gave_it_and_its_partitions_theirs(
    tmp_path: Path,
) -> None:
    path = blank(tmp_path / "disk.img", SIZE)
    run("parted", "-s", path, "mklabel", "amiga", "mkpart", "DH0", "affs1", "1MiB", "8MiB")
    said = run("parted", "-s", path, "unit", "chs", "print").stdout
    geometry = re.search(r"geometry: (\d+),(\d+),(\d+)", said)
    assert geometry is not None
    counts = [int(count) for count in geometry.groups()]
    with open_disk(path) as whole:
        assert whole.choice is not None
        assert (whole.geometry, whole.choice.source) == (Geometry(*counts), Source.RDB)
    with open_disk(f"{path}/p1") as one:
        assert one.choice is not None
        assert one.choice.source is Source.RDB
        assert one.geometry == Geometry(112, counts[1], counts[2])


def test_what_is_written_to_a_partition_is_in_its_cylinders(tmp_path: Path) -> None:
    """One of other heads and sectors than the disk's: an Amiga takes the partition's."""
    path = tmp_path / "disk.hdf"
    path.write_bytes(disk({0: rigid_disk(), 1: part(10, 29, heads=2, sectors=11)}))
    done("write", f"{path}/p1", "--chs", "3/1/11", stdin=b"x" * 512)
    at = (10 * 22 + 3 * 22 + 11 + 10) * 512
    assert path.read_bytes().find(b"x" * 512) == at
    assert done("chs", f"{path}/p1") == "20/2/11\n"
    found = json.loads(done("info", "--json", path))
    assert found["table"]["kind"] == "rdb"
    row = found["partitions"][0]
    assert (row["start_lba"], row["sectors"]) == (220, 440)
    assert (row["type"], row["type_name"]) == ("0x444f5303", "Amiga FFS-INTL")
    assert (row["name"], row["geometry"]) == ("DH0", "20/2/11")
    assert "DH0" in done("info", path)


@pytest.mark.parametrize("lba", [0, 1, 7, 15])
def test_the_block_is_looked_for_in_the_first_sixteen(lba: int) -> None:
    scan = scan_bytes(disk({lba: rigid_disk(40), 40: part(2, 9)}))
    assert slices(scan) == [(1, 256, 1024)]
    assert scan_bytes(disk({16: rigid_disk(40), 40: part(2, 9)})).table is None


def test_a_disk_signature_of_windows_in_the_block_does_no_harm() -> None:
    """Some versions write it to byte 0xDC of the first sector (Linux, `block/partitions/amiga.c`).
    """
    content = disk({0: rigid_disk(), 1: part(2, 9)})
    content[0xDC:0xE0] = b"\x12\x34\x56\x78"
    assert slices(scan_bytes(content)) == [(1, 256, 1024)]
    content[0xD0] ^= 1
    assert scan_bytes(content).table is None


def test_sectors_of_another_size_are_told_by_the_block(tmp_path: Path) -> None:
    for size in (1024, 2048, 4096):
        content = disk({1: rigid_disk(2, size=size), 2: part(2, 9, size=size)}, size)
        assert slices(scan_bytes(content, size)) == [(1, 256, 1024)]
        path = tmp_path / f"{size}.hdf"
        path.write_bytes(content)
        assert guess_sector_size(lambda at, n, c=content: bytes(c[at : at + n]), SIZE) == size
        with open_disk(f"{path}/p1") as one:
            assert (one.sector_size, one.size) == (size, 1024 * size)
            assert one.geometry == Geometry(8, 4, 32, size)
            assert one.read_chs(CHS(0, 0, 1)) == bytes(size)


def test_blocks_of_two_sectors_are_two_sectors() -> None:
    """As the kernel does: all positions are in blocks of the size that RDSK says."""
    content = disk({0: rigid_disk(4, size=1024)[:512]})
    content[8 * 512 : 8 * 512 + 1024] = part(2, 9, size=1024)
    content[8 * 512 + 1024 :] = bytes(SIZE - 8 * 512 - 1024)
    assert slices(scan_bytes(content)) == [(1, 512, 2048)]


@pytest.mark.parametrize(
    ("blocks", "problem", "numbers"),
    [
        ({0: rigid_disk(1), 1: part(2, 9, 1)}, "comes back to block 1", [1]),
        ({0: rigid_disk(1), 1: part(2, 9, 5), 5: part(10, 19, 1)}, "comes back", [1, 2]),
        ({0: rigid_disk(1), 1: part(2, 9, 99)}, "block 99 .* is damaged", [1]),
        ({0: rigid_disk(1), 1: part(2, 9, 10**8)}, "past the disk", [1]),
        ({0: rigid_disk(3)}, "block 3 .* is damaged", []),
        ({0: rigid_disk(1), 1: part(2, 9)[:200] + b"\1" + part(2, 9)[201:]}, "is damaged", []),
    ],
)
def test_a_list_that_breaks_off_is_told_and_what_came_before_is_there(
    blocks: dict[int, bytes], problem: str, numbers: list[int]
) -> None:
    scan = scan_bytes(disk(blocks))
    assert re.search(problem, only_problem(scan))
    assert [number for number, _, _ in slices(scan)] == numbers


def test_a_list_without_end_is_cut_off() -> None:
    blocks = {number: part(2, 2, number + 1) for number in range(1, 300)}
    scan = scan_bytes(disk({0: rigid_disk(1)} | blocks))
    assert "after number 128 are left out" in only_problem(scan)


@pytest.mark.parametrize(
    ("one", "problem"),
    [
        (part(2, 400), "past the disk's end"),
        (part(9, 2), "has no sectors"),
        (part(0, 5), "overlaps the partition table"),
        (part(2, 9, heads=0), "has no sectors"),
        (part(2**32 - 2, 2**32 - 1, heads=2**32 - 1, sectors=2**32 - 1), "past the disk's end"),
    ],
)
def test_a_partition_that_cannot_be_is_listed_with_the_reason(one: bytes, problem: str) -> None:
    scan = scan_bytes(disk({0: rigid_disk(), 1: one}))
    assert slices(scan) == []
    assert problem in str(partition(scan, 1).problem)


def test_partitions_that_overlap_are_no_slices() -> None:
    scan = scan_bytes(disk({0: rigid_disk(), 1: part(2, 9, 2), 2: part(9, 12)}))
    assert slices(scan) == []
    assert partition(scan, 1).problem == "overlaps partition 2"


def test_another_table_in_the_first_sector_counts(tmp_path: Path) -> None:
    """As in the kernel, which looks for an MBR first."""
    path = tmp_path / "disk.img"
    path.write_bytes(disk({2: rigid_disk(40), 40: part(2, 9)}))
    run("sfdisk", "-q", path, stdin="2048,4096\n")
    scan = scan_file(path)
    assert scan.table is not None
    assert scan.table.kind == "mbr"
    with open_disk(path) as whole:
        assert whole.choice is not None
        assert whole.choice.source is not Source.RDB


def test_it_is_not_changed_here_and_another_table_over_it_needs_force(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(disk({2: rigid_disk(40), 40: part(2, 9)}))
    before = path.read_bytes()
    assert "an Amiga RDB" in refused("partition", path, "--delete", "1")
    assert "an Amiga RDB (1 partition)" in refused("partition", path, "--table", "mbr")
    assert path.read_bytes() == before
    ended = vdisk("partition", path, "--table", "mbr", "--force", "--add", "5M")
    assert ended.returncode == 0
    assert b"an Amiga RDB" in ended.stderr
    scan = scan_file(path)
    assert scan.table is not None
    assert scan.table.kind == "mbr"
    content = path.read_bytes()
    names = [one.name for one in recognise(lambda at, n: content[at : at + n], SIZE, 512)]
    assert not any("Amiga" in name for name in names)


@given(
    changes=st.lists(
        st.tuples(st.integers(0, 255), st.sampled_from([0, 1, 2, 3]), st.integers(0, 2**32 - 1)),
        min_size=1, max_size=6,
    ),
    fixed=st.booleans(),
)  # fmt: skip
@settings(max_examples=200)
def test_whatever_its_words_are_the_answer_is_a_sound_scan(
    changes: list[tuple[int, int, int]], fixed: bool
) -> None:
    content = disk({0: rigid_disk(1), 1: part(2, 9, 2), 2: part(10, 19, 3), 3: part(20, 25)})
    for at, number, value in changes:
        struct.pack_into(">I", content, number * 512 + at % 64 * 4, value)
    for number in range(4) if fixed else ():
        start = number * 512
        struct.pack_into(">I", content, start + 8, 0)
        total = sum(struct.unpack_from(">64I", content, start))
        struct.pack_into(">I", content, start + 8, -total % 2**32)
    scan = scan_bytes(content)
    end = 0
    for one in sorted(scan.slices, key=lambda each: each.start_lba):
        assert one.start_lba >= end
        assert 0 < one.sectors <= SIZE // 512 - one.start_lba
        end = one.end_lba
