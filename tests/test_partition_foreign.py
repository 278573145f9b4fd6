"""Tables that other programs made are edited without losing a byte that the edit is not about."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import pytest

from table_edits import blank_bytes, changed, edited, geometry_of, planned, saved, table_of
from table_images import (
    MIB,
    blank,
    disk_of,
    entry,
    fix_entries_crc,
    fix_header_crc,
    partition,
    partx_rows,
    record,
    run,
    scan_bytes,
    sfdisk_json,
    sfdisk_rows,
    slices,
)
from vdisk.errors import Corrupt, DiskError
from vdisk.geometry import CHS, unpack_chs
from vdisk.partitioning.edits import Add, Edits
from vdisk.tables.entry import unpack_entries

SIZE = 64 * MIB
Range = tuple[int, int]

# Logical partitions in an order that is not the disk's, with gaps, in one extended of type 0f.
ODD_ORDER = """label: dos
label-id: 0x9afa26a0
start=2048, size=16384, type=83, bootable
start=18432, size=8192, type=c
start=34816, size=81920, type=f
start=96256, size=8192, type=7
start=36864, size=8192, type=82
start=57344, size=4096, type=8e
"""
NAMED_GPT = """label: gpt
label-id: 9DA206DA-B54F-1F4C-BAC1-F494101B4225
start=2048, size=8192, type=U, name="EFI ünï — 盘"
start=10240, size=8192, attrs="LegacyBIOSBootable", uuid=BD406A64-C9A5-3641-AB55-CA7CA35D53D5
start=40960, size=4096, attrs="RequiredPartition GUID:60,63", name=two
start=28672, size=1, type=21686148-6449-6E6F-744E-656564454649, name="ბუკი"
"""


def only_within(before: bytes, after: bytes | bytearray, allowed: list[Range]) -> None:
    """Fails unless every byte that differs is in one of the ranges."""
    for low, high in changed(before, after):
        assert any(start <= low and high <= end for start, end in allowed), (low, high)


def noisy_mbr(tmp_path: Path) -> bytes:
    """The MBR disk, with something in every byte of its records that no edit is about."""
    image = blank(tmp_path / "disk.img", SIZE)
    run("sfdisk", image, stdin=ODD_ORDER)
    disk = bytearray(image.read_bytes())
    noise = random.Random(1)
    for base in [0, *ebrs(disk)]:
        disk[base : base + 440] = noise.randbytes(440)
        disk[base + 11] = 0  # No BPB: it has 0 bytes per sector.
        disk[base + 12] = 0
        disk[base + 444 : base + 446] = b"ZZ"
    for base in ebrs(disk)[1:]:
        # Entries 3 and 4 "sometimes hold garbage"; it leaves the container, and is ignored.
        disk[base + 478 : base + 510] = struct.pack("<16s4xB3xII", b"", 0x83, 1 << 31, 9)
    assert slices(scan_bytes(disk)) == [r for r in sfdisk_rows(saved(image, disk)) if r[0] != 3]
    return bytes(disk)


def ebrs(disk: bytes | bytearray) -> list[int]:
    """The byte offsets of the EBRs, by following the links as fdisk's documentation has it."""
    (start,) = (e.start for e in unpack_entries(bytes(disk[:512])) if e.is_extended)
    found, link = [], 0
    while True:
        found.append((start + link) * 512)
        links = [e for e in unpack_entries(bytes(disk[found[-1] :][:512])) if e.is_extended]
        if not links:
            return found
        link = links[0].start


def slot(index: int, base: int = 0) -> Range:
    return base + 446 + 16 * index, base + 446 + 16 * (index + 1)


def test_mbr_edits_touch_nothing_but_their_entries(tmp_path: Path) -> None:
    disk = noisy_mbr(tmp_path)
    chain = ebrs(disk)
    assert len(chain) == 3
    one = 446
    for edits, allowed in (
        (Edits(types=((1, "fat16"),)), [(one + 4, one + 5)]),
        (Edits(types=((6, "lvm"),)), [(chain[1] + one + 4, chain[1] + one + 5)]),
        (Edits(bootables=((1, False),)), [(one, one + 1)]),
        (Edits(bootables=((2, True),)), [(one, one + 1), (one + 16, one + 17)]),
        (Edits(deletes=(2,)), [slot(1)]),
        (Edits(deletes=(5,)), [slot(0, chain[0]), slot(1, chain[0])]),
        (Edits(deletes=(6,)), [slot(1, chain[0])]),
        (Edits(deletes=(7,)), [slot(1, chain[1])]),
        (Edits(deletes=(5, 6, 7)), [slot(0, chain[0]), slot(1, chain[0]), slot(1, chain[1])]),
        (Edits(deletes=(2,), adds=(Add(MIB),)), [slot(1)]),
    ):
        after = edited(disk, edits)
        assert changed(disk, after)
        only_within(disk, after, allowed)
        rows = sfdisk_rows(saved(tmp_path / "after.img", after))
        assert [r for r in rows if r[0] != 3] == slices(scan_bytes(after))


