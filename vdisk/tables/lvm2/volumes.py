"""The volumes of a group as a person sees them, and why one cannot be opened or written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from vdisk.tables.lvm2.model import (
    STRIPED_TYPES,
    LogicalVolume,
    PhysicalVolume,
    Segment,
    VolumeGroup,
)
from vdisk.tables.lvm2.references import is_shown, is_snapshot, is_store, users
from vdisk.units import SECTOR

_SEGMENT_KINDS = {
    "cache": "a cached volume",
    "cache-pool": "a pool for caching",
    "integrity": "a volume with integrity checking",
    "mirror": "a mirrored volume",
    "thin": "a thin volume",
    "thin-pool": "a pool of thin volumes",
    "vdo": "a volume of a VDO pool",
    "vdo-pool": "a VDO pool",
    "writecache": "a volume with a write cache",
}


@dataclass(frozen=True, slots=True)
class Volume:
    """A volume that is not hidden.  `size` is in bytes.

    `problem` says why it cannot be mapped, `read_only` why it may only be read; both complete "it
    …" and are None where nothing is in the way.
    """

    lv: LogicalVolume
    size: int
    problem: str | None = None
    read_only: str | None = None

    @property
    def name(self) -> str:
        """The volume's name."""
        return self.lv.name


def volumes(vg: VolumeGroup, sizes: Mapping[str, int]) -> tuple[Volume, ...]:
    """The volumes of `vg`, in the text's order.

    `sizes` are the sizes in bytes of the drives that are there, by their physical volume's UUID.
    """
    used = users(vg)
    pvs = {pv.key: pv for pv in vg.pvs}
    return tuple(
        Volume(
            lv,
            lv.extents * vg.extent_bytes,
            _problem(vg, lv, used, pvs, sizes),
            _read_only(vg, lv, used),
        )
        for lv in vg.lvs
        if is_shown(lv, used)
    )


def _problem(
    vg: VolumeGroup,
    lv: LogicalVolume,
    used: Mapping[str, LogicalVolume],
    pvs: Mapping[str, PhysicalVolume],
    sizes: Mapping[str, int],
) -> str | None:
    if not lv.segments:
        return "has no extents"
    if is_store(lv, used):
        return f"holds the changes of a snapshot ({used[lv.name].name})"
    for segment in lv.segments:
        problem = _kind_problem(vg, segment) or _place_problem(vg, segment, pvs, sizes)
        if problem is not None:
            return problem
    return None


def _kind_problem(vg: VolumeGroup, segment: Segment) -> str | None:
    """Why what `segment` is cannot be mapped."""
    if segment.type == "zero":
        return None
    if segment.type == "error":
        return "has parts that were replaced by errors, as where a drive was lost"
    if segment.type not in STRIPED_TYPES:
        kind = _SEGMENT_KINDS.get(segment.type, f"a volume of type {segment.type}")
        return f"is {kind}, which only LVM2 itself can open"
    if not segment.stripes:
        return "lies on another volume, as while it is being moved, which only LVM2 can open"
    stripe_extents = segment.count // len(segment.stripes)
    if segment.stripe_size and stripe_extents * vg.extent_size % segment.stripe_size:
        return f"has stripes of {segment.stripe_size} sectors that do not fill its extents"
    return None


def _place_problem(
    vg: VolumeGroup,
    segment: Segment,
    pvs: Mapping[str, PhysicalVolume],
    sizes: Mapping[str, int],
) -> str | None:
    """Why the bytes where `segment` lies are not there."""
    for taken in segment.ranges():
        pv = pvs[taken.pv]
        if pv.id not in sizes:
            return f"lies on the physical volume {pv.id}, which is missing"
        if pv.pe_start * SECTOR + taken.end * vg.extent_bytes > sizes[pv.id]:
            return f"reaches past the end of its drive, which has {sizes[pv.id]} bytes"
    return None


def _read_only(
    vg: VolumeGroup, lv: LogicalVolume, used: Mapping[str, LogicalVolume]
) -> str | None:
    if not vg.is_writable:
        return "belongs to a volume group that is set to be read only"
    if "EXPORTED" in vg.status:
        return "belongs to a volume group that was exported"
    if not lv.is_writable:
        return "is set to be read only"
    if "LOCKED" in lv.status:
        return "is locked while LVM2 moves it"
    if lv.name in used:
        return _why_in_use(used[lv.name])
    if any(segment.type == "zero" for segment in lv.segments):
        return "has parts that are zeros and take no data"
    return None


def _why_in_use(user: LogicalVolume) -> str:
    if is_snapshot(user):
        return "has a snapshot, into which LVM2 would first copy what is overwritten"
    return f"is what {user.name} is made of"
