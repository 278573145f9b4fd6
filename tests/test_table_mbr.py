"""MBR disks, against sfdisk, fdisk, parted and libblkid (partx, which has the kernel's rules)."""

from __future__ import annotations

from pathlib import Path

import pytest

from table_images import (
    MIB,
    blank,
    disk_of,
    entry,
    only_problem,
    partition,
    partx,
    partx_rows,
    record,
    run,
    scan_bytes,
    scan_file,
    sfdisk_json,
    sfdisk_rows,
    slices,
)

LOGICALS = """label: dos
label-id: 0x9afa26a0
start=2048, size=16384, type=83, bootable
start=18432, size=16384, type=c
start=34816, size=61440, type=f
start=96256, size=8192, type=7
start=36864, size=8192, type=82
start=47104, size=8192, type=83
start=57344, size=4096, type=8e
"""


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return blank(tmp_path / "disk.img")


def write(path: Path, disk: bytes | bytearray) -> Path:
    path.write_bytes(disk)
    return path


def test_every_field_is_what_sfdisk_and_libblkid_read(image: Path) -> None:
    run("sfdisk", image, stdin=LOGICALS)
    scan = scan_file(image)
    assert scan.table is not None
    theirs = sfdisk_json(image)
    assert scan.table.kind == "mbr"
    assert scan.table.disk_id == theirs["id"]
    assert scan.table.problems == ()
    ours = scan.table.partitions
    assert [one.number for one in ours] == [1, 2, 3, 4, 5, 6, 7]
    for one, his, row in zip(ours, theirs["partitions"], partx(image), strict=True):
        assert (one.start_lba, one.sectors) == (his["start"], his["size"])
        assert int(one.type, 16) == int(his["type"], 16) == int(row["TYPE"], 16)
        assert one.bootable == his.get("bootable", False)
        assert one.number == int(row["NR"])
        assert one.uuid == row["UUID"]
        assert one.problem is None
    assert [one.kind for one in ours] == ["primary"] * 2 + ["extended", "primary"] + ["logical"] * 3
    assert [one.number for one in scan.slices] == [1, 2, 4, 5, 6, 7]


def test_type_is_two_hexadecimal_digits_and_has_sfdisks_name(image: Path) -> None:
    run("sfdisk", image, stdin=LOGICALS)
    listed = run("sfdisk", "-l", "-o", "Device,Type", image).stdout
    for one in scan_file(image).slices:
        assert f"{image}{one.number} {one.type_name}" in " ".join(listed.split())
    assert partition(scan_file(image), 2).type == "0x0c"


def test_chs_tuples_are_the_stored_bytes(image: Path) -> None:
    # With 255 heads and 63 sectors LBA 2048 is 0/32/33: 2048 = 32 * 63 + 33 - 1.
    run("sfdisk", image, stdin=LOGICALS)
    one = partition(scan_file(image), 1)
    raw = image.read_bytes()[447 : 447 + 7]
    assert (one.start_chs, one.end_chs) == (raw[:3], raw[4:])
    assert one.start_chs == bytes([32, 33, 0])


@pytest.mark.parametrize("sector_size", [512, 1024, 2048, 4096])
def test_large_sectors_with_logicals_are_read_as_fdisk_made_them(
    image: Path, sector_size: int
) -> None:
    keys = "o\nn\np\n1\n\n+8M\nn\ne\n2\n\n+32M\nn\nl\n\n+4M\nn\nl\n\n+4M\nw\n"
    run("fdisk", "-b", sector_size, image, stdin=keys)
    ours = scan_file(image, sector_size).table
    assert ours is not None
    rows = [(one.number, one.start_lba, one.sectors) for one in ours.partitions]
    assert len(rows) == 4
    assert rows == partx_rows(image, sector_size)
    assert not any(one.problem for one in ours.partitions)


@pytest.mark.parametrize("sector_size", [128, 256])
def test_mbr_spans_several_small_sectors(sector_size: int) -> None:
    # No other tool reads such disks: by definition, 512 bytes of MBR and LBAs of the disk's size.
    first = 512 // sector_size
    disk = disk_of(
        {0: record(entry(0x83, first, 10), entry(5, 40, 100)), 40: record(entry(0x83, first, 8))},
        size=64 << 10,
        sector_size=sector_size,
    )
    assert slices(scan_bytes(disk, sector_size)) == [(1, first, 10), (5, 40 + first, 8)]
    disk = disk_of({0: record(entry(0x83, first - 1, 10))}, size=64 << 10, sector_size=sector_size)
    assert partition(scan_bytes(disk, sector_size), 1).problem is not None


