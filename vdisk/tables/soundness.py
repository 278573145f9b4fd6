"""Which entries of a table make sense, and what is wrong with the others.

Both kinds of table are judged here, by the same rules.  An entry that makes no sense is kept, with
the reason in its `problem`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from vdisk.tables.partition import Partition
from vdisk.tables.source import Source

LbaRange = tuple[int, int]
"""A half-open range of LBAs."""


def judge(
    source: Source,
    partitions: Iterable[Partition],
    reserved: Sequence[LbaRange],
) -> tuple[Partition, ...]:
    """`partitions`, in their order, each with the first thing that is wrong with it, if any.

    `reserved` are the sectors that the table itself occupies.  A problem found earlier is kept.
    Two partitions that share a sector name each other and neither is sound; only an extended
    partition may hold logical ones.
    """
    listed = [_with_problem(one, _own_problem(source, one, reserved)) for one in partitions]
    partners = dict(_overlaps([one for one in listed if one.kind != "logical"]))
    partners |= dict(_overlaps([one for one in listed if one.kind != "extended"]))
    return tuple(
        _with_problem(one, f"overlaps partition {partners[one.number]}")
        if one.number in partners
        else one
        for one in listed
    )


def _with_problem(partition: Partition, problem: str | None) -> Partition:
    if problem is None or partition.problem is not None:
        return partition
    return replace(partition, problem=problem)


def _own_problem(
    source: Source, partition: Partition, reserved: Sequence[LbaRange]
) -> str | None:
    """What is wrong with `partition` by itself."""
    start, end = partition.start_lba, partition.end_lba
    if partition.sectors == 0:
        return "has no sectors"
    if end > source.sectors:
        return f"ends at LBA {end}, past the disk's end at LBA {source.sectors}"
    for first, last in reserved:
        if start < last and first < end:
            return f"overlaps the partition table at LBA {first}"
    return None


def _overlaps(partitions: Iterable[Partition]) -> Iterator[tuple[int, int]]:
    """For each partition that shares a sector with another: its number and one partner's.

    One pass in order of start: a partition meets an earlier one exactly if it starts before the
    furthest end so far, and the partition with that end is then a partner of it.
    """
    furthest: Partition | None = None
    for one in sorted(partitions, key=lambda each: (each.start_lba, each.number)):
        if one.sectors == 0:
            continue
        if furthest is not None and one.start_lba < furthest.end_lba:
            yield furthest.number, one.number
            yield one.number, furthest.number
        if furthest is None or one.end_lba > furthest.end_lba:
            furthest = one
