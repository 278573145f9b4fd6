"""Partition tables: reading the MBR, the GPT or the Amiga RDB of a disk.

    scan = read_table(read, size_bytes, sector_size)
    scan.slices      the partitions that are given as disks of their own
    scan.table       everything the table says, sound or not; None without a table
    scan.regions     the bytes this answer depends on

No disk is needed, only a `Reader`.  Whatever the bytes are, the answer is a `Scan`, in bounded time
and memory; nothing here raises because of what a guest wrote, and only errors of the reader itself
pass through.  What the rules are is told in `mbr`, `ebr`, `gpt`, `rdb` and `soundness`.
"""

from __future__ import annotations

from vdisk.chs import Geometry
from vdisk.tables.gpt import PRIMARY_LBA, gpt_table, unused_header
from vdisk.tables.gpt_header import Copy, read_copy
from vdisk.tables.mbr import BootRecord, is_boot_sector, is_mbr, mbr_table, read_boot_record
from vdisk.tables.partition import (
    Partition,
    PartitionKind,
    Reader,
    Region,
    Scan,
    Table,
    TableKind,
)
from vdisk.tables.rdb import find_rigid_disk, rdb_table
from vdisk.tables.source import Source

__all__ = [
    "Partition",
    "PartitionKind",
    "Reader",
    "Region",
    "Scan",
    "Table",
    "TableKind",
    "guess_sector_size",
    "is_boot_sector",
    "rdb_geometry",
    "read_table",
]

GPT_SECTOR_SIZES = (512, 1024, 2048, 4096)
"""The sector sizes a GPT is looked for at, the likely one first."""


def read_table(read: Reader, size_bytes: int, sector_size: int) -> Scan:
    """The partition table of a disk of `size_bytes` bytes and sectors of `sector_size` bytes.

    `sector_size` is a power of two from 128 to 4096.  `read` is never asked for bytes outside the
    disk's whole sectors; what it raises passes through.
    """
    source = Source(read, size_bytes, sector_size)
    table = _find(source)
    return Scan(table, source.regions())


def _find(source: Source) -> Table | None:
    record = read_boot_record(source)
    if record is not None and record.protective is not None:
        return _protected(source, record)
    if record is not None and is_mbr(record, source.sectors):
        return _with_unused_gpt(source, mbr_table(source, record))
    if record is not None and is_boot_sector(record.sector):
        return None
    return rdb_table(source) or _unannounced_gpt(source)


def _protected(source: Source, record: BootRecord) -> Table | None:
    """A disk with an entry of type 0xEE has a GPT, or nothing: never that entry as a partition.

    Without a sound copy of the GPT, the sector must at least be an MBR for that to be said: 0xEE
    may also be a byte of some other boot sector's code.
    """
    table = gpt_table(source, record)
    return table if table.disk_id or is_mbr(record, source.sectors) else None


def _with_unused_gpt(source: Source, table: Table) -> Table:
    """`table`, an MBR's, with a word about a GPT that was there before it."""
    if unused_header(source) is None:
        return table
    problem = (
        f"a GPT header at LBA {PRIMARY_LBA} is ignored: the MBR has no protective entry "
        "(type 0xEE) for it"
    )
    return Table(table.kind, table.disk_id, table.partitions, (*table.problems, problem))


def _unannounced_gpt(source: Source) -> Table | None:
    """A GPT whose sector 0 is gone: known, and given no partitions, as by the kernel and sfdisk."""
    header = unused_header(source)
    if header is None:
        return None
    problem = (
        f"the GPT at LBA {PRIMARY_LBA} is not used: sector 0 has no protective MBR (an entry of "
        "type 0xEE) for it; gdisk writes one"
    )
    return Table("gpt", header.disk_guid, problems=(problem,))


def rdb_geometry(read: Reader, size_bytes: int, sector_size: int) -> Geometry | None:
    """The geometry that the disk's RDB gives it, None where it has none or another table counts."""
    source = Source(read, size_bytes, sector_size)
    record = read_boot_record(source)
    if record is not None and (
        record.protective or is_mbr(record, source.sectors) or is_boot_sector(record.sector)
    ):
        return None
    disk = find_rigid_disk(source)
    return None if disk is None else disk.geometry


def guess_sector_size(read: Reader, size_bytes: int) -> int | None:
    """The sector size, in bytes, at which the disk has a GPT or an RDB; None if it has none at any.

    A GPT's header is at LBA 1 or at the last LBA and names its own LBA, so where it is tells the
    size of a sector: 512, 1024, 2048 or 4096.  A copy that is sound with its entries is believed
    before one of which only the header is, and a primary before a backup.
    """
    sources = [Source(read, size_bytes, size) for size in GPT_SECTOR_SIZES]
    primaries = [(source.sector_size, read_copy(source, PRIMARY_LBA)) for source in sources]
    backups = [
        (source.sector_size, read_copy(source, max(source.sectors - 1, 0))) for source in sources
    ]
    return (
        _first(primaries, sound=True)
        or _first(backups, sound=True)
        or _rdb_sector_size(sources)
        or _first(primaries + backups, sound=False)
    )


def _rdb_sector_size(sources: list[Source]) -> int | None:
    """An RDB is in one of the first blocks, and says how large they are."""
    for source in sources:
        disk = find_rigid_disk(source)
        if disk is not None and disk.block_bytes == source.sector_size:
            return source.sector_size
    return None


def _first(copies: list[tuple[int, Copy]], *, sound: bool) -> int | None:
    for sector_size, copy in copies:
        if copy.is_sound if sound else copy.header_sound:
            return sector_size
    return None
