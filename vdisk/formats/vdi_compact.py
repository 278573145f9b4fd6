"""Giving back what a VDI image does not need: blocks that are all zeros, and the file behind them.

A block whose place is a hole in the file, as discarding leaves it, is forgotten.  The last blocks
move into the gaps, and the file ends behind the last one.  Each step is a sound state.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING

from vdisk.formats.census import has_data
from vdisk.formats.vdi_header import FREE, ZERO, VdiType
from vdisk.formats.vdi_resize import close_gaps, cut_off
from vdisk.plan import Barrier, Plan

if TYPE_CHECKING:
    from vdisk.formats.vdi import Vdi

_FORGOTTEN_MAX = 1024  # Blocks that one plan forgets.


def plan_compact(vdi: Vdi) -> Plan | None:
    """The next step.  A fixed image is compact: it is to have all its blocks."""
    if vdi.header.type is VdiType.FIXED:
        return None
    waiting = vdi.plan_flush()
    if waiting is not None:
        return waiting
    empty = list(islice(_empty_blocks(vdi), _FORGOTTEN_MAX))
    if empty:
        return _forget(vdi, empty)
    census = vdi.census
    if census.used_places < census.end:
        return close_gaps(vdi)
    end = vdi.header.data_offset + census.end * vdi.header.block_size
    if vdi.host.is_block or vdi.host.size() <= end:
        return None
    return cut_off(vdi, replace(vdi.header, allocated=census.end))


def _empty_blocks(vdi: Vdi) -> Iterator[int]:
    """The blocks whose places are holes."""
    unit = vdi.header.block_size
    for first, page in vdi.table.runs():
        for number, entry in enumerate(page):
            if entry < ZERO and not has_data(vdi.host, vdi.place(entry), unit):
                yield first + number


def _forget(vdi: Vdi, blocks: list[int]) -> Plan:
    """Those blocks read as zeros without a place; in an overlay, as zeros all the same."""
    entry = FREE if vdi.parent is None else ZERO
    puts = tuple(vdi.table.put(index, [entry]) for index in blocks)

    def done() -> None:
        for index in blocks:
            vdi.table.set(index, entry)
        vdi.forget_census()

    return Plan((*puts, Barrier((vdi.host,))), done, exclusive=True)
