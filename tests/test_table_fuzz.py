"""Whatever the bytes are, the answer is a scan, soon, and its slices are sane."""

from __future__ import annotations

import struct
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from table_images import (
    MIB,
    blank,
    disk_of,
    entry,
    fix_entries_crc,
    fix_header_crc,
    partx_rows,
    record,
    run,
    scan_bytes,
    scan_file,
)
from vdisk.tables import Scan, read_table

SIZE = 2 * MIB
ROWS = {
    "dos": "64,100\n200,300\n600,3000,5\n664,100\n900,100\n",
    "gpt": "2048,100\n2200,300\n",
}
LAST_LBA = SIZE // 512 - 1
READ_BYTES_MAX = 3 * (4 << 20) + 400 * 512
FUZZ = settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.too_slow])


@cache
def real_disk(label: str) -> bytes:
    """A disk of 2 MiB as sfdisk partitions it, with logicals where the label has them."""
    with TemporaryDirectory() as folder:
        image = blank(Path(folder) / "disk.img", SIZE)
        run("sfdisk", image, stdin=f"label: {label}\n" + ROWS[label])
        return image.read_bytes()


def check(disk: bytes | bytearray, sector_size: int) -> Scan:
    """Scans, and checks what holds for every disk."""
    asked = 0

    def read(offset: int, length: int) -> bytes:
        nonlocal asked
        assert offset >= 0
        assert 0 < length <= len(disk) - offset
        asked += length
        return bytes(disk[offset : offset + length])

    scan = read_table(read, len(disk), sector_size)
    assert asked <= READ_BYTES_MAX
    end = 0
    for one in sorted(scan.slices, key=lambda each: each.start_lba):
        assert one.start_lba >= max(end, 1)
        assert one.sectors > 0
        end = one.end_lba
    assert end * sector_size <= len(disk)
    if scan.table is not None:
        numbers = [one.number for one in scan.table.partitions]
        assert numbers == sorted(set(numbers))
        assert len(scan.table.problems) < 20
    return scan


def test_the_real_disks_have_what_is_damaged_below() -> None:
    assert [one.number for one in check(real_disk("dos"), 512).slices] == [1, 2, 5, 6]
    assert [one.number for one in check(real_disk("gpt"), 512).slices] == [1, 2]


sector_sizes = st.sampled_from([128, 256, 512, 1024, 2048, 4096])
numbers = st.one_of(
    st.integers(0, 70),
    st.integers(LAST_LBA - 40, LAST_LBA + 2),
    st.sampled_from([128, 256, 600, 2048, 4096, 1 << 15, 1 << 31, (1 << 32) - 1]),
    st.integers(0, 5000),
)


@FUZZ
@given(st.binary(max_size=4096), sector_sizes)
def test_any_bytes(data: bytes, sector_size: int) -> None:
    check(data, sector_size)
    check(data.ljust(510, b"\0")[:510] + b"\x55\xaa" + data, sector_size)


@FUZZ
@given(
    st.sampled_from(["dos", "gpt"]),
    st.lists(st.tuples(
        st.one_of(
            st.integers(440, 1023), st.integers(1024, 1536), st.integers(SIZE - 512, SIZE - 400),
            st.integers(SIZE - 512 * 33, SIZE - 512 * 32), st.integers(600 * 512, 601 * 512),
        ),
        st.integers(0, 255),
    ), max_size=6),
    sector_sizes,
    st.integers(0, SIZE),
)
def test_real_tables_with_changed_bytes_and_ends(
    label: str, changes: list[tuple[int, int]], sector_size: int, cut: int
) -> None:
    disk = bytearray(real_disk(label))
    for offset, value in changes:
        disk[offset] = value
    check(disk, sector_size)
    check(disk, 512)
    check(disk[:cut], 512)


HEADER_FIELDS = {
    8: "<I", 12: "<I", 24: "<Q", 32: "<Q", 40: "<Q", 48: "<Q", 72: "<Q", 80: "<I", 84: "<I",
}


