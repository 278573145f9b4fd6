"""GPT disks, against sfdisk, fdisk, sgdisk, parted and libblkid, whole and damaged."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from table_images import (
    MIB,
    blank,
    disk_of,
    entry,
    fix_entries_crc,
    flip,
    only_problem,
    partition,
    partx,
    partx_rows,
    record,
    run,
    scan_bytes,
    scan_file,
    set_header_field,
    sfdisk_json,
    sfdisk_rows,
    slices,
)
from vdisk.tables import guess_sector_size

PARTITIONS = """label: gpt
label-id: 9DA206DA-B54F-1F4C-BAC1-F494101B4225
start=2048, size=8192, type=U, name="EFI ünï — 盘"
start=10240, size=8192, attrs="LegacyBIOSBootable", uuid=BD406A64-C9A5-3641-AB55-CA7CA35D53D5
start=20480, size=4096, attrs="RequiredPartition GUID:60,63", name=two
start=28672, size=1, type=21686148-6449-6E6F-744E-656564454649
"""
SIZE = 32 * MIB
LAST_LBA = SIZE // 512 - 1
BACKUP_ENTRIES = SIZE - 512 - 128 * 128
ENTRIES = 1024


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A disk of four partitions, as sfdisk makes it."""
    image = blank(tmp_path_factory.mktemp("gpt") / "made.img", SIZE)
    run("sfdisk", image, stdin=PARTITIONS)
    return image.read_bytes()


@pytest.fixture
def disk(made: bytes) -> bytearray:
    return bytearray(made)


def write(path: Path, data: bytes | bytearray) -> Path:
    path.write_bytes(data)
    return path


def test_every_field_is_what_sfdisk_and_libblkid_read(tmp_path: Path, made: bytes) -> None:
    image = write(tmp_path / "disk.img", made)
    table = scan_file(image).table
    assert table is not None
    theirs = sfdisk_json(image)
    assert (table.kind, table.disk_id, table.problems) == ("gpt", theirs["id"], ())
    rows = zip(table.partitions, theirs["partitions"], partx(image), strict=True)
    for one, his, row in rows:
        assert (one.start_lba, one.sectors) == (his["start"], his["size"])
        assert (one.type, one.uuid) == (his["type"], his["uuid"])
        assert one.name == his.get("name", "")
        assert one.bootable == ("LegacyBIOSBootable" in his.get("attrs", ""))
        assert one.attributes == int(row["FLAGS"], 16)
        assert (one.number, one.kind, one.problem) == (int(row["NR"]), "primary", None)
    assert [one.attributes for one in table.partitions] == [0, 4, 1 | 1 << 60 | 1 << 63, 0]
    assert [one.type_name for one in table.partitions][::3] == ["EFI System", "BIOS boot"]


def test_partitions_of_sgdisk_have_the_last_sector_that_it_prints(tmp_path: Path) -> None:
    image = blank(tmp_path / "disk.img")
    run("sgdisk", "-n", "3:4096:8191", "-c", "3:three", "-n", "7:0:0", "-A", "7:set:2", image)
    for one in scan_file(image).slices:
        printed = run("sgdisk", "-i", one.number, image).stdout
        fields = dict(line.split(": ", 1) for line in printed.splitlines())
        assert one.start_lba == int(fields["First sector"].split()[0])
        assert one.end_lba - 1 == int(fields["Last sector"].split()[0])
        assert f"{one.sectors} sectors" in fields["Partition size"]
        assert one.type == fields["Partition GUID code"].split()[0]
        assert one.uuid == fields["Partition unique GUID"]
        assert one.name == fields["Partition name"].strip("'")
        assert one.attributes == int(fields["Attribute flags"], 16)
    assert [one.number for one in scan_file(image).slices] == [3, 7]