def test_empty_label_is_a_table_without_partitions(image: Path) -> None:
    run("sfdisk", image, stdin="label: dos\n")
    table = scan_file(image).table
    assert table is not None
    assert (table.kind, table.partitions, table.problems) == ("mbr", (), ())
    assert table.disk_id == sfdisk_json(image)["id"]


@pytest.mark.parametrize(
    "command",
    [
        ["mkfs.fat", "-F", "12", "--mbr=n"],
        ["mkfs.fat", "-F", "16", "--mbr=n"],
        ["mkfs.fat", "-F", "32", "--mbr=n"],
        ["mkfs.fat", "--mbr=y"],
        ["mkfs.ext4", "-q"],
        ["mkfs.xfs", "-q"],
        ["mkswap"],
    ],
)
def test_file_system_on_the_whole_disk_is_no_table(tmp_path: Path, command: list[str]) -> None:
    image = blank(tmp_path / "disk.img", 320 * MIB)
    if "12" in command:
        image = blank(tmp_path / "disk.img", 2 * MIB)
    run(*command, image)
    assert scan_file(image).table is None
    assert partx(image) == []


def test_floppy_of_mformat_is_no_table(tmp_path: Path) -> None:
    image = blank(tmp_path / "disk.img", 1440 << 10)
    run("mformat", "-f", "1440", "-i", image, "::")
    assert scan_file(image).table is None


@pytest.mark.parametrize("name", [b"NTFS    ", b"EXFAT   ", b"-FVE-FS-"])
def test_other_boot_sectors_are_no_tables(name: bytes) -> None:
    # OEM names as the NTFS, exFAT (specification, 3.1.2) and BitLocker volumes carry them.
    sector = bytearray(record())
    sector[0:11] = b"\xeb\x52\x90" + name
    assert scan_bytes(disk_of({0: bytes(sector)})).table is None


def test_sfdisk_on_a_fat_superfloppy_makes_a_table(image: Path) -> None:
    # sfdisk leaves the BPB where it is, and the kernel shows the partition all the same.
    run("mkfs.fat", image)
    run("sfdisk", image, stdin=",,83\n")
    assert image.read_bytes()[3:11] == b"mkfs.fat"
    assert slices(scan_file(image)) == sfdisk_rows(image) == [(1, 2048, 129024)]


def test_unknown_boot_flag_means_no_table(tmp_path: Path) -> None:
    disk = disk_of({0: record(entry(0x83, 2048, 2048, boot=0x12))})
    image = write(tmp_path / "disk.img", disk)
    assert scan_file(image).table is None
    assert partx(image) == []
    assert "unrecognised disk label" in run("parted", "-s", image, "print", check=False).stderr


def test_aix_disk_is_no_table(tmp_path: Path) -> None:
    sector = b"\xc9\xc2\xd4\xc1" + record(entry(0x83, 2048, 2048))[4:]
    image = write(tmp_path / "disk.img", disk_of({0: sector}))
    assert scan_file(image).table is None
    assert run("sfdisk", "-J", image, check=False).returncode != 0


@pytest.mark.parametrize("size", [0, 1, 511, 512, 1000])
def test_disks_of_hardly_any_size(size: int) -> None:
    assert scan_bytes(bytes(size)).table is None
    assert scan_bytes(bytes(size), 4096).regions == ()


