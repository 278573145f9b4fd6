"""The partitions of a disk, as disks."""

from __future__ import annotations

from dataclasses import replace

from vdisk.disk import Disk, Slice
from vdisk.errors import Corrupt, InvalidArgument, NotFound
from vdisk.geometry import Choice, Source
from vdisk.tables import Partition, Scan, read_table


def scan_table(disk: Disk) -> Scan:
    """The partition table on `disk`, and the bytes that answer depends on."""
    return read_table(disk.read, disk.size, disk.sector_size)


def partition_disk(disk: Disk, number: int) -> Slice:
    """Partition `number` of `disk` as a disk.

    NotFound where the table has none of that number, Corrupt where it has and it is wrong.
    """
    table = scan_table(disk).table
    if table is None:
        raise NotFound("has no partition table", path=disk.address)
    for partition in table.partitions:
        if partition.number == number:
            break
    else:
        numbers = ", ".join(str(p.number) for p in table.partitions) or "none"
        raise NotFound(f"has no partition {number}", path=disk.address, hint=f"it has: {numbers}")
    if partition.problem is not None:
        raise Corrupt(f"partition {number}: {partition.problem}", path=disk.address)
    if not partition.is_slice:
        raise InvalidArgument(
            f"partition {number} is extended: it only holds the logical ones", path=disk.address
        )
    unit = disk.sector_size
    part = Slice(
        disk, partition.start_lba * unit, partition.sectors * unit,
        address=f"{disk.address}/p{number}",
    )
    part.choice = _partition_geometry(part, partition, disk)
    return part


def _partition_geometry(part: Slice, partition: Partition, disk: Disk) -> Choice | None:
    """A partition has the geometry that its table gives it, which an Amiga's does.

    Else it has the heads and sectors of its disk, and as many whole cylinders as fit.
    """
    if part.sectors == 0 or disk.choice is None:
        return None
    own = partition.geometry
    if own is not None and own.sector_size == disk.sector_size:
        return replace(disk.choice, geometry=own, source=Source.RDB)
    whole = disk.choice.geometry
    cylinders = part.sectors // whole.sectors_per_cylinder
    if cylinders == 0:
        return None
    return replace(disk.choice, geometry=replace(whole, cylinders=cylinders))
