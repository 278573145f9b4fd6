"""Another size for a QCOW2 image, one sound state after the other.

The header's sector has the size and where L1 is; it is written when all that it says is durable.
Growing, what is added reads as zeros before the header says that it is there: also where the parent
is the larger disk, and where an entry past the old end was left by somebody.  Shrinking, what goes
is given up before the header says so, so that no entry past the end is left.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from vdisk.errors import InvalidArgument, Unsupported
from vdisk.extent import Kind
from vdisk.formats.qcow2 import write
from vdisk.formats.qcow2.entry import OFFSET
from vdisk.formats.qcow2.header import L1_BYTES_MAX
from vdisk.plan import Barrier, Clear, Copy, Grow, Plan, Put, Step, Truncate
from vdisk.units import SECTOR

if TYPE_CHECKING:
    from vdisk.formats.qcow2.image import Qcow2


def plan_resize(image: Qcow2, size: int) -> Plan:
    """One step towards `size`.  InvalidArgument for what is no size of such an image."""
    header = image.header
    if size <= 0 or size % SECTOR:
        raise InvalidArgument(
            f"a qcow2 image cannot be {size} bytes large", path=image.host.path,
            hint=f"it is whole sectors of {SECTOR} bytes, at least one",
        )
    if 8 * header.l1_entries_for(size) > L1_BYTES_MAX:
        raise InvalidArgument(
            f"a qcow2 image cannot be {size} bytes large", path=image.host.path,
            hint=f"with clusters of {header.cluster_size} bytes it is at most "
            f"{L1_BYTES_MAX // 8 * header.l2_reach}",
        )
    if header.snapshots and header.version < 3:
        raise Unsupported(
            "a qcow2 image of version 2 with snapshots cannot be resized: they have no size",
            path=image.host.path,
        )
    image.space.begin()
    if image.l2.pages_waiting or image.space.has_freed_much:
        return image.plan_flush() or Plan()
    return (_shrink if size < image.size else _grow)(image, size)


def _shrink(image: Qcow2, size: int) -> Plan:
    return _clear_from(image, size, with_tables=True) or _switch(image, size)


def _grow(image: Qcow2, size: int) -> Plan:
    entries = image.header.l1_entries_for(size)
    if entries > image.header.l1_entries:
        return plan_larger_l1(image, entries)
    before = _end_in_zeros(image)
    if before is None and not image.is_clear_past_end:
        before = _clear_from(image, image.size, with_tables=False)
        image.is_clear_past_end = before is None
    return before or _cover(image, size) or _switch(image, size)


def _switch(image: Qcow2, size: int) -> Plan:
    """The header says the size."""
    header = image.header
    new = replace(header, size=size)
    sync = Barrier(image.written_hosts)
    steps: list[Step] = []
    if header.data_file_is_raw and size > image.size:
        steps.append(Grow(image.data, size))
    steps += (sync, image.put_header(new), sync)
    if header.data_file_is_raw and size < image.size:
        steps.append(Truncate(image.data, size))

    def done() -> None:
        image.header = new
        image.size = size
        image.is_clear_past_end = False

    return Plan(tuple(steps), done, exclusive=True)


# Growing


def plan_larger_l1(image: Qcow2, entries: int) -> Plan:
    """A step towards an L1 table of `entries` entries: in its clusters, or in others."""
    header, host, size = image.header, image.host, image.header.cluster_size
    length, room = 8 * header.l1_entries, header.clusters(8 * header.l1_entries) * size
    sync = Barrier((host,))
    if 8 * entries <= room:
        new = replace(header, l1_entries=entries)
        unused = Clear(host, header.l1_offset + length, 8 * entries - length)
        steps: tuple[Step, ...] = (unused, sync, image.put_header(new), sync)
        return Plan(steps, lambda: image.take(new), exclusive=True)
    clusters = header.clusters(8 * entries)
    taken = image.space.take(clusters, clusters)
    if taken is None:
        return image.space.plan_more(clusters)
    new = replace(header, l1_offset=taken[0] * size, l1_entries=entries)
    copy = (Copy(host, header.l1_offset, new.l1_offset, length),) if length else ()

    def done() -> None:
        image.space.settle()
        image.take(new)
        if length:
            image.space.give_up(header.l1_offset // size, room // size)

    return Plan((*copy, sync, image.put_header(new), sync), done, exclusive=True)


def _end_in_zeros(image: Qcow2) -> Plan | None:
    """What of the last cluster is past the disk's end may hold anything, or be the parent's."""
    unit = image.header.unit
    first, inside = divmod(image.size, image.header.cluster_size)
    if inside == 0:
        return None
    entry = image.entry(first)
    part, rest = divmod(inside, unit)
    if entry.packed is not None or (entry.allocated and not entry.owned):
        return write.allocate(image, image.size, 0)  # Not ours to change.
    tail = entry.allocated >> part + bool(rest)
    if rest and not (entry.allocated | entry.zeros) >> part & 1 and _reaches(image, image.size):
        return write.allocate(image, image.size, 0)
    if tail or (rest and entry.allocated >> part & 1):
        return _clear_once(image, first, inside)
    return None


def _reaches(image: Qcow2, offset: int) -> bool:
    """Whether the parent has bytes past `offset`."""
    return image.parent is not None and image.parent.size > offset


def _clear_once(image: Qcow2, first: int, inside: int) -> Plan | None:
    """Zeros in the last cluster's place, past the disk's end; None where there are some."""
    entry = image.entry(first)
    assert entry.place is not None
    start, end = entry.place + inside, entry.place + image.header.cluster_size
    if not any(image.data.read(start, end - start)):
        return None
    return Plan((Clear(image.data, start, end - start),))


def _cover(image: Qcow2, size: int) -> Plan | None:
    """Where the parent is the larger disk, it must not show in what is added."""
    if image.parent is None or not _reaches(image, image.size):
        return None
    start = -(-image.size // image.header.unit) * image.header.unit
    end = min(size, -(-image.parent.size // image.header.unit) * image.header.unit)
    for extent in image.map(start, end - start) if start < end else ():
        if extent.kind is Kind.PARENT:
            at = max(extent.guest_offset, start)
            if image.header.has_zero_flag:
                return write.clear(image, at, min(extent.guest_end, end) - at)
            return write.allocate(image, at, 0)
    return None


# Shrinking


def _clear_from(image: Qcow2, size: int, *, with_tables: bool) -> Plan | None:
    """Give up the clusters past `size`; `with_tables`, also the L2 tables that map nothing else."""
    header = image.header
    first = -(-size // header.cluster_size)
    for table in _tables_from(image, first // header.l2_entries):
        start = max(first, table * header.l2_entries)
        plan = write.unlink_places(image, start, (table + 1) * header.l2_entries)
        if plan is None and with_tables and start == table * header.l2_entries:
            plan = _drop_table(image, table)
        if plan is not None:
            return plan
    return None


def _tables_from(image: Qcow2, number: int) -> Iterator[int]:
    """Numbers of the L2 tables that are there, from `number` on."""
    for first, page in image.l1.runs(number):
        for at, word in enumerate(page):
            if word & OFFSET:
                yield first + at


def _drop_table(image: Qcow2, number: int) -> Plan:
    """Give up an L2 table in which no cluster has a place."""
    place = image.l2.table_at(number)
    put: Put = image.l1.put(number, [0])

    def done() -> None:
        image.l1.set(number, 0)
        image.l2.forget()
        image.space.give_up(place // image.header.cluster_size, 1)

    return Plan((put,), done, exclusive=True)
