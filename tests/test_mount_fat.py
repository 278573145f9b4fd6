"""What mtools writes to a disk is there by cylinder, head and sector, and the other way round.

Addresses are worked out by hand from the FAT layout (Microsoft, FAT32 File System Specification,
1.03: the BPB) and, for the partition, from the C/H/S bytes that mpartition writes.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from harness import Mounted, Person

Mounts = Callable[..., Mounted]

CONTENT = b"".join(b"line %5d\r\n" % number for number in range(400))
SECTOR = 512


@pytest.fixture
def floppy(person: Person, place: Path, mounts: Mounts) -> Mounted:
    """A floppy that mformat formats and that mcopy puts LETTER.TXT on."""
    person.vdisk("create", place / "floppy.img", "--profile", "1.44M")
    mounted = mounts(place / "floppy.img")
    person.run("mformat", "-i", mounted / "floppy", "-f", "1440", "::")
    _copy_in(person, mounted / "floppy", place)
    return mounted


def test_a_floppy_has_what_mtools_wrote_at_its_addresses(person: Person, floppy: Mounted) -> None:
    """80/2/18: the FATs are LBA 1-9 and 10-18, the root folder 19-32, the first cluster is LBA 33.

    LBA 19 is 0/1/2, LBA 33 is 0/1/16 and LBA 36, the file's fourth cluster, is 1/0/1.
    """
    chs = floppy / ".vdisk/floppy/chs"
    listing = person.run("mdir", "-b", "-i", floppy / "floppy", "::").stdout
    assert listing == b"::/LETTER.TXT\n"
    boot = _read(person, chs / "0/0/1")
    assert boot[510:] == b"\x55\xaa"
    assert struct.unpack_from("<HH", boot, 0x18) == (18, 2)
    first_fat = _read(person, chs / "0/0/2")
    assert first_fat[:3] == b"\xf0\xff\xff"  # The media byte of a 1.44M floppy.
    assert _read(person, chs / "0/0/11") == first_fat
    assert _read(person, chs / "0/1/2")[:11] == b"LETTER  TXT"
    first = b"".join(_read(person, chs / f"0/1/{sector}") for sector in (16, 17, 18))
    assert first == CONTENT[: 3 * SECTOR]
    assert _read(person, chs / "1/0/1") == CONTENT[3 * SECTOR : 4 * SECTOR]
    # Track 0/1 is LBA 18 to 35; cylinder 1 is LBA 36 to 71, where the file goes on.
    assert _read(person, chs / "0/1/track")[15 * SECTOR :] == CONTENT[: 3 * SECTOR]
    rest = CONTENT[3 * SECTOR :]
    cylinder = _read(person, chs / "1/cylinder")
    assert len(cylinder) == 36 * SECTOR
    assert cylinder[: len(rest)] == rest


def test_what_is_written_by_address_is_what_mtools_finds(person: Person, floppy: Mounted) -> None:
    """The root folder's first entry is in 0/1/2; the file's first sector is 0/1/16."""
    chs = floppy / ".vdisk/floppy/chs"
    _write(person, chs / "0/1/2", b"RENAMED TXT")
    _write(person, chs / "0/1/16", b"LINE")
    listing = person.run("mdir", "-b", "-i", floppy / "floppy", "::").stdout
    assert listing == b"::/RENAMED.TXT\n"
    copied = person.run("mtype", "-i", floppy / "floppy", "::RENAMED.TXT").stdout
    assert copied == b"LINE" + CONTENT[4:]


def test_a_partition_made_with_the_disk_s_geometry_is_found_by_address(
    person: Person, place: Path, mounts: Mounts
) -> None:
    """mpartition works in C/H/S; its partition starts on the second track, at 0/1/1."""
    person.vdisk("create", place / "hard.img", "--chs", "100/8/32")
    mounted = mounts(place / "hard.img")
    chs = mounted / ".vdisk/hard/chs"
    _partition(person, mounted / "hard", place)
    entry = _read(person, chs / "0/0/1")[0x1BE:0x1CE]
    # Start 0/1/1 and end 99/7/32 as head, sector, cylinder; LBA 32 and 25568 sectors.
    assert entry[1:4] == bytes([1, 1, 0])
    assert entry[5:8] == bytes([7, 32, 99])
    assert struct.unpack("<II", entry[8:]) == (32, 100 * 8 * 32 - 32)
    size = person.run("stat", "-c", "%s", mounted / "hard.p1").stdout
    assert int(size) == 25568 * SECTOR

    geometry = ["-T", "25568", "-h", "8", "-s", "32", "-H", "32", "-c", "4"]
    person.run("mformat", "-i", mounted / "hard.p1", *geometry, "::")
    _copy_in(person, mounted / "hard.p1", place)
    person.run("fsck.fat", "-n", mounted / "hard.p1")

    boot = _read(person, chs / "0/1/1")
    assert boot == _read(person, mounted / "hard.p1")[:SECTOR]
    assert boot[510:] == b"\x55\xaa"
    reserved, fats, entries = struct.unpack_from("<HBH", boot, 0x0E)
    (fat_sectors,) = struct.unpack_from("<H", boot, 0x16)
    (hidden,) = struct.unpack_from("<I", boot, 0x1C)
    assert hidden == 32
    root = 32 + reserved + fats * fat_sectors
    data = root + entries * 32 // SECTOR
    for copy in range(fats):
        fat = _read(person, chs / _address(32 + reserved + copy * fat_sectors))
        assert fat[:4] == b"\xf8\xff\xff\xff"  # The media byte of a hard disk; FAT16.
    assert _read(person, chs / _address(root))[:11] == b"LETTER  TXT"
    found = b"".join(_read(person, chs / _address(data + number)) for number in range(8))
    assert found == CONTENT[: 8 * SECTOR]
    assert person.run("mtype", "-i", mounted / "hard.p1", "::LETTER.TXT").stdout == CONTENT


def _address(lba: int) -> str:
    """The path below chs/ of a sector on the disk of 8 heads and 32 sectors a track."""
    return f"{lba // 256}/{lba // 32 % 8}/{lba % 32 + 1}"


def _partition(person: Person, disk: Path, place: Path) -> None:
    """One FAT16 partition over the whole disk, by mpartition."""
    settings = place / "mtoolsrc"
    settings.write_text(
        f'drive c: file="{disk}" partition=1 cylinders=100 heads=8 sectors=32 mformat_only\n'
    )
    for words in (["-I"], ["-c", "-T", "6"]):
        person.run("env", f"MTOOLSRC={settings}", "mpartition", *words, "c:")


def _copy_in(person: Person, disk: Path, place: Path) -> None:
    letter = place / "letter.txt"
    letter.write_bytes(CONTENT)
    person.run("mcopy", "-i", disk, letter, "::LETTER.TXT")


def _read(person: Person, path: Path) -> bytes:
    return person.run("cat", path).stdout


def _write(person: Person, path: Path, data: bytes) -> None:
    """`data` over the first bytes of a file, which keeps its length."""
    person.run("dd", f"of={path}", "conv=notrunc", stdin=data)
