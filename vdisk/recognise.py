"""What a disk holds already, by the signatures that file systems and volume managers write.

This is for asking before something is overwritten: it names what is there, and says which bytes
make it that.  It does not say that what is there is sound, nor how to open it.

Sources of the magic numbers: the Linux kernel's `include/uapi/linux/magic.h` and each file system's
on-disk documentation (`Documentation/filesystems/ext4/super.rst`, `…/squashfs.rst`, the XFS
Algorithms & Data Structures, 3rd ed., the btrfs wiki's "On-disk Format"); mkswap(8); the LUKS2 and
LUKS1 On-Disk Format Specifications; ECMA-119 8.1 and ECMA-167 2/9.1; Microsoft's FAT and exFAT
specifications; the Linux RAID wiki's "RAID superblock formats"; LVM2's label, as described in
`man 8 pvck`; Apple's TN1150 and Apple File System Reference.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from vdisk.tables import Reader, Table, guess_sector_size, is_boot_sector, read_table
from vdisk.tables.gpt import PRIMARY_LBA
from vdisk.tables.gpt_header import SIGNATURE as GPT_SIGNATURE
from vdisk.tables.rdb import find_rigid_disk
from vdisk.tables.source import Source

Spot = tuple[int, int]
"""(offset, length) of bytes that make something what it is."""


@dataclass(frozen=True, slots=True)
class Found:
    """Something a disk holds: its name for a person, and the bytes that it is known by."""

    name: str
    spots: tuple[Spot, ...] = ()


@dataclass(frozen=True, slots=True)
class Signature:
    """`magic` at byte `offset` of the disk."""

    name: str
    offset: int
    magic: bytes


_EXT = Signature("an ext2, ext3 or ext4 file system", 1024 + 0x38, b"\x53\xef")
_EXT_COMPATIBLE = 1024 + 0x5C
_EXT_HAS_JOURNAL, _EXT4_INCOMPATIBLE = 0x4, 0x2C0  # extents, 64bit, flex_bg

_BCACHE = bytes.fromhex("c68573f64e1a45ca8265f57f48ba6d81")
_BCACHEFS = bytes.fromhex("c68573f666ce90a9d96a60cf803df7ef")
_SWAP_PAGES = (4096, 8192, 16384, 65536)

SIGNATURES = (
    Signature("an XFS file system", 0, b"XFSB"),
    Signature("a btrfs file system", 0x10040, b"_BHRfS_M"),
    Signature("an F2FS file system", 1024, b"\x10\x20\xf5\xf2"),
    Signature("a bcachefs file system", 4096 + 24, _BCACHEFS),
    Signature("a bcache or bcachefs device", 4096 + 24, _BCACHE),
    Signature("an EROFS file system", 1024, b"\xe2\xe1\xf5\xe0"),
    Signature("a squashfs file system", 0, b"hsqs"),
    Signature("a squashfs file system", 0, b"sqsh"),
    Signature("a cramfs file system", 0, b"\x45\x3d\xcd\x28"),
    Signature("a JFS file system", 0x8000, b"JFS1"),
    Signature("a ReiserFS file system", 0x10034, b"ReIsEr"),
    Signature("a NILFS2 file system", 1024 + 6, b"\x34\x34"),
    Signature("a minix file system", 1024 + 0x10, b"\x7f\x13"),
    Signature("a minix file system", 1024 + 0x10, b"\x8f\x13"),
    Signature("a minix file system", 1024 + 0x10, b"\x68\x24"),
    Signature("a minix file system", 1024 + 0x10, b"\x78\x24"),
    Signature("a minix file system", 1024 + 0x18, b"\x5a\x4d"),
    Signature("an NTFS file system", 3, b"NTFS    "),
    Signature("an exFAT file system", 3, b"EXFAT   "),
    Signature("a ReFS file system", 3, b"ReFS\0\0\0\0"),
    Signature("a BitLocker volume", 3, b"-FVE-FS-"),
    Signature("an HFS file system", 1024, b"BD"),
    Signature("an HFS+ file system", 1024, b"H+\0\x04"),
    Signature("an HFSX file system", 1024, b"HX\0\x05"),
    Signature("an APFS container", 32, b"NXSB"),
    Signature("an ISO 9660 file system", 0x8001, b"CD001"),
    Signature("a UDF file system", 0x8001, b"BEA01"),
    *(Signature("swap space", page - 10, magic)
      for page in _SWAP_PAGES for magic in (b"SWAPSPACE2", b"SWAP-SPACE")),
    Signature("a LUKS encrypted volume", 0, b"LUKS\xba\xbe"),
    Signature("a VMFS volume", 0x100000, b"\x0d\xd0\x01\xc0"),
    Signature("a member of a RAID array", 4096, b"\xfc\x4e\x2b\xa9"),
    Signature("a member of a RAID array", 0, b"\xfc\x4e\x2b\xa9"),
    Signature("an Apple partition map", 512, b"PM\0\0"),
    Signature("a Sun disk label", 508, b"\xda\xbe"),
    Signature("a BSD disk label", 512, b"\x57\x45\x56\x82"),
)  # fmt: skip
"""What is known by bytes at one place.  A name may be there more than once."""

_MBR_SPOT = (510, 2)  # 55 AA; a GPT counts only with a protective MBR.
_LVM_SECTORS = 4
_LVM_MAGIC, _LVM_TYPE = b"LABELONE", b"LVM2 001"
_MD_MAGIC = b"\xfc\x4e\x2b\xa9"
_ZFS_UBERBLOCKS = range(128 << 10, 256 << 10, 1 << 10)
_ZFS_MAGICS = (b"\x0c\xb1\xba\x00\x00\x00\x00\x00", b"\x00\x00\x00\x00\x00\xba\xb1\x0c")


def recognise(read: Reader, size_bytes: int, sector_size: int) -> list[Found]:
    """What the disk of `size_bytes` holds: its partition table first, then all else.

    Empty where nothing is known.  Reads some hundred bytes here and there, whatever the disk says;
    errors of the reader pass through.
    """
    disk = _Bytes(read, size_bytes)
    found = [*_tables(disk, sector_size), *_by_signature(disk), *_ext(disk), *_fat(disk),
             *_lvm(disk), *_raid(disk), *_zfs(disk)]  # fmt: skip
    return _merged(found)


@dataclass(frozen=True, slots=True)
class _Bytes:
    """A disk of which bytes past the end are nothing."""

    read: Reader
    size_bytes: int

    def at(self, offset: int, length: int) -> bytes:
        """The `length` bytes at `offset`, or b"" if they are not all on the disk."""
        if offset < 0 or offset + length > self.size_bytes:
            return b""
        return self.read(offset, length)


def _merged(found: Iterable[Found]) -> list[Found]:
    """One of each name, with all its spots."""
    spots: dict[str, tuple[Spot, ...]] = {}
    for one in found:
        spots[one.name] = spots.get(one.name, ()) + one.spots
    return [Found(name, where) for name, where in spots.items()]


def _tables(disk: _Bytes, sector_size: int) -> Iterator[Found]:
    table = read_table(disk.read, disk.size_bytes, sector_size).table
    other = guess_sector_size(disk.read, disk.size_bytes)
    sizes = {sector_size, other or sector_size}
    spots = tuple(spot for size in sorted(sizes) for spot in _gpt_spots(disk, size))
    if table is not None and table.kind == "mbr":
        yield Found(f"an MBR partition table ({_count(len(table.partitions))})", (_MBR_SPOT,))
    if table is not None and table.kind == "gpt":
        name = f"a GPT partition table ({_count(len(table.partitions))})"
        yield Found(name, (_MBR_SPOT, *spots))
    elif spots:
        yield Found("a GPT", spots)
    yield from _rdb(disk, table, sector_size)


def _rdb(disk: _Bytes, table: Table | None, sector_size: int) -> Iterator[Found]:
    """An Amiga's, which another table in sector 0 may have made unseen."""
    rigid_disk = find_rigid_disk(Source(disk.read, disk.size_bytes, sector_size))
    if rigid_disk is not None:
        shown = table is not None and table.kind == "rdb"
        count = f" ({_count(len(table.partitions))})" if table is not None and shown else ""
        yield Found(f"an Amiga RDB{count}", ((rigid_disk.lba * sector_size, 4),))


