"""What of an image file is in use: where blocks lie, what else does, and the gaps between."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from heapq import merge

from vdisk.host import HostFile

_SORTED_AT_ONCE = 1 << 19  # So many are numbers of Python's at one time: some 20 MB.
_GAPS_MAX = 1 << 12  # As many gaps as are remembered; the table is looked at again for more.

_EDGES = 128 << 10  # Two pages are at most 64 KiB large each.

Region = tuple[int, int]
"""(first byte, end) in the file of something other than a block: a header, the block table."""


@dataclass(slots=True)
class Census:
    """`end` is the first byte past all in use; `last_block` where the last block begins, or -1.

    `gaps` are [start, end) in bytes of room for at least one block, between the first block and
    `end`, the lowest last: what is before the first one is its maker's layout.
    `problem` says what makes it impossible to write without damage, None where nothing does.
    """

    end: int
    last_block: int
    gaps: list[Region]
    problem: str | None = None


def take_census(
    places: Iterator[int], stride: int, regions: Iterable[Region], limit: int
) -> Census:
    """Look at every block: `places` is where they begin, in order, `stride` how long each is.

    `regions` are what else is in the file, which ends at `limit`.  All of it in bytes.
    """
    others = sorted(regions)
    end, last_block = 0, -1
    gaps: list[Region] = []
    problem = None
    for start, stop, is_block in _in_order(places, stride, others):
        if start < end:
            problem = problem or f"two structures both lie at byte {start} of the file"
        if start - end >= stride and last_block >= 0 and len(gaps) < _GAPS_MAX:
            gaps.append((end, start))
        if is_block:
            last_block = start
        end = max(end, stop)
    if end > limit:
        problem = f"its tables name places up to byte {end}, and the file ends at {limit}"
    gaps.reverse()
    return Census(end, last_block, gaps, problem)


def targets(census: Census, stride: int, count_max: int) -> Iterator[int]:
    """At most `count_max` places for blocks in the gaps before the last block, in order."""
    for low, high in reversed(census.gaps):
        while low < census.last_block and high - low >= stride and count_max:
            yield low
            low, count_max = low + stride, count_max - 1


def has_data(host: HostFile, place: int, length: int) -> bool:
    """Whether anything but zeros is there, told without reading more than what a hole leaves.

    Where it does not begin at a page of the file, parts of two pages are zeros and no hole.
    """
    read = 0
    for start, end, is_data in host.ranges(place, length):
        if not is_data:
            continue
        read += end - start
        if read > _EDGES or any(host.read(start, end - start)):
            return True
    return False


def in_order(numbers: Iterable[Iterable[int]]) -> Iterator[int]:
    """All the numbers (below 2**64) of these groups, sorted, in little memory."""
    chunks: list[array[int]] = []
    pending: list[int] = []
    for group in numbers:
        pending.extend(group)
        if len(pending) >= _SORTED_AT_ONCE:
            chunks.append(array("Q", sorted(pending)))
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
        while other is not None and other[0] <= place:
            yield *other, False
            other = next(rest, None)
        yield place, place + stride, True
    while other is not None:
        yield *other, False
        other = next(rest, None)
