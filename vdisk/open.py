"""The one way in: an address, as a person writes it, becomes a disk.

An address is a host file's path, and below it what lies inside: `disk.img`, `disk.img/p2`.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from vdisk.disk import Disk, Slice
from vdisk.errors import (
    Corrupt,
    DiskError,
    HostError,
    InvalidArgument,
    InvalidFormat,
    NotFound,
    Unsupported,
)
from vdisk.formats.base import ImageFormat, Opening
from vdisk.formats.registry import FORMATS, open_format
from vdisk.geometry import Choice, Geometry, Source, check_sector_size, choose, derive
from vdisk.host import HostFile
from vdisk.image_disk import ImageDisk, close_image
from vdisk.parents import opening
from vdisk.record import forget_geometry, store_format, store_geometry, stored_geometry
from vdisk.tables import Partition, Scan, guess_sector_size, rdb_geometry, read_table

SECTOR_SIZE_DEFAULT = 512
_PARTITION = re.compile(r"p([1-9][0-9]{0,8})")
_FIRST_BYTES = 512  # The MBR or boot sector, whatever the sector size.


@dataclass(frozen=True, slots=True)
class OpenOptions:
    """What the user says about an image instead of letting it be found out.

    `chs` is "C/H/S".  A field that is None was not given.
    """

    format: str | None = None
    chs: str | None = None
    sector_size: int | None = None
    profile: str | None = None
    allow_parent: tuple[Path, ...] = ()
    """Folders, besides the image's own, in which the files may lie that an image names."""


NO_OPTIONS = OpenOptions()


@dataclass(frozen=True, slots=True)
class Address:
    """A host file and the names of what is meant inside it, outermost first."""

    path: Path
    inside: tuple[str, ...]

    def __str__(self) -> str:
        return "/".join((str(self.path), *self.inside))


def parse_address(text: str) -> Address:
    """Split `text` at the host file in it: the longest leading path that exists and is no folder.

    Raises NotFound where no part of the path is there, InvalidFormat for a folder, HostError
    where the system does not let us look.
    """
    if not text or "\0" in text:
        raise InvalidArgument("not an address", path=repr(text))
    path = Path(text)
    for candidate, inside in _splits(path):
        try:
            mode = os.lstat(candidate).st_mode
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise HostError.of(error, "open", candidate) from error
        if not (stat.S_ISDIR(mode) or os.path.isdir(candidate)):
            return Address(candidate, inside)
        if not inside:
            raise InvalidFormat("is a folder, not an image", path=text, hint="name an image in it")
        break
    raise NotFound("no such file", path=text)


def open_disk(
    address: str | os.PathLike[str],
    *,
    writable: bool = False,
    options: OpenOptions = NO_OPTIONS,
    lock: bool = True,
) -> Disk:
    """Open what `address` names: a whole disk, or a partition of it ("disk.img/p2").

    Raises NotFound, Busy (the lock), InvalidFormat, Corrupt, Unsupported, InvalidArgument (the
    options do not fit the disk) or HostError.  Closing the disk closes the image.
    """
    parsed = parse_address(os.fspath(address))
    disk = open_image(parsed.path, writable=writable, options=options, lock=lock)
    try:
        return _inside(disk, parsed) if parsed.inside else disk
    except BaseException:
        disk.close()
        raise


def open_image(
    path: Path,
    *,
    writable: bool,
    options: OpenOptions = NO_OPTIONS,
    lock: bool = True,
    allow_empty: bool = False,
) -> ImageDisk:
    """Open the image at `path` as a whole disk, its geometry chosen.

    An empty file is InvalidFormat unless `allow_empty`.  The format of a writable disk is
    recorded where it was given, or nothing tells it: then the guest's bytes have no say in it.
    """
    disk = look_into(path, writable=writable, options=options, lock=lock, allow_empty=allow_empty)
    try:
        if writable:
            keep_format(disk, options)
    except BaseException:
        disk.close()
        raise
    return disk


def look_into(
    path: Path,
    *,
    writable: bool,
    options: OpenOptions = NO_OPTIONS,
    lock: bool = True,
    allow_empty: bool = False,
) -> ImageDisk:
    """As `open_image`, but nothing is recorded: `keep_format` is still to come."""
    host = HostFile.open(path, writable=writable, lock=lock)
    return open_host(host, options=options, lock=lock, allow_empty=allow_empty)


def open_host(
    host: HostFile,
    *,
    options: OpenOptions = NO_OPTIONS,
    lock: bool = True,
    allow_empty: bool = False,
    how: Opening | None = None,
) -> ImageDisk:
    """As `open_image`, of a host file that is open.  It is closed with the disk, or after an error.

    `how` is how it opens its parent, where that is not as always: read-only, by the name it has.
    """
    path = host.path
    image: ImageFormat | None = None
    try:
        how = how or opening(host, options.allow_parent, lock=lock)
        image = open_format(host, how, options.format)
        if image.size == 0 and not allow_empty:
            raise InvalidFormat(
                "is empty: a disk needs at least one sector", path=path,
                hint=f"give it a size: vdisk resize {path} 1G",
            )
        return image_disk(host, image, options)
    except BaseException:
        host.close()
        if image is not None:
            close_image(image)
        raise