def test_logicals_added_to_a_chain_of_sfdisks(tmp_path: Path) -> None:
    disk = noisy_mbr(tmp_path)
    chain = ebrs(disk)
    after = edited(disk, Edits(logicals=(Add(MIB, "swap"), Add(None))), geometry_of(SIZE, 255, 63))
    new = ebrs(after)[3:]
    assert len(new) == 2
    only_within(disk, after, [slot(1, chain[2]), *((at, at + 512) for at in new)])
    before = sfdisk_rows(saved(tmp_path / "disk.img", disk))
    rows = sfdisk_rows(saved(tmp_path / "after.img", after))
    assert rows[: len(before)] == before
    assert [r for r in rows if r[0] != 3] == [
        r for r in partx_rows(tmp_path / "after.img") if r[0] != 3
    ]
    assert "No errors" in run("sfdisk", "--verify", tmp_path / "after.img").stdout


def test_addresses_of_links_are_those_of_sfdisk(tmp_path: Path) -> None:
    # sfdisk's own chain at 255/63, and ours in the same places: the same EBRs, to the byte.
    script = "label: dos\nstart=2048,size=100000,type=5\nstart=4096,size=8192\n" \
        "start=14336,size=8192,type=82\nstart=24576,size=77472\n"
    image = blank(tmp_path / "theirs.img", SIZE)
    run("sfdisk", image, stdin=script)
    theirs = image.read_bytes()
    edits = Edits("mbr", extended=Add(100000 * 512), logicals=(
        Add(8192 * 512), Add(8192 * 512, "82"), Add(77472 * 512)))  # fmt: skip
    ours = edited(blank_bytes(SIZE), edits, geometry_of(SIZE, 255, 63))
    assert ours[446:] == theirs[446:]


