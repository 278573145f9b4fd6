"""Another size for a VDI image, one sound state after the other.

The header's sector holds the size, the number of blocks, and where map and data begin: it is
written wholly or not at all, and whatever it points to is durable before it is.

Growing: the map grows into the room before the data.  Where there is none, the first blocks move to
the end (`_make_room`), and the new map goes where they were (`_move_map`).

Shrinking: the blocks that go are dropped from the map; the last blocks move into the gaps that
leaves, since other programs expect none; then the header says so.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import chain, islice
from typing import TYPE_CHECKING

from vdisk.errors import InvalidArgument
from vdisk.formats.table import little_endian
from vdisk.formats.vdi_header import BLOCKS_MAX, FREE, ZERO, VdiHeader
from vdisk.plan import Barrier, Clear, Copy, Grow, Plan, Put, Step, Truncate
from vdisk.units import SECTOR

if TYPE_CHECKING:
    from vdisk.formats.vdi import Vdi

_MOVES_MAX = 256  # Blocks that one plan moves.
_PUT_ENTRIES = 1 << 18  # Map entries that one step writes: 1 MiB.
_OFFSET_MAX = 0xFFFFFFFF  # The header's offsets have 32 bits.


def plan_resize(vdi: Vdi, size: int) -> Plan:
    """One step towards `size`.  InvalidArgument for what is no size of a VDI image."""
    if size <= 0 or size % SECTOR:
        raise InvalidArgument(
            f"a VDI image cannot be {size} bytes large", path=vdi.host.path,
            hint=f"it is whole sectors of {SECTOR} bytes, at least one",
        )
    blocks = -(-size // vdi.header.block_size)
    if blocks > BLOCKS_MAX:
        raise InvalidArgument(
            f"a VDI image cannot be {size} bytes large", path=vdi.host.path,
            hint=f"it has at most {BLOCKS_MAX} blocks of {vdi.header.block_size} bytes",
        )
    waiting = vdi.plan_flush()
    if waiting is not None:
        return waiting
    return _grow(vdi, size, blocks) if size > vdi.size else _shrink(vdi, size, blocks)


# Growing


def _grow(vdi: Vdi, size: int, blocks: int) -> Plan:
    header = vdi.header
    index, inside = divmod(vdi.size, header.block_size)
    if inside and _uncovered(vdi) == ZERO and vdi.table.get(index) == FREE:
        return vdi.allocate(vdi.size, 0)  # Else what is added would read as the parent's.
    blocks = max(blocks, header.blocks)
    if header.map_offset + 4 * blocks > header.data_offset:
        return _make_room(vdi, size, blocks)
    added = _puts(vdi, header.map_offset, header.blocks, blocks, _uncovered(vdi))
    return _switch(vdi, chain(_clear_tail(vdi), added), replace(header, size=size, blocks=blocks))


def _clear_tail(vdi: Vdi) -> Iterator[Step]:
    """The rest of the last block is no part of the disk yet, and may hold anything."""
    unit = vdi.header.block_size
    index, inside = divmod(vdi.size, unit)
    entry = vdi.table.get(index) if inside else FREE
    if entry < ZERO:
        yield Clear(vdi.host, vdi.place(entry) + inside, unit - inside)


def _puts(vdi: Vdi, map_offset: int, start: int, end: int, entry: int) -> Iterator[Put]:
    """Steps that write `entry` as each of the entries [start, end) of a map."""
    for at in range(start, end, _PUT_ENTRIES):
        values = array("I", [entry]) * min(_PUT_ENTRIES, end - at)
        yield Put(vdi.host, map_offset + 4 * at, little_endian(values))


def _switch(vdi: Vdi, steps: Iterable[Step], header: VdiHeader, *after: Step) -> Plan:
    """When `steps` are durable, go by another header; and then, what it makes possible."""
    sync = Barrier((vdi.host,))
    last = (sync, Put(vdi.host, 0, header.pack(), before=vdi.header.pack()), sync, *after)
    return Plan(chain(steps, last), lambda: vdi.take(header), exclusive=True)


def _make_room(vdi: Vdi, size: int, blocks: int) -> Plan:
    """Free the first places for the map, some blocks a plan; then move the map."""
    header = vdi.header
    places = -(-4 * blocks // header.block_size)
    if header.data_offset + places * header.block_size > _OFFSET_MAX:
        raise InvalidArgument("its block map cannot be that large", path=vdi.host.path)
    moving = list(islice(_blocks_at(vdi, 0, places), _MOVES_MAX))
    if not moving:
        return _move_map(vdi, size, blocks, places)
    target = max(vdi.census.end, places)
    return _moves(vdi, [(index, entry, target + n) for n, (index, entry) in enumerate(moving)])


def _move_map(vdi: Vdi, size: int, blocks: int, places: int) -> Plan:
    """Write the new map into the first `places`, which are free, and begin the data behind it."""
    old = vdi.header
    new = replace(
        old, size=size, blocks=blocks, allocated=max(old.allocated - places, 0),
        map_offset=old.data_offset, data_offset=old.data_offset + places * old.block_size,
    )

    def steps() -> Iterator[Step]:
        yield from _clear_tail(vdi)
        yield Grow(vdi.host, new.data_offset)
        for first, page in vdi.table.runs():
            moved = array("I", [entry if entry >= ZERO else entry - places for entry in page])
            yield Put(vdi.host, new.map_offset + 4 * first, little_endian(moved))
        yield from _puts(vdi, new.map_offset, old.blocks, blocks, _uncovered(vdi))

    return _switch(vdi, steps(), new)


def _uncovered(vdi: Vdi) -> int:
    """The entry of an added block: it reads as zeros, also where the parent is the larger disk."""
    return ZERO if vdi.parent is not None and vdi.parent.size > vdi.size else FREE


def _blocks_at(vdi: Vdi, start: int, end: int) -> Iterator[tuple[int, int]]:
    """(index, place) of each block whose place is in [start, end)."""
    for first, page in vdi.table.runs():
        for number, entry in enumerate(page):
            if start <= entry < end:
                yield first + number, entry


def _moves(vdi: Vdi, moves: list[tuple[int, int, int]]) -> Plan:
    """Move blocks: (index, its place, its new place), where no new place is in use."""
    header, host, unit = vdi.header, vdi.host, vdi.header.block_size
    count = max(header.allocated, max(new for _, _, new in moves) + 1)
    raised = replace(header, allocated=count)
    sync = Barrier((host,))
    steps: tuple[Step, ...] = (
        Put(host, 0, raised.pack(), sync=True),
        Grow(host, header.data_offset + count * unit),
        *(
            Copy(host, header.data_offset + old * unit, header.data_offset + new * unit, unit)
            for _, old, new in moves
        ),
        sync,
        *(vdi.table.put(index, [new]) for index, _, new in moves),
        sync,
    )

    def done() -> None:
        vdi.header = raised
        for index, _, new in moves:
            vdi.table.set(index, new)
        vdi.forget_census()

    return Plan(steps, done, exclusive=True)


# Shrinking


def _shrink(vdi: Vdi, size: int, blocks: int) -> Plan:
    header = vdi.header
    dropped = [n for _, page in vdi.table.runs(blocks) for n in page if n != FREE][:1]
    if dropped:
        return _drop(vdi, blocks)
    census = vdi.census
    if census.used_places < census.end:
        return close_gaps(vdi)
    return cut_off(vdi, replace(header, size=size, blocks=blocks, allocated=census.end))


def cut_off(vdi: Vdi, header: VdiHeader) -> Plan:
    """Go by a header that allocates no more than is in use, and cut off what is behind that."""
    end = header.data_offset + header.allocated * header.block_size
    cut = () if vdi.host.is_block else (Truncate(vdi.host, end),)
    return _switch(vdi, (), header, *cut)


def _drop(vdi: Vdi, blocks: int) -> Plan:
    """Forget what is in the blocks that go.  Their places become gaps."""
    header = vdi.header
    puts = _puts(vdi, header.map_offset, blocks, header.blocks, FREE)
    return Plan(
        chain(puts, (Barrier((vdi.host,)),)), lambda: vdi.take(header), exclusive=True
    )


def close_gaps(vdi: Vdi) -> Plan:
    """Move blocks from behind as many places as are used into gaps before that, some a plan."""
    census = vdi.census
    gaps = [gap for gap in reversed(census.gaps) if gap < census.used_places]
    behind = islice(_blocks_at(vdi, census.used_places, census.end), _MOVES_MAX)
    return _moves(vdi, [(*block, gap) for block, gap in zip(behind, gaps, strict=False)])
