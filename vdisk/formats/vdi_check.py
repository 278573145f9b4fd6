"""What is wrong with a VDI image's structure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from vdisk.formats.base import Problem, ProblemKind
from vdisk.formats.vdi_census import take_census
from vdisk.formats.vdi_header import ZERO
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
        )
    # A count that covers a gap is right: the next block goes there.
    if header.allocated not in (census.used_places, census.end):
        exact = vdi.put_header(replace(header, allocated=census.end))
        yield Problem(
            ProblemKind.CORRUPTION,
            f"the header counts {header.allocated} blocks, and the map uses {census.end}",
            exact,
        )
    end = header.data_offset + census.end * header.block_size
    if vdi.host.size() < end:
        yield Problem(
            ProblemKind.CORRUPTION,
            f"the file ends {end - vdi.host.size()} bytes before its last block does; "
            "they read as zeros",
            Plan((Grow(vdi.host, end),)),
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