def keep_format(disk: ImageDisk, options: OpenOptions) -> None:
    """Record the format of a writable disk where it was given, or nothing in the file tells it."""
    entry = FORMATS.get(disk.image.name)
    if options.format is not None or (entry is not None and entry.unsigned):
        store_format(disk.image.hosts()[0], options.format or disk.image.name)


def keep_given_geometry(disk: ImageDisk, options: OpenOptions) -> bool:
    """Keep the geometry of a writable disk with it where one was given; False where that fails."""
    given = (options.chs, options.sector_size, options.profile) != (None, None, None)
    return not given or disk.choice is None or keep_geometry(disk, disk.choice.geometry)


def image_disk(host: HostFile, image: ImageFormat, options: OpenOptions) -> ImageDisk:
    """The disk of an open image: its sector size and geometry chosen and checked."""
    stored = None if options.chs else stored_geometry(host)
    disk = ImageDisk(
        image, address=str(host.path), sector_size=SECTOR_SIZE_DEFAULT,
        read_only=not host.writable,
    )
    disk.sector_size = _sector_size(disk, options, stored)
    if stored is not None and stored.sector_size != disk.sector_size:
        raise InvalidArgument(
            f"the recorded geometry {stored} has {stored.sector_size}-byte sectors, "
            f"not {disk.sector_size}",
            path=host.path, hint="give --chs too",
        )
    try:
        disk.choice = choose_geometry(disk, options, stored)
    except DiskError as error:
        error.path = error.path or disk.address  # The rules of geometry know no file.
        raise
    return disk


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
    before = disk.choice
    if not disk.read_only and 0 <= size < disk.size:
        # First the record: killed in between, it must not be larger than the disk.
        _record(disk, _fitted(disk, size))
    try:
        disk.resize(size)
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
        forget_geometry(disk.image.hosts()[0])
    elif not keep_geometry(disk, geometry):
        raise Unsupported("this file system cannot keep the geometry", path=disk.address)
    disk.choice = chosen


def _has_own_geometry(disk: ImageDisk) -> bool:
    own = (Source.GIVEN, Source.STORED, Source.HEADER)
    return disk.choice is not None and disk.choice.source in own


def _fitted(disk: ImageDisk, size: int) -> Geometry | None:
    """The geometry given or recorded, with the cylinders that fit `size` bytes."""
    if disk.choice is None or not _has_own_geometry(disk):
        return None
    geometry = disk.choice.geometry
    return disk.image.fitted_geometry(geometry, size)


def _record(disk: ImageDisk, geometry: Geometry | None) -> None:
    if not _has_own_geometry(disk) or disk.image.geometry_is_size:
        return
    if geometry is None:
        forget_geometry(disk.image.hosts()[0])
    else:
        keep_geometry(disk, geometry)


def keep_geometry(disk: ImageDisk, geometry: Geometry) -> bool:
    """Record `geometry` in the image's header, or beside it where that has no room for one.

    False where it is to be beside it and this file system keeps no such record.  Raises
    InvalidArgument where the header's fields do not hold it.
    """
    own_sector_size = disk.image.sector_size or SECTOR_SIZE_DEFAULT
    if not disk.image.stores_geometry or geometry.sector_size != own_sector_size:
        return store_geometry(disk.image.hosts()[0], geometry)
    disk.set_geometry(geometry)
    forget_geometry(disk.image.hosts()[0])  # It would be believed before the header.
    return True


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


def _inside(disk: ImageDisk, address: Address) -> Disk:
    name, *rest = address.inside
    number = _PARTITION.fullmatch(name)
    if rest or number is None:
        raise NotFound(
            f"there is no {'/'.join(address.inside)!r} in it", path=address.path,
            hint="partitions are p1, p2, …",
        )
    return partition_disk(disk, int(number[1]))


def _sector_size(disk: ImageDisk, options: OpenOptions, stored: Geometry | None) -> int:
    if options.sector_size is not None:
        return options.sector_size
    if stored is not None:
        return stored.sector_size
    return (
        disk.image.sector_size
        or guess_sector_size(_peek(disk), disk.size)
        or SECTOR_SIZE_DEFAULT
    )


def _splits(path: Path) -> list[tuple[Path, tuple[str, ...]]]:
    """`path` cut at each of its components: the longest leading part first."""
    found: list[tuple[Path, tuple[str, ...]]] = []
    inside: tuple[str, ...] = ()
    while True:
        found.append((path, inside))
        if path.parent == path:
            return found
        path, inside = path.parent, (path.name, *inside)
