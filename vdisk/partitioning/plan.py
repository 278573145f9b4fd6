"""From edits to steps: the table as it would be, checked, before anything is written."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from vdisk.errors import Corrupt, InvalidArgument, NotFound, Unsupported
from vdisk.partitioning.draft import Draft, Target, ranges
from vdisk.partitioning.edits import Edits
from vdisk.partitioning.gpt_draft import GptDraft
from vdisk.partitioning.mbr_draft import MbrDraft
from vdisk.partitioning.mbr_entries import BOOT_CODE_BYTES
from vdisk.partitioning.steps import Barrier, Overlay, Put, Step
from vdisk.recognise import Found, Spot
from vdisk.tables import Partition, Table, is_boot_sector
from vdisk.tables.entry import has_signature
from vdisk.tables.gpt import read_copies
from vdisk.tables.soundness import LbaRange
from vdisk.tables.source import MBR_BYTES


@dataclass(frozen=True, slots=True)
class Change:
    """What is to be written, and what a person should know besides, a sentence each."""

    steps: tuple[Step, ...]
    notes: tuple[str, ...]


def plan_change(target: Target, edits: Edits, found: Sequence[Found] = ()) -> Change:
    """The steps that do `edits`, all of them checked.

    `found` is what a new table would be put over; the bytes that it was found by are cleared, so
    that no tool finds both.  Raises InvalidArgument, NotFound or NotPermitted for edits that cannot
    be done, Corrupt or Unsupported for a table that is not safe to edit; then there is nothing to
    write.
    """
    old = target.scan().table
    draft = _draft(target, edits, old, found)
    before = () if edits.new_table or old is None else old.partitions
    expected = _edit(draft, edits, ranges(before))
    steps = draft.steps()
    if edits.new_table:
        steps += _wipes(found, steps)
        draft.notes += [
            f"{one.name} was there, and is found no more" for one in found
        ]
    _check_result(target, steps, before, expected)
    return Change(tuple(steps), tuple(dict.fromkeys(draft.notes)))


def _draft(
    target: Target, edits: Edits, old: Table | None, found: Sequence[Found]
) -> Draft:
    if edits.new_table is not None:
        return _new_draft(target, edits, found)
    if old is None:
        raise NotFound("has no partition table", hint="make one: --table gpt, or --table mbr")
    if old.kind == "rdb":
        raise Unsupported(
            "has an Amiga RDB, which is read here and not changed",
            hint="parted changes it; --table makes another in its place",
        )
    return MbrDraft(target) if old.kind == "mbr" else GptDraft.of(target)


def _new_draft(target: Target, edits: Edits, found: Sequence[Found]) -> Draft:
    if target.size_bytes < MBR_BYTES or target.sectors * target.sector_size < MBR_BYTES:
        raise InvalidArgument("the disk is too small for a partition table")
    keep_boot = _has_boot_code(target.read(0, MBR_BYTES), found)
    if edits.new_table == "mbr":
        return MbrDraft(target, keep_boot=keep_boot)
    return GptDraft.new(target, keep_boot=keep_boot)


def _has_boot_code(sector: bytes, found: Iterable[Found]) -> bool:
    """Whether sector 0 has code of an MBR to keep, and nothing that something is known by."""
    spots = [spot for one in found for spot in one.spots]
    return (
        has_signature(sector)
        and not is_boot_sector(sector)
        and not any(offset < BOOT_CODE_BYTES for offset, _ in spots)
    )


def _edit(draft: Draft, edits: Edits, expected: list[LbaRange]) -> list[LbaRange]:
    """Do all edits, in the order that `Edits` tells; the ranges that there are to be.

    `expected` are those that there are before.
    """
    # From the highest on: to take one out changes the numbers of the logical ones after it.
    for number in sorted(set(edits.deletes), reverse=True):
        for one in draft.delete(number):
            expected.remove((one.start_lba, one.end_lba))
    if edits.adds_something:
        draft.check_addable()
        expected += draft.add_all(edits)
    for number, text in edits.types:
        draft.set_type(number, text)
    for number, name in edits.names:
        draft.set_name(number, name)
    draft.set_bootables(edits.bootables)
    return expected


def _check_result(
    target: Target, steps: list[Step], before: Sequence[Partition], expected: list[LbaRange]
) -> None:
    """Raise Corrupt unless a reader of the new bytes sees a table with no new fault in it.

    This is a second look, by other code than that which decided: a table is written only if it is
    read back as one.
    """
    after = Overlay(target.read, steps).read
    table = target.scan(after).table
    if table is None:
        raise Corrupt(
            "without its partitions sector 0 would not be read as an MBR: it is the boot sector of "
            "a file system as well",
            hint="make a new table: --table mbr --force",
        )
    is_whole = table.kind == "mbr" or read_copies(target.source(after)).are_equal
    if not is_whole or sorted(ranges(table.partitions)) != sorted(expected):
        raise Corrupt("the table would not be read back as it was meant")
    known: dict[LbaRange, str | None] = {
        (one.start_lba, one.end_lba): one.problem for one in before
    }
    for one in table.partitions:
        if one.problem is not None and known.get((one.start_lba, one.end_lba)) is None:
            raise Corrupt(f"partition {one.number}: {one.problem} then; nothing was written")


def _wipes(found: Iterable[Found], steps: Iterable[Step]) -> list[Step]:
    """Zeros over what is known by bytes that the new table, all of which `steps` write, leaves."""
    puts = [step for step in steps if isinstance(step, Put)]
    spots = [spot for one in found for spot in one.spots]
    wipes: list[Step] = [
        Put(offset, bytes(length)) for offset, length in dict.fromkeys(spots)
        if not any(_overlap(put, (offset, length)) for put in puts)
    ]  # fmt: skip
    return [*wipes, Barrier()] if wipes else []


def _overlap(put: Put, spot: Spot) -> bool:
    return put.offset < spot[0] + spot[1] and spot[0] < put.end
