"""Giving back what a VHDX image does not need: blocks that are holes, and the file behind them.

Discarding leaves a block its place, with a hole there.  Such a block is forgotten, the last blocks
move into the gaps, and the file ends behind the last one.  Each step is a sound state.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING

from vdisk.formats import vhdx_bat as bat
from vdisk.formats.census import has_data
from vdisk.formats.vhdx_bat import BlockState
from vdisk.formats.vhdx_resize import close_gaps, cut_tail, drop
from vdisk.plan import Plan
from vdisk.units import MIB

if TYPE_CHECKING:
    from vdisk.formats.vhdx import Vhdx

_FORGOTTEN_MAX = 1024  # Blocks that one plan forgets.


def plan_compact(vhdx: Vhdx) -> Plan | None:
    """The next step.  A fixed image is compact: it is to have all its blocks."""
    if vhdx.metadata.is_fixed:
        return None
    waiting = vhdx.plan_flush()
    if waiting is not None:
        return waiting
    empty = [(number, number + 1) for number in islice(_empty_blocks(vhdx), _FORGOTTEN_MAX)]
    if empty:
        # In an overlay they are zeros all the same, and not the parent's.
        state = BlockState.NOT_PRESENT if vhdx.parent is None else BlockState.ZERO
        return drop(vhdx, empty, state)
    return close_gaps(vhdx, vhdx.census) or cut_tail(vhdx, vhdx.census, MIB)


def _empty_blocks(vhdx: Vhdx) -> Iterator[int]:
    """The entries of blocks whose places are holes."""
    for first, page in vhdx.table.runs():
        for number, entry in enumerate(page, first):
            if bat.state(entry) != BlockState.FULL or vhdx.layout.is_bitmap(number):
                continue
            if not has_data(vhdx.host, vhdx.place(entry), vhdx.block_size):
                yield number