def test_gpt_edits_touch_nothing_but_their_fields(tmp_path: Path) -> None:
    image = blank(tmp_path / "disk.img", SIZE)
    run("sfdisk", image, stdin=NAMED_GPT)
    disk = bytearray(image.read_bytes())
    disk[:440] = random.Random(2).randbytes(440)
    disk[11:13] = b"\0\0"
    for lba in (1, SIZE // 512 - 1):  # Reserved bytes, and what follows a header of 92 bytes.
        disk[lba * 512 + 20 : lba * 512 + 24] = b"keep"
        disk[lba * 512 + 92 : lba * 512 + 512] = bytes([lba & 0xFF] * 420)
        fix_header_crc(disk, lba)
    end = SIZE - 512
    headers = [(at + crc, at + crc + 4) for at in (512, end) for crc in (16, 88)]
    before = scan_bytes(disk)
    for number, edits, field in (
        (1, Edits(types=((1, "linux"),)), (0, 16)),
        (3, Edits(names=((3, "drei"),)), (56, 128)),
        (3, Edits(bootables=((3, True),)), (48, 56)),
        (2, Edits(deletes=(2,)), (0, 128)),
        (5, Edits(adds=(Add(None),)), (0, 128)),
    ):
        after = edited(disk, edits)
        entries = [base + (number - 1) * 128 for base in (1024, end - 16384)]
        fields = [(at + field[0], at + field[1]) for at in entries]
        assert changed(bytes(disk), after)
        only_within(bytes(disk), after, headers + fields)
        saved(image, after)
        assert "No errors" in run("sfdisk", "--verify", image).stdout
        rows = {p.number: p for p in scan_bytes(after).slices}
        for one in before.slices:
            assert one.number == number or rows[one.number] == one
    assert partition(scan_bytes(edited(disk, Edits(bootables=((3, True),)))), 3).attributes == (
        1 | 4 | 1 << 60 | 1 << 63
    )


@pytest.mark.parametrize("tool", ["sgdisk", "parted"])
def test_tables_of_sgdisk_and_parted_are_edited(tmp_path: Path, tool: str) -> None:
    image = blank(tmp_path / "disk.img", SIZE)
    if tool == "sgdisk":
        # 56 entries, which are 14 sectors; numbers with gaps, in an order that is not the disk's.
        run("sgdisk", "-S", "56", "-n", "7:4096:8191", "-c", "7:seven", "-A", "7:set:62",
            "-n", "2:20480:+4M", "-t", "2:8200", image)  # fmt: skip
    else:
        run("parted", "-s", image, "mklabel", "gpt", "mkpart", "eins", "ext4", "2MiB", "8MiB",
            "mkpart", "zwei", "fat32", "10MiB", "20MiB", "set", "2", "esp", "on")  # fmt: skip
    disk = image.read_bytes()
    before = {p.number: p for p in scan_bytes(disk).slices}
    after = edited(disk, Edits(adds=(Add(2 * MIB, "swap", "new"), Add(None))))
    saved(image, after)
    assert "No problems found" in run("sgdisk", "-v", image).stdout
    rows = {p.number: p for p in scan_bytes(after).slices}
    assert {n: rows[n] for n in before} == before
    assert len(rows) == len(before) + 2
    if tool == "sgdisk":
        assert "holds up to 56 entries" in run("sgdisk", "-p", image).stdout
        filled = edited(disk, Edits(adds=tuple(Add(MIB) for _ in range(20))))
        assert len(scan_bytes(filled).slices) == 22


def test_entries_of_256_bytes_keep_their_second_half() -> None:
    # UEFI 2.10, 5.3.2: an entry has 128 times a power of two bytes.  No tool here makes or reads
    # them, so that the bytes themselves are looked at.
    disk = edited(blank_bytes(SIZE), Edits("gpt", adds=(Add(MIB, None, "a"), Add(MIB))))
    for lba, entries_lba in ((1, 2), (SIZE // 512 - 1, SIZE // 512 - 33)):
        base = entries_lba * 512
        halves = [bytes(disk[at : at + 128]) for at in range(base, base + 64 * 128, 128)]
        second = b"second half".ljust(128, b"!")
        wide = b"".join(half + (second if any(half) else bytes(128)) for half in halves)
        disk[base : base + 16384] = wide
        struct.pack_into("<II", disk, lba * 512 + 80, 64, 256)
        fix_entries_crc(disk, lba)
    assert len(disk) == SIZE
    after = edited(disk, Edits(types=((1, "swap"),), names=((2, "b"),), adds=(Add(MIB),)))
    assert after[1024 + 128 : 1024 + 256] == b"second half".ljust(128, b"!")
    assert after[1024 + 384 : 1024 + 512] == b"second half".ljust(128, b"!")
    assert after[1024 + 512 + 128 : 1024 + 768] == bytes(128)
    assert slices(scan_bytes(after)) == [(1, 2048, 2048), (2, 4096, 2048), (3, 6144, 2048)]
    gone = edited(after, Edits(deletes=(1,)))
    assert gone[1024 : 1024 + 256] == bytes(256)


def test_mtools_partitions_are_edited(tmp_path: Path) -> None:
    size = 615 * 4 * 17 * 512
    image = blank(tmp_path / "disk.img", size)
    config = tmp_path / "mtoolsrc"
    config.write_text(f'drive z: file="{image}" partition=1\n')
    env = f"MTOOLSRC={config}"
    run("env", env, "mpartition", "-I", "-t", 615, "-h", 4, "-s", 17, "z:")
    run("env", env, "mpartition", "-c", "-b", 17, "-l", 10183, "-t", 615, "-h", 4, "-s", 17, "z:")
    disk = image.read_bytes()
    after = edited(disk, Edits(adds=(Add(None),)), geometry_of(size, 4, 17))
    assert changed(disk, after)
    (used,) = (i for i, e in enumerate(unpack_entries(disk[:512])) if e.is_used)
    (low, high) = slot(used)
    assert after[low:high] == disk[low:high]
    new = partition(scan_bytes(after), 2 if used == 0 else 1)
    assert geometry_of(size, 4, 17).lba(address(new.start_chs)) == new.start_lba


def address(packed: bytes) -> CHS:
    found = unpack_chs(packed).address()
    assert found is not None
    return found


def test_addresses_of_another_geometry_are_kept_and_named(tmp_path: Path) -> None:
    image = blank(tmp_path / "disk.img", SIZE)
    run("sfdisk", image, stdin="label: dos\nstart=2048,size=8192\n")  # With 255 heads.
    disk = image.read_bytes()
    edits, other = Edits(adds=(Add(None),)), geometry_of(SIZE, 16, 63)
    change = planned(disk, edits, other)
    assert any("addresses of partition 1 are kept" in note for note in change.notes)
    assert edited(disk, edits, other)[446:462] == disk[446:462]
    assert not planned(disk, edits, geometry_of(SIZE, 255, 63)).notes


# What makes no sense is not built upon, and can be taken out

ODDITIES = {
    "two that overlap": ({0: record(entry(0x83, 2048, 4096), entry(0x83, 4096, 4096))}, 2),
    "past the disk": ({0: record(entry(0x83, 2048, 2048), entry(0x83, 30000, 1 << 20))}, 2),
    "on the MBR itself": ({0: record(entry(0x83, 0, 2048))}, 1),
    "a loop": (
        {0: record(entry(5, 2048, 8192)), 2048: record(entry(0x83, 10, 90), entry(5, 0, 90))}, 1,
    ),
    "a chain that leaves": (
        {0: record(entry(5, 2048, 8192)), 2048: record(entry(0x83, 9, 90), entry(5, 90000, 9))}, 1,
    ),
    "a link to what is no record": (
        {0: record(entry(5, 2048, 8192)), 2048: record(entry(0x83, 9, 90), entry(5, 4000, 9)),
         6048: b"x"}, 1,
    ),
    "a logical one outside": (
        {0: record(entry(5, 2048, 2048)), 2048: record(entry(0x83, 9, 9000))}, 5,
    ),
    "two extended ones": (
        {0: record(entry(5, 2048, 2048), entry(5, 8192, 2048)), 2048: record(), 8192: record()}, 2,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ODDITIES)
def test_nothing_is_added_to_an_odd_table_until_the_odd_entry_goes(name: str) -> None:
    sectors, culprit = ODDITIES[name]
    disk = disk_of(sectors)
    with pytest.raises(Corrupt, match="nothing is added to such a table"):
        planned(disk, Edits(adds=(Add(MIB),)))
    after = edited(disk, Edits(deletes=(culprit,), adds=(Add(MIB),)))
    table = scan_bytes(after).table
    assert table is not None
    assert not any(one.problem for one in table.partitions)
    # And by itself, which leaves everything else as it was.
    alone = edited(disk, Edits(deletes=(culprit,)))
    assert all(low < 510 or low >= 2048 * 512 for low, _ in changed(disk, alone))


@pytest.mark.parametrize("name", ODDITIES)
def test_types_can_be_changed_in_an_odd_table(name: str) -> None:
    sectors, _ = ODDITIES[name]
    disk = disk_of(sectors)
    table = scan_bytes(disk).table
    assert table is not None
    for one in table.partitions:
        if one.kind != "extended":
            after = edited(disk, Edits(types=((one.number, "b"),)))
            assert [high - low for low, high in changed(disk, after)] == [1]


def test_overlapping_gpt_entries_are_not_built_upon(tmp_path: Path) -> None:
    disk = edited(blank_bytes(), Edits("gpt", adds=(Add(MIB), Add(MIB))))
    for lba, entries in ((1, 1024), (len(disk) // 512 - 1, len(disk) - 512 - 16384)):
        struct.pack_into("<Q", disk, entries + 128 + 32, 2100)
        fix_entries_crc(disk, lba)
    assert table_of(scan_bytes(disk)) is not None
    with pytest.raises(Corrupt, match="nothing is added"):
        planned(disk, Edits(adds=(Add(MIB),)))
    after = edited(disk, Edits(deletes=(2,), adds=(Add(MIB),)))
    image = saved(tmp_path / "disk.img", after)
    assert "No problems found" in run("sgdisk", "-v", image).stdout


def test_a_boot_sector_with_a_table_keeps_being_read_as_one(tmp_path: Path) -> None:
    # sfdisk leaves the BPB of a FAT in place; without entries the sector would be a FAT's again.
    image = blank(tmp_path / "disk.img", SIZE)
    run("mkfs.fat", image)
    run("sfdisk", image, stdin=",8M,83\n,8M\n")
    disk = image.read_bytes()
    after = edited(disk, Edits(deletes=(2,)))
    assert slices(scan_bytes(after)) == sfdisk_rows(saved(image, after))
    with pytest.raises(Corrupt, match="boot sector") as caught:
        planned(disk, Edits(deletes=(1, 2)))
    assert isinstance(caught.value, DiskError)


def test_disk_ids_of_others_are_kept(tmp_path: Path) -> None:
    for script in (ODD_ORDER, NAMED_GPT):
        image = blank(tmp_path / "disk.img", SIZE)
        run("sfdisk", image, stdin=script)
        before = sfdisk_json(image)["id"]
        saved(image, edited(image.read_bytes(), Edits(deletes=(1,), adds=(Add(MIB), Add(MIB)))))
        assert sfdisk_json(image)["id"] == before
