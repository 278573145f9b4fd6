"""The one way in: an address, as a person writes it, becomes a disk.

An address is a host file's path, and below it what lies inside: `disk.img`, `disk.img/p2`,
`drive.img/alpha/p1`, `server.img/p2/root`.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vdisk.disk import Disk
from vdisk.disk_geometry import settle_geometry
from vdisk.drive import Drive
from vdisk.errors import HostError, InvalidArgument, InvalidFormat, NotFound
from vdisk.find_drives import drive_at
from vdisk.formats.base import ImageFormat, Opening
from vdisk.formats.registry import FORMATS, open_format
from vdisk.host import HostFile
from vdisk.image_disk import ImageDisk, close_image
from vdisk.options import NO_OPTIONS, OpenOptions
from vdisk.parents import opening
from vdisk.partitions import partition_disk, scan_table
from vdisk.record import DRIVE_FORMAT, store_format, stored_format
from vdisk.units import SECTOR
from vdisk.volume import VolumeDisk

_PARTITION = re.compile(r"p([1-9][0-9]{0,8})")


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
    """Open what `address` names: a whole disk, or a partition or volume inside it.

    Raises NotFound, Busy (the lock), InvalidFormat, Corrupt, Unsupported, InvalidArgument (the
    options do not fit the disk) or HostError.  Closing the disk closes the image.
    """
    parsed = parse_address(os.fspath(address))
    disk = open_image(parsed.path, writable=writable, options=options, lock=lock)
    try:
        return inside(disk, parsed.inside)
    except BaseException:
        disk.close()
        raise


def open_drive(
    address: str | os.PathLike[str],
    *,
    writable: bool = False,
    options: OpenOptions = NO_OPTIONS,
    lock: bool = True,
) -> Drive:
    """Open the drive that `address` names: an image, a partition or a volume with a group on it.

    Raises as `open_disk`, and NotFound where there is no volume group.
    """
    parsed = parse_address(os.fspath(address))
    disk = open_image(parsed.path, writable=writable, options=options, lock=lock)
    try:
        return drive_inside(disk, parsed.inside, owned=True)
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
    """Record the format of a writable disk where it was given, or nothing in the file tells it.

    A drive stays one.
    """
    if stored_format(disk.image.hosts()[0]) == DRIVE_FORMAT:
        return
    entry = FORMATS.get(disk.image.name)
    if options.format is not None or (entry is not None and entry.unsigned):
        store_format(disk.image.hosts()[0], options.format or disk.image.name)


def image_disk(host: HostFile, image: ImageFormat, options: OpenOptions) -> ImageDisk:
    """The disk of an open image: its sector size and geometry chosen and checked."""
    disk = ImageDisk(
        image, address=str(host.path), sector_size=SECTOR, read_only=not host.writable
    )
    settle_geometry(disk, options)
    return disk


def inside(disk: ImageDisk, names: Sequence[str]) -> Disk:
    """What `names`, outermost first, mean inside `disk`: a partition, a volume, a part of one.

    Closing it closes `disk`, which is what it is where there are no names.  Raises NotFound, and
    what is wrong with the table or the drive that the names lead to.
    """
    if not names:
        return disk
    place, rest = _place(disk, names)
    if not rest:
        return partition_disk(disk, _number(place))
    volume = _volume(disk, place, rest)
    try:
        return inside(volume, rest[1:])
    except BaseException:
        volume.close()
        raise


def drive_inside(disk: ImageDisk, names: Sequence[str], *, owned: bool = False) -> Drive:
    """The drive on `disk`, or on what `names` mean in it.  Raises as `inside` does.

    With `owned`, `disk` is closed when the drive is not used any more.
    """
    place, rest = _place(disk, names)
    if not rest:
        return drive_at(disk, place, owned=owned)
    volume = _volume(disk, place, rest)
    try:
        return drive_inside(volume, rest[1:], owned=True)
    except BaseException:
        volume.close()
        raise


def _place(disk: ImageDisk, names: Sequence[str]) -> tuple[str, Sequence[str]]:
    """Where on `disk` the first names lead, "" for all of it or a partition; and those after that.

    A volume may be called like a partition; where there is such a partition, that is meant.
    """
    table = scan_table(disk).table if names and _PARTITION.fullmatch(names[0]) else None
    numbers = () if table is None else [partition.number for partition in table.partitions]
    if numbers and _number(names[0]) in numbers:
        return names[0], names[1:]
    return "", names


def _number(name: str) -> int:
    return int(name.removeprefix("p"))


def _volume(disk: ImageDisk, place: str, names: Sequence[str]) -> VolumeDisk:
    """The first of `names`, a volume of the drive at `place`; `disk` is closed with it."""
    try:
        drive = drive_at(disk, place, owned=True)
    except NotFound:
        if not place and _PARTITION.fullmatch(names[0]):
            partition_disk(disk, _number(names[0]))  # Which says what partitions there are.
        raise NotFound(
            f"there is no {'/'.join(names)!r} in it", path=f"{disk.address}/{place}".rstrip("/"),
            hint="partitions are p1, p2, …, and volumes are called as vdisk info shows them",
        ) from None
    volume = drive.open(names[0])
    drive.close()  # The volume keeps it.
    return volume


def _splits(path: Path) -> list[tuple[Path, tuple[str, ...]]]:
    """`path` cut at each of its components: the longest leading part first."""
    found: list[tuple[Path, tuple[str, ...]]] = []
    inside: tuple[str, ...] = ()
    while True:
        found.append((path, inside))
        if path.parent == path:
            return found
        path, inside = path.parent, (path.name, *inside)
