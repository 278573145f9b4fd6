"""What a VHDX overlay says of its parent, and how it comes to have another one, or none.

It knows the parent by the identity of the parent's data, which changes before the first write to
that.  It may say two: where the parent is about to be written to, the next one as well.

Source: [MS-VHDX] 2.6.2.6, "Parent Locator".
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING, cast

from vdisk.errors import InvalidArgument
from vdisk.formats import vhdx_bat as bat
from vdisk.formats.vhdx_bat import BlockState
from vdisk.formats.vhdx_blocks import filling
from vdisk.formats.vhdx_metadata import parent_changes
from vdisk.host import HostFile
from vdisk.plan import Barrier, Plan, Put, Step

if TYPE_CHECKING:
    from vdisk.formats.vhdx import Vhdx
    from vdisk.image_disk import ImageDisk

_PUT_BYTES = 1 << 16


def locator(
    child: HostFile, sector_size: int, parent: ImageDisk, name: str | None, *,
    any_state: bool = False,
) -> dict[str, str]:
    """What an overlay with sectors of that size says of `parent`: `name` is from its own folder.

    With `any_state` also of what the parent is once it is written to, while it is open as it is
    now.  Raises InvalidArgument for a parent that it cannot have.
    """
    if parent.image.name != "vhdx":
        raise InvalidArgument(
            "a VHDX overlay needs a VHDX image beneath it", path=parent.address,
            hint="convert it to VHDX first, or choose another format for the overlay",
        )
    image = cast("Vhdx", parent.image)
    if image.metadata.sector_size != sector_size:
        raise InvalidArgument(
            f"its parent has sectors of {image.metadata.sector_size} bytes, not {sector_size}",
            path=child.path,
        )
    relative = (name or "").replace("/", "\\")
    next_linkage = {"parent_linkage2": f"{{{image.next_data}}}"} if any_state else {}
    return {
        "parent_linkage": f"{{{image.journal.headers.current.data_write}}}",
        **next_linkage,
        "relative_path": relative if relative.startswith("..") else f".\\{relative}",
        "absolute_win32_path": os.path.realpath(image.host.path).replace("/", "\\"),
    }


def plan_parent(
    vhdx: Vhdx, parent: ImageDisk | None, name: str | None, *, any_state: bool
) -> Plan:
    """As `ImageFormat.plan_parent`."""
    said = None
    if parent is not None:
        said = locator(vhdx.host, vhdx.metadata.sector_size, parent, name, any_state=any_state)
        _check_overlay(vhdx)
    puts = _metadata_puts(vhdx, said)

    def steps() -> Iterator[Step]:
        if parent is not None:
            yield from _room_for_bitmaps(vhdx)
        else:
            for number, _ in _partial_blocks(vhdx):
                yield from filling(vhdx, vhdx.layout.block(number))
        yield Barrier((vhdx.host,))
        tables = _without_bitmaps(vhdx) if parent is None else ()
        yield from vhdx.logged(chain(tables, puts))
        yield from vhdx.journal.ended(then=True)

    def done() -> None:
        vhdx.journal.commit()
        vhdx.journal.settled()
        vhdx.take(replace(vhdx.metadata, parent=said), vhdx.regions)

    return Plan(steps(), done, exclusive=True)


def _metadata_puts(vhdx: Vhdx, said: dict[str, str] | None) -> list[Put]:
    region = vhdx.regions.metadata
    try:
        changes = parent_changes(vhdx.replayed, region.offset, region.length, said)
    except InvalidArgument as error:
        error.path = str(vhdx.host.path)
        raise
    return [
        Put(vhdx.host, offset, data, before=vhdx.replayed.read(offset, len(data)))
        for offset, data in changes
    ]


def _check_overlay(vhdx: Vhdx) -> None:
    """Raise InvalidArgument where it has no parent yet and cannot have any."""
    if vhdx.metadata.is_fixed:
        raise InvalidArgument("an overlay is never fixed", path=vhdx.host.path)
    if _overlay_entries(vhdx) * bat.ENTRY_BYTES > vhdx.regions.bat.length:
        raise InvalidArgument(
            "its block table has no room for what an overlay needs", path=vhdx.host.path,
            hint="make a new overlay of that parent, and convert this image into it",
        )


def _overlay_entries(vhdx: Vhdx) -> int:
    metadata = vhdx.metadata
    layout = bat.Layout(metadata.block_size, metadata.sector_size, has_parent=True)
    return layout.entries(metadata.size)


def _room_for_bitmaps(vhdx: Vhdx) -> Iterator[Put]:
    """An overlay's table is as long as its last chunk, with the entry of that one's bitmap."""
    start = vhdx.regions.bat.offset + vhdx.table.entries * bat.ENTRY_BYTES
    end = vhdx.regions.bat.offset + _overlay_entries(vhdx) * bat.ENTRY_BYTES
    for at in range(start, end, _PUT_BYTES):
        yield Put(vhdx.host, at, bytes(min(_PUT_BYTES, end - at)))


def _partial_blocks(vhdx: Vhdx) -> Iterator[tuple[int, int]]:
    """(number, entry) of those entries that say that a block is here in part."""
    for first, page in vhdx.table.runs():
        for number, entry in enumerate(page, first):
            if bat.state(entry) == BlockState.PARTIAL and not vhdx.layout.is_bitmap(number):
                yield number, entry


def _without_bitmaps(vhdx: Vhdx) -> Iterator[Put]:
    """What was here in part is here as a whole; then no bitmap says anything.

    Their space is a gap then, which compacting or the next block closes.
    """
    for number, entry in _partial_blocks(vhdx):
        yield vhdx.table.put(number, [bat.full(bat.place(entry))])
    for number in vhdx.layout.bitmaps(vhdx.table.entries):
        if vhdx.table.get(number):
            yield vhdx.table.put(number, [0])
