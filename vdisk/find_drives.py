"""The drives on a disk: the volume groups on the whole of it, and those in its partitions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from vdisk.disk import Disk, Slice
from vdisk.drive import Drive
from vdisk.errors import DiskError, NotFound, Unsupported
from vdisk.partitions import scan_table
from vdisk.tables import Region, Table, apart
from vdisk.tables.lvm2 import LABEL_SECTORS, FoundPv, Group, assemble, read_pv
from vdisk.units import MIB, SECTOR
from vdisk.volume import Place

METADATA_BYTES_MAX = 64 * MIB
"""All metadata texts on a disk together: what is past that is not used."""


@dataclass(slots=True)
class DrivesFound:
    """The drives on one disk.

    `problems` are by the place ("" or "p2") whose physical volume cannot be used.  `regions` are
    the bytes of the disk, sorted and apart, that this answer depends on besides its table.
    """

    drives: list[Drive] = field(default_factory=list)
    problems: dict[str, DiskError] = field(default_factory=dict)
    regions: list[Region] = field(default_factory=list)

    def at(self, place: str) -> Drive | None:
        """The drive that has a physical volume there.  Raises what is wrong with that."""
        for drive in self.drives:
            if any(found.name == place for found in drive.places.values()):
                return drive
        if place in self.problems:
            raise self.problems[place]
        return None


def find_drives(disk: Disk, table: Table | None, *, owned: bool = False) -> DrivesFound:
    """The drives on `disk`, whose partition table is `table`.

    A volume group that lies on several partitions is one drive.  With `owned`, each closes `disk`
    when it is not used any more: for a caller who keeps one.  Raises what reading raises.
    """
    result = DrivesFound()
    pvs: dict[str, FoundPv] = {}
    places: dict[str, Place] = {}
    room = METADATA_BYTES_MAX
    for place in _candidates(disk, table):
        start = place.start
        result.regions.append((start, start + min(LABEL_SECTORS * SECTOR, place.disk.size)))
        try:
            pv = read_pv(place.disk.read, place.disk.size)
            if pv is None:
                continue
            areas = (area.header.area for area in pv.areas)
            result.regions += ((start + one.offset, start + one.end) for one in areas)
            room -= sum(len(area.text) for area in pv.areas if area.text is not None)
            if room < 0:
                raise Unsupported("the disk has more LVM2 metadata than is read")
        except DiskError as error:
            result.problems[place.name] = _named(error, _address(disk, place.name))
            continue
        pvs[place.name], places[pv.label.pv_id] = pv, place
    for group in _groups(disk, pvs, result):
        here = {pv.label.pv_id: places[pv.label.pv_id] for pv in group.pvs}
        first = next(place.name for place in places.values() if place in here.values())
        owner = disk if owned else None
        result.drives.append(Drive(group, here, address=_address(disk, first), owned=owner))
    result.regions = list(apart(result.regions))
    return result


def drive_at(disk: Disk, place: str, *, owned: bool = False) -> Drive:
    """The drive that has a physical volume at `place`, "" or a partition, of `disk`.

    NotFound where there is none; raises what is wrong with it.
    """
    found = find_drives(disk, scan_table(disk).table, owned=owned).at(place)
    if found is None:
        raise NotFound("is no drive and holds no volume group", path=_address(disk, place))
    return found


def _candidates(disk: Disk, table: Table | None) -> Iterator[Place]:
    yield Place.of(disk, "")
    for partition in () if table is None else table.slices:
        unit, name = disk.sector_size, f"p{partition.number}"
        part = Slice(
            disk, partition.start_lba * unit, partition.sectors * unit,
            address=_address(disk, name),
        )
        yield Place.of(part, name)


def _groups(disk: Disk, pvs: dict[str, FoundPv], result: DrivesFound) -> tuple[Group, ...]:
    """The groups on `pvs`, which are by place.  One that is damaged does not take others with it.
    """
    try:
        return assemble(pvs.values())
    except DiskError as error:
        alone = _problems_of_each(disk, pvs)
        result.problems.update(alone or dict.fromkeys(pvs, _named(error, disk.address)))
        sound = {place: pv for place, pv in pvs.items() if place not in alone}
        return _groups(disk, sound, result) if alone else ()


def _problems_of_each(disk: Disk, pvs: dict[str, FoundPv]) -> dict[str, DiskError]:
    found: dict[str, DiskError] = {}
    for place, pv in pvs.items():
        try:
            assemble([pv])
        except DiskError as error:
            found[place] = _named(error, _address(disk, place))
    return found


def _named(error: DiskError, address: str) -> DiskError:
    """The rules of LVM2 know no file."""
    error.path = error.path or address
    return error


def _address(disk: Disk, place: str) -> str:
    return f"{disk.address}/{place}" if place else disk.address
