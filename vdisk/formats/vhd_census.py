"""What of a VHD file is in use: where blocks lie, what else does, and the gaps between."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from heapq import merge

from vdisk.formats.table import Table
from vdisk.formats.vhd_header import FREE
from vdisk.units import SECTOR

_SORTED_AT_ONCE = 1 << 19  # Entries that are numbers of Python's at one time: some 20 MB.
_GAPS_MAX = 1 << 12  # As many gaps as are remembered; the table is looked at again for more.

Region = tuple[int, int]
"""(first byte, end) in the file of something other than a block: a header, the block table."""


@dataclass(slots=True)
class Census:
    """`end` is the first byte past all in use; `last_block` where the last block begins, or -1.

    `gaps` are [start, end) in bytes of room before `end` for at least one block, the lowest last.
    `problem` says what makes it impossible to write without damage, None where nothing does.
    """

    end: int
    last_block: int
    gaps: list[Region]
    problem: str | None = None


def take_census(table: Table, stride: int, regions: Iterable[Region], limit: int) -> Census:
    """Look at every entry.  `stride` is a block with its bitmap, `limit` the file's size; bytes."""
    others = sorted(regions)
    end, last_block = 0, -1
    gaps: list[Region] = []
    problem = None
    for start, stop, is_block in _in_order(sorted_places(table), stride, others):
        if start < end:
            problem = problem or f"two structures both lie at byte {start} of the file"
        if start - end >= stride and len(gaps) < _GAPS_MAX:
            gaps.append((end, start))
        if is_block:
            last_block = start
        end = max(end, stop)
    if end > limit:
        problem = f"its block table names places up to byte {end}, and the file ends at {limit}"
    gaps.reverse()
    return Census(end, last_block, gaps, problem)


def sorted_places(table: Table) -> Iterator[int]:
    """The entries that are places, in sectors, in order."""
    chunks: list[array[int]] = []
    pending: list[int] = []
    for _, page in table.runs():
        pending.extend(entry for entry in page if entry != FREE)
        if len(pending) >= _SORTED_AT_ONCE:
            chunks.append(array("I", sorted(pending)))
            pending.clear()
    if not chunks:
        return iter(sorted(pending))
    return merge(*chunks, sorted(pending))


def _in_order(
    places: Iterator[int], stride: int, others: list[Region]
) -> Iterator[tuple[int, int, bool]]:
    """(first byte, end, whether it is a block) of everything, by where it begins."""
    rest = iter(others)
    other = next(rest, None)
    for place in places:
        start = place * SECTOR
        while other is not None and other[0] <= start:
            yield *other, False
            other = next(rest, None)
        yield start, start + stride, True
    while other is not None:
        yield *other, False
        other = next(rest, None)
