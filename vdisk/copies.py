"""Opening both ends of a copy, which may lie in one host file."""

from __future__ import annotations

import os
from contextlib import ExitStack, closing

from vdisk.disk import Disk, Slice
from vdisk.drive_store import DriveStore
from vdisk.errors import DiskError, Exists, NotFound
from vdisk.image_disk import ImageDisk
from vdisk.open import Address, drive_inside, inside, open_disk, open_image, parse_address
from vdisk.options import OpenOptions
from vdisk.store import Store
from vdisk.stores import store_of

Target = Disk | tuple[Store, str]
"""Where to copy to: a partition that is there, or the name of a new disk in a store."""


def open_copy(
    source: str, target: str, options: OpenOptions, held: ExitStack
) -> tuple[Disk, Target]:
    """The disk to copy from, opened with `options`, and where to; `held` closes both.

    Raises NotFound, Exists (a target that is no partition), and what opening raises.
    """
    here, there = parse_address(source), _parsed(target)
    if there is not None and there.inside and os.path.samefile(here.path, there.path):
        return _both_in_one(here, there, options, held)
    disk = held.enter_context(open_disk(source, options=options))
    if there is not None and not there.inside:
        raise Exists("is there already", path=target, hint="remove it first")
    part = None if there is None else _partition(target)
    if part is not None:
        return disk, held.enter_context(part)
    store, name = store_of(target)
    held.enter_context(closing(store))
    return disk, (store, name)


def _parsed(target: str) -> Address | None:
    """None for a file that is not there yet."""
    try:
        return parse_address(target)
    except NotFound:
        return None


def _partition(target: str) -> Disk | None:
    """The partition that `target` is, open for writing; None where it is not a partition."""
    try:
        with open_disk(target, lock=False) as found:
            is_part = isinstance(found, Slice)
    except DiskError:
        return None
    return open_disk(target, writable=True) if is_part else None


def _both_in_one(
    here: Address, there: Address, options: OpenOptions, held: ExitStack
) -> tuple[Disk, Target]:
    """One host file is opened once, and so is a drive that both are on."""
    whole = held.enter_context(open_image(here.path, writable=True, options=_format_of(options)))
    try:
        part = inside(whole, there.inside)
    except NotFound:
        part = None
    if isinstance(part, Slice):
        return held.enter_context(inside(whole, here.inside)), held.enter_context(part)
    return _in_drive(whole, here, there, held)


def _in_drive(
    whole: ImageDisk, here: Address, there: Address, held: ExitStack
) -> tuple[Disk, Target]:
    *outer, name = there.inside
    drive = drive_inside(whole, outer)
    store = held.enter_context(closing(DriveStore(drive)))
    depth = len(outer)
    if list(here.inside[:depth]) == outer and len(here.inside) > depth:
        volume = drive.open(here.inside[depth])
        held.callback(volume.close)
        return inside(volume, here.inside[depth + 1 :]), (store, name)
    return inside(whole, here.inside), (store, name)


def _format_of(options: OpenOptions) -> OpenOptions:
    """Of a whole that holds both, only the format is meant and its parents, not the geometry."""
    return OpenOptions(format=options.format, allow_parent=options.allow_parent)
