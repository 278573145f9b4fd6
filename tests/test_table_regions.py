"""The ranges of bytes that a scan names are the ones its answer depends on."""

from __future__ import annotations

import itertools
import shlex
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from table_images import (
    MIB,
    blank,
    disk_of,
    entry,
    fix_entries_crc,
    record,
    run,
    scan_bytes,
    scan_file,
)
from vdisk.tables import Region, Scan

CHAIN = disk_of(
    {
        0: record(entry(0x83, 64, 100), entry(5, 512, 1024)),
        512: record(entry(0x83, 10, 100), entry(5, 500, 500)),
        1012: record(entry(0x83, 10, 100)),
    },
    size=MIB,
)
BARE = bytearray(MIB)


def gpt_disk() -> bytearray:
    """A small GPT disk without partitions, as sgdisk lays it out (entries at LBA 2, 128 of 128)."""
    disk = disk_of({0: record(entry(0xEE, 1, 2047))}, size=MIB)
    disk[512:520] = disk[-512 : -512 + 8] = b"EFI PART"
    return disk


DISKS = {"nothing": BARE, "an MBR with logicals": CHAIN, "a damaged GPT": gpt_disk()}


def inside(offset: int, regions: tuple[Region, ...]) -> bool:
    return any(start <= offset < end for start, end in regions)


@pytest.mark.parametrize("name", DISKS)
def test_regions_are_in_order_and_apart(name: str) -> None:
    regions = scan_bytes(DISKS[name]).regions
    assert regions[0][0] == 0
    assert all(start < end for start, end in regions)
    assert all(one[1] < other[0] for one, other in itertools.pairwise(regions))


@settings(deadline=None, max_examples=300)
@given(st.sampled_from(sorted(DISKS)), st.integers(0, MIB - 1), st.integers(1, 255))
def test_a_byte_outside_the_regions_changes_nothing(name: str, offset: int, bits: int) -> None:
    disk = bytearray(DISKS[name])
    before = scan_bytes(disk)
    disk[offset] ^= bits
    if not inside(offset, before.regions):
        assert scan_bytes(disk) == before


def test_region_inside_another_does_not_shorten_it() -> None:
    # A header that says that its backup is in the middle of its own entries.
    disk = gpt_disk()
    struct.pack_into("<8sIIIIQQQQ16sQII", disk, 512, b"EFI PART", 0x10000, 92, 0, 0, 1, 5, 34, 2000,
                     b"g" * 16, 2, 128, 128)
    fix_entries_crc(disk, 1)
    scan = scan_bytes(disk)
    assert scan.table is not None
    assert scan.table.disk_id
    assert scan.regions == ((0, 1024 + 128 * 128),)


# What a person does to a disk, one command after the other.  "-" is a script for standard input.
STEPS = {
    "sfdisk, MBR": [
        "sfdisk {} - label:dos\n2048,8192\n10240,40960,5\n12288,4096\n",
        "sfdisk -N 1 {} - ,2M\n",
        "sfdisk --append {} - 20480,4096\n",
        "sfdisk --part-type {} 5 82",
        "sfdisk --activate {} 1",
        "sfdisk --delete {} 5",
        "sfdisk --disk-id {} 0x11223344",
    ],
    "sfdisk, GPT": [
        "sfdisk {} - label:gpt\nsize=4M\nsize=4M\n",
        "sfdisk --part-label {} 2 home",
        "sfdisk --part-attrs {} 1 LegacyBIOSBootable",
        "sfdisk --append {} - size=2M\n",
        "sfdisk --delete {} 2",
        "sfdisk {} - label:dos\nsize=1M\n",
    ],
    "sgdisk": [
        "sgdisk -n 1:0:+4M {}",
        "sgdisk -n 100:0:+4M {}",
        "sgdisk -c 1:one {}",
        "sgdisk -d 1 {}",
        "sgdisk -h 100 {}",
        "sgdisk -Z {}",
    ],
    "parted": [
        "parted -s {} mklabel msdos mkpart primary 1MiB 4MiB",
        "parted -s {} mkpart extended 5MiB 30MiB mkpart logical 6MiB 8MiB",
        "parted -s {} mkpart logical 9MiB 10MiB",
        "parted -s {} rm 5",
        "parted -s {} mklabel gpt mkpart a 1MiB 4MiB",
        "parted -s {} resizepart 1 6MiB",
        "parted -s {} name 1 b",
    ],
    "wiping": [
        "sfdisk {} - label:gpt\nsize=4M\n",
        "dd if=/dev/zero of={} bs=512 count=1 conv=notrunc",
        "mkfs.fat {}",
        "sfdisk {} - ,,83\n",
        "wipefs -a {}",
    ],
}


@pytest.mark.parametrize("tool", STEPS)
def test_every_change_that_tools_make_touches_a_region(tmp_path: Path, tool: str) -> None:
    # This is what lets partitions follow the table: a step that changes the answer has changed a
    # byte in the regions of the answer before it.
    image = blank(tmp_path / "disk.img", 32 * MIB)
    before, old = scan_file(image), image.read_bytes()
    answers: list[Scan] = [before]
    for step in STEPS[tool]:
        command, _, script = step.partition(" - ")
        run(*shlex.split(command.format(image)), stdin=script.replace("label:", "label: "))
        after, new = scan_file(image), image.read_bytes()
        if after.table != before.table:
            assert any(old[start:end] != new[start:end] for start, end in before.regions)
            answers.append(after)
        before, old = after, new
    assert len(answers) == len(STEPS[tool]) + 1
