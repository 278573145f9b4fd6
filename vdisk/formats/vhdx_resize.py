"""Another size for a VHDX image, one sound state after the other.

What says the size is one number in the metadata, and it is changed by way of the log; whatever it
relies on is durable before.  A block table that has no room for more entries is written anew at the
end of the file, and then the region tables say so, one after the other: the second is believed
where the first is not whole.  They are never in the log, so that is given up before.

Growing: where the parent is the larger disk, added blocks say that they are zeros.  Shrinking: the
blocks that go are dropped, the last ones move into the gaps, and the file is cut.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import replace
from heapq import nlargest
from itertools import chain, islice
from typing import TYPE_CHECKING

from vdisk.errors import InvalidArgument
from vdisk.formats import vhdx_bat as bat
from vdisk.formats import vhdx_blocks
from vdisk.formats.census import Census, targets
from vdisk.formats.vhdx_bat import BlockState
from vdisk.formats.vhdx_metadata import SIZE_MAX, Metadata
from vdisk.formats.vhdx_regions import Region
from vdisk.plan import Barrier, Clear, Copy, Grow, Plan, Punch, Put, Step, Truncate
from vdisk.units import MIB

if TYPE_CHECKING:
    from vdisk.formats.vhdx import Vhdx

_MOVES_MAX = 256  # Blocks that one plan moves.
_PUT_ENTRIES = 8192  # Entries that one step writes: 64 KiB, within what one log entry takes.


def plan_resize(vhdx: Vhdx, size: int) -> Plan:
    """One step towards `size` bytes.  InvalidArgument for what is no size of this image."""
    if not 0 < size <= SIZE_MAX or size % vhdx.metadata.sector_size:
        raise InvalidArgument(
            f"this VHDX image cannot be {size} bytes large", path=vhdx.host.path,
            hint=f"it is whole sectors of {vhdx.metadata.sector_size} bytes, at most 64 TiB",
        )
    waiting = vhdx.plan_flush()
    if waiting is not None:
        return waiting
    return _grow(vhdx, size) if size > vhdx.size else _shrink(vhdx, size)


def _resized(vhdx: Vhdx, metadata: Metadata, before: Iterable[Step], *after: Step) -> Plan:
    """When `before` is durable, go by another size; and then, what it makes possible."""
    at = vhdx.regions.metadata.offset + metadata.size_offset
    new, old = (struct.pack("<Q", size) for size in (metadata.size, vhdx.size))
    sync = Barrier((vhdx.host,))

    def steps() -> Iterator[Step]:
        yield from before
        yield sync
        vhdx.journal.settled()
        yield from vhdx.logged([Put(vhdx.host, at, new, before=old)])
        yield from vhdx.journal.ended(then=True)
        yield from after

    def done() -> None:
        vhdx.journal.commit()
        vhdx.journal.settled()
        vhdx.take(metadata, vhdx.regions)
        vhdx.limit = vhdx.host.size()
        vhdx.forget_census()

    return Plan(steps(), done, exclusive=True)


# Growing


def _grow(vhdx: Vhdx, size: int) -> Plan:
    block, inside = divmod(vhdx.size, vhdx.block_size)
    hides_parent = vhdx.parent is not None and vhdx.parent.size > vhdx.size
    if inside and hides_parent:
        # Else what is added to the last block would read as the parent's.
        state = bat.state(vhdx.entry(block))
        if state == BlockState.NOT_PRESENT:
            return vhdx_blocks.allocate(vhdx, vhdx.size, 0)
        if state == BlockState.PARTIAL:
            return vhdx_blocks.filled_up(vhdx, block)
    entries = vhdx.layout.entries(size)
    if entries * bat.ENTRY_BYTES > vhdx.regions.bat.length:
        return _move_table(vhdx, entries)
    before = (*_clear_tail(vhdx), *_added(vhdx, size, hides_parent=hides_parent))
    return _resized(vhdx, replace(vhdx.metadata, size=size), before)


def _clear_tail(vhdx: Vhdx) -> Iterator[Step]:
    """The rest of the last block is no part of the disk yet, and may hold anything."""
    block, inside = divmod(vhdx.size, vhdx.block_size)
    entry = vhdx.entry(block) if inside else 0
    if bat.state(entry) in (BlockState.FULL, BlockState.PARTIAL):
        yield Clear(vhdx.host, vhdx.place(entry) + inside, vhdx.block_size - inside)


def _added(vhdx: Vhdx, size: int, *, hides_parent: bool) -> Iterator[Put]:
    """Steps that write the entries of added blocks.  Nobody looks at them before the size says so.
    """
    start, end = vhdx.table.entries, vhdx.layout.entries(size)
    # Of the last chunk of an overlay, there are entries already for blocks past the end.
    first = vhdx.layout.index(vhdx.layout.blocks(vhdx.size))
    fill = int(BlockState.ZERO) if hides_parent else 0
    for at in range(min(first, start), end, _PUT_ENTRIES):
        numbers = range(at, min(at + _PUT_ENTRIES, end))
        values = [
            (vhdx.table.get(n) if n < start else 0) if vhdx.layout.is_bitmap(n) else fill
            for n in numbers
        ]
        place = vhdx.regions.bat.offset + at * bat.ENTRY_BYTES
        yield Put(vhdx.host, place, struct.pack(f"<{len(values)}Q", *values))


def _move_table(vhdx: Vhdx, entries: int) -> Plan:
    """Write the block table anew at the end of the file, with room for `entries`."""
    length = -(-entries * bat.ENTRY_BYTES // MIB) * MIB
    offset = -(-vhdx.census.end // MIB) * MIB
    regions = replace(vhdx.regions, bat=Region(offset, length))
    packed, host = regions.pack(), vhdx.host
    is_fresh = offset >= host.size()

    def steps() -> Iterator[Step]:
        yield from vhdx.journal.ended()
        if not is_fresh:
            yield Punch(host, offset, length)
        yield Grow(host, regions.bat.end)
        for first, page in vhdx.table.runs():
            yield Put(
                host, offset + first * bat.ENTRY_BYTES, struct.pack(f"<{len(page)}Q", *page)
            )
        yield Barrier((host,))
        yield from vhdx.regions.puts(host, packed)

    def done() -> None:
        vhdx.journal.commit()
        vhdx.journal.settled()
        vhdx.limit = max(vhdx.limit, regions.bat.end)
        vhdx.take(vhdx.metadata, replace(regions, copies=(packed, packed)))
        vhdx.forget_census()

    return Plan(steps(), done, exclusive=True)


# Shrinking


def _shrink(vhdx: Vhdx, size: int) -> Plan:
    dropped = _dropped(vhdx, size)
    if dropped:
        return drop(vhdx, dropped, BlockState.NOT_PRESENT)
    moves = close_gaps(vhdx, vhdx.census)
    if moves is not None:
        return moves
    end = -(-vhdx.census.end // MIB) * MIB
    cut = () if vhdx.host.is_block else (Truncate(vhdx.host, end),)
    return _resized(vhdx, replace(vhdx.metadata, size=size), (), *cut)


def _dropped(vhdx: Vhdx, size: int) -> list[tuple[int, int]]:
    """(first entry, end) of runs of entries that say something of blocks past `size`."""
    # The last chunk's bitmap stays, and lies between the entries of blocks that go.
    last = vhdx.table.entries
    bitmap = min(vhdx.layout.bitmap_index(vhdx.layout.blocks(size) - 1), last)
    start = vhdx.layout.index(vhdx.layout.blocks(size))
    parts = chain(vhdx.table.runs(start, bitmap), vhdx.table.runs(max(start, bitmap + 1), last))
    used = (
        [number for number, entry in enumerate(page, first) if entry] for first, page in parts
    )
    return [(numbers[0], numbers[-1] + 1) for numbers in islice(filter(None, used), _MOVES_MAX)]


def drop(vhdx: Vhdx, runs: Iterable[tuple[int, int]], state: BlockState) -> Plan:
    """Forget what is in these blocks, now in that state, and give their space back.

    `runs` are (first, end) of their entries.
    """
    runs = list(runs)
    places = []
    for first, end in runs:
        for number in range(first, end):
            entry = vhdx.table.get(number)
            if bat.state(entry) in (BlockState.FULL, BlockState.PARTIAL):
                is_bitmap = vhdx.layout.is_bitmap(number)
                length = bat.BITMAP_BLOCK if is_bitmap else vhdx.block_size
                places.append((vhdx.place(entry, length), length))

    def steps() -> Iterator[Step]:
        yield from vhdx.logged(
            vhdx.table.put(first, [state] * (end - first)) for first, end in runs
        )
        yield from vhdx.journal.ended(then=True)
        for place, length in places:
            yield Punch(vhdx.host, place, length)

    def done() -> None:
        vhdx.journal.commit()
        vhdx.journal.settled()
        vhdx.take(vhdx.metadata, vhdx.regions)
        vhdx.forget_census()

    return Plan(steps(), done, exclusive=True)


def cut_tail(vhdx: Vhdx, census: Census, least: int) -> Plan | None:
    """Give back the space behind the last block; None where that is less than `least` bytes."""
    end = -(-census.end // MIB) * MIB
    if vhdx.host.is_block or vhdx.host.size() - end < least:
        return None

    def steps() -> Iterator[Step]:
        yield from vhdx.journal.ended()  # It says how large the file is at least.
        yield Truncate(vhdx.host, end)

    def done() -> None:
        vhdx.journal.commit()
        vhdx.journal.settled()
        vhdx.limit = end

    return Plan(steps(), done, exclusive=True)


def close_gaps(vhdx: Vhdx, census: Census) -> Plan | None:
    """Move the last blocks into gaps before them, some a plan; None where that is done."""
    waiting = vhdx.plan_flush() if census.gaps else None
    if waiting is not None:
        return waiting
    found = list(targets(census, vhdx.block_size, _MOVES_MAX))
    blocks = (
        (bat.place(entry), number, bat.state(entry))
        for first, page in vhdx.table.runs()
        for number, entry in enumerate(page, first)
        if bat.state(entry) in (BlockState.FULL, BlockState.PARTIAL)
        and not vhdx.layout.is_bitmap(number)
    )
    moves = [
        (number, place, target, target | state)
        for (place, number, state), target in zip(
            nlargest(len(found), blocks) if found else (), found, strict=False
        )
        if target < place
    ]
    if not moves:
        return None

    def steps() -> Iterator[Step]:
        for _, place, target, _ in moves:
            yield Copy(vhdx.host, place, target, vhdx.block_size)
        yield Barrier((vhdx.host,))
        yield from vhdx.logged(vhdx.table.put(number, [new]) for number, _, _, new in moves)
        yield from vhdx.journal.ended(then=True)

    def done() -> None:
        vhdx.journal.commit()
        vhdx.journal.settled()
        for number, _, _, new in moves:
            vhdx.table.set(number, new)
        vhdx.forget_census()

    return Plan(steps(), done, exclusive=True)
