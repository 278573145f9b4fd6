"""Sets of extents, as ranges of physical volumes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby

from vdisk.tables.lvm2.model import LogicalVolume, PvRange


def ranges_of(lv: LogicalVolume | None) -> tuple[PvRange, ...]:
    """The extents that `lv` lies on; none for no volume."""
    if lv is None:
        return ()
    return tuple(one for segment in lv.segments for one in segment.ranges())


def joined(ranges: Iterable[PvRange]) -> Iterator[PvRange]:
    """The same extents, sorted, those that overlap or touch as one range."""
    pending: PvRange | None = None
    for one in sorted(ranges, key=lambda each: (each.pv, each.first)):
        if pending is not None and one.pv == pending.pv and one.first <= pending.end:
            end = max(pending.end, one.end)
            pending = PvRange(one.pv, pending.first, end - pending.first)
            continue
        if pending is not None:
            yield pending
        pending = one
    if pending is not None:
        yield pending


def difference(ranges: Iterable[PvRange], without: Iterable[PvRange]) -> Iterator[PvRange]:
    """The extents in `ranges` that are not in `without`, sorted and joined."""
    gone = {
        pv: list(some) for pv, some in groupby(joined(without), key=lambda one: one.pv)
    }
    for one in joined(ranges):
        at = one.first
        for hole in gone.get(one.pv, ()):
            if hole.end <= at or hole.first >= one.end:
                continue
            if hole.first > at:
                yield PvRange(one.pv, at, hole.first - at)
            at = hole.end
        if at < one.end:
            yield PvRange(one.pv, at, one.end - at)