def _count(partitions: int) -> str:
    return "1 partition" if partitions == 1 else f"{partitions or 'no'} partitions"


def _gpt_spots(disk: _Bytes, sector_size: int) -> Iterator[Spot]:
    last_lba = disk.size_bytes // sector_size - 1
    for lba in (PRIMARY_LBA, last_lba):
        offset, length = lba * sector_size, len(GPT_SIGNATURE)
        if disk.at(offset, length) == GPT_SIGNATURE:
            yield offset, length


def _by_signature(disk: _Bytes) -> Iterator[Found]:
    for one in SIGNATURES:
        if disk.at(one.offset, len(one.magic)) == one.magic:
            yield Found(one.name, ((one.offset, len(one.magic)),))


def _ext(disk: _Bytes) -> Iterator[Found]:
    """ext2, ext3 and ext4 differ by their features (ext4's super.rst, `s_feature_*`)."""
    if disk.at(_EXT.offset, len(_EXT.magic)) != _EXT.magic:
        return
    features = disk.at(_EXT_COMPATIBLE, 12)
    compatible = int.from_bytes(features[0:4], "little")
    incompatible = int.from_bytes(features[4:8], "little")
    kind = "ext3" if compatible & _EXT_HAS_JOURNAL else "ext2"
    kind = "ext4" if incompatible & _EXT4_INCOMPATIBLE else kind
    yield Found(f"an {kind} file system", ((_EXT.offset, len(_EXT.magic)),))