# Tables that no tool would make; libblkid says what the kernel makes of them.
ODD_TABLES = {
    "all four entries of an EBR": {
        0: record(entry(5, 2048, 20000)),
        2048: record(
            entry(0x83, 10, 100), entry(0x82, 200, 100), entry(5, 1000, 500), entry(0x83, 300, 100)
        ),
        3048: record(bytes(16), entry(5, 2000, 500)),
        4048: record(entry(0x83, 10, 100)),
    },
    "garbage in the third and fourth entry of an EBR": {
        0: record(entry(5, 2048, 2000)),
        2048: record(
            entry(0x83, 10, 100), bytes(16), entry(0x83, 1990, 100), entry(0x83, 1 << 31, 5)
        ),
    },
    "a third entry that leaves what its link spans": {
        0: record(entry(5, 2048, 2000)),
        2048: record(entry(0x83, 10, 100), entry(5, 500, 300)),
        2548: record(entry(0x83, 10, 100), bytes(16), entry(0x83, 250, 60), entry(0x83, 200, 40)),
    },
    "two extended partitions": {
        0: record(entry(5, 2048, 2000), entry(0xF, 5000, 2000), entry(0x83, 8000, 100)),
        2048: record(entry(0x83, 10, 100)),
        5000: record(entry(0x83, 10, 100), entry(5, 500, 200)),
        5500: record(entry(0x83, 10, 100)),
    },
    "an extended partition of Linux's own type": {
        0: record(entry(0x85, 2048, 2000)),
        2048: record(entry(0x83, 10, 100)),
    },
    "an EBR that is not signed": {
        0: record(entry(5, 2048, 2000)),
        2048: record(entry(0x83, 10, 100), entry(5, 500, 500)),
        2548: record(entry(0x83, 10, 100))[:510],
    },
    "a link before the partition": {
        0: record(entry(5, 2048, 2000)),
        2048: record(entry(5, 500, 500), entry(0x83, 10, 100)),
        2548: record(entry(0x83, 10, 100)),
    },
    "EBRs in no order": {
        0: record(entry(5, 2048, 4000)),
        2048: record(entry(0x83, 10, 100), entry(5, 2000, 500)),
        4048: record(entry(0x83, 10, 100), entry(5, 1000, 500)),
        3048: record(entry(0x83, 10, 100)),
    },
    "an entry of type 0": {0: record(bytes(16), entry(0, 100, 50), entry(0x83, 4096, 2048))},
}


@pytest.mark.parametrize("name", ODD_TABLES)
def test_odd_tables_are_numbered_as_by_libblkid(tmp_path: Path, name: str) -> None:
    image = write(tmp_path / "disk.img", disk_of(ODD_TABLES[name]))
    table = scan_file(image).table
    assert table is not None
    ours = [(one.number, one.start_lba, one.sectors) for one in table.partitions]
    assert ours
    assert ours == partx_rows(image)


def test_chain_that_comes_back_is_followed_once(tmp_path: Path) -> None:
    disk = disk_of({
        0: record(entry(5, 2048, 20000)),
        2048: record(entry(0x83, 10, 100), entry(5, 1000, 500)),
        3048: record(entry(0x83, 10, 100), entry(5, 0, 500)),
    })
    image = write(tmp_path / "disk.img", disk)
    scan = scan_file(image)
    assert slices(scan) == [(5, 2058, 100), (6, 3058, 100)]
    assert [(1, 2048, 20000), *slices(scan)] == partx_rows(image)
    assert "comes back to LBA 2048" in only_problem(scan)


@pytest.mark.parametrize(
    ("link", "words"),
    [
        (entry(5, 2000, 100), "leaves the extended partition for LBA 4048"),
        (entry(5, 0xFFFFFFFF, 100), "leaves the extended partition"),
        (entry(5, 0, 100), "comes back"),
    ],
)
def test_link_that_leads_astray_ends_the_chain(link: bytes, words: str) -> None:
    disk = disk_of({
        0: record(entry(5, 2048, 2000)),
        2048: record(entry(0x83, 10, 100), link),
        4048: record(entry(0x83, 10, 100)),
    })
    scan = scan_bytes(disk)
    assert slices(scan) == [(5, 2058, 100)]
    assert words in only_problem(scan)


def test_extended_partition_past_the_end_keeps_the_logicals_that_fit() -> None:
    disk = disk_of({
        0: record(entry(5, 30000, 90000)),
        30000: record(entry(0x83, 10, 100), entry(5, 5000, 100)),
    })
    scan = scan_bytes(disk)
    assert slices(scan) == [(5, 30010, 100)]
    assert "past the disk's end at LBA 32768" in (partition(scan, 1).problem or "")
    assert "goes on at LBA 35000, past the disk's end" in only_problem(scan)


def test_empty_records_in_a_row_are_limited() -> None:
    # The kernel and libblkid give up after 100 of them (block/partitions/msdos.c).
    records = {2048 + k: record(entry(5, k + 1, 1)) for k in range(200)}
    records[2048 + 200] = record(entry(0x83, 1, 1))
    scan = scan_bytes(disk_of({0: record(entry(5, 2048, 2000)), **records}))
    assert slices(scan) == []
    assert "100 empty records" in only_problem(scan)
    assert scan.regions[-1] == (2048 * 512, 2148 * 512)


def test_logicals_are_numbered_to_255_and_no_further() -> None:
    # The kernel has 256 minors for a disk, the first of them the disk itself.
    records = {
        2048 + 4 * k: record(entry(0x83, 1, 2), entry(5, 4 * (k + 1), 4)) for k in range(400)
    }
    scan = scan_bytes(disk_of({0: record(entry(5, 2048, 2000)), **records}))
    assert [one.number for one in scan.slices] == list(range(5, 256))
    assert "after number 255" in only_problem(scan)


