"""What is wrong with a VHDX image's structure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from vdisk.errors import Corrupt, Unsupported
from vdisk.formats import vhdx_bat as bat
from vdisk.formats.base import Problem, ProblemKind
from vdisk.formats.census import Census
from vdisk.formats.vhdx_bat import BlockState
from vdisk.formats.vhdx_resize import close_gaps, cut_tail

if TYPE_CHECKING:
    from vdisk.formats.vhdx import Vhdx


def check(vhdx: Vhdx) -> Iterator[Problem]:
    """What a crash left, entries that cannot be right, lost space: in between and at the end."""
    yield from _unclean(vhdx)
    is_wrong = False
    for problem in _wrong_entries(vhdx):
        is_wrong = True
        yield problem
    census = vhdx.take_census()
    if census.problem is not None and not is_wrong:
        yield Problem(ProblemKind.CORRUPTION, census.problem)
    if census.problem is not None or is_wrong:
        return  # What seems not to be in use may be what a wrong entry should say.
    moves = close_gaps(vhdx, census)
    if moves is not None:
        yield Problem(
            ProblemKind.LEAK, f"there are {len(census.gaps)} gaps between its blocks", moves
        )
    yield from _unused_tail(vhdx, census)


def _unused_tail(vhdx: Vhdx, census: Census) -> Iterator[Problem]:
    """Space for blocks that did not get their entries, before a crash or for want of space."""
    cut = cut_tail(vhdx, census, vhdx.block_size)
    if cut is not None:
        unused = vhdx.host.size() - census.end
        yield Problem(
            ProblemKind.LEAK, f"{unused} bytes behind the last block are not used", cut
        )


def _unclean(vhdx: Vhdx) -> Iterator[Problem]:
    """What the next writer sets right by itself."""
    found = (
        (bool(vhdx.replayed.changes), "its log is to be replayed"),
        (not vhdx.journal.headers.is_whole, "one of its two headers is damaged"),
        (not vhdx.regions.is_whole, "one of its two region tables is damaged"),
    )
    for is_so, message in found:
        if is_so:
            yield Problem(ProblemKind.UNCLEAN, message, vhdx.plan_settle())


def _wrong_entries(vhdx: Vhdx) -> Iterator[Problem]:
    states = list(BlockState)
    for first, page in vhdx.table.runs():
        for number, entry in enumerate(page, first):
            message = _wrong(vhdx, number, entry, states)
            if message:
                yield Problem(ProblemKind.CORRUPTION, message)


def _wrong(vhdx: Vhdx, number: int, entry: int, states: list[BlockState]) -> str | None:
    """What is wrong with an entry, None where nothing is."""
    state = bat.state(entry)
    if vhdx.layout.is_bitmap(number):
        if vhdx.metadata.parent is None or state == BlockState.NOT_PRESENT:
            return None
        if state != BlockState.FULL:
            return f"the sector bitmap of entry {number} is in state {state}"
        length = bat.BITMAP_BLOCK
    else:
        if state not in states or (state == BlockState.PARTIAL and vhdx.metadata.parent is None):
            return f"the block of entry {number} is in state {state}"
        if state not in (BlockState.FULL, BlockState.PARTIAL):
            return None
        length = vhdx.block_size
    try:
        vhdx.place(entry, length)
    except Corrupt as error:
        return f"entry {number}: {error.message}"
    except Unsupported:
        pass
    return None
