"""The GUID partition table: which of its two copies is used, and what is said about the other.

The primary copy's header is at LBA 1, the backup's at the disk's last LBA or wherever the primary
says.  Who is believed:

* the primary, if it is sound.  The backup is then only compared with it;
* else the backup at the last LBA, as sfdisk does, or at the LBA that a damaged primary names (each
  copy carries its own LBA under its CRC, so that a false lead cannot be taken for a backup);
* else nobody: the table has no partitions.  What the protective MBR shows is never one.

A GPT counts only if sector 0 has an entry of type 0xEE: neither the kernel nor sfdisk look further
without.  Specification: UEFI 2.10, section 5.3.
"""

from __future__ import annotations

from dataclasses import dataclass

from vdisk.tables.gpt_header import REVISION, Copy, Header, read_copy, read_header
from vdisk.tables.mbr import BootRecord
from vdisk.tables.partition import Partition, Table
from vdisk.tables.soundness import LbaRange, judge
from vdisk.tables.source import Source

PRIMARY_LBA = 1


@dataclass(frozen=True, slots=True)
class Copies:
    """Both copies of a GPT.  `backup` is the one that goes with `primary`, or is used instead."""

    primary: Copy
    backup: Copy

    @property
    def used(self) -> Copy | None:
        """The copy that is believed; None where neither can be."""
        return next((copy for copy in (self.primary, self.backup) if copy.is_sound), None)

    @property
    def are_equal(self) -> bool:
        """Whether both are sound and say the same of the disk and its partitions."""
        both = self.primary.is_sound and self.backup.is_sound
        return both and not copies_differ(self.primary, self.backup)


def read_copies(source: Source) -> Copies:
    """Both copies of the GPT of a disk whose boot record is protective."""
    primary = read_copy(source, PRIMARY_LBA)
    if primary.is_sound:
        return Copies(primary, _stated_backup(source, primary))
    return Copies(primary, _usable_backup(source, primary))


def gpt_table(source: Source, record: BootRecord) -> Table:
    """The table of a disk whose boot record is protective.  Its problems say what is wrong."""
    copies = read_copies(source)
    primary, backup = copies.primary, copies.backup
    if primary.is_sound:
        problems = _backup_problems(source, primary, backup)
        return _table(source, record, primary, backup, problems)
    if backup.is_sound:
        problem = (
            f"the primary GPT at LBA {PRIMARY_LBA} is damaged ({primary.fault}); the backup at "
            f"LBA {backup.lba} is used"
        )
        return _table(source, record, backup, primary, [problem])
    problem = (
        f"no copy of the GPT can be used, neither the primary at LBA {PRIMARY_LBA} "
        f"({primary.fault}) nor the backup at LBA {backup.lba} ({backup.fault})"
    )
    return Table(kind="gpt", disk_id="", problems=(problem, *_record_problems(record)))


def unused_header(source: Source) -> Header | None:
    """The primary header of a GPT that no protective MBR announces, if there is a sound one."""
    copy = read_header(source, PRIMARY_LBA)
    return copy.header if copy.header_sound else None


def _stated_backup(source: Source, primary: Copy) -> Copy:
    assert primary.header is not None
    return read_copy(source, primary.header.alternate_lba)


def _usable_backup(source: Source, primary: Copy) -> Copy:
    """The backup to use instead of `primary`; the one at the last LBA if none is sound."""
    at_end = read_copy(source, max(source.sectors - 1, 0))
    if at_end.is_sound or primary.header is None:
        return at_end
    stated = primary.header.alternate_lba
    if stated in (PRIMARY_LBA, at_end.lba):
        return at_end
    elsewhere = read_copy(source, stated)
    return elsewhere if elsewhere.is_sound else at_end


def _backup_problems(source: Source, primary: Copy, backup: Copy) -> list[str]:
    """What is said about the backup of a sound primary."""
    last_lba = source.sectors - 1
    if backup.lba > last_lba:
        return [
            f"the backup GPT should be at LBA {backup.lba}, past the disk's last LBA {last_lba}: "
            "the disk was shortened after it was partitioned"
        ]
    problems = []
    if backup.fault is not None:
        problems.append(f"the backup GPT at LBA {backup.lba} is damaged ({backup.fault})")
    elif copies_differ(primary, backup):
        problems.append(f"the backup GPT at LBA {backup.lba} differs; the primary is used")
    if backup.lba != last_lba:
        problems.append(
            f"the backup GPT is at LBA {backup.lba} and not at the disk's last LBA {last_lba}: "
            "the disk has grown since it was partitioned"
        )
    return problems


def copies_differ(primary: Copy, backup: Copy) -> bool:
    """Whether two sound copies say different things of the disk or its partitions."""
    one, other = primary.header, backup.header
    assert one is not None
    assert other is not None
    return (one.disk_guid, one.entry_size, one.entry_count, one.entries_crc) != (
        other.disk_guid, other.entry_size, other.entry_count, other.entries_crc
    )


def _table(
    source: Source, record: BootRecord, used: Copy, other: Copy, problems: list[str]
) -> Table:
    header = used.header
    assert header is not None
    if header.revision != REVISION:
        problems.append(f"its revision is {header.revision:#010x}, not {REVISION:#010x}")
    partitions = used.partitions()
    problems += _outside_usable(header, partitions)
    reserved = [(0, 1), *_occupied(source, used), *_occupied(source, other)]
    return Table(
        kind="gpt",
        disk_id=header.disk_guid,
        partitions=judge(source, partitions, reserved),
        problems=(*problems, *_record_problems(record)),
    )


def _occupied(source: Source, copy: Copy) -> list[LbaRange]:
    """The sectors of `copy`'s header and entries; none where it is not there or is damaged."""
    if copy.header is None or not copy.is_sound:
        return [(PRIMARY_LBA, PRIMARY_LBA + 1)] if copy.lba == PRIMARY_LBA else []
    entries_lba = copy.header.entries_lba
    entries_end = entries_lba + source.sectors_of(copy.header.entries_bytes)
    return [(copy.lba, copy.lba + 1), (entries_lba, entries_end)]


def _outside_usable(header: Header, partitions: tuple[Partition, ...]) -> list[str]:
    """One sentence if partitions leave the usable LBAs; the kernel and sfdisk give them all the
    same."""
    first, end = header.first_usable_lba, header.last_usable_lba + 1
    outside = [one for one in partitions if one.start_lba < first or one.end_lba > end]
    if not outside:
        return []
    others = f" and {len(outside) - 1} more" if len(outside) > 1 else ""
    return [
        f"partition {outside[0].number}{others} leaves the usable LBAs, {first} up to {end}"
    ]


def _record_problems(record: BootRecord) -> list[str]:
    problems = []
    if record.is_hybrid:
        problems.append("the MBR is a hybrid one: its other entries are ignored, the GPT counts")
    protective = record.protective
    if protective is not None and protective.start != PRIMARY_LBA:
        problems.append(
            f"the protective MBR entry starts at LBA {protective.start}, not {PRIMARY_LBA}: "
            "the Linux kernel does not look for a GPT then"
        )
    return problems
