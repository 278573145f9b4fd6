"""How much a group holds and how much of it is free."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from vdisk.tables.lvm2.allocate import free_ranges
from vdisk.tables.lvm2.model import PvRange, VolumeGroup


@dataclass(frozen=True, slots=True)
class Space:
    """Bytes: all extents together, and those that a new volume can be given."""

    total: int
    free: int


def space(vg: VolumeGroup, forbidden: Iterable[PvRange] = ()) -> Space:
    """The space of `vg`; extents in `forbidden` do not count as free."""
    total = sum(pv.pe_count for pv in vg.pvs)
    free = sum(one.count for one in free_ranges(vg, forbidden))
    return Space(total * vg.extent_bytes, free * vg.extent_bytes)
