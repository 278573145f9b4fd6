"""What is wrong with a VDI image's structure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from vdisk.formats.base import Problem, ProblemKind
from vdisk.formats.vdi_census import Census, take_census
from vdisk.formats.vdi_header import ZERO
from vdisk.formats.vdi_resize import close_gaps
from vdisk.plan import Grow, Plan

if TYPE_CHECKING:
    from vdisk.formats.vdi import Vdi


def check(vdi: Vdi) -> Iterator[Problem]:
    """Entries that name no place or another's, a wrong count, a file that is too short."""
    header = vdi.header
    yield from _wrong_entries(vdi)
    census = take_census(vdi.table, vdi.places)
    if census.gaps:
        yield Problem(
            ProblemKind.LEAK,
            f"{census.end - census.used_places} places below the last one in use hold no block",
            None if census.shared else close_gaps(vdi),
        )
    yield from _wrong_count(vdi, census)
    end = header.data_offset + census.end * header.block_size
    if vdi.host.size() < end:
        yield Problem(
            ProblemKind.UNCLEAN,
            f"the file ends {end - vdi.host.size()} bytes before its last block does; "
            "they read as zeros",
            Plan((Grow(vdi.host, end),)),
        )


def _wrong_count(vdi: Vdi, census: Census) -> Iterator[Problem]:
    """A count that is too low has the next writer give a place away twice; too high is safe.

    One that covers a gap is right, for the next block goes there.
    """
    count = vdi.header.allocated
    if count in (census.used_places, census.end) or (vdi.is_written and count > census.end):
        return
    yield Problem(
        ProblemKind.UNCLEAN if count > census.end else ProblemKind.CORRUPTION,
        f"the header counts {count} blocks, and the map uses {census.end}",
        vdi.put_header(replace(vdi.header, allocated=census.end)),
    )


def _wrong_entries(vdi: Vdi) -> Iterator[Problem]:
    """A byte a place; a place is named once a block that has it after the first."""
    places = vdi.places
    seen = bytearray(places)
    for first, page in vdi.table.runs():
        for number, entry in enumerate(page):
            if entry >= ZERO:
                continue
            if entry >= places:
                yield Problem(
                    ProblemKind.CORRUPTION,
                    f"block {first + number} names place {entry} of {places}",
                )
            elif seen[entry]:
                yield Problem(
                    ProblemKind.CORRUPTION,
                    f"block {first + number} lies in place {entry}, as another does",
                )
            else:
                seen[entry] = 1
