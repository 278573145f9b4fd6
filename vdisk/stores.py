"""Which store a path is: a folder of images, a drive, or an image by itself.

An image is taken for a drive where it is recorded as one (`vdisk drive init` does that), or where
nothing is recorded and nothing given, and a volume group is found on the whole of it.  One that is
recorded as raw was a disk before, and stays one, whatever its guest writes to it.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from vdisk.drive import Drive
from vdisk.drive_store import DriveStore
from vdisk.errors import DiskError, InvalidFormat, NotFound
from vdisk.find_drives import drive_at
from vdisk.formats.raw import Raw
from vdisk.image_disk import ImageDisk
from vdisk.open import Address, look_into, open_drive, parse_address
from vdisk.options import NO_OPTIONS, OpenOptions
from vdisk.record import DRIVE_FORMAT, stored_format
from vdisk.scratch_store import ScratchStore
from vdisk.store import FolderStore, ImageList, Store


def open_stores(
    paths: Iterable[Path], options: OpenOptions, *, writable: bool, snapshot: bool = False
) -> list[Store]:
    """A store for each folder and each drive of `paths`, and one for all other images together.

    With `snapshot` what is written to their disks is forgotten with them, and `writable` says
    nothing.  A drive is opened and locked.  Raises what opening it raises.
    """
    if snapshot:
        return [ScratchStore(store) for store in open_stores(paths, options, writable=False)]
    stores: list[Store] = []
    images: list[Path] = []
    try:
        for path in paths:
            store = _store(path, options, writable=writable)
            if store is None:
                images.append(path)
            else:
                stores.append(store)
        if images:
            stores.append(ImageList(images, options, writable=writable))
    except BaseException:
        for store in stores:
            store.close()
        raise
    return stores


def store_of(address: str) -> tuple[Store, str]:
    """The store in which the disk `address` is or would be, for changing it, and its name there.

    That is a drive where the address leads into one, else the folder.  Raises what opening a drive
    raises, and NotFound where the address leads into something else.
    """
    try:
        parsed = parse_address(address)
    except NotFound:
        parsed = Address(Path(address), ())
    if not parsed.inside:
        return FolderStore(parsed.path.parent, NO_OPTIONS, writable=True), parsed.path.name
    *outer, name = parsed.inside
    drive = open_drive(str(Address(parsed.path, tuple(outer))), writable=True)
    return DriveStore(drive), name


def _store(path: Path, options: OpenOptions, *, writable: bool) -> Store | None:
    if path.is_dir():
        return FolderStore(path, options, writable=writable)
    drive = _drive(path, options, writable=writable)
    return None if drive is None else DriveStore(drive, options)


def _drive(path: Path, options: OpenOptions, *, writable: bool) -> Drive | None:
    """The drive that the image at `path` is; None where it is a disk."""
    if options.format is not None:
        return None
    # Its geometry is nobody's business: what is given is meant for the volumes.
    without = OpenOptions(allow_parent=options.allow_parent)
    disk = look_into(path, writable=writable, options=without)
    try:
        recorded = stored_format(disk.hosts()[0])
        drive = None
        if disk.image.name == Raw.name and recorded in (None, DRIVE_FORMAT):
            drive = _drive_on(disk, certain=recorded == DRIVE_FORMAT)
    except BaseException:
        disk.close()
        raise
    if drive is None:
        disk.close()
    return drive


def _drive_on(disk: ImageDisk, *, certain: bool) -> Drive | None:
    try:
        return drive_at(disk, "", owned=True)
    except NotFound as error:
        if certain:
            raise InvalidFormat(
                "is recorded as a drive, and has no LVM2 label", path=disk.address,
                hint="to take its bytes as they are: --format raw",
            ) from error
    except DiskError:
        if certain:
            raise
    return None
