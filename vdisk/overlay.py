"""Overlays: bringing what they hold into their parents, and putting other parents beneath them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

from vdisk.contents import (
    ZERO_UNIT,
    Buffers,
    Range,
    data_ranges,
    done_ahead,
    joined,
    union,
)
from vdisk.copying import Advance, copy_ranges
from vdisk.create import NewDisk, create_image
from vdisk.errors import InvalidArgument, NotPermitted
from vdisk.extent import Kind, pieces
from vdisk.host import HostFile
from vdisk.image_disk import ImageDisk
from vdisk.open import NO_OPTIONS, OpenOptions, keep_format, open_host, open_image
from vdisk.parents import check_reachable, opening, with_parent
from vdisk.plan import Plan


def parent_name(child: Path, parent: Path) -> str:
    """How an overlay names its parent: by the path from its own folder."""
    return os.path.relpath(os.path.realpath(parent), Path(os.path.realpath(child)).parent)


# Committing


def commit(path: Path, options: OpenOptions, advance: Advance) -> Path:
    """Write what the overlay `path` holds into its parent; the parent's path.

    The parent grows where the overlay is larger.  The overlay reads as before at every moment, also
    after a crash, and in the end holds nothing that its parent does not.  Other overlays of the
    parent are of no use any more.  Raises InvalidArgument for an image that is no overlay, Busy
    where the parent is in use, and HostError.
    """
    host = HostFile.open(path, writable=True)
    how = opening(host, options.allow_parent, writable_parent=True)
    with open_host(host, options=options, how=how) as overlay:
        parent = _parent_of(overlay)
        keep_format(parent, NO_OPTIONS)
        # Its first write puts the parent into another state, which the overlay would not take.
        _relink(overlay, parent, any_state=True)
        if overlay.size > parent.size:
            parent.resize(overlay.size)
        for extent, _ in pieces(overlay.image.map(0, overlay.size), 0, overlay.size):
            if extent.kind is Kind.ZERO:
                parent.discard(extent.guest_offset, extent.length)
        copy_ranges(overlay, parent, _own_data(overlay), advance)
        parent.flush()
        _relink(overlay, parent)
        return parent.image.hosts()[0].path


def _parent_of(overlay: ImageDisk) -> ImageDisk:
    if overlay.image.parent is None:
        raise InvalidArgument("is no overlay: it has no parent", path=overlay.address)
    return overlay.image.parent


def _relink(overlay: ImageDisk, parent: ImageDisk | None, *, any_state: bool = False) -> None:
    overlay.flush()
    overlay.carry_out(partial(_plan, overlay, parent, any_state=any_state))


def _plan(overlay: ImageDisk, parent: ImageDisk | None, *, any_state: bool = False) -> Plan:
    name = None
    if parent is not None:
        name = parent_name(overlay.image.hosts()[0].path, parent.image.hosts()[0].path)
    return overlay.image.plan_parent(parent, name, any_state=any_state)


def _own_data(overlay: ImageDisk) -> Iterator[Range]:
    """Where the overlay has bytes of its own, that is neither its parent's nor zeros."""
    size = overlay.size
    return joined(
        (extent.guest_offset, extent.guest_end)
        for extent, _ in pieces(overlay.image.map(0, size), 0, size)
        if extent.kind not in (Kind.PARENT, Kind.ZERO)
    )


def empty_overlay(path: Path, options: OpenOptions) -> None:
    """Put a new overlay of the same parent, size and kind, which holds nothing, in place of `path`.

    The old file stays as it is until the new one is there.
    """
    with open_image(path, writable=False, options=options) as old:
        parent = _parent_of(old).image.hosts()[0].path
        new = NewDisk(
            old.size, old.geometry, True, old.image.name, old.image.creation_options(), parent,
            replace(options, format=None),
        )  # fmt: skip
        status = old.image.hosts()[0].stat()
    fresh = path.with_name(f".{path.name}.new")
    create_image(fresh, new)
    try:
        with suppress(PermissionError):
            shutil.copymode(path, fresh)
            os.chown(fresh, status.st_uid, status.st_gid)
        fresh.replace(path)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise


# Rebasing


