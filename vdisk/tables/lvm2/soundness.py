"""What holds in every volume group: volumes covered exactly, inside their drives, none overlapping.

A text is checked when it is read, and so is a new one before it is written.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from vdisk.errors import Corrupt
from vdisk.tables.lvm2.fields import SECTORS_MAX
from vdisk.tables.lvm2.model import LogicalVolume, PvRange, VolumeGroup
from vdisk.tables.lvm2.names import is_name


def check(vg: VolumeGroup) -> None:
    """Raises Corrupt, naming the volume, for the first thing in `vg` that cannot be."""
    _check_unique("physical volumes", (pv.key for pv in vg.pvs))
    _check_unique("UUIDs of physical volumes", (pv.id for pv in vg.pvs))
    _check_unique("logical volumes", (lv.name for lv in vg.lvs))
    _check_unique("UUIDs of logical volumes", (lv.id for lv in vg.lvs))
    for pv in vg.pvs:
        if pv.pe_start + pv.pe_count * vg.extent_size > SECTORS_MAX:
            raise Corrupt(f"physical volume {pv.key} is larger than any drive")
    for lv in vg.lvs:
        _check_covered(lv)
    _check_places(vg)


def _check_unique(what: str, names: Iterable[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise Corrupt(f"two {what} are called {name}")
        seen.add(name)


def _check_covered(lv: LogicalVolume) -> None:
    if not is_name(lv.name):
        raise Corrupt(f"{lv.name!r} is not the name of a logical volume")
    at = 0
    for segment in lv.segments:
        if segment.start != at:
            wrong = "overlap" if segment.start < at else "leave a gap"
            raise Corrupt(f"the segments of logical volume {lv.name} {wrong} at extent {at}")
        at = segment.end


def placed(vg: VolumeGroup) -> Iterator[tuple[str, PvRange]]:
    """Every range of extents that a segment lies on, with its volume's name, in no order."""
    for lv in vg.lvs:
        for segment in lv.segments:
            for taken in segment.ranges():
                yield lv.name, taken


def _check_places(vg: VolumeGroup) -> None:
    counts = {pv.key: pv.pe_count for pv in vg.pvs}
    order = sorted(placed(vg), key=lambda one: (one[1].pv, one[1].first))
    before: tuple[str, PvRange] | None = None
    for name, taken in order:
        if taken.end > counts[taken.pv]:
            raise Corrupt(
                f"logical volume {name} lies on extent {taken.end - 1} of {taken.pv}, which has "
                f"{counts[taken.pv]}"
            )
        if before is not None and before[1].pv == taken.pv and taken.first < before[1].end:
            raise Corrupt(
                f"logical volumes {before[0]} and {name} overlap at extent {taken.first} "
                f"of {taken.pv}"
            )
        before = (name, taken)
