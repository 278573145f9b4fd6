"""A GPT while it is edited: the array of entries, and where both copies of it belong.

What is edited is the believed copy.  Both copies are then written from it, so that an edit also
repairs a damaged copy, and moves the backup to the end of a disk that has grown.  In both headers
only the fields change that have to; reserved bytes, revision and whatever follows the fields stay,
and so do the number of entries, their size and their order.

Specification: UEFI 2.10, section 5.3.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Sequence
from uuid import UUID

from vdisk.errors import Corrupt, InvalidArgument, NotFound, NotPermitted
from vdisk.partitioning.draft import Draft, Target, ranges
from vdisk.partitioning.edits import Add, Edits
from vdisk.partitioning.gpt_layout import Layout, existing_layout, new_layout, protective_mbr
from vdisk.partitioning.placing import Place, fitting, free_places, grid
from vdisk.partitioning.steps import Barrier, Overlay, Put, Step
from vdisk.tables.gpt import PRIMARY_LBA, Copies, read_copies, unused_header
from vdisk.tables.gpt_header import (
    ENTRY_SIZE_MIN,
    LEGACY_BIOS_BOOTABLE,
    unpack_entry,
    with_checksum,
    with_fields,
)
from vdisk.tables.mbr import read_boot_record
from vdisk.tables.partition import Partition
from vdisk.tables.partition_types import parse_gpt_type
from vdisk.tables.soundness import LbaRange
from vdisk.tables.source import MBR_BYTES

LINUX_TYPE = "linux"
NAME_UNITS_MAX = 36
"""A name has so many UTF-16 code units (section 5.3.3); a character past U+FFFF takes two."""

_ATTRIBUTES = struct.Struct("<Q")
_ATTRIBUTES_OFFSET = 48
_NAME_OFFSET = 56
_NAME_BYTES = 2 * NAME_UNITS_MAX


class GptDraft(Draft):
    """A GPT being edited.  Make one with `of` or `new`."""

    def __init__(
        self, target: Target, layout: Layout, entries: bytearray, record: bytes,
        old: Copies | None, *, is_new: bool,
    ) -> None:  # fmt: skip
        """`record` is the MBR as it will be; `old` are the copies on the disk if they count.

        Of a new table everything is written; else only what changes.
        """
        super().__init__(target)
        self._layout = layout
        self._entries = entries
        self._record = record
        self._old = old
        self._is_new = is_new
        self.notes += layout.notes

    @classmethod
    def of(cls, target: Target) -> GptDraft:
        """The table that is on the disk.  Raises Corrupt where no copy of it can be used."""
        source = target.source()
        record = read_boot_record(source)
        if record is None or record.protective is None:
            raise Corrupt(
                "the GPT is not used, as sector 0 has no protective MBR for it",
                hint="gdisk writes one; a new table: --table gpt --force",
            )
        copies = read_copies(source)
        if copies.used is None or copies.used.header is None:
            raise Corrupt(
                f"no copy of the GPT can be used, neither the primary ({copies.primary.fault}) nor "
                f"the backup ({copies.backup.fault})",
                hint="a new table: --table gpt --force",
            )
        layout = existing_layout(target, copies)
        header = copies.used.header
        entries = source.read(header.entries_lba, header.entries_bytes)
        sector = protective_mbr(record, target.sectors, grown=layout.is_moved)
        draft = cls(target, layout, bytearray(entries), sector, copies, is_new=False)
        if record.is_hybrid:
            draft.notes.append("the MBR is a hybrid one: its entries are kept as they are")
        return draft

    @classmethod
    def new(cls, target: Target, *, keep_boot: bool) -> GptDraft:
        """An empty table.  Raises InvalidArgument for a disk too small or of smaller sectors."""
        layout = new_layout(target)
        sector = protective_mbr(None, target.sectors, old=target.read(0, MBR_BYTES) if keep_boot
                                else None)  # fmt: skip
        record = read_boot_record(target.source())
        old = None
        if record is not None and record.protective is not None:
            old = read_copies(target.source())
        return cls(target, layout, bytearray(layout.entries_bytes), sector, old, is_new=True)

    # What the entries say

    def partitions(self) -> Sequence[Partition]:
        table = self.target.scan(Overlay(self.target.read, self.steps()).read).table
        return () if table is None else table.partitions

    def _listed(self) -> list[Partition]:
        """The partitions, unjudged."""
        numbers = range(1, self._layout.entry_count + 1)
        return [unpack_entry(n, self._raw(n)[:ENTRY_SIZE_MIN]) for n in numbers if self._used(n)]

    def _slot(self, number: int) -> slice:
        size = self._layout.entry_size
        return slice((number - 1) * size, number * size)

    def _raw(self, number: int) -> bytes:
        return bytes(self._entries[self._slot(number)])

    def _used(self, number: int) -> bool:
        return any(self._raw(number)[:16])

    def _check_number(self, number: int) -> None:
        if not (1 <= number <= self._layout.entry_count and self._used(number)):
            numbers = ", ".join(str(one.number) for one in self._listed()) or "none"
            raise NotFound(f"has no partition {number}", hint=f"it has: {numbers}")

    def _change(self, number: int, offset: int, data: bytes) -> None:
        """Put `data` at byte `offset` of entry `number`."""
        start = (number - 1) * self._layout.entry_size + offset
        self._entries[start : start + len(data)] = data

    # Edits

    def delete(self, number: int) -> list[Partition]:
        self._check_number(number)
        (one,) = (each for each in self._listed() if each.number == number)
        if any(one.start_lba < high and low < one.end_lba for low, high in self._hybrid_ranges()):
            raise NotPermitted(
                f"partition {number} is in the hybrid MBR as well, which would still show it",
                hint="make the MBR a plain protective one first, with gdisk",
            )
        self._change(number, 0, bytes(self._layout.entry_size))
        return [one]

    def _hybrid_ranges(self) -> list[LbaRange]:
        """What the entries of a hybrid MBR show besides the GPT."""
        record = read_boot_record(self.target.source(Overlay(
            self.target.read, [Put(0, self._record)]
        ).read))  # fmt: skip
        if record is None or not record.is_hybrid:
            return []
        entries = (entry for entry in record.entries if entry != record.protective)
        return [(one.start, one.start + one.sectors) for one in entries if one.sectors]

    def check_addable(self) -> None:
        self.check_sound()

    def add_all(self, edits: Edits) -> list[LbaRange]:
        if edits.extended is not None or edits.logicals:
            raise InvalidArgument(
                "a GPT has no extended and no logical partitions",
                hint="add them with --add: it has room for "
                f"{self._layout.entry_count} of one kind",
            )
        self._grid = grid(edits.align, self.target.geometry, self.target.size_bytes)
        return [self._add(add) for add in edits.adds]

    def _add(self, add: Add) -> LbaRange:
        number = self._free_number()
        place = self._place(self.wanted_sectors(add.size_bytes))
        if place is None:
            raise self.no_room(add.size_bytes, self._place(None))
        type_guid, name = _packed_type(add.type or LINUX_TYPE), packed_name(add.name)
        numbers = struct.pack("<QQQ", place.start, place.end - 1, 0)
        entry = type_guid + self.target.new_guid().bytes_le + numbers + name
        self._change(number, 0, entry.ljust(self._layout.entry_size, b"\0"))
        return place.start, place.end

    def _free_number(self) -> int:
        for number in range(1, self._layout.entry_count + 1):
            if not self._used(number):
                return number
        raise InvalidArgument(f"all {self._layout.entry_count} entries of the GPT are in use")

    def _place(self, sectors: int | None) -> Place | None:
        layout = self._layout
        first = max(layout.first_usable_lba, layout.primary_end_lba)
        used = ranges(self._listed()) + self._hybrid_ranges()
        free = free_places(used, first, layout.last_usable_lba + 1)
        return fitting(free, sectors, self._grid, self._start)

    def _start(self, free: LbaRange) -> tuple[int, int | None]:
        return max(self._grid.start(free[0]), free[0]), None

    def set_type(self, number: int, text: str) -> None:
        self._check_number(number)
        self._change(number, 0, _packed_type(text))

    def set_name(self, number: int, name: str) -> None:
        self._check_number(number)
        self._change(number, _NAME_OFFSET, packed_name(name))

    def set_bootables(self, flags: Iterable[tuple[int, bool]]) -> None:
        """Set the attribute "legacy BIOS bootable", which any number of partitions may have."""
        for number, on in flags:
            self._check_number(number)
            (bits,) = _ATTRIBUTES.unpack_from(self._raw(number), _ATTRIBUTES_OFFSET)
            bits = bits | LEGACY_BIOS_BOOTABLE if on else bits & ~LEGACY_BIOS_BOOTABLE
            self._change(number, _ATTRIBUTES_OFFSET, _ATTRIBUTES.pack(bits))

    # Steps

    def steps(self) -> list[Step]:
        """The copy that is not believed, a barrier, then the other; whoever crashes has one.

        On a disk without a GPT the protective MBR is what makes it have one.  It is written as
        soon as the backup is there to be believed; but last of all if a sound primary of former
        times, which it would bring back, has to be overwritten first.

        A copy's entries come before its header: the header of a damaged primary may be what leads
        to a backup that is not at the disk's end.
        """
        backup, primary = self._copy(is_primary=False), self._copy(is_primary=True)
        record = [Put(0, self._record)]
        used = None if self._old is None else self._old.used
        if used is not None and used is not self._old_primary():
            puts = primary + backup + record
        elif used is not None or self._has_unused_header():
            puts = backup + primary + record
        else:
            puts = backup + record + primary
        return [step for put in puts if self._is_news(put) for step in (put, Barrier())]

    def _old_primary(self) -> object:
        return None if self._old is None else self._old.primary

    def _has_unused_header(self) -> bool:
        return unused_header(self.target.source()) is not None

    def _is_news(self, put: Put) -> bool:
        return self._is_new or self.target.read(put.offset, len(put.data)) != put.data

    def _copy(self, *, is_primary: bool) -> list[Put]:
        layout, unit = self._layout, self.target.sector_size
        lba, other = layout.backup_lba, PRIMARY_LBA
        raw, entries_lba = layout.backup_header, layout.backup_entries_lba
        if is_primary:
            lba, other = other, lba
            raw, entries_lba = layout.primary_header, layout.primary_entries_lba
        header = with_checksum(with_fields(
            raw, my_lba=lba, alternate_lba=other, first_usable_lba=layout.first_usable_lba,
            last_usable_lba=layout.last_usable_lba, disk_guid=layout.disk_guid,
            entries_lba=entries_lba, entry_count=layout.entry_count, entry_size=layout.entry_size,
            entries_crc=zlib.crc32(self._entries),
        ))  # fmt: skip
        return [Put(entries_lba * unit, bytes(self._entries)), Put(lba * unit, header)]


def packed_name(name: str) -> bytes:
    """A partition's name as it is stored.  Raises InvalidArgument for one that cannot be."""
    try:
        packed = name.encode("utf-16-le")
    except UnicodeEncodeError as error:
        raise InvalidArgument(f"the name {name!r} is no text") from error
    if "\0" in name:
        raise InvalidArgument("a name cannot hold a NUL")
    if len(packed) > _NAME_BYTES:
        raise InvalidArgument(
            f"the name {name[:50]!r} is too long",
            hint=f"a GPT keeps {NAME_UNITS_MAX} units of UTF-16, and it has {len(packed) // 2}",
        )
    return packed.ljust(_NAME_BYTES, b"\0")


def _packed_type(text: str) -> bytes:
    return UUID(parse_gpt_type(text)).bytes_le
