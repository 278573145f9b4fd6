"""Writing a new text so that a crash anywhere leaves the old group or the new one.

1. The text goes beside the current one into every area's ring.  Nothing that counts has changed.
2. Area after area, with a barrier after each, the header is made to point to the new text.  From
   the first of them on, the new text is the newest one.

Of two areas, one is sound at any time, however far the writing of the other's header came; the one
whose loss would lose least is written first.  A single area's header is prepared in step 1: its
second slot then leads to the new text while the first is being changed (`physical` salvages it).
Source: LVM2 `lib/format_text/format-text.c` (write, pre-commit, commit).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from vdisk.errors import NotPermitted
from vdisk.tables.lvm2.area import Header, pack_header
from vdisk.tables.lvm2.physical import MetadataArea
from vdisk.tables.lvm2.ring import place, placed
from vdisk.tables.lvm2.steps import Barrier, Put, Step


@dataclass(frozen=True, slots=True)
class AreaOf:
    """A metadata area, and the UUID of the physical volume that it is on."""

    pv: str
    area: MetadataArea


def commit_steps(areas: tuple[AreaOf, ...], text: bytes) -> tuple[Step, ...]:
    """The steps that make `text` the text of all `areas`, in their order.

    Raises NoSpace where one of them has no room for it, NotPermitted where there is none.
    """
    if not areas:
        raise NotPermitted("there is no metadata area to write to on these drives")
    steps: list[Step] = []
    for one in areas:
        steps += _put_text(one, text)
    if len(areas) == 1:
        steps += _prepare(areas[0], text)
    steps.append(Barrier())
    for one in areas:
        steps += (_put(one, _new_header(one.area.header, text)), Barrier())
    return tuple(steps)


def _put_text(one: AreaOf, text: bytes) -> Iterator[Step]:
    header = one.area.header
    for offset, part in placed(header.area, place(header, text), text):
        yield Put(one.pv, offset, part)


def _prepare(one: AreaOf, text: bytes) -> Iterator[Step]:
    header = one.area.header
    if header.current is not None:
        yield _put(one, replace(header, prepared=place(header, text)))


def _new_header(header: Header, text: bytes) -> Header:
    return Header(header.area, place(header, text))


def _put(one: AreaOf, header: Header) -> Put:
    return Put(one.pv, header.area.offset, pack_header(header))


def committed(areas: tuple[AreaOf, ...], text: bytes) -> dict[tuple[str, int], MetadataArea]:
    """The areas after the steps of `commit_steps`, by (UUID, the area's first byte)."""
    return {
        (one.pv, one.area.header.area.offset): MetadataArea(
            _new_header(one.area.header, text), text
        )
        for one in areas
    }
