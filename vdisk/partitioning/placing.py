"""Where a new partition goes: the free places of a disk, and how its ends are aligned.

All numbers are sectors of the disk, and all ranges half-open.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import Enum

from vdisk.chs import Geometry
from vdisk.errors import InvalidArgument
from vdisk.tables.soundness import LbaRange
from vdisk.units import MIB

SMALL_DISK_BYTES = 8 * MIB
"""Below this size nothing is aligned to 1 MiB unless that is asked for: too much would be lost."""


class Unit(Enum):
    """The units of a disk's geometry that partitions can be aligned to."""

    TRACK = "track"
    CYLINDER = "cylinder"


Alignment = Unit | int
"""A unit of the geometry, or a number of bytes, which must be whole sectors of the disk."""


@dataclass(frozen=True, slots=True)
class Grid:
    """Where partitions may begin and end.

    `step` is the distance of two possible starts.  `first` is where the first partition of a disk
    begins, and a logical one begins `logical_gap` after a possible start, at which its EBR is: a
    track's sectors in the layouts of DOS, where a partition begins with head 1 of a cylinder if
    something of the table lies at head 0.  An end is a multiple of `end_step`.
    """

    step: int
    first: int
    logical_gap: int
    end_step: int

    def start(self, lowest: int) -> int:
        """The first possible start at or after `lowest`."""
        return self.first if lowest <= self.first else _up(lowest, self.step)

    def logical_start(self, lowest: int) -> int:
        """The first possible start of a logical partition at or after `lowest`."""
        shift = self.logical_gap % self.step
        return _up(max(lowest - shift, 0), self.step) + shift

    def end(self, start: int, sectors: int) -> int:
        """Where a partition of at least `sectors` from `start` ends."""
        return _up(start + sectors, self.end_step)

    def last_end(self, limit: int) -> int:
        """The last possible end that is not after `limit`."""
        return limit // self.end_step * self.end_step


def grid(alignment: Alignment | None, geometry: Geometry, size_bytes: int) -> Grid:
    """The grid for a disk of `geometry` and `size_bytes`.

    `cylinder` and `track` are the layouts of DOS: the first partition begins at head 1, sector 1
    of cylinder 0, a logical one a track after its EBR; all others begin and all end with a
    cylinder, or with a track.  A number of bytes is where partitions begin; their ends are where
    their sizes put them.  None is 1 MiB, and for a disk below `SMALL_DISK_BYTES` a track.

    Raises InvalidArgument for bytes that are not whole sectors.
    """
    track = geometry.sectors_per_track
    if alignment is None:
        alignment = Unit.TRACK if size_bytes < SMALL_DISK_BYTES else MIB
    if alignment is Unit.CYLINDER:
        return Grid(geometry.sectors_per_cylinder, track, track, geometry.sectors_per_cylinder)
    if alignment is Unit.TRACK:
        return Grid(track, track, track, track)
    assert isinstance(alignment, int)
    step, rest = divmod(alignment, geometry.sector_size)
    if rest or step == 0:
        raise InvalidArgument(
            f"an alignment of {alignment} bytes is not whole sectors of {geometry.sector_size}"
        )
    return Grid(step, step, step, 1)


def free_places(used: Iterable[LbaRange], start: int, end: int) -> Iterator[LbaRange]:
    """The parts of [start, end) that no range in `used` has, in order."""
    for low, high in sorted(used):
        if low > start:
            yield start, min(low, end)
        start = max(start, high)
        if start >= end:
            return
    if start < end:
        yield start, end


def _up(lba: int, step: int) -> int:
    return -(-lba // step) * step


@dataclass(frozen=True, slots=True)
class Place:
    """A range that a partition can have; `record_lba` is where the EBR of a logical one goes."""

    start: int
    end: int
    record_lba: int | None = None

    @property
    def sectors(self) -> int:
        return self.end - self.start


def fitting(
    free: Iterable[LbaRange],
    sectors: int | None,
    grid: Grid,
    start_in: Callable[[LbaRange], tuple[int, int | None]],
) -> Place | None:
    """The place in `free` for a partition of `sectors`, or the largest one for None.

    `start_in` gives the first possible start in a free place, and where its EBR would go.  A place
    for a number of sectors is the first with room for them; None where there is none.
    """
    best: Place | None = None
    for place in free:
        start, record_lba = start_in(place)
        if sectors is not None:
            end = grid.end(start, sectors)
            if end <= place[1]:
                return Place(start, end, record_lba)
            continue
        end = grid.last_end(place[1])
        if end > start and (best is None or end - start > best.sectors):
            best = Place(start, end, record_lba)
    return best
