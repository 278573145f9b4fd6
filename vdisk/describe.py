"""What vdisk says about a disk: `info`, `geometry` and `map`, as data and as text.

The command line and the mounted `.vdisk` folder print the same things, and both get them here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from vdisk.disk import Disk, Slice
from vdisk.extent import Extent
from vdisk.formats.base import ImageFormat
from vdisk.geometry import Choice
from vdisk.image_disk import ImageDisk
from vdisk.open import scan_table
from vdisk.tables import Partition, Table


def describe(disk: Disk, table: Table | None = None, *, scan: bool = True) -> dict[str, Any]:
    """What `vdisk info --json` prints.  Sizes are bytes, `start_lba` and `sectors` sectors.

    `table` is the disk's table where the caller has read it; else it is read here, unless `scan`
    is False.
    """
    if table is None and scan:
        table = scan_table(disk).table
    whole = _image_disk(disk)
    image = whole.image
    parents = _parents(image)
    geometry = None if disk.choice is None else disk.choice.geometry
    return {
        "address": disk.address,
        "format": image.name,
        "format_details": image.info(),
        "host_files": [str(host.path) for host in image.hosts()],
        "parents": [parent.address for parent in parents],
        "size_bytes": disk.size,
        "sector_size": disk.sector_size,
        "sectors": disk.sectors,
        "trailing_bytes": disk.size % disk.sector_size,
        "geometry": _geometry(disk.choice),
        "unaddressed_sectors": (
            disk.sectors if geometry is None else geometry.unaddressed_sectors(disk.size)
        ),
        "allocated_bytes": allocated_bytes(disk),
        "read_only": disk.read_only,
        **describe_table(table),
    }


def describe_table(table: Table | None) -> dict[str, Any]:
    """The part of `describe` about the partition table: `table` and `partitions`."""
    return {
        "table": _table(table),
        "partitions": [] if table is None else [_partition(p) for p in table.partitions],
    }


def _parents(image: ImageFormat) -> list[ImageDisk]:
    """The disks beneath an overlay, the nearest first."""
    found = []
    while image.parent is not None:
        found.append(image.parent)
        image = image.parent.image
    return found


def geometry_text(disk: Disk) -> str:
    """The mounted `geometry` file: "C/H/S", the bytes per sector, the source, a line each."""
    if disk.choice is None:
        return f"none\n{disk.sector_size} bytes per sector\nsource: smaller than one sector\n"
    choice = disk.choice
    lines = [
        str(choice.geometry),
        f"{disk.sector_size} bytes per sector",
        f"source: {choice.source}",
    ]
    return "\n".join(lines) + "\n"


def map_row(extent: Extent) -> dict[str, Any]:
    """One element of `vdisk map --json`."""
    return {
        "guest_offset": extent.guest_offset,
        "length": extent.length,
        "kind": str(extent.kind),
        "host_file": None if extent.file is None else str(extent.file.path),
        "host_offset": extent.host_offset,
    }


def map_lines(disk: Disk) -> Iterator[str]:
    """The mounted `map` file: guest range -> host file range, in bytes, a line an extent."""
    for extent in disk.map(0, disk.size):
        guest = f"{extent.guest_offset}..{extent.guest_end}"
        if extent.file is None or extent.host_offset is None:
            yield f"{guest} -> {extent.kind}\n"
            continue
        end = extent.host_offset + extent.length
        yield f"{guest} -> {extent.file.path} {extent.host_offset}..{end} {extent.kind}\n"


def allocated_bytes(disk: Disk) -> int:
    """Bytes the disk takes up in its host files; of a partition, those in its own range."""
    if isinstance(disk, Slice):
        extents = disk.map(0, disk.size)
        return sum(extent.length for extent in extents if extent.kind == "data")
    return sum(host.allocated_bytes() for host in _image_disk(disk).image.hosts())


def _image_disk(disk: Disk) -> ImageDisk:
    while isinstance(disk, Slice):
        disk = disk.base
    assert isinstance(disk, ImageDisk)
    return disk


def _geometry(choice: Choice | None) -> dict[str, Any] | None:
    if choice is None:
        return None
    geometry = choice.geometry
    return {
        "cylinders": geometry.cylinders,
        "heads": geometry.heads,
        "sectors_per_track": geometry.sectors_per_track,
        "source": str(choice.source),
        "opinions": [
            {
                "source": str(opinion.source),
                "geometry": None if opinion.geometry is None else str(opinion.geometry),
                "detail": opinion.detail,
            }
            for opinion in choice.opinions
        ],
    }


def _table(table: Table | None) -> dict[str, Any] | None:
    if table is None:
        return None
    return {"kind": str(table.kind), "disk_id": table.disk_id, "problems": list(table.problems)}


def _partition(partition: Partition) -> dict[str, Any]:
    return {
        "number": partition.number,
        "start_lba": partition.start_lba,
        "sectors": partition.sectors,
        "type": partition.type,
        "type_name": partition.type_name,
        "name": partition.name,
        "uuid": partition.uuid,
        "bootable": partition.bootable,
        "kind": str(partition.kind),
        "geometry": None if partition.geometry is None else str(partition.geometry),
        "problem": partition.problem,
    }
