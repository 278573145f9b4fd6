"""Going through all that a disk holds, quickly: where it may have data, and what that is.

Whatever goes through a whole disk (convert, compare, compact) asks here which ranges are worth
reading, and has threads read the next pieces while it works on this one.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from vdisk.ahead import done_in_order
from vdisk.disk import Disk
from vdisk.extent import Kind

PIECE_BYTES = 1 << 20
"""Data are moved in pieces of at most so much, which begin and end at its multiples."""

ZERO_UNIT = 64 << 10
"""Zeros among data are found in units of so much, at its multiples."""

Range = tuple[int, int]
"""A half-open range of bytes, (start, end)."""

T = TypeVar("T")

_ZERO_UNIT = bytes(ZERO_UNIT)
_WORKERS = 2  # Threads that read ahead: they wait for a device, or decode, while others write.
_AHEAD = 4  # Pieces that are worked on ahead, at most.


def data_ranges(disk: Disk, start: int = 0, end: int | None = None) -> Iterator[Range]:
    """The ranges in [start, end) that its map does not call zeros: ordered, apart from another."""
    end = disk.size if end is None else end
    extents = disk.map(start, end - start)
    return joined((e.guest_offset, e.guest_end) for e in extents if e.kind is not Kind.ZERO)


def union(*ranges: Iterable[Range]) -> Iterator[Range]:
    """What lies in any of several ordered lists of ranges, as one."""
    return joined(heapq.merge(*ranges))


def joined(ranges: Iterable[Range]) -> Iterator[Range]:
    """Ordered ranges, with those that touch or overlap made one."""
    pending: Range | None = None
    for start, end in ranges:
        if pending is not None and start <= pending[1]:
            pending = (pending[0], max(pending[1], end))
            continue
        if pending is not None:
            yield pending
        pending = (start, end)
    if pending is not None:
        yield pending


def widened(ranges: Iterable[Range], unit: int, size: int) -> Iterator[Range]:
    """The same ranges made to begin and end at multiples of `unit`, or at `size`."""
    return joined(
        (start // unit * unit, min(-(-end // unit) * unit, size)) for start, end in ranges
    )


def in_pieces(ranges: Iterable[Range]) -> Iterator[Range]:
    """The same ranges, cut at the multiples of `PIECE_BYTES`."""
    for start, end in ranges:
        while start < end:
            cut = min((start // PIECE_BYTES + 1) * PIECE_BYTES, end)
            yield start, cut
            start = cut


def done_ahead(ranges: Iterable[Range], work: Callable[[int, int], T]) -> Iterator[T]:
    """`work(start, end)` of each piece of `ranges`, in their order, done ahead by threads.

    What it raises is raised here, and then no other piece is begun.
    """
    return done_in_order(
        in_pieces(ranges), lambda piece: work(*piece), workers=_WORKERS, ahead=_AHEAD
    )


class Buffers:
    """Buffers of a piece each, used again: to be given new memory costs as much as to fill it."""

    def __init__(self) -> None:
        self._free: deque[bytearray] = deque()

    def read(self, disk: Disk, start: int, end: int) -> bytearray:
        """Bytes [start, end) of the disk, and zeros where that is past its end.

        The buffer has exactly that length.  Whoever is done with it gives it back.
        """
        buffer = self._taken(end - start)
        inside = max(min(end, disk.size) - start, 0)
        view = memoryview(buffer)
        if inside:
            disk.read_into(start, view[:inside])
        view[inside:] = bytes(end - start - inside)
        return buffer

    def _taken(self, length: int) -> bytearray:
        if length != PIECE_BYTES:
            return bytearray(length)
        try:
            return self._free.pop()
        except IndexError:
            return bytearray(length)

    def give_back(self, *buffers: bytearray) -> None:
        """They may be filled with something else."""
        self._free.extend(buffer for buffer in buffers if len(buffer) == PIECE_BYTES)


def zero_runs(piece: bytearray, offset: int) -> Iterator[tuple[int, int, bool]]:
    """(start, end, is_zero) runs that cover a piece which begins at `offset`, in whole units."""
    start, end, at = offset, offset + len(piece), offset
    is_zero = None
    while at < end:
        cut = min((at // ZERO_UNIT + 1) * ZERO_UNIT, end)
        zeros = _ZERO_UNIT if cut - at == ZERO_UNIT else bytes(cut - at)
        found = piece.startswith(zeros, at - offset)
        if is_zero is not None and found != is_zero:
            yield start, at, is_zero
            start = at
        is_zero, at = found, cut
    if is_zero is not None:
        yield start, end, is_zero


def first_difference(one: bytearray, other: bytearray) -> int | None:
    """The index of the first byte in which two pieces of one length differ, None if none does."""
    if one == other:
        return None
    low, high = 0, len(one)  # The first difference is in [low, high).
    while high - low > 1:
        middle = (low + high) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle
    return low
