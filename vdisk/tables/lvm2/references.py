"""Which volumes depend on which, whatever the kind of their segments.

A segment of a kind that is not mapped here (thin, cache, raid, snapshot …) still says in its text
which volumes it is made of and which extents it takes.  It is enough to know that it does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise

from vdisk.tables.lvm2.config import Section, Value
from vdisk.tables.lvm2.model import LogicalVolume, PvRange, Segment, VolumeGroup

_NO_NAMES = ("cache_mode", "discards", "policy")
"""Keys of segments whose strings are settings, whatever a volume may be called."""


def users(vg: VolumeGroup) -> dict[str, LogicalVolume]:
    """For each volume that another one is made of, that other one; the first if there are more."""
    names = {lv.name for lv in vg.lvs}
    found: dict[str, LogicalVolume] = {}
    for lv in vg.lvs:
        for segment in lv.segments:
            for word in _words(segment.extra):
                if word in names and word != lv.name:
                    found.setdefault(word, lv)
    return found


def _words(section: Section) -> Iterator[str]:
    """All strings in `section` and the sections inside it."""
    for key, item in section.items():
        if isinstance(item, dict):
            yield from _words(item)
        elif key in _NO_NAMES:
            continue
        elif isinstance(item, str):
            yield item
        elif isinstance(item, tuple):
            yield from (value for value in item if isinstance(value, str))


def is_snapshot(lv: LogicalVolume) -> bool:
    """Whether `lv` is what ties a snapshot to its origin, and has no bytes of its own."""
    return any(segment.type == "snapshot" for segment in lv.segments)


def is_store(lv: LogicalVolume, used: Mapping[str, LogicalVolume]) -> bool:
    """Whether `lv` is where a snapshot keeps its changes.  `used` is what `users` gave.

    Source: LVM2 `lib/snapshot/snapshot.c`.
    """
    return lv.name in used and any(
        lv.name in (segment.extra.get("cow_store"), segment.extra.get("merging_store"))
        for segment in used[lv.name].segments
        if segment.type == "snapshot"
    )


def is_shown(lv: LogicalVolume, used: Mapping[str, LogicalVolume]) -> bool:
    """Whether a person sees `lv`, under whose name a snapshot goes, too."""
    return (lv.visible and not is_snapshot(lv)) or is_store(lv, used)


def taken(vg: VolumeGroup) -> Iterator[PvRange]:
    """Every range of extents that is in use, in no order; ranges may overlap and leave a drive.

    A segment that is not understood takes, of each physical volume it names with an extent, as
    many extents as it has itself: a stripe of it never has more.
    """
    keys = {pv.key for pv in vg.pvs}
    for lv in vg.lvs:
        for segment in lv.segments:
            yield from segment.ranges()
            if not segment.stripes:
                yield from _named(segment, keys)


def _named(segment: Segment, keys: set[str]) -> Iterator[PvRange]:
    for item in segment.extra.values():
        for pv, first in _pairs(item):
            if pv in keys:
                yield PvRange(pv, first, segment.count)


def _pairs(item: Value | Section) -> Iterator[tuple[str, int]]:
    if isinstance(item, tuple):
        for name, number in pairwise(item):
            if isinstance(name, str) and isinstance(number, int) and number >= 0:
                yield name, number
