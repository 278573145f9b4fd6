"""The master boot record: its four entries, and when a sector 0 is one.

Layout: a disk signature (u32) at byte 440, four entries of 16 bytes at 446, 55 AA at 510, all of
it little-endian; 512 bytes at the start of the disk whatever the size of its sectors.  Starts and
counts in the entries are in the disk's own sectors.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from vdisk.tables.ebr import Chain, follow
from vdisk.tables.entry import MbrEntry, has_signature, unpack_entries
from vdisk.tables.partition import Partition, Table
from vdisk.tables.partition_types import PROTECTIVE_TYPE, mbr_type, mbr_type_name
from vdisk.tables.soundness import judge
from vdisk.tables.source import MBR_BYTES, Source

PRIMARIES = 4
FIRST_LOGICAL = PRIMARIES + 1

_AIX_MAGIC = b"\xc9\xc2\xd4\xc1"
_BOOT_SECTOR_NAMES = (b"NTFS    ", b"EXFAT   ", b"-FVE-FS-")


@dataclass(frozen=True, slots=True)
class BootRecord:
    """The first 512 bytes of a disk, which end in 55 AA."""

    sector: bytes
    signature: int
    entries: tuple[MbrEntry, ...]

    @property
    def protective(self) -> MbrEntry | None:
        """The entry that says "this disk has a GPT", if there is one."""
        found = (entry for entry in self.entries if entry.type == PROTECTIVE_TYPE)
        return next(found, None)

    @property
    def is_hybrid(self) -> bool:
        """Whether it has entries besides the protective one."""
        return any(entry.is_used and entry.type != PROTECTIVE_TYPE for entry in self.entries)


def read_boot_record(source: Source) -> BootRecord | None:
    """What is in sector 0, or None where it does not end in 55 AA or the disk is too small."""
    if source.size_bytes < MBR_BYTES or not source.holds(0, MBR_BYTES):
        return None
    sector = source.read(0, MBR_BYTES)
    if not has_signature(sector):
        return None
    (signature,) = struct.unpack_from("<I", sector, 440)
    return BootRecord(sector, signature, unpack_entries(sector))


def is_mbr(record: BootRecord, sectors: int) -> bool:
    """Whether `record` is an MBR, and not the boot sector of a file system on the whole disk.

    Boot sectors end in 55 AA as well.  As the Linux kernel and libblkid do, one whose entries have
    a boot flag other than 0 and 0x80 is no MBR, nor is an AIX disk.  A sector with a BPB is an MBR
    only if it has entries and all of them make sense: libblkid and parted would refuse it even
    then, but sfdisk leaves the BPB in place when it partitions such a disk, and the kernel shows
    those partitions.
    """
    if record.sector.startswith(_AIX_MAGIC):
        return False
    if any(entry.boot_flag not in (0, 0x80) for entry in record.entries):
        return False
    if not is_boot_sector(record.sector):
        return True
    used = [entry for entry in record.entries if entry.is_used]
    return bool(used) and all(_makes_sense(entry, sectors) for entry in used)


def is_boot_sector(sector: bytes) -> bool:
    """Whether `sector` (at least 512 bytes) begins as a FAT, exFAT, NTFS or BitLocker volume does.

    The FAT test is the one of Microsoft's FAT specification, section 3.1: the sizes are powers of
    two, there are reserved sectors and FATs, and the media byte is 0xF0 or at least 0xF8.
    """
    if sector[3:11] in _BOOT_SECTOR_NAMES:
        return True
    sector_size, cluster_sectors, reserved, fats = struct.unpack_from("<HBHB", sector, 11)
    media = sector[21]
    return (
        _is_power_of_two(sector_size)
        and 128 <= sector_size <= 4096
        and _is_power_of_two(cluster_sectors)
        and reserved > 0
        and fats > 0
        and (media == 0xF0 or media >= 0xF8)
    )


def _is_power_of_two(number: int) -> bool:
    return number > 0 and number & (number - 1) == 0


def _makes_sense(entry: MbrEntry, sectors: int) -> bool:
    return entry.type != 0 and entry.start > 0 and 0 < entry.sectors <= sectors - entry.start


def mbr_table(source: Source, record: BootRecord) -> Table:
    """The table of an MBR disk: its primary partitions, and the logical ones of its chains.

    Logical partitions are numbered from 5 in the order of their chain, and a second extended
    partition's go on from there, as the kernel does.
    """
    primaries = primary_partitions(record)
    chains = logical_chains(source, record)
    logicals = [one for chain in chains for one in chain.logicals]
    reserved = [(0, source.sectors_of(MBR_BYTES))]
    problems = [problem for chain in chains for problem in chain.problems]
    if len(chains) > 1:
        problems.insert(0, "there is more than one extended partition: sfdisk sees only the first")
    return Table(
        kind="mbr",
        disk_id=f"0x{record.signature:08x}",
        partitions=judge(source, primaries + logicals, reserved),
        problems=tuple(problems),
    )


def primary_partitions(record: BootRecord) -> list[Partition]:
    """The partitions that the record itself names, unjudged, in the order of its entries."""
    return [
        _primary(record, index, entry)
        for index, entry in enumerate(record.entries)
        if entry.is_used
    ]


def _primary(record: BootRecord, index: int, entry: MbrEntry) -> Partition:
    number = index + 1
    return Partition(
        number=number,
        start_lba=entry.start,
        sectors=entry.sectors,
        type=mbr_type(entry.type),
        type_name=mbr_type_name(entry.type),
        bootable=entry.bootable,
        uuid=entry.uuid(record.signature, number),
        kind="extended" if entry.is_extended else "primary",
        start_chs=entry.start_chs,
        end_chs=entry.end_chs,
    )


def logical_chains(source: Source, record: BootRecord) -> list[Chain]:
    """What each extended partition holds, in the order of the record's entries."""
    chains: list[Chain] = []
    number = FIRST_LOGICAL
    for extended in primary_partitions(record):
        if extended.kind == "extended" and extended.sectors > 0:
            chain = follow(source, extended, record.signature, number)
            number += len(chain.logicals)
            chains.append(chain)
    return chains