def test_partitions_of_parted_are_read_as_it_prints_them(tmp_path: Path) -> None:
    image = blank(tmp_path / "disk.img")
    run("parted", "-s", image, "mklabel", "gpt", "mkpart", "one", "ext4", "1MiB", "9MiB",
        "mkpart", "two", "xfs", "20MiB", "100%")
    printed = run("parted", "-s", "-m", image, "unit", "s", "print").stdout
    theirs = re.findall(r"^(\d+):(\d+)s:\d+s:(\d+)s:[^:]*:(\w+):", printed, re.MULTILINE)
    ours = [
        tuple(map(str, (one.number, one.start_lba, one.sectors, one.name)))
        for one in scan_file(image).slices
    ]
    assert len(ours) == 2
    assert ours == theirs


@pytest.mark.parametrize("sector_size", [512, 1024, 2048, 4096])
def test_large_sectors_are_read_and_guessed(tmp_path: Path, sector_size: int) -> None:
    image = blank(tmp_path / "disk.img")
    run("fdisk", "-b", sector_size, image, stdin="g\nn\n1\n\n+8M\nn\n5\n\n+8M\nw\n")
    scan = scan_file(image, sector_size)
    assert [one.number for one in scan.slices] == [1, 5]
    assert slices(scan) == partx_rows(image, sector_size)
    data = image.read_bytes()
    assert guess(data) == sector_size
    without_primary = bytes(2 * sector_size) + data[2 * sector_size :]
    assert guess(without_primary) == sector_size
    without_entries = bytearray(disk_of({0: data[: 2 * sector_size]}, size=len(data)))
    assert guess(without_entries) == sector_size


def guess(data: bytes | bytearray) -> int | None:
    def read(offset: int, length: int) -> bytes:
        assert 0 < length <= len(data) - offset
        return bytes(data[offset : offset + length])

    return guess_sector_size(read, len(data))


def test_sector_size_is_not_guessed_without_a_gpt() -> None:
    assert guess(b"") is None
    assert guess(bytes(1 << 20)) is None
    assert guess(disk_of({0: record(entry(0x83, 2048, 100))})) is None


def test_table_for_another_sector_size_is_not_taken(made: bytes) -> None:
    # With 4096-byte sectors the header of the 512-byte table is inside LBA 0.
    scan = scan_bytes(made, 4096)
    assert scan.table is not None
    assert (scan.table.kind, scan.slices) == ("gpt", ())
    assert "no copy of the GPT can be used" in only_problem(scan)


@pytest.mark.parametrize("sector_size", [128, 256])
def test_gpt_needs_sectors_of_512_bytes(made: bytes, sector_size: int) -> None:
    scan = scan_bytes(made, sector_size)
    assert scan.slices == ()
    assert "at least 512" in only_problem(scan)


