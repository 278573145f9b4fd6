"""What `vdisk drive info` says of a drive: its numbers, its volumes, and the map of its extents."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from vdisk.describe import drive_problems
from vdisk.drive import Drive
from vdisk.tables.lvm2 import (
    PhysicalVolume,
    PvRange,
    Volume,
    VolumeGroup,
    free_ranges,
    geometry_of,
    ranges_of,
)
from vdisk.units import SECTOR


def describe_drive(drive: Drive) -> dict[str, Any]:
    """What `vdisk drive info --json` prints.

    Sizes and offsets are in bytes; `extents`, `first` and `count` are extents of `extent_bytes`.
    """
    vg, space = drive.group.vg, drive.space()
    areas = [area for pv in drive.group.pvs for area in pv.areas]
    return {
        "address": drive.address,
        "name": vg.name,
        "uuid": vg.id,
        "sequence_number": vg.seqno,
        "extent_bytes": vg.extent_bytes,
        "extents": space.total // vg.extent_bytes,
        "free_extents": space.free // vg.extent_bytes,
        "size_bytes": space.total,
        "free_bytes": space.free,
        "metadata_copies": len(areas),
        "metadata_bytes": len(drive.group.text),
        "read_only": drive.group.change_problem(),
        "problems": drive_problems(drive),
        "physical_volumes": [_physical(drive, pv) for pv in vg.pvs],
        "volumes": [_volume(vg, volume) for volume in drive.volumes().values()],
        "map": [_run(vg, *found) for found in _runs(vg)],
    }


def _physical(drive: Drive, pv: PhysicalVolume) -> dict[str, Any]:
    vg, place = drive.group.vg, drive.places.get(pv.id)
    free = sum(one.count for one in free_ranges(vg) if one.pv == pv.key)
    return {
        "name": pv.key,
        "uuid": pv.id,
        "address": None if place is None else place.disk.address,
        "size_bytes": None if pv.dev_size is None else pv.dev_size * SECTOR,
        "first_extent_offset": pv.pe_start * SECTOR,
        "extents": pv.pe_count,
        "free_extents": free,
    }


def _volume(vg: VolumeGroup, volume: Volume) -> dict[str, Any]:
    geometry, sector_size = geometry_of(volume.lv.tags)
    return {
        "name": volume.name,
        "uuid": volume.lv.id,
        "size_bytes": volume.size,
        "extents": volume.lv.extents,
        "segments": [
            {
                "start": segment.start,
                "count": segment.count,
                "type": segment.type,
                "stripes": [_place(one) for one in segment.ranges()],
                "stripe_bytes": segment.stripe_size * SECTOR,
            }
            for segment in volume.lv.segments
        ],
        "tags": list(volume.lv.tags),
        "geometry": None if geometry is None else str(geometry),
        "sector_size": sector_size,
        "problem": volume.problem,
        "read_only": volume.read_only,
    }


def _place(one: PvRange) -> dict[str, Any]:
    return {"physical_volume": one.pv, "first": one.first, "count": one.count}


def _runs(vg: VolumeGroup) -> Iterator[tuple[PvRange, str | None]]:
    """Every range of extents in the drives' order, with the volume on it; None where it is free."""
    order = {pv.key: number for number, pv in enumerate(vg.pvs)}
    found: list[tuple[PvRange, str | None]] = [(one, None) for one in free_ranges(vg)]
    for lv in vg.lvs:
        found += ((one, lv.name) for one in ranges_of(lv))
    found.sort(key=lambda run: (order[run[0].pv], run[0].first))
    yield from found


def _run(vg: VolumeGroup, one: PvRange, name: str | None) -> dict[str, Any]:
    start = next(pv.pe_start for pv in vg.pvs if pv.key == one.pv) * SECTOR
    return {
        **_place(one),
        "offset": start + one.first * vg.extent_bytes,
        "length": one.count * vg.extent_bytes,
        "volume": name,
    }
