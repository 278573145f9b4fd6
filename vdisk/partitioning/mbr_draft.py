"""An MBR, its extended partition and the chain in it, while they are edited.

The bytes are the draft: after each edit the records are read anew by `vdisk.tables`, so that what
an edit builds on is what any later reader sees.  Only the bytes that an edit is about are changed;
boot code, disk signature, copy-protect word, unused entries and whatever else a record holds stay.

A new logical partition goes to the end of the chain, so that the others keep their numbers; its EBR
lies in the free place just before it.  The first EBR cannot move.  When its partition is deleted it
takes over the second one, as fdisk does it; an empty record in front of others would make sfdisk
print a remark in the midst of its JSON.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from vdisk.errors import Corrupt, InvalidArgument, NotPermitted, Unsupported
from vdisk.partitioning.commits import Commits
from vdisk.partitioning.draft import Draft, Target, ranges
from vdisk.partitioning.edits import Add, Edits
from vdisk.partitioning.mbr_entries import EbrWriter, MbrAddresses, new_mbr, with_entry
from vdisk.partitioning.placing import Place, fitting, free_places, grid
from vdisk.partitioning.steps import Overlay, Put, Step
from vdisk.tables.ebr import NUMBER_MAX, Chain, ChainRecord
from vdisk.tables.entry import BOOTABLE, MbrEntry, unpack_entries
from vdisk.tables.mbr import (
    FIRST_LOGICAL,
    PRIMARIES,
    BootRecord,
    logical_chains,
    mbr_table,
    primary_partitions,
    read_boot_record,
)
from vdisk.tables.partition import Partition, Region
from vdisk.tables.partition_types import (
    EXTENDED_TYPES,
    PROTECTIVE_TYPE,
    parse_mbr_type,
)
from vdisk.tables.soundness import LbaRange
from vdisk.tables.source import MBR_BYTES

LINUX_TYPE = 0x83
SECTORS_MAX = (1 << 32) - 1
"""Starts and counts have 32 bits; sectors past this many cannot be part of a partition."""


@dataclass(frozen=True, slots=True)
class _Spot:
    """Where a partition's entry is: entry `slot` of record `index` of `chain`, or of the MBR."""

    lba: int
    slot: int
    chain: Chain | None = None
    index: int = 0


