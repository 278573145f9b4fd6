"""Making a drive of a block device or a file: LVM2's label and an empty volume group."""

from __future__ import annotations

import os
import re
import socket
import time
from contextlib import ExitStack, suppress
from pathlib import Path

from vdisk.disk_geometry import settle_geometry
from vdisk.drive_steps import carry_out
from vdisk.errors import Exists, NotFound
from vdisk.formats.raw import Raw
from vdisk.formats.registry import signature
from vdisk.holdings import check_holds, holdings
from vdisk.host import HostFile
from vdisk.image_disk import ImageDisk
from vdisk.options import NO_OPTIONS
from vdisk.record import DRIVE_FORMAT, forget_geometry, store_format
from vdisk.tables.lvm2 import NewDrive, check_group_name, new_drive
from vdisk.units import SECTOR
from vdisk.volume import Place

_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9_.+-]+")
_NAME_CHARACTERS_MAX = 64  # Of a name that is made of a file's: volumes need room beside it.


def init_drive(
    path: Path,
    *,
    size_bytes: int | None = None,
    name: str | None = None,
    force: bool = False,
    extent_bytes: int | None = None,
    metadata_bytes: int | None = None,
) -> NewDrive:
    """Make a drive of `path`: of a new file of `size_bytes`, or of a file or device that is there.

    Its volume group is called `name`, by default as the file is.  What is there is not overwritten
    where it is something recognisable, unless `force`: NotPermitted, which says what was found.
    Raises NotFound (no file, and no size for a new one), Exists (a file, and a size), Busy,
    HostError, and InvalidArgument for what `new_drive` refuses.
    """
    if name is not None:
        check_group_name(name)
    with ExitStack() as stack:
        host = _host(path, size_bytes, stack)
        made = new_drive(
            host.size(), name or group_name(path), time=int(time.time()),
            host=socket.gethostname(), extent_bytes=extent_bytes, metadata_bytes=metadata_bytes,
        )
        disk = ImageDisk(Raw(host), address=str(path), sector_size=SECTOR, read_only=False)
        if not force:
            _check_nothing_there(disk, host)
        if not host.is_block:
            host.give_back(0, host.size())
        forget_geometry(host)
        carry_out(made.steps, {made.label.pv_id: Place.of(disk, "")})
        store_format(host, DRIVE_FORMAT)
        stack.pop_all()
    host.close()
    return made


def group_name(path: Path) -> str:
    """What the volume group on `path` is called where nobody says it: as the file, if that can be.

    A group cannot have the name of a device, as its own folder in /dev has its name.
    """
    stem = _NOT_IN_NAMES.sub("_", path.stem)[:_NAME_CHARACTERS_MAX].lstrip("-.")
    if not stem or os.path.lexists(f"/dev/{stem}"):
        stem = f"drive_{stem}".rstrip("_")
    return stem


def _host(path: Path, size_bytes: int | None, stack: ExitStack) -> HostFile:
    """The open host file; the stack closes it, and removes it if it is new, after an error."""
    if os.path.lexists(path):
        if size_bytes is not None:
            raise Exists(
                "is there already", path=path,
                hint="leave out the size to make a drive of it as it is",
            )
        host = HostFile.open(path, writable=True)
        stack.callback(host.close)
        return host
    if size_bytes is None:
        raise NotFound("no such file", path=path, hint="to make it, say how large: --size")
    host = HostFile.create(path)
    stack.callback(host.close)
    stack.callback(_unlink, path)
    host.truncate(size_bytes)
    return host


def _unlink(path: Path) -> None:
    with suppress(OSError):
        path.unlink()


def _check_nothing_there(disk: ImageDisk, host: HostFile) -> None:
    image = signature(host)
    found = [] if image is None else [f"a disk image ({image.format})"]
    settle_geometry(disk, NO_OPTIONS)  # For the size of its sectors.
    hint = "to make a drive of it all the same, and lose that: --force"
    check_holds(disk, found + holdings(disk), hint)
