"""Whether two disks hold the same bytes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from vdisk.contents import Buffers, data_ranges, done_ahead, first_difference, union
from vdisk.disk import Disk


@dataclass(frozen=True, slots=True)
class Difference:
    """The first byte in which two disks differ; `one` and `other` are its values, 0 past an end."""

    offset: int
    one: int
    other: int


def compare_disks(
    one: Disk, other: Disk, advance: Callable[[int], None] = lambda count: None
) -> Difference | None:
    """The first difference, None where there is none; what a disk has more must be zeros.

    What both maps call zeros is not read.  `advance` is told how many bytes were read of each.
    """
    ranges = union(data_ranges(one), data_ranges(other))
    for found, length in done_ahead(ranges, partial(_compared, one, other, Buffers())):
        if found is not None:
            return found
        advance(length)
    return None


def _compared(
    one: Disk, other: Disk, buffers: Buffers, start: int, end: int
) -> tuple[Difference | None, int]:
    a, b = buffers.read(one, start, end), buffers.read(other, start, end)
    at = first_difference(a, b)
    found = None if at is None else Difference(start + at, a[at], b[at])
    buffers.give_back(a, b)
    return found, end - start
