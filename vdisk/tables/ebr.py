"""Logical partitions: a chain of extended boot records (EBRs) inside an extended partition.

An EBR is laid out as an MBR is.  An entry of its that is no container is a logical partition, and
starts at a distance from this EBR; the first entry that is a container links to the next EBR, and
its start is a distance from the start of the *outermost* extended partition.  As the Linux kernel
does (`block/partitions/msdos.c`), any of the four entries may be either, the third and fourth are
taken only if they lie inside, and containers are links, never a tree.

A chain is whatever a guest wrote: it may be a loop, point anywhere or never hold a partition.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from vdisk.tables.entry import MbrEntry, has_signature, unpack_entries
from vdisk.tables.partition import Partition
from vdisk.tables.partition_types import mbr_type, mbr_type_name
from vdisk.tables.source import MBR_BYTES, Source

NUMBER_MAX = 255
"""The highest number of a partition: the kernel has 256 minors for a disk (`DISK_MAX_PARTS`)."""

EMPTY_LINKS_MAX = 100
"""So many EBRs without a partition may follow one another, as in the kernel and libblkid."""


@dataclass(frozen=True, slots=True)
class ChainRecord:
    """An EBR of a chain: where it is, its 512 bytes, and which of its four entries are what.

    `slots` are the indexes of the entries that are logical partitions, in the order of their
    numbers; `link` is that of the entry that leads to the next record, None in the last one.
    """

    lba: int
    sector: bytes
    slots: tuple[int, ...]
    link: int | None


@dataclass(slots=True)
class Chain:
    """What one extended partition holds; `problems` say where the chain broke off, and why.

    `records` are the EBRs, in the chain's order; none where the partition holds nothing yet.
    """

    extended: Partition
    logicals: list[Partition] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    records: list[ChainRecord] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Link:
    """Where an EBR is said to be, and the length of the container that was said to hold it."""

    lba: int
    sectors: int


def follow(source: Source, extended: Partition, signature: int, first_number: int) -> Chain:
    """The logical partitions of `extended`, numbered from `first_number` in the chain's order.

    `signature` is the disk's, for their UUIDs.  A logical partition that leaves its extended
    partition, or lies on an EBR, has a `problem`.  Never more than `NUMBER_MAX` partitions, and
    no EBR is read twice.
    """
    chain = Chain(extended)
    empty_links = 0
    link: _Link | None = _Link(extended.start_lba, extended.sectors)
    while link is not None:
        problem = _refusal(source, extended, link, chain.records)
        if empty_links == EMPTY_LINKS_MAX:
            problem = f"partition {extended.number}: {EMPTY_LINKS_MAX} empty records in a row"
        if problem is not None:
            chain.problems.append(problem)
            break
        sector = source.read(link.lba, MBR_BYTES)
        if not has_signature(sector):
            chain.problems += _unsigned(extended, link, sector)
            break
        entries = unpack_entries(sector)
        record = ChainRecord(link.lba, sector, _slots(extended, link, entries), _link(entries))
        chain.records.append(record)
        empty_links = 0 if record.slots else empty_links + 1
        for slot in record.slots:
            number = first_number + len(chain.logicals)
            if number > NUMBER_MAX:
                chain.problems.append(f"logical partitions after number {NUMBER_MAX} are left out")
                return _checked(source, chain)
            chain.logicals.append(_logical(link, entries[slot], signature, number))
        link = _next(extended, entries, record.link)
    return _checked(source, chain)


def _refusal(
    source: Source, extended: Partition, link: _Link, records: list[ChainRecord]
) -> str | None:
    """Why the record that `link` points at is not read, or None."""
    where = f"partition {extended.number}: the chain of logical partitions"
    if link.lba == 0 or any(record.lba == link.lba for record in records):
        return f"{where} comes back to LBA {link.lba}"
    if not extended.start_lba <= link.lba < extended.end_lba:
        return f"{where} leaves the extended partition for LBA {link.lba}"
    if not source.holds(link.lba, MBR_BYTES):
        return f"{where} goes on at LBA {link.lba}, past the disk's end at LBA {source.sectors}"
    return None


def _unsigned(extended: Partition, link: _Link, sector: bytes) -> list[str]:
    """An extended partition that holds nothing yet may begin with zeros; else it is damaged."""
    if link.lba == extended.start_lba and not any(sector):
        return []
    return [f"partition {extended.number}: the boot record at LBA {link.lba} lacks its 55 AA"]


def _slots(
    extended: Partition, link: _Link, entries: tuple[MbrEntry, ...]
) -> tuple[int, ...]:
    return tuple(
        index
        for index, entry in enumerate(entries)
        if entry.sectors
        and not entry.is_extended
        and (index < 2 or _lies_inside(extended, link, entry))
    )


def _lies_inside(extended: Partition, link: _Link, entry: MbrEntry) -> bool:
    """Whether a third or fourth entry is a partition; it "sometimes" holds garbage instead."""
    end = entry.start + entry.sectors
    return end <= link.sectors and link.lba + end <= extended.end_lba


def _link(entries: tuple[MbrEntry, ...]) -> int | None:
    links = (index for index, entry in enumerate(entries) if entry.sectors and entry.is_extended)
    return next(links, None)


def _next(extended: Partition, entries: tuple[MbrEntry, ...], link: int | None) -> _Link | None:
    if link is None:
        return None
    return _Link(extended.start_lba + entries[link].start, entries[link].sectors)


def _logical(link: _Link, entry: MbrEntry, signature: int, number: int) -> Partition:
    return Partition(
        number=number,
        start_lba=link.lba + entry.start,
        sectors=entry.sectors,
        type=mbr_type(entry.type),
        type_name=mbr_type_name(entry.type),
        bootable=entry.bootable,
        uuid=entry.uuid(signature, number),
        kind="logical",
        start_chs=entry.start_chs,
        end_chs=entry.end_chs,
    )


def _checked(source: Source, chain: Chain) -> Chain:
    """`chain`, with what is wrong between its partitions, their container and its records."""
    record_sectors = source.sectors_of(MBR_BYTES)
    chain.logicals = [
        replace(one, problem=_misplaced(chain, one, record_sectors)) for one in chain.logicals
    ]
    return chain


def _misplaced(chain: Chain, one: Partition, record_sectors: int) -> str | None:
    extended = chain.extended
    if one.start_lba < extended.start_lba or one.end_lba > extended.end_lba:
        return f"leaves its extended partition {extended.number}"
    for record in chain.records:
        if one.start_lba < record.lba + record_sectors and record.lba < one.end_lba:
            return f"overlaps the extended boot record at LBA {record.lba}"
    return None
