"""Where the two copies of a GPT belong, and the MBR that protects them."""

from __future__ import annotations

from dataclasses import dataclass

from vdisk.errors import Corrupt, InvalidArgument
from vdisk.partitioners import gpt_protective_entry
from vdisk.partitioning.draft import Target
from vdisk.partitioning.mbr_entries import new_mbr
from vdisk.tables.entry import ENTRY_BYTES, entry_offset
from vdisk.tables.gpt import PRIMARY_LBA, Copies, copies_differ
from vdisk.tables.gpt_header import ENTRY_SIZE_MIN, SECTOR_SIZE_MIN, Copy, Header, new_header
from vdisk.tables.mbr import BootRecord
from vdisk.tables.source import MBR_BYTES

ENTRY_COUNT = 128
"""How many entries a new table has: at least 16 KiB of them (UEFI 2.10, section 5.3.1)."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Both copies as they are to be.  `last_usable_lba` is inclusive, as it is stored.

    The headers are their whole sectors, for the bytes in them that are kept.  `is_moved` is
    whether the backup was elsewhere; `notes` say so, and what else is repaired.
    """

    primary_header: bytes
    backup_header: bytes
    backup_lba: int
    primary_entries_lba: int
    backup_entries_lba: int
    first_usable_lba: int
    last_usable_lba: int
    disk_guid: bytes
    entry_count: int
    entry_size: int
    sector_size: int
    is_moved: bool = False
    notes: tuple[str, ...] = ()

    @property
    def entries_bytes(self) -> int:
        """The length of the array of entries."""
        return self.entry_count * self.entry_size

    @property
    def primary_end_lba(self) -> int:
        """The LBA after the primary's header and entries."""
        entries_end = self.primary_entries_lba + -(-self.entries_bytes // self.sector_size)
        # Where the entries lie past the first usable LBA, they are among the partitions.
        return entries_end if self.primary_entries_lba <= self.first_usable_lba else PRIMARY_LBA + 1


def new_layout(target: Target) -> Layout:
    """That of a new table, as sgdisk makes it: no sector lost between table and usable LBAs.

    Raises InvalidArgument for a disk that has no room for it.
    """
    unit = target.sector_size
    if unit < SECTOR_SIZE_MIN:
        raise InvalidArgument(
            f"a GPT needs sectors of at least {SECTOR_SIZE_MIN} bytes, and the disk's have {unit}"
        )
    entries_sectors = -(-ENTRY_COUNT * ENTRY_SIZE_MIN // unit)
    first = PRIMARY_LBA + 1 + entries_sectors
    last = target.sectors - 1 - entries_sectors - 1
    if last < first:
        least = 2 * first
        raise InvalidArgument(
            f"the disk is too small for a GPT: it has {target.sectors} sectors, "
            f"and {least} is the least"
        )
    return Layout(
        primary_header=new_header(unit),
        backup_header=new_header(unit),
        backup_lba=target.sectors - 1,
        primary_entries_lba=PRIMARY_LBA + 1,
        backup_entries_lba=last + 1,
        first_usable_lba=first,
        last_usable_lba=last,
        disk_guid=target.new_guid().bytes_le,
        entry_count=ENTRY_COUNT,
        entry_size=ENTRY_SIZE_MIN,
        sector_size=unit,
    )


def existing_layout(target: Target, copies: Copies) -> Layout:
    """That of the table on the disk, with what is damaged or misplaced put right.

    One copy must be sound.  Raises Corrupt where the other cannot be put where it belongs.
    """
    used = copies.used
    assert used is not None
    assert used.header is not None
    header, source = used.header, target.source()
    entries_sectors = source.sectors_of(header.entries_bytes)
    backup_lba = target.sectors - 1
    is_moved = copies.backup.lba != backup_lba
    backup_entries = backup_lba - entries_sectors
    last_usable = backup_entries - 1
    theirs = copies.backup.header if copies.backup.is_sound else None
    if not is_moved and theirs is not None and theirs.entries_bytes == header.entries_bytes:
        backup_entries = theirs.entries_lba
        last_usable = header.last_usable_lba
    elif not is_moved:
        last_usable = min(last_usable, header.last_usable_lba)
    raws = {
        copy.lba: source.read(copy.lba, target.sector_size)
        for copy in (copies.primary, copies.backup) if copy.is_sound
    }  # fmt: skip
    layout = Layout(
        primary_header=raws.get(PRIMARY_LBA, raws[used.lba]),
        backup_header=raws.get(copies.backup.lba, raws[used.lba]),
        backup_lba=backup_lba,
        primary_entries_lba=_primary_entries(copies, header, entries_sectors),
        backup_entries_lba=backup_entries,
        first_usable_lba=header.first_usable_lba,
        last_usable_lba=last_usable,
        disk_guid=raws[used.lba][56:72],
        entry_count=header.entry_count,
        entry_size=header.entry_size,
        sector_size=target.sector_size,
        is_moved=is_moved,
        notes=tuple(_repairs(copies, backup_lba)),
    )
    _check_room(layout)
    return layout


def _primary_entries(copies: Copies, header: Header, entries_sectors: int) -> int:
    """Where the primary's entries are, or belong if it is damaged.

    A sound header of which only the entries are not is believed if there is room where it says.
    """
    primary, first_usable = copies.primary, header.first_usable_lba
    if primary.is_sound and primary.header is not None:
        return primary.header.entries_lba
    stated = primary.header.entries_lba if primary.header and primary.header_sound else 0
    for lba in (stated, PRIMARY_LBA + 1):
        if PRIMARY_LBA < lba <= first_usable - entries_sectors:
            return lba
    raise Corrupt(
        f"there is no room for the primary GPT before LBA {first_usable}, the first usable one"
    )


def _check_room(layout: Layout) -> None:
    """Raise Corrupt where the backup would leave no usable sectors."""
    if layout.last_usable_lba < layout.first_usable_lba:
        raise Corrupt("the disk has become too small for its GPT")


def _repairs(copies: Copies, backup_lba: int) -> list[str]:
    """What writing both copies puts right, a sentence each."""
    primary, backup = copies.primary, copies.backup
    if not primary.is_sound:
        notes = [
            f"the primary GPT was damaged ({primary.fault}): it is made anew from the backup at "
            f"LBA {backup.lba}"
        ]
    elif not backup.is_sound:
        notes = [f"the backup GPT at LBA {backup.lba} was damaged ({backup.fault}): made anew"]
    else:
        notes = _differences(primary, backup)
    if backup.lba != backup_lba:
        notes.append(
            f"the backup GPT is moved from LBA {backup.lba} to the disk's end, LBA {backup_lba}"
        )
    return notes


def _differences(primary: Copy, backup: Copy) -> list[str]:
    if not copies_differ(primary, backup):
        return []
    return [f"the backup GPT at LBA {backup.lba} differed: it is made anew from the primary"]


def protective_mbr(
    record: BootRecord | None, sectors: int, *, grown: bool = False, old: bytes | None = None
) -> bytes:
    """Sector 0 of a GPT disk of `sectors`.

    `record` is the one that is there and is kept; only if the disk has `grown`, and it is no
    hybrid, its entry becomes as long as the disk.  Without a record a new one is made, with the
    boot code of `old` if that is given.
    """
    entry = gpt_protective_entry(sectors)
    if record is None:
        fresh = new_mbr(old or bytes(MBR_BYTES), 0, keep_boot=old is not None)
        return _with_raw_entry(fresh, 0, entry)
    protective = record.protective
    if not grown or record.is_hybrid or protective is None or protective.start != PRIMARY_LBA:
        return record.sector
    index = record.entries.index(protective)
    kept = record.sector[entry_offset(index) :][: ENTRY_BYTES - 4]
    return _with_raw_entry(record.sector, index, kept + entry[-4:])


def _with_raw_entry(sector: bytes, index: int, entry: bytes) -> bytes:
    offset = entry_offset(index)
    return sector[:offset] + entry + sector[offset + ENTRY_BYTES :]
