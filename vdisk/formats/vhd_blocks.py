"""Places for the blocks and sectors of a VHD image that have none, as plans.

`vhd` says in which order what is written, and why.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from vdisk.formats.vhd_bitmaps import runs, with_set
from vdisk.formats.vhd_header import FREE
from vdisk.formats.vhd_space import Run
from vdisk.plan import Barrier, Fill, Guest, Plan, Punch, Put, Step
from vdisk.units import SECTOR

if TYPE_CHECKING:
    from vdisk.formats.vhd import Vhd

_BLOCKS_AT_ONCE = 64  # No more get a place by one plan.

Content = Callable[[int, int, int], Step]
"""(guest offset, length, host offset) -> the step that puts there what the guest is to read."""


def allocate(vhd: Vhd, offset: int, length: int) -> Plan:
    """Space for the first blocks that the range touches, none of which can be written in place."""

    def content(guest_offset: int, length: int, host_offset: int) -> Step:
        return Guest(guest_offset, length, vhd.host, host_offset)

    if vhd.parent is None and vhd.table.get(offset // vhd.block_size) != FREE:
        return _made_full(vhd, offset // vhd.block_size)
    return put_content(vhd, offset, length, content)


def zeroed(vhd: Vhd, offset: int, length: int) -> Plan:
    """Make whole sectors of an overlay read as zeros: the first blocks of the range."""

    def content(guest_offset: int, length: int, host_offset: int) -> Step:
        return Punch(vhd.host, host_offset, length)

    return put_content(vhd, offset, length, content)


def put_content(vhd: Vhd, offset: int, length: int, content: Content) -> Plan:
    """Content for the first blocks of the range, placed where they are not."""
    index, inside = divmod(offset, vhd.block_size)
    if vhd.table.get(index) != FREE:
        return _sectors_set(vhd, offset, min(length, vhd.block_size - inside), content)
    wanted = 1
    last = (offset + length - 1) // vhd.block_size
    while wanted < min(last - index + 1, _BLOCKS_AT_ONCE) and vhd.table.get(index + wanted) == FREE:
        wanted += 1
    return _placed(vhd, offset, length, wanted, content)


def _made_full(vhd: Vhd, index: int) -> Plan:
    """Make all sectors of a block that another program has filled in part hold data.

    It prepares only: the request is then one that is done in place.
    """
    place = vhd.place(vhd.table.get(index))
    bits = vhd.bitmaps.get(index, place)
    steps: list[Step] = [
        Punch(vhd.host, place + vhd.bitmap_size + first * SECTOR, (stop - first) * SECTOR)
        for first, stop, is_set in runs(bits, 0, len(bits)) if not is_set
    ]
    full = vhd.bitmaps.all_set
    steps.append(Barrier((vhd.host,)))
    steps.append(
        Put(vhd.host, place, vhd.bitmaps.packed(full), before=vhd.bitmaps.packed(bits))
    )
    return Plan(tuple(steps), lambda: vhd.bitmaps.set(index, full))


def _sectors_set(vhd: Vhd, offset: int, length: int, content: Content) -> Plan:
    """Sectors of an overlay's block that has a place already, and does not hold them."""
    index = offset // vhd.block_size
    place = vhd.place(vhd.table.get(index))
    bits, steps = _sectors(vhd, index, place, offset, offset + length, content)
    old = vhd.bitmaps.get(index, place)
    new = with_set(old, *bits)
    return Plan(tuple(steps), lambda: vhd.bitmaps.set(index, new, waiting=True), length)


def _sectors(
    vhd: Vhd, index: int, place: int, low: int, high: int, content: Content
) -> tuple[tuple[int, int], Iterator[Step]]:
    """(first, end) of the sectors in [low, high) of a block, and the steps that make them whole."""
    block = index * vhd.block_size
    first, stop = (low - block) // SECTOR, -(-(high - block) // SECTOR)
    distance = place + vhd.bitmap_size - block

    def steps() -> Iterator[Step]:
        start, end = block + first * SECTOR, block + stop * SECTOR
        if start < low:
            yield Fill(start, low - start, vhd.host, start + distance)
        yield content(low, high - low, low + distance)
        if high < end:
            yield Fill(high, end - high, vhd.host, high + distance)

    return (first, stop), steps()


def _placed(vhd: Vhd, offset: int, length: int, wanted: int, content: Content) -> Plan:
    """Places for up to `wanted` blocks from `offset` on."""
    unit, space, is_overlay = vhd.block_size, vhd.space, vhd.parent is not None
    first = offset // unit
    run = space.run(wanted)
    end = min(offset + length, (first + run.count) * unit)
    reserved, tail = space.reserve(run.end, vhd.footer)
    space.used(run.end)
    steps = list(reserved)
    bitmaps: list[str] = []
    for index, place in enumerate(run.places, first):
        low, high = max(offset, index * unit), min(end, (index + 1) * unit)
        if is_overlay:
            bits, more = _sectors(vhd, index, place, low, high, content)
            bitmaps.append(with_set(vhd.bitmaps.all_clear, *bits))
            steps.extend(more)
        else:
            bitmaps.append(vhd.bitmaps.all_set)
            steps.extend(_whole_block(vhd, run, place))
            steps.append(content(low, high - low, place + vhd.bitmap_size + low - index * unit))
    entries = [place // SECTOR for place in run.places]
    if is_overlay:
        vhd.table.hold(first, run.count)
    else:
        if not run.is_clean:
            steps.append(Barrier((vhd.host,)))  # What was there before must not come back.
        steps.append(vhd.table.put(first, entries))

    def done() -> None:
        vhd.limit = max(vhd.limit, run.end)
        space.taken(run)
        space.reserved(tail)
        for number, (entry, bits) in enumerate(zip(entries, bitmaps, strict=True)):
            vhd.bitmaps.set(first + number, bits, waiting=is_overlay)
            vhd.table.set(first + number, entry, waiting=is_overlay)

    return Plan(tuple(steps), done, end - offset)


def _whole_block(vhd: Vhd, run: Run, place: int) -> Iterator[Step]:
    """A block of zeros with a bitmap that says all of it is data."""
    if not run.is_clean:
        yield Punch(vhd.host, place + vhd.bitmap_size, vhd.block_size)
    yield Put(vhd.host, place, vhd.bitmaps.packed(vhd.bitmaps.all_set))
