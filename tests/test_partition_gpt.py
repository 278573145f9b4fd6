"""GPT tables that vdisk writes, as sgdisk, sfdisk, parted and libblkid read and verify them."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import pytest

from table_edits import blank_bytes, changed, edited, geometry_of, planned, saved
from table_images import (
    MIB,
    blank,
    flip,
    partx,
    partx_rows,
    run,
    scan_bytes,
    sfdisk_json,
    sfdisk_rows,
    slices,
)
from vdisk.errors import Corrupt, InvalidArgument, NotFound, NotPermitted
from vdisk.partitioning.edits import Add, Edits
from vdisk.partitioning.placing import Unit

SIZE = 32 * MIB
LAST_LBA = SIZE // 512 - 1
NAMED = Edits(
    "gpt",
    adds=(
        Add(4 * MIB, "esp", "EFI ünï — 盘"),
        Add(MIB, "bios-boot"),
        Add(3 * MIB, "swap", "a:b"),
        Add(None, "linux", "𐐷" * 18),  # 36 units of UTF-16.
    ),
    bootables=((2, True),),
)


def sound(image: Path) -> None:
    """sgdisk and sfdisk find nothing wrong."""
    assert "No problems found" in run("sgdisk", "-v", image).stdout
    assert "No errors detected" in "".join(run("sfdisk", "--verify", image).stdout)


def test_every_reader_sees_the_same_table(tmp_path: Path) -> None:
    disk = edited(blank_bytes(), NAMED)
    image = saved(tmp_path / "disk.img", disk)
    sound(image)
    table = scan_bytes(disk).table
    assert table is not None
    assert table.problems == ()
    theirs = sfdisk_json(image)
    assert table.disk_id == theirs["id"]
    rows = zip(table.partitions, theirs["partitions"], partx(image), strict=True)
    for one, his, row in rows:
        assert (one.start_lba, one.sectors) == (his["start"], his["size"])
        assert (one.type, one.uuid) == (his["type"], his["uuid"])
        assert one.name == his.get("name", "")
        assert one.attributes == int(row["FLAGS"], 16)
    assert [one.name for one in table.partitions] == ["EFI ünï — 盘", "", "a:b", "𐐷" * 18]
    assert [one.type_name for one in table.partitions] == [
        "EFI System", "BIOS boot", "Linux swap", "Linux filesystem"
    ]  # fmt: skip
    assert [one.attributes for one in table.partitions] == [0, 4, 0, 0]
    assert len({one.uuid for one in table.partitions} | {table.disk_id}) == 5
    printed = run("sgdisk", "-i", 2, image).stdout
    assert "Attribute flags: 0000000000000004" in printed
    lines = run("parted", "-s", "-m", image, "unit", "s", "print").stdout.splitlines()[2:]
    assert [line.split(":")[1:3] for line in lines] == [
        [f"{one.start_lba}s", f"{one.end_lba - 1}s"] for one in table.partitions
    ]


def test_an_empty_table_is_laid_out_as_sgdisks(tmp_path: Path) -> None:
    ours = saved(tmp_path / "ours.img", edited(blank_bytes(), Edits("gpt")))
    theirs = blank(tmp_path / "theirs.img", SIZE)
    run("sgdisk", "-o", theirs)
    # But for the GUIDs, the CRCs and the end of the protective entry, of which sfdisk's is taken.
    mine, his = ours.read_bytes(), theirs.read_bytes()
    for base in (512, SIZE - 512):
        for field in (slice(0, 16), slice(20, 56), slice(72, 88), slice(92, 512)):
            low, high = field.start + base, field.stop + base
            assert mine[low:high] == his[low:high]
    sfdisk = blank(tmp_path / "sfdisk.img", SIZE)
    run("sfdisk", sfdisk, stdin="label: gpt\n")
    assert mine[446:512] == sfdisk.read_bytes()[446:512]
    sound(ours)


@pytest.mark.parametrize("sector_size", [512, 1024, 2048, 4096])
def test_large_sectors(tmp_path: Path, sector_size: int) -> None:
    geometry = geometry_of(SIZE, sector_size=sector_size)
    disk = edited(blank_bytes(), NAMED, geometry)
    image = saved(tmp_path / "disk.img", disk)
    assert partx_rows(image, sector_size) == slices(scan_bytes(disk, sector_size))
    # fdisk reads such a file, and says where the usable sectors are: 16 KiB from either end.
    told = run("fdisk", "-b", sector_size, "-x", image).stdout
    first = int(re.search(r"First usable LBA: (\d+)", told)[1])  # type: ignore[index]
    last = int(re.search(r"Last usable LBA: (\d+)", told)[1])  # type: ignore[index]
    entries = 16384 // sector_size
    assert (first, last) == (2 + entries, SIZE // sector_size - 2 - entries)
    keys = run("fdisk", "-b", sector_size, image, stdin="v\nq\n")
    assert "No errors detected" in keys.stdout


def test_alignments() -> None:
    geometry = geometry_of(SIZE)
    for align, starts in ((8 * 512, [40, 2088]), (Unit.TRACK, [63, 2142]), (2048, [36, 2084])):
        edits = Edits("gpt", adds=(Add(MIB), Add(None)), align=align)
        disk = edited(blank_bytes(), edits, geometry)
        assert [one.start_lba for one in scan_bytes(disk).slices] == starts
    cylinder = 16 * 63
    disk = edited(
        blank_bytes(), Edits("gpt", adds=(Add(MIB), Add(None)), align=Unit.CYLINDER), geometry
    )
    first, second = scan_bytes(disk).slices
    assert (first.start_lba, first.end_lba % cylinder, second.end_lba % cylinder) == (63, 0, 0)
    with pytest.raises(InvalidArgument, match="whole sectors"):
        edited(blank_bytes(), Edits("gpt", adds=(Add(MIB),), align=1000), geometry)


def test_numbers_are_the_lowest_free_ones(tmp_path: Path) -> None:
    disk = edited(blank_bytes(), Edits("gpt", adds=tuple(Add(MIB) for _ in range(4))))
    disk = edited(disk, Edits(deletes=(1, 3), adds=(Add(MIB, None, "new"),)))
    image = saved(tmp_path / "disk.img", disk)
    assert [row[0] for row in sfdisk_rows(image)] == [1, 2, 4]
    assert [one.name for one in scan_bytes(disk).slices] == ["new", "", ""]
    sound(image)


def test_all_entries_can_be_used_and_no_more(tmp_path: Path) -> None:
    many = Edits("gpt", adds=tuple(Add(512) for _ in range(128)), align=512)
    disk = edited(blank_bytes(MIB), many, geometry_of(MIB, 1, 1))
    image = saved(tmp_path / "disk.img", disk)
    assert len(sfdisk_rows(image)) == 128
    with pytest.raises(InvalidArgument, match="all 128 entries"):
        planned(disk, Edits(adds=(Add(512),)), geometry_of(MIB, 1, 1))


# What is damaged, and what has moved


def test_a_damaged_primary_is_repaired_from_the_backup(tmp_path: Path) -> None:
    disk = edited(blank_bytes(), NAMED)
    for place in (512, 512 + 60, 1024 + 3):  # The signature, the GUID, an entry.
        broken = flip(bytearray(disk), place)
        change = planned(broken, Edits(names=((1, "x"),)))
        assert any("primary GPT was damaged" in note for note in change.notes)
        sound(saved(tmp_path / "disk.img", edited(broken, Edits(names=((1, "x"),)))))
        same = edited(broken, Edits(names=((1, "EFI ünï — 盘"),)))
        assert same == disk


def test_a_damaged_backup_is_made_anew(tmp_path: Path) -> None:
    disk = edited(blank_bytes(), NAMED)
    for place in (-512, -512 + 60, SIZE - 512 - 16384 + 3):
        broken = flip(bytearray(disk), place)
        change = planned(broken, Edits(bootables=((2, True),)))
        assert any("backup GPT at LBA" in note for note in change.notes)
        assert edited(broken, Edits(bootables=((2, True),))) == disk


def test_the_backup_follows_the_end_of_a_grown_disk(tmp_path: Path) -> None:
    disk = edited(blank_bytes(), NAMED) + bytearray(8 * MIB)
    change = planned(disk, Edits(adds=(Add(None),)))
    last = len(disk) // 512 - 1
    assert f"the backup GPT is moved from LBA {LAST_LBA} to the disk's end, LBA {last}" in (
        change.notes
    )
    image = saved(tmp_path / "disk.img", edited(disk, Edits(adds=(Add(None),))))
    sound(image)
    five = scan_bytes(image.read_bytes()).slices[-1]
    assert (five.start_lba, five.end_lba) == (SIZE // 512, last - 32)
    # As sgdisk -e does it, to the byte but for the protective entry, which sgdisk leaves short.
    theirs = saved(tmp_path / "theirs.img", disk)
    run("sgdisk", "-e", theirs)
    ours = edited(disk, Edits(types=((1, "esp"),)))
    assert ours[512:] == theirs.read_bytes()[512:]
    assert struct.unpack_from("<II", ours, 454) == (1, last)


def test_a_backup_is_not_put_over_a_partition() -> None:
    # The disk was shortened to where its last partition ends.
    disk = edited(blank_bytes(), Edits("gpt", adds=(Add(4 * MIB), Add(8 * MIB))))
    with pytest.raises(Corrupt, match=r"no copy|overlaps the partition table"):
        planned(disk[: 13 * MIB], Edits(names=((1, "x"),)))


@pytest.mark.parametrize(
    ("edits", "error", "words"),
    [
        (Edits(deletes=(9,)), NotFound, "no partition 9"),
        (Edits(types=((9, "swap"),)), NotFound, "no partition 9"),
        (Edits(types=((1, "zz"),)), InvalidArgument, "GUID"),
        (Edits(types=((1, "0" * 8 + "-0000-0000-0000-" + "0" * 12),)), InvalidArgument, "GUID"),
        (Edits(names=((1, "x" * 37),)), InvalidArgument, "too long"),
        (Edits(names=((1, "𐐷" * 19),)), InvalidArgument, "too long"),
        (Edits(names=((1, "a\0b"),)), InvalidArgument, "NUL"),
        (Edits(names=((1, "\udcff"),)), InvalidArgument, "no text"),
        (Edits(adds=(Add(64 * MIB),)), InvalidArgument, "no free place|no room"),
        (Edits(logicals=(Add(MIB),)), InvalidArgument, "logical"),
        (Edits(adds=(Add(MIB, "extended"),)), InvalidArgument, "GUID"),
    ],
    ids=range(11),
)
def test_what_cannot_be_done_is_refused(edits: Edits, error: type[Exception], words: str) -> None:
    disk = edited(blank_bytes(), Edits("gpt", adds=(Add(MIB), Add(MIB))))
    with pytest.raises(error, match=words):
        planned(disk, edits)


@pytest.mark.parametrize("sector_size", [512, 4096])
def test_a_disk_too_small_for_a_gpt_is_refused(sector_size: int) -> None:
    least = 2 * (2 + 16384 // sector_size)
    for sectors in range(1, least):
        with pytest.raises(InvalidArgument, match="too small"):
            planned(bytes(sectors * sector_size), Edits("gpt"),
                    geometry_of(sectors * sector_size, 1, 1, sector_size))  # fmt: skip
    size = (least + 1) * sector_size
    disk = edited(bytes(size), Edits("gpt"), geometry_of(size, 1, 1, sector_size))
    table = scan_bytes(disk, sector_size).table
    assert table is not None
    assert table.problems == ()


def test_small_sectors_have_no_gpt() -> None:
    with pytest.raises(InvalidArgument, match="at least 512"):
        planned(bytes(MIB), Edits("gpt"), geometry_of(MIB, 1, 1, 256))


# The MBR of a GPT disk


def test_a_hybrid_mbr_is_kept_as_it_is(tmp_path: Path) -> None:
    image = saved(tmp_path / "disk.img", edited(blank_bytes(), NAMED))
    run("sgdisk", "-h", "1", image)
    disk = image.read_bytes()
    assert disk[446 + 16 + 4]
    after = edited(disk, Edits(names=((3, "x"),), deletes=(2,)))
    assert after[:512] == disk[:512]
    assert planned(disk, Edits(names=((3, "x"),))).notes[0].startswith("the MBR is a hybrid one")
    # What it shows must not be freed behind its back.
    with pytest.raises(NotPermitted, match="hybrid"):
        planned(disk, Edits(deletes=(1,)))


def test_boot_code_survives_a_new_table() -> None:
    code = bytes(range(1, 256)) + bytes(range(1, 186))
    disk = bytearray(code + bytes(70) + b"\x55\xaa" + bytes(SIZE - 512))
    for kind in ("gpt", "mbr"):
        assert edited(disk, Edits(kind))[:440] == code[:440]  # type: ignore[arg-type]
    # But what says 55 AA without it, or a file system's own boot sector, is no such code.
    disk[510:512] = b"\0\0"
    assert edited(disk, Edits("mbr"))[:440] == bytes(440)


def test_without_a_protective_mbr_nothing_is_edited() -> None:
    disk = edited(blank_bytes(), NAMED)
    disk[:512] = bytes(512)
    with pytest.raises(Corrupt, match="no protective MBR"):
        planned(disk, Edits(names=((1, "x"),)))
    with pytest.raises(Corrupt, match="no copy of the GPT"):
        planned(flip(edited(blank_bytes(), NAMED), 512, -512), Edits(names=((1, "x"),)))


def test_only_what_an_edit_is_about_changes() -> None:
    disk = edited(blank_bytes(), NAMED)
    after = edited(disk, Edits(names=((3, "b"),)))
    entry = 2 * 128 + 56
    allowed = [
        (1024 + entry, 1024 + entry + 72), (512 + 16, 512 + 20), (512 + 88, 512 + 92),
        (SIZE - 512 - 16384 + entry, SIZE - 512 - 16384 + entry + 72),
        (SIZE - 512 + 16, SIZE - 512 + 20), (SIZE - 512 + 88, SIZE - 512 + 92),
    ]  # fmt: skip
    for low, high in changed(disk, after):
        assert any(start <= low and high <= end for start, end in allowed)