# What was damaged, by bytes; then the copy that sfdisk says it uses, or None for neither.
DAMAGE: dict[str, tuple[tuple[int, ...], str | None]] = {
    "primary header": ((512 + 17,), "backup"),
    "primary signature": ((512,), "backup"),
    "primary entries": ((ENTRIES + 40,), "backup"),
    "last byte of the primary entries": ((ENTRIES + 128 * 128 - 1,), "backup"),
    "backup header": ((SIZE - 512 + 17,), "primary"),
    "backup signature": ((SIZE - 512,), "primary"),
    "backup entries": ((BACKUP_ENTRIES,), "primary"),
    "both headers": ((512 + 17, SIZE - 512 + 17), None),
    "both entries": ((ENTRIES, BACKUP_ENTRIES), None),
    "primary header and backup entries": ((512 + 17, BACKUP_ENTRIES), None),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_copies_are_used_or_not_as_by_sfdisk(
    tmp_path: Path, disk: bytearray, name: str
) -> None:
    offsets, used = DAMAGE[name]
    image = write(tmp_path / "disk.img", flip(disk, *offsets))
    scan = scan_file(image)
    words = only_problem(scan)
    if used is None:
        assert "no copy of the GPT can be used" in words
        assert slices(scan) == partx_rows(image) == []
        assert scan.table is not None
        assert (scan.table.kind, scan.table.partitions) == ("gpt", ())
        assert sfdisk_json(image)["label"] == "dos"
        return
    says = run("sfdisk", "-J", image).stderr
    assert re.search(rf"the {used} appears OK", says)
    assert slices(scan) == sfdisk_rows(image) == partx_rows(image)
    assert len(scan.slices) == 4
    if used == "backup":
        assert f"the backup at LBA {LAST_LBA} is used" in words
    else:
        assert f"the backup GPT at LBA {LAST_LBA} is damaged" in words


def test_crc_is_named_where_it_is_wrong(disk: bytearray) -> None:
    (stored,) = struct.unpack_from("<I", disk, 512 + 16)
    words = only_problem(scan_bytes(flip(disk, 512 + 16)))
    assert f"not {stored ^ 0xFF:08x}" in words
    assert f"CRC is {stored:08x}" in words


def test_disk_that_grew_keeps_its_partitions(tmp_path: Path, disk: bytearray) -> None:
    image = write(tmp_path / "disk.img", disk + bytes(8 * MIB))
    assert "not on the end of the device" in run("sfdisk", "-J", image).stderr
    assert slices(scan_file(image)) == sfdisk_rows(image)
    assert "the disk has grown" in only_problem(scan_file(image))
    run("sgdisk", "-e", image)
    table = scan_file(image).table
    assert table is not None
    assert table.problems == ()


def test_backup_of_a_disk_that_grew_is_found_where_the_primary_says(
    tmp_path: Path, disk: bytearray
) -> None:
    image = write(tmp_path / "disk.img", flip(disk, ENTRIES + 40) + bytes(8 * MIB))
    scan = scan_file(image)
    assert f"the backup at LBA {LAST_LBA} is used" in only_problem(scan)
    printed = run("sgdisk", "-p", image).stdout
    theirs = re.findall(r"^ +(\d+) +(\d+) +(\d+) ", printed, re.MULTILINE)
    assert [tuple(map(int, row)) for row in theirs] == [
        (number, start, start + sectors - 1) for number, start, sectors in slices(scan)
    ]
    assert len(theirs) == 4


def test_disk_one_sector_short_has_no_backup(tmp_path: Path, disk: bytearray) -> None:
    image = write(tmp_path / "disk.img", disk[:-512])
    assert slices(scan_file(image)) == sfdisk_rows(image) == partx_rows(image)
    assert "past the disk's last LBA" in only_problem(scan_file(image))


def test_disk_cut_below_its_usable_end_has_no_partitions(tmp_path: Path, disk: bytearray) -> None:
    # sfdisk and the kernel both refuse such a table: its last usable LBA is past the disk's end.
    image = write(tmp_path / "disk.img", disk[: 20 * MIB])
    assert slices(scan_file(image)) == partx_rows(image) == []
    assert sfdisk_json(image)["label"] == "dos"
    assert "the disk has 40960 sectors" in only_problem(scan_file(image))


def test_gpt_without_a_protective_mbr_is_known_and_not_used(
    tmp_path: Path, disk: bytearray
) -> None:
    disk[:512] = bytes(512)
    image = write(tmp_path / "disk.img", disk)
    scan = scan_file(image)
    assert scan.table is not None
    assert (scan.table.kind, scan.table.partitions) == ("gpt", ())
    assert "no protective MBR" in only_problem(scan)
    assert partx(image) == []
    assert run("sfdisk", "-J", image, check=False).returncode != 0


def test_mbr_on_a_disk_that_had_a_gpt_counts(tmp_path: Path, disk: bytearray) -> None:
    disk[:512] = record(entry(0x83, 4096, 4096))
    image = write(tmp_path / "disk.img", disk)
    scan = scan_file(image)
    assert slices(scan) == sfdisk_rows(image) == partx_rows(image) == [(1, 4096, 4096)]
    assert "a GPT header at LBA 1 is ignored" in only_problem(scan)


def test_protective_entry_may_be_in_any_slot(tmp_path: Path, disk: bytearray) -> None:
    disk[446 + 16 : 446 + 32], disk[446 : 446 + 16] = disk[446 : 446 + 16], bytes(16)
    image = write(tmp_path / "disk.img", disk)
    table = scan_file(image).table
    assert table is not None
    assert table.problems == ()
    assert slices(scan_file(image)) == sfdisk_rows(image)


def test_protective_entry_with_another_start_is_remarked(tmp_path: Path, disk: bytearray) -> None:
    disk[446 + 8] = 2
    image = write(tmp_path / "disk.img", disk)
    assert slices(scan_file(image)) == sfdisk_rows(image) == partx_rows(image)
    assert "starts at LBA 2" in only_problem(scan_file(image))


def test_gpt_wins_over_a_hybrid_mbr(tmp_path: Path, disk: bytearray) -> None:
    image = write(tmp_path / "disk.img", disk)
    run("sgdisk", "-h", "2:3", image)
    scan = scan_file(image)
    assert slices(scan) == sfdisk_rows(image) == partx_rows(image)
    assert "hybrid" in only_problem(scan)


def test_protective_mbr_without_any_gpt_has_no_partitions(tmp_path: Path) -> None:
    image = write(tmp_path / "disk.img", disk_of({0: record(entry(0xEE, 1, 32767))}))
    scan = scan_file(image)
    assert slices(scan) == partx_rows(image) == []
    assert 'no "EFI PART" there' in only_problem(scan)


def test_0xee_in_the_code_of_a_boot_sector_is_no_gpt() -> None:
    sector = bytearray(record(entry(0xEE, 77, 99, boot=0x41)))
    sector[3:11] = b"NTFS    "
    assert scan_bytes(disk_of({0: bytes(sector)})).table is None


def test_longer_array_of_entries_is_read(tmp_path: Path, disk: bytearray) -> None:
    image = write(tmp_path / "disk.img", disk)
    run("sgdisk", "-S", "1024", image)
    run("sgdisk", "-n", "900:40000:40100", image)
    assert slices(scan_file(image)) == sfdisk_rows(image)
    assert scan_file(image).slices[-1].number == 900


def test_entries_of_twice_the_size_are_read(disk: bytearray) -> None:
    # UEFI 2.10, 5.3.2: an entry has 128 times a power of two bytes.  No tool here makes them.
    entries = bytes(disk[ENTRIES : ENTRIES + 64 * 128])
    doubled = b"".join(entries[k : k + 128] + bytes(128) for k in range(0, len(entries), 128))
    expected = slices(scan_bytes(disk))
    disk[ENTRIES : ENTRIES + len(doubled)] = doubled
    struct.pack_into("<II", disk, 512 + 80, 64, 256)
    fix_entries_crc(disk, 1)
    scan = scan_bytes(disk)
    assert slices(scan) == expected
    assert "differs; the primary is used" in only_problem(scan)


# Fields of a header whose CRC is right: offset, format, value, what is said of the copy.
CLAIMS = {
    "no header": (12, "<I", 0, "the header's size is 0"),
    "a header of one byte less": (12, "<I", 91, "the header's size is 91"),
    "a header of more than a sector": (12, "<I", 513, "the header's size is 513"),
    "another LBA": (24, "<Q", 2, "says that it is at LBA 2"),
    "first usable past the last": (40, "<Q", LAST_LBA, "is after the last one"),
    "last usable past the disk": (48, "<Q", LAST_LBA + 1, "the disk has 65536 sectors"),
    "entries past the disk": (72, "<Q", LAST_LBA, "are outside the disk"),
    "entries at the end of all numbers": (72, "<Q", (1 << 64) - 1, "are outside the disk"),
    "no entries": (80, "<I", 0, "0 entries"),
    "four milliards of entries": (80, "<I", 0xFFFFFFFF, "4294967295 entries"),
    "one entry too many": (80, "<I", 32769, "32769 entries"),
    "entries of no bytes": (84, "<I", 0, "have 0 bytes"),
    "entries of 64 bytes": (84, "<I", 64, "have 64 bytes"),
    "entries of 384 bytes": (84, "<I", 384, "have 384 bytes"),
    "entries of 2 GiB": (84, "<I", 1 << 31, "have 2147483648 bytes"),
}


@pytest.mark.parametrize("name", CLAIMS)
def test_absurd_claims_are_refused_and_the_backup_used(disk: bytearray, name: str) -> None:
    offset, field, value, words = CLAIMS[name]
    expected = slices(scan_bytes(disk))
    set_header_field(disk, 1, field, offset, value)
    if offset == 12:
        struct.pack_into("<I", disk, 512 + 16, 0)
    scan = scan_bytes(disk)
    assert words in only_problem(scan)
    assert slices(scan) == expected
    assert sum(end - start for start, end in scan.regions) < 64 << 10


def test_other_revision_is_remarked_and_read_as_by_sfdisk(tmp_path: Path, disk: bytearray) -> None:
    set_header_field(disk, 1, "<I", 8, 0x00020000)
    image = write(tmp_path / "disk.img", disk)
    assert slices(scan_file(image)) == sfdisk_rows(image)
    assert "0x00020000" in only_problem(scan_file(image))


def test_false_lead_of_a_damaged_primary_is_not_followed_off_the_disk(disk: bytearray) -> None:
    for lead in (0, 1, LAST_LBA + 1, (1 << 64) - 1):
        struct.pack_into("<Q", disk, 512 + 32, lead)
        assert len(scan_bytes(disk).slices) == 4
        broken = flip(bytearray(disk), SIZE - 512 + 17)
        assert scan_bytes(broken).slices == ()


def set_entry(start: int, last: int) -> Callable[[bytearray], None]:
    """Gives the second entry this range, in both copies, their CRCs made right."""

    def change(disk: bytearray) -> None:
        for entries, header in ((ENTRIES, 1), (BACKUP_ENTRIES, LAST_LBA)):
            struct.pack_into("<QQ", disk, entries + 128 + 32, start, last)
            fix_entries_crc(disk, header)

    return change


@pytest.mark.parametrize(
    ("start", "last", "words"),
    [
        (12288, 12287, "ends at LBA 12287, before its start at LBA 12288"),
        ((1 << 64) - 1, 0, "before its start"),
        (60000, LAST_LBA + 1, "past the disk's end"),
        (60000, (1 << 64) - 1, "past the disk's end"),
        (0, 1000, "overlaps the partition table at LBA 0"),
        (1, 1, "overlaps the partition table at LBA 1"),
        (33, 2000, "overlaps the partition table at LBA 2"),
        (60000, LAST_LBA, f"overlaps the partition table at LBA {LAST_LBA}"),
        (60000, LAST_LBA - 1, f"overlaps the partition table at LBA {LAST_LBA - 32}"),
        (2000, 2048, "overlaps partition 1"),
        (20480, 20480, "overlaps partition 3"),
    ],
)
def test_impossible_entries_are_listed_and_not_given(
    disk: bytearray, start: int, last: int, words: str
) -> None:
    set_entry(start, last)(disk)
    scan = scan_bytes(disk)
    assert words in (partition(scan, 2).problem or "")
    partner = re.fullmatch(r"overlaps partition (\d)", words)
    expected = {1, 3, 4} - ({int(partner[1])} if partner else set())
    assert {one.number for one in scan.slices} == expected
    if partner:
        assert partition(scan, int(partner[1])).problem == "overlaps partition 2"


def test_partition_outside_the_usable_range_is_given_and_remarked(
    tmp_path: Path, disk: bytearray
) -> None:
    set_entry(34, 2047)(disk)
    image = write(tmp_path / "disk.img", disk)
    scan = scan_file(image)
    assert (2, 34, 2014) in slices(scan)
    assert sorted(slices(scan)) == sorted(sfdisk_rows(image))
    assert "partition 2 leaves the usable LBAs, 2048 up to" in only_problem(scan)


def test_name_that_is_no_text_does_no_harm(disk: bytearray) -> None:
    # A lone surrogate, a control character, and no NUL at the end of the field's 36 units.
    raw = b"\x00\xd8" + "a\x1b".encode("utf-16-le") * 18
    for entries, header in ((ENTRIES, 1), (BACKUP_ENTRIES, LAST_LBA)):
        disk[entries + 56 : entries + 128] = raw[:72]
        fix_entries_crc(disk, header)
    name = partition(scan_bytes(disk), 1).name
    assert name.startswith("\ufffda\x1ba")
    assert name.encode("utf-8")
