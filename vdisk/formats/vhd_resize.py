"""Another size for a dynamic or differencing VHD, one sound state after the other.

What says the size is the footer's copy at the beginning, one sector, written wholly or not at all;
whatever it relies on is durable before it is, and the tail follows.  The same holds for the first
sector of the header, which says where the block table is and how long.

Growing: the block table grows where it is, or is written anew at the end of the file.  Where the
parent is the larger disk, what is added is first made to read as zeros.

Shrinking: the blocks that go are dropped, the last ones move into the gaps, and the file is cut.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import replace
from heapq import nlargest
from itertools import chain
from typing import TYPE_CHECKING

from vdisk.errors import InvalidArgument
from vdisk.formats.vhd_blocks import zeroed
from vdisk.formats.vhd_census import Census, sorted_places
from vdisk.formats.vhd_fixed import check_size, resized_footer
from vdisk.formats.vhd_footer import FOOTER_BYTES
from vdisk.formats.vhd_header import BLOCKS_MAX, FREE, DynamicHeader, table_bytes
from vdisk.plan import Barrier, Copy, Plan, Punch, Put, Step, Truncate
from vdisk.units import SECTOR

if TYPE_CHECKING:
    from vdisk.formats.vhd import Vhd

_MOVES_MAX = 256  # Blocks that one plan moves.
_PUT_ENTRIES = 1 << 18  # Table entries that one step writes: 1 MiB.


def plan_resize(vhd: Vhd, size: int) -> Plan:
    """One step towards `size` bytes.  InvalidArgument for what is no size of this image."""
    check_size(vhd.host, size)
    blocks = -(-size // vhd.block_size)
    if blocks > BLOCKS_MAX:
        raise InvalidArgument(
            f"with blocks of {vhd.block_size} bytes it cannot be {size} bytes large",
            path=vhd.host.path,
        )
    if size > vhd.size and vhd.covered > vhd.size:
        return _grow(vhd, size, blocks)  # On the way already.
    waiting = vhd.plan_flush()
    if waiting is not None:
        return waiting
    kept = min(blocks, -(-vhd.size // vhd.block_size))
    if any(entry != FREE for _, page in vhd.table.runs(kept) for entry in page):
        return _drop(vhd, kept)
    return _grow(vhd, size, blocks) if size > vhd.size else _shrink(vhd, size, blocks)


# Growing


def _grow(vhd: Vhd, size: int, blocks: int) -> Plan:
    if blocks > vhd.header.entries:
        return _enlarge_table(vhd, blocks)
    if vhd.parent is not None:
        start, stop = max(vhd.covered, vhd.size), min(size, vhd.parent.size)
        if start < stop:
            return _cover(vhd, start, stop)
    waiting = vhd.plan_flush()
    if waiting is not None:
        return waiting
    footer = resized_footer(vhd.footer, size)

    def done() -> None:
        vhd.covered = 0
        vhd.take(footer, vhd.header)

    steps = (*_clear_tail(vhd), Barrier((vhd.host,)), *vhd.put_footers(footer))
    return Plan(steps, done, exclusive=True)


def _clear_tail(vhd: Vhd) -> Iterator[Step]:
    """The rest of the last block is no part of the disk yet, and may hold anything."""
    index, inside = divmod(vhd.size, vhd.block_size)
    entry = vhd.table.get(index) if inside else FREE
    if entry != FREE:
        data = vhd.place(entry) + vhd.bitmap_size
        yield Punch(vhd.host, data + inside, vhd.block_size - inside)


def _cover(vhd: Vhd, start: int, stop: int) -> Plan:
    """Sectors past the end of an overlay, for which the parent has bytes, that read as zeros."""
    if vhd.bitmaps.is_much_waiting:
        return vhd.plan_flush() or Plan()
    plan = zeroed(vhd, start, stop - start)

    def done() -> None:
        plan.done()
        vhd.covered = start + plan.length

    return Plan(plan.steps, done)


def _enlarge_table(vhd: Vhd, blocks: int) -> Plan:
    """Let the block table be longer: where it is if there is room behind it, else at the end."""
    waiting = vhd.plan_flush()
    if waiting is not None:
        return waiting
    old, space = vhd.header, vhd.space
    new = replace(old, entries=blocks)
    reserved: tuple[Step, ...] = ()
    tail = space.tail
    if new.table_end > _room_end(vhd):
        place = space.table_place()
        new = replace(new, table_offset=place)
        reserved, tail = space.reserve(new.table_end, vhd.footer)
        space.used(new.table_end)

    def done() -> None:
        space.reserved(tail)
        vhd.limit = max(vhd.limit, new.table_end)
        vhd.take(vhd.footer, new)
        vhd.take_census_again()

    steps = chain(reserved, _table(vhd, new), _switched(vhd, new))
    return Plan(steps, done, exclusive=True)


def _room_end(vhd: Vhd) -> int:
    """Where what follows the block table in the file begins."""
    end = vhd.header.table_end
    blocks = (place * SECTOR for place in sorted_places(vhd.table) if place * SECTOR >= end)
    others = (start for start, _ in vhd.regions() if start >= end)
    assert vhd.space.tail is not None, "the first write has put one there"
    return min(chain(blocks, others, (vhd.space.tail,)))


def _table(vhd: Vhd, new: DynamicHeader) -> Iterator[Put]:
    """The block table of `new`, as far as it is not there already; added blocks have no place."""
    old = vhd.header
    if new.table_offset != old.table_offset:
        for first, page in vhd.table.runs():
            yield Put(vhd.host, new.table_offset + 4 * first, big_endian(page))
    yield from free_entries(vhd, new.table_offset, old.entries, table_bytes(new.entries) // 4)


def free_entries(vhd: Vhd, table_offset: int, start: int, end: int) -> Iterator[Put]:
    """Steps that write the entries [start, end) of a table as those of blocks without a place."""
    for at in range(start, end, _PUT_ENTRIES):
        free = b"\xff" * (4 * min(_PUT_ENTRIES, end - at))
        yield Put(vhd.host, table_offset + 4 * at, free)


def _switched(vhd: Vhd, new: DynamicHeader) -> tuple[Step, ...]:
    """When all before is durable, go by another header: what it changes is in one sector."""
    sync = Barrier((vhd.host,))
    put = Put(
        vhd.host, vhd.footer.data_offset, new.pack()[:SECTOR], before=vhd.header.pack()[:SECTOR]
    )
    return sync, put, sync


def big_endian(values: Iterable[int]) -> bytes:
    """The bytes of a block table."""
    page = array("I", values)
    if sys.byteorder == "little":
        page.byteswap()
    return page.tobytes()


# Shrinking


def _shrink(vhd: Vhd, size: int, blocks: int) -> Plan:
    moves = close_gaps(vhd, vhd.space.census)
    if moves is not None:
        return moves
    footer, header = resized_footer(vhd.footer, size), replace(vhd.header, entries=blocks)
    end = -(-vhd.space.census.end // SECTOR) * SECTOR
    new, old = footer.pack(), vhd.footer.pack()
    steps: list[Step] = [
        Put(vhd.host, 0, new, sync=True, before=old),
        Put(vhd.host, end, new, sync=True, before=old if end == vhd.space.tail else None),
    ]
    if not vhd.host.is_block:
        steps.append(Truncate(vhd.host, end + FOOTER_BYTES))
    steps.extend(_switched(vhd, header))

    def done() -> None:
        vhd.covered = 0
        vhd.take(footer, header)
        vhd.tail_is_at(end)

    return Plan(tuple(steps), done, exclusive=True)


def _drop(vhd: Vhd, blocks: int) -> Plan:
    """Forget what is in the blocks from `blocks` on, and give their space back."""
    header = vhd.header
    places = [
        vhd.place(entry) for _, page in vhd.table.runs(blocks) for entry in page if entry != FREE
    ]

    def steps() -> Iterator[Step]:
        yield from free_entries(vhd, header.table_offset, blocks, header.entries)
        yield Barrier((vhd.host,))
        for place in places:
            yield Punch(vhd.host, place, vhd.stride)

    def done() -> None:
        vhd.covered = 0
        vhd.take(vhd.footer, header)
        vhd.take_census_again()

    return Plan(steps(), done, exclusive=True)


def close_gaps(vhd: Vhd, census: Census) -> Plan | None:
    """Move the last blocks into gaps before them, some a plan; None where that is done."""
    targets = list(_targets(vhd, census))
    if not targets:
        return None
    waiting = vhd.plan_flush()
    if waiting is not None:
        return waiting
    blocks = (
        (entry * SECTOR, first + number)
        for first, page in vhd.table.runs()
        for number, entry in enumerate(page) if entry != FREE
    )
    last = nlargest(len(targets), blocks)
    moves = [
        (index, place, target) for (place, index), target in zip(last, targets, strict=False)
        if target < place
    ]
    if not moves:
        return None
    sync = Barrier((vhd.host,))
    steps: tuple[Step, ...] = (
        *(Copy(vhd.host, place, target, vhd.stride) for _, place, target in moves),
        sync,
        *(vhd.table.put(index, [target // SECTOR]) for index, _, target in moves),
        sync,
    )

    def done() -> None:
        for index, _, target in moves:
            vhd.table.set(index, target // SECTOR)
        vhd.take_census_again()

    return Plan(steps, done, exclusive=True)


def _targets(vhd: Vhd, census: Census) -> Iterator[int]:
    """Places in the gaps before the last block, the lowest first, no more than a plan moves."""
    left = _MOVES_MAX
    for low, high in reversed(census.gaps):
        while low < census.last_block and high - low >= vhd.stride and left:
            yield low
            low, left = low + vhd.stride, left - 1