@FUZZ
@given(
    st.lists(st.tuples(
        st.sampled_from([1, LAST_LBA]), st.sampled_from(sorted(HEADER_FIELDS)), numbers
    ), max_size=4),
    st.lists(st.tuples(st.integers(0, 127), numbers, numbers), max_size=6),
    st.booleans(),
)
def test_gpts_whose_crcs_are_right(
    claims: list[tuple[int, int, int]], entries: list[tuple[int, int, int]], fix_entries: bool
) -> None:
    disk = bytearray(real_disk("gpt"))
    for number, first, last in entries:
        place = 1024 + 128 * number
        disk[place : place + 16] = b"t" * 16
        struct.pack_into("<QQ", disk, place + 32, first, last)
    for lba, offset, value in claims:
        struct.pack_into(HEADER_FIELDS[offset], disk, lba * 512 + offset, value)
    for lba in (1, LAST_LBA):
        fix_header_crc(disk, lba)
        if fix_entries:
            fix_entries_crc(disk, lba)
    check(disk, 512)


mbr_entries = st.builds(
    entry,
    st.sampled_from([0, 5, 0xF, 0x85, 0x83, 0x83, 0xEE]),
    numbers,
    numbers,
    boot=st.sampled_from([0, 0, 0, 0x80, 0x7F]),
)
records = st.lists(mbr_entries, max_size=4).map(lambda entries: record(*entries))


@FUZZ
@given(
    records,
    st.dictionaries(st.sampled_from([1, 2, 64, 65, 128, 600, 2048]), records),
    sector_sizes,
)
def test_records_that_point_anywhere(
    first: bytes, others: dict[int, bytes], sector_size: int
) -> None:
    lbas = {lba: data for lba, data in others.items() if (lba + 4) * sector_size < SIZE}
    check(disk_of({0: first, **lbas}, SIZE, sector_size), sector_size)


@st.composite
def chains(draw: st.DrawFn) -> dict[int, bytes]:
    """An MBR and a chain of EBRs that goes forward, its four slots used in any way.

    No two slots are the same, for libblkid leaves out a partition that starts where another does.
    """
    sectors = {0: record(entry(5, 1000, 3000), entry(0x83, 500, 100))}
    steps = draw(st.lists(st.integers(20, 300), min_size=1, max_size=8))
    lba = 1000
    for index, step in enumerate(steps):
        data = draw(st.lists(
            st.sampled_from([
                bytes(16), entry(0x83, 2, 3), entry(0x82, 6, 4), entry(0, 11, 2),
                entry(0x83, 15, 0), entry(0x83, 1 << 20, 8),
            ]),
            min_size=3, max_size=3, unique=True,
        ))
        if index + 1 < len(steps):
            slot = draw(st.integers(0, 3))
            data.insert(slot, entry(draw(st.sampled_from([5, 0xF, 0x85])), lba + step - 1000, step))
        sectors[lba] = record(*data)
        lba += step
    return sectors


@settings(deadline=None, max_examples=150)
@given(chains())
def test_chains_are_numbered_as_by_libblkid(sectors: dict[int, bytes]) -> None:
    with TemporaryDirectory() as folder:
        image = Path(folder) / "disk.img"
        image.write_bytes(disk_of(sectors, SIZE))
        table = scan_file(image).table
        assert table is not None
        ours = [(one.number, one.start_lba, one.sectors) for one in table.partitions]
        assert ours == partx_rows(image)


def test_thousands_of_overlapping_entries_take_no_time_to_speak_of() -> None:
    # The most entries that are read, every one over every other.
    count = 32768
    disk = bytearray(8 * MIB)
    disk[:512] = record(entry(0xEE, 1, 16383))
    one = b"t" * 16 + b"u" * 16 + struct.pack("<QQQ", 9000, 9999, 0)
    disk[1024 : 1024 + count * 128] = one.ljust(128, b"\0") * count
    struct.pack_into("<8sIIIIQQQQ16sQII", disk, 512, b"EFI PART", 0x10000, 92, 0, 0, 1, 16383, 8194,
                     16000, b"g" * 16, 2, count, 128)
    fix_entries_crc(disk, 1)
    scan = scan_bytes(disk)
    assert scan.table is not None
    assert len(scan.table.partitions) == count
    assert scan.slices == ()


