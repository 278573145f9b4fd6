"""A volume of a drive as a disk: V of a logical volume, over the disks that the drive lies on.

What changes the drive's metadata (a resize, a geometry) is its drive's business (`vdisk.drive`);
this maps, and switches to another map when the drive says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from vdisk.disk import SIZE_MAX, Disk, Slice
from vdisk.errors import InvalidArgument, OutOfRange, ReadOnly
from vdisk.extent import Extent, Host, Kind
from vdisk.formats.base import ImageFormat
from vdisk.geometry import Geometry
from vdisk.host import HostFile
from vdisk.image_disk import ImageDisk
from vdisk.plan import Plan
from vdisk.tables.lvm2 import LogicalVolume, PvRange, VolumeMap, geometry_of
from vdisk.units import SECTOR

if TYPE_CHECKING:
    from vdisk.drive import Drive


@dataclass(frozen=True, slots=True)
class Place:
    """Where a physical volume is: the disk that it fills, and that disk's name inside its image.

    Byte b of it is byte `base` + b of `host`: of the host file where the disk is a plain range of
    one, else of the disk itself.  `name` is "" for a whole disk, "p2" for a partition.
    """

    disk: Disk
    name: str
    host: Host
    base: int

    @property
    def start(self) -> int:
        """Where it begins in the whole disk, in bytes."""
        return self.disk.start if self.name and isinstance(self.disk, Slice) else 0

    @classmethod
    def of(cls, disk: Disk, name: str) -> Place:
        """The place that is all of `disk`."""
        host, base = disk.window() or (disk, 0)
        return cls(disk, name, host, base)

    def put(self, offset: int, data: bytes) -> None:
        """Write `data` at byte `offset` of it, durable on return where the host file can do that.
        """
        if isinstance(self.host, HostFile):
            self.host.write_through(self.base + offset, data)
        else:
            self.disk.write(offset, data)

    def give_back(self, offset: int, length: int) -> None:
        """Let the host have the space of bytes that nobody needs."""
        if isinstance(self.host, HostFile):
            self.host.give_back(self.base + offset, length)
        else:
            self.disk.discard(offset, length)


class VolumeImage(ImageFormat):
    """V of a volume.  `size` is what the disk shows of it: all of it, unless it still grows."""

    name: ClassVar[str] = "lvm2"

    shares_host: ClassVar[bool] = True

    def __init__(
        self, volume_map: VolumeMap, places: Mapping[str, Place], facts: Mapping[str, Any]
    ) -> None:
        """`places` are by the UUID of the physical volume; `facts` is what `info` tells."""
        self.size = volume_map.size
        self._map = volume_map
        self._places = places
        self._facts = dict(facts)

    @property
    def capacity(self) -> int:
        """The bytes that it has extents for: `size` or more."""
        return self._map.size

    def map(self, offset: int, length: int) -> Iterator[Extent]:
        for place, at, count in self.runs(offset, length):
            if place is None:
                yield Extent(offset, count, Kind.ZERO)
            else:
                yield Extent(offset, count, Kind.DATA, place.host, place.base + at)
            offset += count

    def runs(self, offset: int, length: int) -> Iterator[tuple[Place | None, int, int]]:
        """(place, offset in it, length) of the runs of a range; the place is None for zeros."""
        volume_map = self._map  # Another thread may change it.
        if offset + length > volume_map.size:
            raise OutOfRange(f"the volume ends at byte {volume_map.size}")
        for run in volume_map.runs(offset, length):
            place = None if run.pv is None else self._places[run.pv]
            yield place, run.offset or 0, run.length

    def locate(self, offset: int, length: int) -> tuple[Kind, Host | None, int] | None:
        if offset + length > self._map.size:
            return None
        first = next(self.map(offset, length))
        if first.length < length:
            return None
        return first.kind, first.host, first.host_offset or 0

    def hosts(self) -> tuple[HostFile, ...]:
        found = (host for place in self._places.values() for host in place.disk.hosts())
        return tuple(dict.fromkeys(found))

    def plan_resize(self, size: int) -> Plan:
        """Show more or less of the extents that the volume has."""
        assert size <= self.capacity, "the drive gives a volume its extents"
        return self.plan_map(self._map, size)

    def plan_map(self, volume_map: VolumeMap, size: int) -> Plan:
        """Go on with another map of the same bytes, as far as both have them."""

        def done() -> None:
            if volume_map.size >= self._map.size:  # Never shows what has no place.
                self._map, self.size = volume_map, size
            else:
                self.size, self._map = size, volume_map

        return Plan((), done, exclusive=size < self.size)

    def info(self) -> dict[str, Any]:
        return dict(self._facts)


class VolumeDisk(ImageDisk):
    """An open volume.  `growing`: it was just made, and shows no more than what was written."""

    image: VolumeImage

    def __init__(
        self, drive: Drive, lv: LogicalVolume, image: VolumeImage, *, read_only: str | None
    ) -> None:
        """`read_only` says why it may not be written, None where it may."""
        super().__init__(
            image, address=f"{drive.address}/{lv.name}", sector_size=SECTOR,
            read_only=read_only is not None,
        )
        self.drive = drive
        self.id = lv.id
        self.growing = False
        self.removed = False
        self.held: list[PvRange] = []
        """Extents that it gave up, and that nobody gets as long as it may still be read there."""
        self._why_read_only = read_only
        image.sector_size = geometry_of(lv.tags)[1]

    def check_writable(self) -> None:
        if self._why_read_only is not None:
            raise ReadOnly(self._why_read_only, path=self.address)

    def run(self, offset: int, length: int) -> tuple[HostFile, int, int] | None:
        first = next(self.image.map(offset, length), None)
        if first is None or first.kind is not Kind.DATA:
            return None
        host, host_offset = first.place
        if isinstance(host, HostFile):
            return host, host_offset, first.length
        assert isinstance(host, Disk)
        return host.run(host_offset, first.length)

    def resize(self, size: int) -> None:
        """To whole extents, unless it grows.  Raises NoSpace and what a commit raises besides."""
        self.check_writable()
        if not 0 <= size <= SIZE_MAX:
            raise InvalidArgument(f"cannot be {size} bytes large", path=self.address)
        self.drive.resize(self, size)

    def recorded_geometry(self) -> Geometry | None:
        """From the volume's tags; one that does not fit it was not made for it, as after lvreduce.
        """
        geometry = geometry_of(self.drive.logical_volume(self).tags)[0]
        return None if geometry is None or geometry.size_bytes > self.size else geometry

    def keep_geometry(self, geometry: Geometry | None) -> bool:
        """In the volume's tags.  Raises what a commit raises."""
        self.drive.keep_geometry(self, geometry)
        return True

    def allocated_bytes(self) -> int:
        return self.drive.allocated_bytes(self)

    def flush(self) -> None:
        self.drive.flush()

    def close(self) -> None:
        self.drive.closed(self)
