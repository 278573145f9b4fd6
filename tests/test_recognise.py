"""What is on a disk is named as the programs that wrote it, and blkid, call it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from table_images import MIB, blank, run
from vdisk.recognise import SIGNATURES, Found, Signature, recognise


def found_in(path: Path, sector_size: int = 512) -> list[Found]:
    size = path.stat().st_size
    with path.open("rb") as file:

        def read(offset: int, length: int) -> bytes:
            assert 0 <= offset <= offset + length <= size
            file.seek(offset)
            return file.read(length)

        return recognise(read, size, sector_size)


MADE: dict[str, tuple[str, Callable[[Path], object]]] = {
    "ext2": ("an ext2 file system", lambda p: run("mkfs.ext2", "-q", p)),
    "ext3": ("an ext3 file system", lambda p: run("mkfs.ext3", "-q", p)),
    "ext4": ("an ext4 file system", lambda p: run("mkfs.ext4", "-q", p)),
    "xfs": ("an XFS file system", lambda p: run("mkfs.xfs", "-q", p)),
    "fat12": ("a FAT file system", lambda p: run("mkfs.fat", "-F", "12", p)),
    "fat16": ("a FAT file system", lambda p: run("mkfs.fat", "-F", "16", p)),
    "fat32": ("a FAT file system", lambda p: run("mkfs.fat", "-F", "32", p)),
    "mformat": ("a FAT file system", lambda p: run("mformat", "-i", p, "-f", 1440, "::")),
    "swap": ("swap space", lambda p: run("mkswap", p)),
    "swap of 64 KiB pages": ("swap space", lambda p: run("mkswap", "-p", 65536, p)),
    "minix": ("a minix file system", lambda p: run("mkfs.minix", p)),
    "lvm": ("an LVM2 physical volume", lambda p: lvm(p)),
    "mbr": ("an MBR partition table (2 partitions)",
            lambda p: run("sfdisk", p, stdin="label: dos\n,1M\n,1M\n")),
    "gpt": ("a GPT partition table (1 partition)",
            lambda p: run("sfdisk", p, stdin="label: gpt\n,1M\n")),
    "empty gpt": ("a GPT partition table (no partitions)",
                  lambda p: run("sfdisk", p, stdin="label: gpt\n")),
}  # fmt: skip


def lvm(image: Path) -> None:
    """What `pvcreate` writes, from the label's description: it will not work on a plain file."""
    with image.open("r+b") as file:
        file.seek(512)
        file.write(b"LABELONE" + bytes(16) + b"LVM2 001")


@pytest.mark.parametrize("name", MADE)
def test_what_a_program_made_is_named_and_can_be_cleared(tmp_path: Path, name: str) -> None:
    small = {"fat12": 2 * MIB, "mformat": 1440 << 10}
    image = blank(tmp_path / "disk.img", small.get(name, 320 * MIB))
    expected, make = MADE[name]
    make(image)
    found = found_in(image)
    assert [one.name for one in found] == [expected]
    assert found[0].spots
    # Its spots are what it is known by: with zeros there, it is known no more, to blkid neither.
    with image.open("r+b") as file:
        for offset, length in found[0].spots:
            file.seek(offset)
            file.write(bytes(length))
    assert found_in(image) == []
    assert run("blkid", "-p", image, check=False).stdout == ""


@pytest.mark.parametrize("size", [0, 1, 511, 512, 4096, 100_000, 8 * MIB])
def test_nothing_is_found_where_nothing_is(tmp_path: Path, size: int) -> None:
    assert found_in(blank(tmp_path / "disk.img", size)) == []


def test_both_of_two_are_named(tmp_path: Path) -> None:
    # A table put in front of a file system's superblock, as happens: both are there.
    image = blank(tmp_path / "disk.img", 16 * MIB)
    run("mkfs.ext4", "-q", image)
    run("sfdisk", "--wipe", "never", image, stdin="label: dos\n,1M\n")
    assert [one.name for one in found_in(image)] == [
        "an MBR partition table (1 partition)", "an ext4 file system"
    ]  # fmt: skip


def test_a_gpt_of_other_sectors_is_found(tmp_path: Path) -> None:
    image = blank(tmp_path / "disk.img", 16 * MIB)
    run("fdisk", "-b", 4096, image, stdin="g\nw\n")
    assert any("GPT" in one.name for one in found_in(image, 512))


@pytest.mark.parametrize("one", SIGNATURES, ids=lambda one: f"{one.name} at {one.offset}")
def test_a_signature_ends_with_the_disk(one: Signature) -> None:
    # A disk that ends in the midst of a magic does not have it, and is not read past its end.
    whole = bytes(one.offset) + one.magic

    def read(offset: int, length: int) -> bytes:
        assert offset + length <= len(disk)
        return disk[offset : offset + length]

    disk = whole
    assert one.name in [each.name for each in recognise(read, len(disk), 512)]
    disk = whole[:-1]
    assert one.name not in [each.name for each in recognise(read, len(disk), 512)]


@settings(max_examples=100)
@given(st.binary(max_size=5000), st.sampled_from([128, 512, 4096]))
def test_any_bytes_give_an_answer(data: bytes, sector_size: int) -> None:
    def read(offset: int, length: int) -> bytes:
        assert 0 <= offset <= offset + length <= len(data)
        return data[offset : offset + length]

    for one in recognise(read, len(data), sector_size):
        assert one.name
        assert all(low >= 0 and low + length <= len(data) for low, length in one.spots)
