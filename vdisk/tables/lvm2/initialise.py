"""A new drive: one physical volume with an empty volume group on it.

    0        nothing                    4096     the first metadata area
    512      the label                  pe_start the extents of the volumes
                                        ...      the second metadata area, to the drive's end

Both areas hold the same, so that one damaged is not the end of the drive.  An area takes a
thousandth of the drive, at least 1 MiB (some thousand volumes) and at most 8 MiB (some nine
thousand), less the first 4096 bytes.  The extents begin at a whole MiB and are of 4 MiB, on a drive
below 1 GiB of less, so that there are 256 of them and little is lost at the drive's end.
"""

from __future__ import annotations

from dataclasses import dataclass

from vdisk.errors import InvalidArgument
from vdisk.tables.lvm2.area import Header
from vdisk.tables.lvm2.commit import AreaOf, commit_steps
from vdisk.tables.lvm2.dump import dump
from vdisk.tables.lvm2.fields import UINT32_MAX
from vdisk.tables.lvm2.label import USED, Label, pack_label
from vdisk.tables.lvm2.layout import Area
from vdisk.tables.lvm2.model import PhysicalVolume, VolumeGroup
from vdisk.tables.lvm2.names import check_group_name
from vdisk.tables.lvm2.physical import MetadataArea
from vdisk.tables.lvm2.steps import Barrier, Put, Step, Zero
from vdisk.tables.lvm2.uuids import new_uuid
from vdisk.units import KIB, MIB, SECTOR, SIZE_BYTES_MAX, format_size

DRIVE_BYTES_MIN = 4 * MIB
"""The smallest drive: half of it is metadata."""

EXTENT_BYTES_MIN = 64 * KIB
EXTENT_BYTES_MAX = 4 * MIB
EXTENTS_WANTED = 256

_HEAD_MIN = 1 * MIB
_HEAD_MAX = 8 * MIB
_HEAD_SHARE = 1000
_AREA_START = 4096
_ALIGNMENT = 4096


@dataclass(frozen=True, slots=True)
class NewDrive:
    """What to write for a new drive, and what it then holds."""

    steps: tuple[Step, ...]
    label: Label
    vg: VolumeGroup


def new_drive(
    size: int,
    name: str,
    *,
    time: int,
    host: str,
    extent_bytes: int | None = None,
    metadata_bytes: int | None = None,
) -> NewDrive:
    """A drive of `size` bytes with an empty volume group `name`.

    `extent_bytes` is a power of two from 1 KiB on, `metadata_bytes` what each metadata area is to
    have at least; None chooses (see above).  `time` is now, in seconds since 1970, and `host` this
    machine's name.  Everything on the drive before the first extent and after the last is lost.

    Raises InvalidArgument for a name, a size or an extent that cannot be.
    """
    check_group_name(name)
    if not DRIVE_BYTES_MIN <= size <= SIZE_BYTES_MAX:
        raise InvalidArgument(
            f"{format_size(size)} is no size for a drive",
            hint=f"a drive has at least {format_size(DRIVE_BYTES_MIN)}",
        )
    size = size // SECTOR * SECTOR  # Of an incomplete sector, LVM2 knows nothing.
    head = _head_bytes(size, metadata_bytes)
    areas = _areas(size, head)
    extent_bytes = _extent_bytes(size, extent_bytes)
    pv = _physical_volume(size, head, areas[1].offset, extent_bytes)
    extent_size = extent_bytes // SECTOR
    vg = VolumeGroup(name, new_uuid(), 1, extent_size, (pv,), extra={"format": "lvm2"})
    label = Label(pv.id, size, (Area(head, 0),), areas, flags=USED)
    text = dump(vg, description="Created by vdisk.", host=host, time=time)
    return NewDrive(_steps(label, size, text), label, vg)


def _head_bytes(size: int, metadata_bytes: int | None) -> int:
    """What lies before the first extent: whole MiB."""
    if metadata_bytes is None:
        return min(max(_rounded_up(size // _HEAD_SHARE, MIB), _HEAD_MIN), _HEAD_MAX)
    head = _rounded_up(_AREA_START + max(metadata_bytes, 1), MIB)
    if 2 * head + EXTENT_BYTES_MIN > size:
        raise InvalidArgument(
            f"two metadata areas of {format_size(metadata_bytes)} do not fit on a drive of "
            f"{format_size(size)}"
        )
    return head


def _rounded_up(value: int, unit: int) -> int:
    return -(-value // unit) * unit


def _areas(size: int, head: int) -> tuple[Area, Area]:
    length = head - _AREA_START
    return Area(_AREA_START, length), Area((size - length) // _ALIGNMENT * _ALIGNMENT, length)


def _extent_bytes(size: int, wanted: int | None) -> int:
    if wanted is None:
        extent = 1 << max((size // EXTENTS_WANTED).bit_length() - 1, 0)
        extent = min(max(extent, EXTENT_BYTES_MIN), EXTENT_BYTES_MAX)
        while size // extent > UINT32_MAX:
            extent *= 2
        return extent
    if wanted < KIB or wanted & (wanted - 1) or wanted // SECTOR > UINT32_MAX:
        raise InvalidArgument(
            f"{format_size(wanted)} is no size for an extent",
            hint="it is a power of two from 1 KiB on, for instance 4M",
        )
    return wanted


def _physical_volume(size: int, start: int, end: int, extent_bytes: int) -> PhysicalVolume:
    """The extents between bytes `start` and `end` of the drive."""
    count = (end - start) // extent_bytes
    if not 1 <= count <= UINT32_MAX:
        raise InvalidArgument(
            f"a drive of {format_size(size)} cannot have extents of {format_size(extent_bytes)}",
            hint=f"there would be {count} of them",
        )
    return PhysicalVolume("pv0", new_uuid(), start // SECTOR, count, size // SECTOR)


def _steps(label: Label, size: int, text: bytes) -> tuple[Step, ...]:
    """What was there is gone before what is new begins, and the label comes last."""
    pv, (first, second) = label.pv_id, label.metadata_areas
    areas = tuple(AreaOf(pv, MetadataArea(Header(area))) for area in (first, second))
    return (
        Zero(pv, 0, first.end),
        Zero(pv, second.offset, size - second.offset),
        Barrier(),
        *commit_steps(areas, text),
        Put(pv, label.sector * SECTOR, pack_label(label)),
        Barrier(),
    )