def test_new_extended_partition_without_logicals_has_no_problem(image: Path) -> None:
    run("parted", "-s", image, "mklabel", "msdos", "mkpart", "extended", "2048s", "20479s")
    scan = scan_file(image)
    assert scan.table is not None
    assert scan.table.problems == ()
    assert scan.slices == ()
    blank_record = disk_of({0: record(entry(5, 2048, 2000))})
    assert scan_bytes(blank_record).table is not None
    assert scan_bytes(blank_record).table.problems == ()  # type: ignore[union-attr]


def test_overlapping_partitions_name_each_other_and_are_not_given(tmp_path: Path) -> None:
    disk = disk_of({0: record(
        entry(0x83, 2048, 2048), entry(0x83, 4095, 100), entry(0x83, 8000, 100)
    )})
    image = write(tmp_path / "disk.img", disk)
    scan = scan_file(image)
    assert slices(scan) == [(3, 8000, 100)]
    assert partition(scan, 1).problem == "overlaps partition 2"
    assert partition(scan, 2).problem == "overlaps partition 1"
    assert "overlapping" in run("parted", "-s", image, "print", check=False).stderr


def test_neighbours_that_touch_do_not_overlap() -> None:
    disk = disk_of({0: record(entry(0x83, 2048, 2048), entry(0x83, 4096, 100))})
    assert slices(scan_bytes(disk)) == [(1, 2048, 2048), (2, 4096, 100)]


def test_every_partition_under_a_large_one_is_named() -> None:
    disk = disk_of({0: record(
        entry(0x83, 3000, 10), entry(0x83, 2048, 9000), entry(0x83, 5000, 10), entry(0x83, 12000, 9)
    )})
    scan = scan_bytes(disk)
    assert slices(scan) == [(4, 12000, 9)]
    assert [partition(scan, number).problem for number in (1, 3)] == ["overlaps partition 2"] * 2


def test_primary_over_an_extended_partition_is_not_given() -> None:
    disk = disk_of({
        0: record(entry(5, 2048, 2000), entry(0x83, 3000, 100)),
        2048: record(entry(0x83, 10, 100)),
    })
    scan = scan_bytes(disk)
    assert slices(scan) == [(5, 2058, 100)]
    assert partition(scan, 2).problem == "overlaps partition 1"


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (entry(0x83, 2048, 1 << 20), "past the disk's end at LBA 32768"),
        (entry(0x83, 0xFFFFFFFF, 0xFFFFFFFF), "past the disk's end"),
        (entry(0x83, 0, 100), "overlaps the partition table at LBA 0"),
        (entry(0x83, 2048, 0), "has no sectors"),
    ],
)
def test_impossible_primaries_are_listed_and_not_given(bad: bytes, words: str) -> None:
    scan = scan_bytes(disk_of({0: record(bad, entry(0x83, 1000, 100))}))
    assert slices(scan) == [(2, 1000, 100)]
    assert words in (partition(scan, 1).problem or "")


def test_partition_up_to_the_last_sector_is_given() -> None:
    scan = scan_bytes(disk_of({0: record(entry(0x83, 30000, 2768))}))
    assert slices(scan) == [(1, 30000, 2768)]
    scan = scan_bytes(disk_of({0: record(entry(0x83, 30000, 2769))}))
    assert slices(scan) == []


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (entry(0x83, 10, 5000), "leaves its extended partition 1"),
        (entry(0x83, 0, 10), "overlaps the extended boot record at LBA 2048"),
        (entry(0x83, 10, 500), "overlaps the extended boot record at LBA 2548"),
    ],
)
def test_impossible_logicals_are_listed_and_not_given(bad: bytes, words: str) -> None:
    scan = scan_bytes(disk_of({
        0: record(entry(5, 2048, 2000)),
        2048: record(bad, entry(5, 500, 500)),
        2548: record(entry(0x83, 20, 100)),
    }))
    assert words in (partition(scan, 5).problem or "")
    assert partition(scan, 6).number == 6


def test_disk_without_a_signature_has_no_uuids(tmp_path: Path) -> None:
    disk = disk_of({0: record(entry(0x83, 2048, 2048), signature=0)})
    image = write(tmp_path / "disk.img", disk)
    assert [row["UUID"] for row in partx(image)] == [partition(scan_file(image), 1).uuid] == [""]