def rebase(path: Path, base: Path | None, options: OpenOptions, advance: Advance) -> None:
    """Put the image `base` beneath the overlay `path`, or nothing: it reads as it did before.

    What differs between the old parent and the new one is first brought into the overlay.  Raises
    NotPermitted where `base` lies elsewhere than the overlay may lead to, InvalidArgument where
    they cannot go together or `base` is an overlay of `path` itself, Busy and HostError.
    """
    if base is None:
        with _open_overlay(path, options) as overlay:
            _parent_of(overlay)
            _plan(overlay, None)  # Refused before anything is changed.
            _bring_in(overlay, None, advance)
            _relink(overlay, None)
        return
    with _open_base(path, base, options) as beneath, _open_overlay(path, options) as overlay:
        _plan(overlay, beneath)
        _bring_in(overlay, beneath, advance)
        _relink(overlay, beneath)


def change_parent(path: Path, base: Path, options: OpenOptions) -> None:
    """Say that `base` is the parent of `path`, and touch nothing else: whoever asks knows better.

    The old parent need not be there.  Raises as `rebase` does.
    """
    with _open_base(path, base, options) as beneath:
        host = HostFile.open(path, writable=True)
        how = with_parent(opening(host, options.allow_parent), beneath)
        with open_host(host, options=options, how=how) as overlay:
            _parent_of(overlay)
            _plan(overlay, beneath)
            _relink(overlay, beneath)


def _open_overlay(path: Path, options: OpenOptions) -> ImageDisk:
    return open_image(path, writable=True, options=options)


def _open_base(path: Path, base: Path, options: OpenOptions) -> ImageDisk:
    """The new parent, open read-only, once it is certain that it can be one."""
    check_reachable(path, base, options.allow_parent)
    disk = open_image(
        base, writable=False, options=replace(NO_OPTIONS, allow_parent=options.allow_parent)
    )
    try:
        with suppress(FileNotFoundError):
            status = os.stat(path)
            _check_no_loop(disk, path, (status.st_dev, status.st_ino))
    except BaseException:
        disk.close()
        raise
    return disk


def _check_no_loop(base: ImageDisk, path: Path, identity: tuple[int, int]) -> None:
    below: ImageDisk | None = base
    while below is not None:
        if below.image.hosts()[0].identity == identity:
            raise NotPermitted("would be its own parent", path=path)
        below = below.image.parent


def _bring_in(overlay: ImageDisk, beneath: ImageDisk | None, advance: Advance) -> None:
    """Write into the overlay what it reads as now, where it would read otherwise."""
    buffers = Buffers()

    def differing(start: int, end: int) -> tuple[int, bytearray, list[Range]]:
        mine = buffers.read(overlay, start, end)
        theirs = bytearray(end - start) if beneath is None else buffers.read(beneath, start, end)
        units = list(_differing_units(mine, theirs, start))
        buffers.give_back(theirs)
        return start, mine, units

    done = 0
    for start, mine, units in done_ahead(_shown_through(overlay, beneath), differing):
        for first, last in units:
            overlay.write(first, memoryview(mine)[first - start : last - start])
        buffers.give_back(mine)
        advance(start + len(mine) - done)
        done = start + len(mine)
    advance(overlay.size - done)


def _shown_through(overlay: ImageDisk, beneath: ImageDisk | None) -> Iterator[Range]:
    """Where the overlay holds no bytes of its own, and what is beneath may be other than zeros."""
    size = overlay.size
    for extent, _ in pieces(overlay.image.map(0, size), 0, size):
        if extent.kind not in (Kind.PARENT, Kind.ZERO):
            continue
        start, end = extent.guest_offset, extent.guest_end
        new = iter(()) if beneath is None else _data_inside(beneath, start, end)
        yield from union(data_ranges(overlay, start, end), new)


def _data_inside(disk: ImageDisk, start: int, end: int) -> Iterator[Range]:
    end = min(end, disk.size)
    return data_ranges(disk, start, end) if start < end else iter(())


def _differing_units(mine: bytearray, theirs: bytearray, offset: int) -> Iterator[Range]:
    if mine == theirs:
        return
    for at in range(0, len(mine), ZERO_UNIT):
        if mine[at : at + ZERO_UNIT] != theirs[at : at + ZERO_UNIT]:
            yield offset + at, offset + min(at + ZERO_UNIT, len(mine))
