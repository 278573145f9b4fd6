"""The geometry of an open disk: chosen, kept with it, and fitted to another size."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from vdisk.disk import Disk
from vdisk.errors import Corrupt, DiskError, InvalidArgument, Unsupported
from vdisk.geometry import Choice, Geometry, Source, check_sector_size, choose, derive
from vdisk.image_disk import ImageDisk
from vdisk.options import NO_OPTIONS, OpenOptions
from vdisk.tables import guess_sector_size, rdb_geometry
from vdisk.units import SECTOR

_FIRST_BYTES = 512  # The MBR or boot sector, whatever the sector size.


def settle_geometry(disk: ImageDisk, options: OpenOptions) -> None:
    """Choose the sector size and the geometry of a disk that was just opened.

    Raises InvalidArgument where what was given does not fit the disk, Corrupt where what was
    recorded does not.
    """
    stored = None if options.chs else disk.recorded_geometry()
    disk.sector_size = _sector_size(disk, options, stored)
    if stored is not None and stored.sector_size != disk.sector_size:
        raise InvalidArgument(
            f"the recorded geometry {stored} has {stored.sector_size}-byte sectors, "
            f"not {disk.sector_size}",
            path=disk.address, hint="give --chs too",
        )
    try:
        disk.choice = choose_geometry(disk, options, stored)
    except DiskError as error:
        error.path = error.path or disk.address  # The rules of geometry know no file.
        raise


def choose_geometry(
    disk: ImageDisk, options: OpenOptions = NO_OPTIONS, stored: Geometry | None = None
) -> Choice | None:
    """The geometry of an open disk with its provenance; None for less than one sector."""
    check_sector_size(disk.sector_size)
    peek = _peek(disk)
    first = peek(0, min(_FIRST_BYTES, disk.size))
    return choose(
        disk.size,
        disk.sector_size,
        given=_given(disk, options),
        stored=stored,
        header=disk.image.header_geometry,
        rdb=rdb_geometry(peek, disk.size, disk.sector_size),
        first_sector=first if len(first) == _FIRST_BYTES else None,
    )


def _peek(disk: ImageDisk) -> Callable[[int, int], bytes]:
    """What a guess reads the disk by: zeros where the image is damaged.

    So one of which only the first cluster cannot be read is opened, to be repaired or copied.
    """

    def read(offset: int, length: int) -> bytes:
        try:
            return disk.read(offset, length)
        except Corrupt:
            return bytes(length)

    return read


def _given(disk: ImageDisk, options: OpenOptions) -> Geometry | None:
    """The geometry the user asks for: outright, or as the profile that derives it."""
    if options.chs is not None:
        return Geometry.parse(options.chs, sector_size=disk.sector_size)
    if options.profile is not None:
        return derive(options.profile, disk.size, disk.sector_size)
    return None


def resize_disk(disk: ImageDisk, size: int) -> None:
    """Make `disk` `size` bytes and fit its geometry to that.  Raises as `Disk.resize` does."""
    with refitted(disk, size):
        disk.resize(size)


@contextmanager
def refitted(disk: ImageDisk, size: int) -> Iterator[None]:
    """What is done inside makes the disk `size` bytes large: its geometry is fit to that.

    Where it raises, the geometry stays.
    """
    before = disk.choice
    if not disk.read_only and 0 <= size < disk.size:
        # First the record: killed in between, it must not be larger than the disk.
        _record(disk, _fitted(disk, size))
    try:
        yield
    except BaseException:
        if not disk.read_only and before is not None:
            _record(disk, before.geometry)
        raise
    refit(disk)


def refit(disk: ImageDisk) -> None:
    """Choose the geometry anew for the size the disk has now.

    One that was given or recorded keeps its heads and sectors per track and gets the cylinders
    that fit now; that is recorded.  Where not even one cylinder fits, it is forgotten.
    """
    fitted = _fitted(disk, disk.size)
    _record(disk, fitted)
    disk.choice = choose_geometry(disk, stored=fitted)


def record_geometry(disk: ImageDisk, geometry: Geometry | None) -> None:
    """Use `geometry` for an open disk from now on, and record it; None forgets the recorded one.

    InvalidArgument where it does not fit the disk, ReadOnly, or Unsupported where the host's file
    system cannot hold a record; then nothing is changed.
    """
    disk.check_writable()
    if geometry is not None and geometry.sector_size != disk.sector_size:
        raise InvalidArgument(f"the sectors have {disk.sector_size} bytes", path=disk.address)
    try:
        chosen = choose_geometry(disk, stored=geometry)
    except Corrupt as error:  # Which it is where it was found recorded.
        raise InvalidArgument(error.message, path=disk.address, hint=error.hint) from error
    if geometry is None:
        disk.keep_geometry(None)
    elif not keep_geometry(disk, geometry):
        raise Unsupported("this file system cannot keep the geometry", path=disk.address)
    disk.choice = chosen


def has_own_geometry(disk: Disk) -> bool:
    """Whether the geometry was given, recorded or in the header, and not found out."""
    own = (Source.GIVEN, Source.STORED, Source.HEADER)
    return disk.choice is not None and disk.choice.source in own


def _fitted(disk: ImageDisk, size: int) -> Geometry | None:
    """The geometry given or recorded, with the cylinders that fit `size` bytes."""
    if disk.choice is None or not has_own_geometry(disk):
        return None
    geometry = disk.choice.geometry
    return disk.image.fitted_geometry(geometry, size)


def _record(disk: ImageDisk, geometry: Geometry | None) -> None:
    if not has_own_geometry(disk) or disk.image.geometry_is_size:
        return
    if geometry is None:
        disk.keep_geometry(None)
    else:
        keep_geometry(disk, geometry)


def keep_geometry(disk: ImageDisk, geometry: Geometry) -> bool:
    """Record `geometry` in the image's header, or beside it where that has no room for one.

    False where it is to be beside it and this file system keeps no such record.  Raises
    InvalidArgument where the header's fields do not hold it.
    """
    own_sector_size = disk.image.sector_size or SECTOR
    if not disk.image.stores_geometry or geometry.sector_size != own_sector_size:
        return disk.keep_geometry(geometry)
    disk.set_geometry(geometry)
    disk.keep_geometry(None)  # It would be believed before the header.
    return True


def keep_given_geometry(disk: ImageDisk, options: OpenOptions) -> bool:
    """Keep the geometry of a writable disk with it where one was given; False where that fails."""
    given = (options.chs, options.sector_size, options.profile) != (None, None, None)
    return not given or disk.choice is None or keep_geometry(disk, disk.choice.geometry)


def _sector_size(disk: ImageDisk, options: OpenOptions, stored: Geometry | None) -> int:
    if options.sector_size is not None:
        return options.sector_size
    if stored is not None:
        return stored.sector_size
    return (
        disk.image.sector_size
        or guess_sector_size(_peek(disk), disk.size)
        or SECTOR
    )