def _fat(disk: _Bytes) -> Iterator[Found]:
    """FAT has no magic: its BPB must make sense, and a FAT begin with the media byte."""
    sector = disk.at(0, 512)
    if not sector or sector[3:11] in (b"NTFS    ", b"EXFAT   ", b"-FVE-FS-"):
        return
    if is_boot_sector(sector):
        yield Found("a FAT file system", ((0, 3), (11, 25), (510, 2)))


def _lvm(disk: _Bytes) -> Iterator[Found]:
    """The label is in one of the first four sectors of 512 bytes."""
    for sector in range(_LVM_SECTORS):
        label = disk.at(sector * 512, 32)
        if label[:8] == _LVM_MAGIC and label[24:32] == _LVM_TYPE:
            yield Found("an LVM2 physical volume", ((sector * 512, len(_LVM_MAGIC)),))


def _raid(disk: _Bytes) -> Iterator[Found]:
    """Linux md, versions 0.90 and 1.0: the superblock is near the disk's end."""
    sectors = disk.size_bytes // 512
    for offset in (((sectors & ~127) - 128) * 512, ((sectors - 16) & ~7) * 512):
        if disk.at(offset, len(_MD_MAGIC)) == _MD_MAGIC:
            yield Found("a member of a RAID array", ((offset, len(_MD_MAGIC)),))


def _zfs(disk: _Bytes) -> Iterator[Found]:
    """The uberblocks in the ring of the first label."""
    ring = disk.at(_ZFS_UBERBLOCKS.start, len(_ZFS_UBERBLOCKS) * _ZFS_UBERBLOCKS.step)
    for at in range(0, len(ring), _ZFS_UBERBLOCKS.step):
        if ring[at : at + 8] in _ZFS_MAGICS:
            yield Found("a ZFS pool's device", ((_ZFS_UBERBLOCKS.start + at, 8),))
