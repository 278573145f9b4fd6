"""Free extents, and choosing among them.

The choice is the same every time for the same group: a volume goes into the smallest free range
that holds all of it (the first of several), or else into the largest ranges, as few as will do.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable

from vdisk.errors import NoSpace
from vdisk.tables.lvm2.model import PvRange, VolumeGroup
from vdisk.tables.lvm2.references import taken
from vdisk.units import format_size


def free_ranges(vg: VolumeGroup, forbidden: Iterable[PvRange] = ()) -> tuple[PvRange, ...]:
    """The extents that a volume can be given: in the drives' order, none touching another.

    Extents in `forbidden` are left out, and so are drives on which nothing is to be allocated.
    """
    used: dict[str, list[tuple[int, int]]] = {pv.key: [] for pv in vg.pvs}
    for one in (*taken(vg), *forbidden):
        if one.pv in used:
            used[one.pv].append((one.first, one.end))
    free: list[PvRange] = []
    for pv in vg.pvs:
        if pv.is_allocatable:
            free += _gaps(pv.key, pv.pe_count, sorted(used[pv.key]))
    return tuple(free)


def _gaps(pv: str, count: int, used: list[tuple[int, int]]) -> list[PvRange]:
    gaps = []
    at = 0
    for first, end in (*used, (count, count)):
        if min(first, count) > at:
            gaps.append(PvRange(pv, at, min(first, count) - at))
        at = max(at, end)
    return gaps


class Pool:
    """The free extents of a group while several volumes are given some."""

    def __init__(self, vg: VolumeGroup, forbidden: Iterable[PvRange] = ()) -> None:
        self._extent_bytes = vg.extent_bytes
        self._order = {pv.key: number for number, pv in enumerate(vg.pvs)}
        self._free = [self._keyed(one) for one in free_ranges(vg, forbidden)]
        self._free.sort()
        self.extents = sum(count for count, *_ in self._free)

    def _keyed(self, one: PvRange) -> tuple[int, int, int, PvRange]:
        """By size, then by place: what the list of free ranges is sorted by."""
        return one.count, self._order[one.pv], one.first, one

    def take(self, count: int) -> tuple[PvRange, ...]:
        """`count` extents, one range if one is large enough.  Raises NoSpace for too many."""
        if count > self.extents:
            raise NoSpace(
                f"the drive has {format_size(self.extents * self._extent_bytes)} free, and "
                f"{format_size(count * self._extent_bytes)} are needed",
                hint="remove or shrink a volume",
            )
        got: list[PvRange] = []
        while count:
            at = bisect_left(self._free, (count,))
            *_, found = self._free[min(at, len(self._free) - 1)]
            got.append(self._cut(found, min(count, found.count)))
            count -= got[-1].count
        return tuple(got)

    def take_at(self, pv: str, first: int, most: int) -> int:
        """Take up to `most` extents that begin at extent `first` of `pv`; how many there were."""
        for *_, found in self._free:
            if found.pv == pv and found.first == first:
                return self._cut(found, min(most, found.count)).count
        return 0

    def _cut(self, found: PvRange, count: int) -> PvRange:
        """Take `count` extents from the start of the free range `found`."""
        del self._free[bisect_left(self._free, self._keyed(found)[:3])]
        if count < found.count:
            rest = PvRange(found.pv, found.first + count, found.count - count)
            insort(self._free, self._keyed(rest))
        self.extents -= count
        return PvRange(found.pv, found.first, count)
