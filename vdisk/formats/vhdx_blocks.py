"""Places for the blocks of a VHDX image that have none, as plans.

`vhdx` says in which order what is written, and why.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from vdisk.formats import vhdx_bat as bat
from vdisk.formats.bits import runs
from vdisk.formats.vhdx_bat import BlockState
from vdisk.plan import Barrier, Fill, Grow, Guest, Plan, Punch, Step
from vdisk.units import MIB

if TYPE_CHECKING:
    from vdisk.formats.vhdx import Vhdx

_WAITING_PAGES_MAX = 256  # An overlay's entries that wait are written when there are more.
_BLOCKS_AT_ONCE = 64  # No more are allocated by one plan.


def plan_write(vhdx: Vhdx, offset: int, length: int) -> Plan:
    """As `ImageFormat.plan_write`."""
    if vhdx.table.pages_waiting > _WAITING_PAGES_MAX:
        return vhdx.plan_flush() or Plan()
    block = offset // vhdx.block_size
    if bat.state(vhdx.entry(block)) == BlockState.PARTIAL:
        return filled_up(vhdx, block)
    return allocate(vhdx, offset, length)


def allocate(vhdx: Vhdx, offset: int, length: int) -> Plan:
    """Space for the first blocks that the range touches, which have none."""
    unit = vhdx.block_size
    first = offset // unit
    count = _without_place(vhdx, first, offset + length)
    place, count, is_gap = _next_run(vhdx, count)
    end = min(offset + length, (first + count) * unit)
    is_fresh = place >= vhdx.host.size()
    steps: list[Step] = [] if is_fresh else [Punch(vhdx.host, place, count * unit)]
    steps.append(Grow(vhdx.host, place + count * unit))
    steps.extend(_content(vhdx, offset, end, place - first * unit))
    index = vhdx.layout.index(first)
    entries = [bat.full(place + number * unit) for number in range(count)]
    waits = vhdx.parent is not None
    if waits:
        vhdx.table.hold(index, count)
    elif not is_fresh:
        steps.append(Barrier((vhdx.host,)))  # What was there before must not come back.

    def all_steps() -> Iterator[Step]:
        yield from steps
        if not waits:
            # Made only now: the log says how large the file is by then.
            yield from vhdx.logged([vhdx.table.put(index, entries)])

    def done() -> None:
        if not waits:
            vhdx.journal.commit()
        vhdx.limit = max(vhdx.limit, place + count * unit)
        _taken(vhdx, place, count, is_gap=is_gap)
        for number, entry in enumerate(entries):
            vhdx.table.set(index + number, entry, waiting=waits)

    return Plan(all_steps(), done, end - offset)


def _without_place(vhdx: Vhdx, first: int, end: int) -> int:
    """How many blocks from `first` on have no place: in one chunk, and before byte `end`."""
    stop = min(
        -(-end // vhdx.block_size), first + _BLOCKS_AT_ONCE,
        (first // vhdx.layout.ratio + 1) * vhdx.layout.ratio,
    )
    with_place = (BlockState.FULL, BlockState.PARTIAL)
    block = first + 1
    while block < stop and bat.state(vhdx.entry(block)) not in with_place:
        block += 1
    return block - first


def _next_run(vhdx: Vhdx, wanted: int) -> tuple[int, int, bool]:
    """(place, blocks, whether it is a gap) for the next blocks: a gap, or the end."""
    if vhdx.census.gaps:
        return vhdx.census.gaps[-1][0], 1, True
    return -(-vhdx.census.end // MIB) * MIB, wanted, False


def _taken(vhdx: Vhdx, place: int, count: int, *, is_gap: bool) -> None:
    census, end = vhdx.census, place + count * vhdx.block_size
    if is_gap:
        _, high = census.gaps.pop()
        if high - end >= vhdx.block_size:
            census.gaps.append((end, high))
    else:
        census.end = end
    census.last_block = max(census.last_block, end - vhdx.block_size)


def _content(vhdx: Vhdx, offset: int, end: int, distance: int) -> Iterator[Step]:
    """What goes into newly allocated blocks that read as zeros: the request, and around it."""
    unit = vhdx.block_size
    before, after = offset - offset % unit, min(-(-end // unit) * unit, vhdx.size)
    if vhdx.parent is not None and before < offset:
        yield Fill(before, offset - before, vhdx.host, before + distance, fresh=True)
    if offset < end:
        yield Guest(offset, end - offset, vhdx.host, offset + distance)
    if vhdx.parent is not None and end < after:
        yield Fill(end, after - end, vhdx.host, end + distance, fresh=True)


def filled_up(vhdx: Vhdx, block: int) -> Plan:
    """Bring the parent's sectors of a block into it; the request is then one in place."""
    index, data = vhdx.layout.index(block), vhdx.place(vhdx.entry(block))
    vhdx.table.hold(index, 1)
    return Plan(
        tuple(filling(vhdx, block)), lambda: vhdx.table.set(index, bat.full(data), waiting=True)
    )


def filling(vhdx: Vhdx, block: int) -> Iterator[Fill]:
    """Steps that bring the parent's sectors into a block that is here in part."""
    unit, sector = vhdx.block_size, vhdx.metadata.sector_size
    data, start = vhdx.place(vhdx.entry(block)), block * unit
    for first, stop, is_here in runs(vhdx.sector_bits(block), 0, unit // sector):
        low, high = start + first * sector, min(start + stop * sector, vhdx.size)
        if not is_here and low < high:
            yield Fill(low, high - low, vhdx.host, data + low - start)


def plan_zero(vhdx: Vhdx, offset: int, length: int) -> Plan:
    """Only an overlay has what is neither zeros nor its own: whole blocks become zeros."""
    unit = vhdx.block_size
    first, inside = divmod(offset, unit)
    end = offset + length
    stop = end // unit if end < vhdx.size else -(-end // unit)
    partial = bat.state(vhdx.entry(first)) == BlockState.PARTIAL
    if inside or stop <= first or partial or vhdx.table.pages_waiting > _WAITING_PAGES_MAX:
        return plan_write(vhdx, offset, min(length, unit - inside))
    count = _without_place(vhdx, first, stop * unit)
    index = vhdx.layout.index(first)
    vhdx.table.hold(index, count)

    def done() -> None:
        for number in range(count):
            vhdx.table.set(index + number, BlockState.ZERO, waiting=True)

    return Plan((), done, min(count * unit, length))
