"""Making a new disk: how large it is, what its geometry is, and its host file.

A new disk is a sparse raw image.  Its format and its geometry are recorded with it, so that what a
guest writes into it later changes neither.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from vdisk.errors import Exists, HostError, InvalidArgument, NotFound, NotPermitted, Unsupported
from vdisk.formats.raw import Raw
from vdisk.geometry import (
    Geometry,
    check_fits,
    choose,
    derive,
    profile_sector_size,
    profile_size,
)
from vdisk.host import HostFile
from vdisk.record import store_format, store_geometry
from vdisk.units import SECTOR, SIZE_BYTES_MAX

_OTHER_FORMATS = frozenset(
    {".vhd", ".vhdx", ".vdi", ".vmdk", ".qcow2", ".qcow", ".qed", ".hds", ".nhd", ".hdi"}
)


@dataclass(frozen=True, slots=True)
class NewDisk:
    """What is to be made: `size_bytes` is whole sectors of the geometry's sector size."""

    size_bytes: int
    geometry: Geometry


def plan_disk(
    *,
    size_bytes: int | None = None,
    chs: str | None = None,
    profile: str | None = None,
    sector_size: int | None = None,
) -> NewDisk:
    """The disk that a person asks for, by any of these that together say its size.

    A size is rounded up to whole sectors.  Without one it is that of the geometry, or the one that
    the profile fixes.  Raises InvalidArgument where they contradict each other, or say no size.
    """
    fixed = None if profile is None else profile_size(profile)
    fixed_sector_size = None if profile is None else profile_sector_size(profile)
    unit = sector_size or fixed_sector_size or SECTOR
    geometry = None if chs is None else Geometry.parse(chs, sector_size=unit)
    if size_bytes is None:
        size_bytes = geometry.size_bytes if geometry is not None else fixed
    if size_bytes is None:
        raise InvalidArgument("how large is the disk to be?", hint="give --size")
    size_bytes = whole_sectors(size_bytes, unit)
    if geometry is not None:
        check_fits(geometry, size_bytes)
    elif profile is not None:
        geometry = derive(profile, size_bytes, unit)
    else:
        choice = choose(size_bytes, unit)
        assert choice is not None  # There is at least one sector.
        geometry = choice.geometry
    return NewDisk(size_bytes, geometry)


def whole_sectors(size_bytes: int, sector_size: int) -> int:
    """`size_bytes` rounded up.  InvalidArgument for nothing at all, and past 2**63-1."""
    if size_bytes < 1:
        raise InvalidArgument("a disk has at least one sector")
    rounded = -(-size_bytes // sector_size) * sector_size
    if rounded > SIZE_BYTES_MAX:
        raise InvalidArgument(f"a disk is at most {SIZE_BYTES_MAX} bytes large")
    return rounded


def create_image(path: Path, new: NewDisk, *, format_given: bool = False) -> bool:
    """Make the raw image `path`; whether format and geometry could be recorded with it.

    Nothing that exists is ever written to, and after an error the file is not there.  Raises
    Exists, NotFound (the folder), NotPermitted (inside a file or device), HostError; Unsupported
    for a name that belongs to another format, unless the format was `format_given`.
    """
    _check_place(path)
    if path.suffix.lower() in _OTHER_FORMATS and not format_given:
        raise Unsupported(
            f"{path.suffix} is the name of another format, and this version makes raw images",
            path=path, hint=f"call it {path.with_suffix('.img').name}, or give --format raw",
        )
    host = HostFile.create(path)
    try:
        host.truncate(new.size_bytes)
        recorded = store_format(host, Raw.name)
        return store_geometry(host, new.geometry) and recorded
    except BaseException:
        with suppress(OSError):
            path.unlink()
        raise
    finally:
        host.close()


def _check_place(path: Path) -> None:
    """Say what is wrong with `path` better than open(2) would."""
    with suppress(OSError, ValueError):
        if stat.S_ISBLK(os.stat(path).st_mode):
            raise Exists(
                "is a block device, which is a disk already", path=path,
                hint="mount it as it is: vdisk mount",
            )
    if "\0" in str(path):
        raise InvalidArgument("not a file name", path=repr(str(path)))
    try:
        mode = os.stat(path.parent).st_mode
    except NotADirectoryError as error:
        raise _inside_a_file(path) from error
    except FileNotFoundError as error:
        raise NotFound("no such folder", path=path.parent, hint="make it first") from error
    except OSError as error:
        raise HostError.of(error, "create", path) from error
    if not stat.S_ISDIR(mode):
        raise _inside_a_file(path)


def _inside_a_file(path: Path) -> NotPermitted:
    return NotPermitted(
        f"lies inside {path.parent}, which is no folder", path=path,
        hint="partitions are made by writing a table to the disk, with sfdisk for instance",
    )