class MbrDraft(Draft):
    """An MBR being edited; `target`'s geometry is the one that its C/H/S addresses are in."""

    def __init__(self, target: Target, *, keep_boot: bool | None = None) -> None:
        """The table that is on the disk; with `keep_boot` a new one, with the old boot code or not.

        Raises Corrupt where there is to be a table and is none.
        """
        super().__init__(target)
        self._overlay = Overlay(target.read)
        self._commits = Commits(self._overlay, self._live)
        self._addresses = MbrAddresses.of(target.geometry)
        self._ebrs = EbrWriter(self._addresses, target.sector_size)
        self.notes += self._addresses.notes
        if keep_boot is not None:
            old = target.read(0, MBR_BYTES)
            signature = int.from_bytes(target.random(4), "little") or 1
            self._commits.change(Put(0, new_mbr(old, signature, keep_boot=keep_boot)))

    def partitions(self) -> Sequence[Partition]:
        return mbr_table(self.target.source(self._overlay.read), self._record()).partitions

    def steps(self) -> list[Step]:
        return self._commits.steps()

    # What the records say

    def _record(self) -> BootRecord:
        record = read_boot_record(self.target.source(self._overlay.read))
        if record is None:
            raise Corrupt("sector 0 is no MBR: it does not end in 55 AA")
        return record

    def _chains(self) -> list[Chain]:
        return logical_chains(self.target.source(self._overlay.read), self._record())

    def _live(self) -> list[Region]:
        """The bytes that the table has a use for, whichever kind of table it is."""
        unit = self.target.sector_size
        table = self.target.scan(self._overlay.read).table
        used = [] if table is None else [p for p in table.partitions if p.kind != "extended"]
        live = [(start * unit, end * unit) for start, end in ranges(used)]
        if table is not None and table.kind == "mbr":
            records = [record for chain in self._chains() for record in chain.records]
            live += [(one.lba * unit, one.lba * unit + MBR_BYTES) for one in records]
        return live

    def _record_sectors(self) -> int:
        return -(-MBR_BYTES // self.target.sector_size)

    def _spot(self, number: int) -> _Spot:
        if self.partition(number).kind != "logical":
            return _Spot(0, number - 1)
        at = FIRST_LOGICAL
        for chain in self._chains():
            for index, record in enumerate(chain.records):
                if number < at + len(record.slots):
                    return _Spot(record.lba, record.slots[number - at], chain, index)
                at += len(record.slots)
        raise AssertionError("a logical partition is in no record")

    def _entry(self, spot: _Spot) -> MbrEntry:
        return unpack_entries(self._sector(spot.lba))[spot.slot]

    def _sector(self, lba: int) -> bytes:
        return self._overlay.read(lba * self.target.sector_size, MBR_BYTES)

    def _put(self, lba: int, sector: bytes) -> Put:
        return Put(lba * self.target.sector_size, sector)

    def _set_entry(self, spot: _Spot, entry: MbrEntry | None, fresh: Sequence[Put] = ()) -> None:
        sector = with_entry(self._sector(spot.lba), spot.slot, entry)
        self._commits.change(self._put(spot.lba, sector), fresh)

    # Deleting

    def delete(self, number: int) -> list[Partition]:
        partition = self.partition(number)
        inner = self._inside(number)
        if inner:
            numbers = ", ".join(str(one.number) for one in inner)
            self.notes.append(f"with partition {number} go the logical ones in it: {numbers}")
        self._take_out(self._spot(number))
        return [partition, *inner]

    def _take_out(self, spot: _Spot) -> None:
        records = [] if spot.chain is None else spot.chain.records
        if not records or len(records[spot.index].slots) > 1:
            self._set_entry(spot, None)
        elif spot.index > 0:
            self._unlink(records[spot.index - 1], records[spot.index])
        elif not self._take_over(records):
            self._set_entry(spot, None)

    def _inside(self, number: int) -> list[Partition]:
        """The logical partitions in partition `number`, none unless it is an extended one."""
        chains = (chain for chain in self._chains() if chain.extended.number == number)
        return [one for chain in chains for one in chain.logicals]

    def _unlink(self, before: ChainRecord, record: ChainRecord) -> None:
        """Let the record `before` lead to what `record` leads to."""
        assert before.link is not None
        self._set_entry(_Spot(before.lba, before.link), _onward(record))

    def _take_over(self, records: list[ChainRecord]) -> bool:
        """Let the first record hold the partition of the second, and lead on as that does.

        False, and nothing done, where there is no second with one partition that the first reaches.
        """
        first = records[0]
        if first.link is None or len(records) < 2 or len(records[1].slots) != 1:
            return False
        second = records[1]
        entry = unpack_entries(second.sector)[second.slots[0]]
        start = entry.start + second.lba - first.lba
        if start > SECTORS_MAX:
            return False
        sector = with_entry(self._sector(first.lba), first.slots[0], replace(entry, start=start))
        self._commits.change(self._put(first.lba, with_entry(sector, first.link, _onward(second))))
        return True

    # Adding

    def check_addable(self) -> None:
        chains = self._chains()
        for chain in chains:
            for problem in chain.problems:
                raise Corrupt(
                    f"{problem}; nothing is added to such a table",
                    hint=f"take it out in the same command: --delete {chain.extended.number}",
                )
        if len(chains) > 1:
            numbers = " and ".join(str(chain.extended.number) for chain in chains)
            raise Corrupt(
                f"partitions {numbers} are both extended; nothing is added to such a table",
                hint="take all but one out in the same command",
            )
        self.check_sound()

    def add_all(self, edits: Edits) -> list[LbaRange]:
        self._added: list[LbaRange] = []
        self._grid = grid(edits.align, self._addresses.geometry, self.target.size_bytes)
        self._note_other_addresses()
        for at, add in enumerate(edits.adds):
            also_extended = edits.extended is None and bool(edits.logicals)
            waiting = len(edits.adds) - at + also_extended
            self._add(add, waiting, may_extend=edits.extended is None)
        if edits.extended is not None:
            self._add_extended(edits.extended)
        for add in edits.logicals:
            self._add_logical(add)
        return self._added

    def _add(self, add: Add, waiting: int, *, may_extend: bool) -> None:
        """Add a partition wherever there is an entry and a place for it.

        `waiting` is how many entries of the MBR this and the rest of the command would like.
        """
        _check_unnamed(add)
        if _new_type(add) in EXTENDED_TYPES:
            self._add_extended(add)
            return
        free, chain = self._free_slots(), self._chain()
        if chain is None and len(free) == 1 and waiting > 1 and may_extend:
            self._extend_automatically()
            free, chain = [], self._chain()
        sectors = self.wanted_sectors(add.size_bytes)
        primary = self._primary_place(sectors) if free else None
        logical = self._logical_place(chain, sectors) if chain is not None else None
        if primary is not None and (
            sectors is not None or logical is None or primary.sectors >= logical.sectors
        ):
            self._add_primary(add, primary)
        elif chain is not None and (logical is not None or not free):
            self._add_logical(add)
        elif free:
            raise self.no_room(add.size_bytes, self._primary_place(None))
        else:
            raise _all_used()

    def _extend_automatically(self) -> None:
        self._add_extended(Add(None))
        number = self._only_chain().extended.number
        self.notes.append(
            f"partition {number} is made an extended one, for the logical partitions: an MBR has "
            "only four entries"
        )

    def _free_slots(self) -> list[int]:
        entries = self._record().entries
        return [index for index, entry in enumerate(entries) if not entry.is_used]

    def _chain(self) -> Chain | None:
        chains = self._chains()
        return chains[0] if chains else None

    def _only_chain(self) -> Chain:
        chain = self._chain()
        assert chain is not None
        return chain

    def _add_primary(self, add: Add, place: Place) -> None:
        entry = self._addresses.entry(_new_type(add), place, 0)
        self._set_entry(_Spot(0, self._free_slots()[0]), entry)
        self._added.append((place.start, place.end))

    def _add_extended(self, add: Add) -> None:
        if self._chain() is not None:
            raise InvalidArgument(
                "there is an extended partition already",
                hint="logical ones are added to it with --logical",
            )
        free = self._free_slots()
        if not free:
            raise _all_used()
        _check_unnamed(add)
        place = self._primary_place(self.wanted_sectors(add.size_bytes))
        if place is None:
            raise self.no_room(add.size_bytes, self._primary_place(None))
        code = parse_mbr_type(add.type or "extended")
        if code not in EXTENDED_TYPES:
            raise InvalidArgument(
                f"{add.type!r} is no type of an extended partition",
                hint="it is 05, 0f, 85, or left out",
            )
        entry = self._addresses.entry(code, place, 0)
        if add.type is None and self._addresses.is_past_reach(place.end - 1):
            entry = replace(entry, type=0x0F)
        first = self._put(place.start, self._ebrs.empty())
        self._set_entry(_Spot(0, free[0]), entry, [first])
        self._added.append((place.start, place.end))

    def _add_logical(self, add: Add) -> None:
        _check_unnamed(add)
        code = _new_type(add)
        if code in EXTENDED_TYPES:
            raise InvalidArgument("a logical partition cannot be an extended one")
        if self._chain() is None:
            self._extend_automatically()
        chain = self._only_chain()
        if FIRST_LOGICAL + len(chain.logicals) > NUMBER_MAX:
            raise InvalidArgument(f"no partition has a number above {NUMBER_MAX}")
        place = self._logical_place(chain, self.wanted_sectors(add.size_bytes))
        if place is None:
            raise self.no_room(add.size_bytes, self._logical_place(chain, None))
        assert place.record_lba is not None
        entry = self._addresses.entry(code, place, place.record_lba)
        if place.record_lba == chain.extended.start_lba:
            self._fill_first(chain, entry)
        else:
            self._append(chain, place, entry)
        self._added.append((place.start, place.end))

    def _fill_first(self, chain: Chain, entry: MbrEntry) -> None:
        """Put the only logical partition into the first EBR, which may hold zeros so far."""
        if chain.records:
            slot = _unused_slot(chain.records[0], (0, 1))
            self._set_entry(_Spot(chain.extended.start_lba, slot), entry)
        else:
            sector = self._ebrs.of(entry)[:MBR_BYTES]
            self._commits.change(self._put(chain.extended.start_lba, sector))

    def _append(self, chain: Chain, place: Place, entry: MbrEntry) -> None:
        assert place.record_lba is not None
        last = chain.records[-1]
        link = self._addresses.link(place, chain.extended.start_lba)
        fresh = self._put(place.record_lba, self._ebrs.of(entry))
        self._set_entry(_Spot(last.lba, _unused_slot(last, (1, 0))), link, [fresh])

    # Places

    def _primary_place(self, sectors: int | None) -> Place | None:
        first = self._record_sectors()
        used = ranges(primary_partitions(self._record()))
        end = min(self.target.sectors, SECTORS_MAX)
        return fitting(free_places(used, first, end), sectors, self._grid, self._primary_start)

    def _primary_start(self, free: LbaRange) -> tuple[int, int | None]:
        return max(self._grid.start(free[0]), free[0]), None

    def _logical_place(self, chain: Chain, sectors: int | None) -> Place | None:
        """As `fitting`; the EBR of a chain's only partition is at the chain's start."""
        extended, size = chain.extended, self._record_sectors()
        used = [(one.lba, one.lba + size) for one in chain.records] + ranges(chain.logicals)
        used.append((extended.start_lba, extended.start_lba + size))
        free = free_places(used, extended.start_lba, min(extended.end_lba, SECTORS_MAX))
        if chain.logicals:
            return fitting(free, sectors, self._grid, self._logical_start)
        start = self._first_logical_start(extended.start_lba)
        free = (place for place in free if place[0] <= start < place[1])
        return fitting(free, sectors, self._grid, lambda _: (start, extended.start_lba))

    def _first_logical_start(self, record_lba: int) -> int:
        """A track after its EBR, if that begins a track, as DOS had it; else as any other."""
        gap = self._grid.logical_gap
        if record_lba % gap == 0 and gap >= self._record_sectors():
            return record_lba + gap
        return self._grid.logical_start(record_lba + self._record_sectors())

    def _logical_start(self, free: LbaRange) -> tuple[int, int | None]:
        start = self._grid.logical_start(free[0] + self._record_sectors())
        return start, max(free[0], min(start - self._grid.logical_gap,
                                       start - self._record_sectors()))

    # Fields

    def set_type(self, number: int, text: str) -> None:
        spot, code = self._spot(number), _checked_type(parse_mbr_type(text))
        entry = self._entry(spot)
        if entry.is_extended != (code in EXTENDED_TYPES):
            raise NotPermitted(
                f"partition {number} cannot become an extended one, or cease to be one",
                hint="delete it, and add one of the other kind",
            )
        self._set_entry(spot, replace(entry, type=code))

    def set_name(self, number: int, name: str) -> None:
        self.partition(number)
        raise _no_names()

    def set_bootables(self, flags: Iterable[tuple[int, bool]]) -> None:
        """As `sfdisk --activate`: a partition that is set takes the flag from those not named."""
        wanted = dict(flags)
        for number in wanted:
            self.partition(number)
        if any(wanted.values()):
            others = [p.number for p in self.partitions() if p.bootable and p.number not in wanted]
            for number in others:
                wanted[number] = False
                self.notes.append(f"partition {number} is bootable no more: one MBR, one of them")
        for number, on in sorted(wanted.items()):
            spot = self._spot(number)
            self._set_entry(spot, replace(self._entry(spot), boot_flag=BOOTABLE if on else 0))

    def _note_other_addresses(self) -> None:
        """Say so where entries that are there have C/H/S addresses of another geometry."""
        numbers = [str(p.number) for p in self.partitions() if not self._addresses.are_those_of(p)]
        if numbers:
            self.notes.append(
                f"the C/H/S addresses of partition {', '.join(numbers)} are kept: they are not of "
                f"the geometry {self._addresses.geometry}, which new ones are in"
            )


def _onward(record: ChainRecord) -> MbrEntry | None:
    """The link to the record after `record`, None in the last one."""
    return None if record.link is None else unpack_entries(record.sector)[record.link]


def _unused_slot(record: ChainRecord, slots: tuple[int, ...]) -> int:
    """The first of `slots` of an EBR that holds nothing.  Only its first two entries are usual."""
    entries = unpack_entries(record.sector)
    for slot in slots:
        if not entries[slot].is_used:
            return slot
    raise Unsupported(f"the extended boot record at LBA {record.lba} has no entry left")


def _new_type(add: Add) -> int:
    return LINUX_TYPE if add.type is None else _checked_type(parse_mbr_type(add.type))


def _checked_type(code: int) -> int:
    if code == 0:
        raise InvalidArgument("type 00 is that of an entry that is not in use")
    if code == PROTECTIVE_TYPE:
        raise InvalidArgument(
            "type ee would say that the disk has a GPT", hint="make one with --table gpt"
        )
    return code


def _check_unnamed(add: Add) -> None:
    if add.name:
        raise _no_names()


def _no_names() -> NotPermitted:
    return NotPermitted("partitions of an MBR have no names", hint="those of a GPT have")


def _all_used() -> InvalidArgument:
    return InvalidArgument(
        f"all {PRIMARIES} entries of the MBR are in use, and none is an extended partition",
        hint="delete one and add it again with --logical, or use --table gpt",
    )
