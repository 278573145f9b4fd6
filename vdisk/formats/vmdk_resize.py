"""Another size for a VMDK, one sound state after the other.

The last extent grows as far as it may, and then further ones are added; or the last ones go, and
the one that is the last then is cut.  What says how large the disk is (the descriptor, or the
header of the extent that holds it) is written when all that it speaks of is durable.

A grain directory that has to hold more is written anew behind everything else, with the added grain
tables.  Entries of grains past the end are written when an extent grows over them: until then they
may say anything.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING

from vdisk.errors import InvalidArgument, Unsupported
from vdisk.formats.disk_extent import DiskExtent
from vdisk.formats.table import little_endian
from vdisk.formats.vmdk_create import SPLIT_SECTORS_MAX, layout, split_line, write_sparse
from vdisk.formats.vmdk_descriptor import EXTENTS_MAX, SECTORS_MAX, Descriptor, ExtentLine
from vdisk.formats.vmdk_extent import FlatExtent, ZeroExtent
from vdisk.formats.vmdk_header import CAPACITY_SECTORS_MAX, FREE, ZERO, Flag, SparseHeader
from vdisk.formats.vmdk_sparse import SparseExtent
from vdisk.plan import Barrier, Clear, Grow, Plan, Punch, Put, Step, Truncate
from vdisk.units import SECTOR

if TYPE_CHECKING:
    from vdisk.formats.vmdk import Vmdk

_PUT_ENTRIES = 1 << 18  # Entries that one step writes: 1 MiB.


def plan_resize(vmdk: Vmdk, size: int) -> Plan:
    """One step towards `size`.  InvalidArgument for what is no size of this VMDK."""
    path = vmdk.place.host.path
    if size <= 0 or size % SECTOR or size // SECTOR > SECTORS_MAX:
        raise InvalidArgument(
            f"a VMDK cannot be {size} bytes large", path=path,
            hint=f"it is whole sectors of {SECTOR} bytes, at least one",
        )
    waiting = vmdk.plan_flush()
    if waiting is not None:
        return waiting
    last = vmdk.extents[-1]
    if size <= last.start:
        return _drop(vmdk)
    most = _most(vmdk)
    if size > vmdk.size and last.length >= most:
        return _add(vmdk, min(size - vmdk.size, most))
    return _resize_last(vmdk, min(size - last.start, max(most, last.length)))


def _most(vmdk: Vmdk) -> int:
    """How many bytes may be in the last extent of the disk."""
    if vmdk.descriptor.create_type.startswith("twoGbMaxExtent"):
        return max(SPLIT_SECTORS_MAX * SECTOR, *(extent.length for extent in vmdk.extents[:-1]), 0)
    sparse = isinstance(vmdk.extents[-1], SparseExtent)
    return (CAPACITY_SECTORS_MAX if sparse else SECTORS_MAX) * SECTOR


def _resize_last(vmdk: Vmdk, length: int) -> Plan:
    last = vmdk.extents[-1]
    if isinstance(last, ZeroExtent):
        resized = ZeroExtent(last.start, length)
        return _switch(vmdk, (), _with_length(vmdk, length), (*vmdk.extents[:-1], resized))
    if isinstance(last, FlatExtent):
        return _resize_flat(vmdk, last, length)
    assert isinstance(last, SparseExtent)
    if not last.is_written:
        return last.plan_begin()
    if length > last.length:
        return _grow_sparse(vmdk, last, length)
    return _shrink_sparse(vmdk, last, length)


def _with_length(vmdk: Vmdk, length: int) -> Descriptor:
    """The descriptor for a last extent of `length` bytes."""
    number = len(vmdk.extents) - 1
    lines = vmdk.descriptor.extents
    if number >= len(lines):  # One that lies in its extent, and says nothing of it.
        return vmdk.descriptor
    return vmdk.descriptor.with_extent(number, replace(lines[number], sectors=length // SECTOR))


def _switch(
    vmdk: Vmdk,
    before: Iterable[Step],
    descriptor: Descriptor,
    extents: tuple[DiskExtent, ...],
    after: Iterable[Step] = (),
) -> Plan:
    """When `before` is durable, go by another descriptor and other extents; and then `after`."""
    put = vmdk.place.put(vmdk.descriptor, descriptor)
    sync = Barrier(vmdk.hosts())
    steps = chain(before, (sync,), () if put is None else (put, sync), after)
    return Plan(steps, lambda: vmdk.take(descriptor, extents), exclusive=True)


# Flat extents


def _resize_flat(vmdk: Vmdk, last: FlatExtent, length: int) -> Plan:
    host = last.host
    if sum(extent.host is host for extent in vmdk.extents) > 1:
        raise Unsupported("cannot be resized: two of its extents lie in one file",
                          path=vmdk.place.host.path)  # fmt: skip
    old_end, end = last.host_offset + last.length, last.host_offset + length
    resized = FlatExtent(last.start, length, host, last.host_offset, writable=last.writable)
    extents = (*vmdk.extents[:-1], resized)
    descriptor = _with_length(vmdk, length)
    if end < old_end:
        return _switch(vmdk, (), descriptor, extents, (Truncate(host, end),))
    # What the file holds past the extent was no part of the disk.
    behind = (Truncate(host, old_end),) if host.size() > old_end else ()
    return _switch(vmdk, (*behind, Grow(host, end)), descriptor, extents)


# Sparse extents


def _grow_sparse(vmdk: Vmdk, last: SparseExtent, length: int) -> Plan:
    header, unit = last.header, last.header.grain * SECTOR
    covered = _covered(vmdk, last)
    index, inside = divmod(last.length, unit)
    if inside and covered > index and last.table.get(index) == FREE:
        return last.plan_write(last.end, 0)  # Else what is added would read as the parent's.
    new = replace(header, capacity=length // SECTOR)
    if covered > header.grains:
        new = replace(
            new, flags=header.flags | Flag.ZERO_GRAINS, version=max(header.version, 2)
        )
    steps = chain(_clear_tail(last), _entries_in_last_table(last, new, covered))
    space = None
    if new.tables > header.tables:
        new, space, added = _added_tables(last, new, covered)
        steps = chain(steps, added)
    return _switch_sparse(vmdk, last, steps, new, length, space)


def _covered(vmdk: Vmdk, last: SparseExtent) -> int:
    """Up to which grain of the extent, if it were larger, its parent would be seen."""
    if vmdk.parent is None or vmdk.parent.size <= last.end:
        return 0
    return -(-(vmdk.parent.size - last.start) // (last.header.grain * SECTOR))


def _clear_tail(last: SparseExtent) -> Iterator[Step]:
    """The rest of the last grain is no part of the disk yet, and may hold anything."""
    unit = last.header.grain * SECTOR
    index, inside = divmod(last.length, unit)
    entry = last.table.get(index) if inside else FREE
    if entry not in (FREE, last.layout.zero):
        yield Clear(last.host, entry * SECTOR + inside, unit - inside)


def _value(index: int, covered: int) -> int:
    """The entry of an added grain: it reads as zeros, also where the parent is the larger disk."""
    return ZERO if index < covered else FREE


def _entries_in_last_table(
    last: SparseExtent, new: SparseHeader, covered: int
) -> Iterator[Step]:
    header = last.header
    first, end = header.grains, min(new.grains, header.tables * header.table_entries)
    if first < end and last.directory.get(header.tables - 1):
        values = [_value(index, covered) for index in range(first, end)]
        yield from last.table.puts(first, values)


def _added_tables(
    last: SparseExtent, new: SparseHeader, covered: int
) -> tuple[SparseHeader, tuple[int, int], Iterator[Step]]:
    """The header with directories that name the added tables too, behind everything else.

    And what `SparseExtent.space` says of the room, and the steps that write all that.
    """
    table_sectors = new.table_entries * 4 // SECTOR
    directory_sectors = -(-new.tables * 4 // SECTOR)
    added = new.tables - last.header.tables
    each = directory_sectors + added * table_sectors
    olds = [old for old in (last.redundant, last.directory) if old is not None]
    length = -(-each * len(olds) // new.grain) * new.grain * SECTOR
    room, steps, reserved = last.space(length)
    starts = [room // SECTOR + number * each for number in range(len(olds))]
    redundant = starts[0] if last.redundant is not None else 0
    found = replace(new, redundant=redundant, directory=starts[-1])

    def writing() -> Iterator[Step]:
        yield from steps
        for old, start in zip(olds, starts, strict=True):
            first_table = start + directory_sectors
            for first, page in old.runs():
                yield Put(last.host, start * SECTOR + 4 * first, little_endian(page))
            for first in range(0, added, _PUT_ENTRIES):
                end = min(first + _PUT_ENTRIES, added)
                entries = array("I", (first_table + n * table_sectors for n in range(first, end)))
                place = start * SECTOR + 4 * (last.header.tables + first)
                yield Put(last.host, place, little_endian(entries))
            yield from _zero_entries(last, new, first_table, covered)

    return found, (room + length, reserved), writing()


def _zero_entries(
    last: SparseExtent, new: SparseHeader, first_table: int, covered: int
) -> Iterator[Put]:
    """In the added tables, which hold zeros, entries of grains that the parent would show through.
    """
    first = last.header.tables * new.table_entries
    end = min(covered, new.grains)
    for at in range(first, end, _PUT_ENTRIES):
        values = array("I", [ZERO]) * min(_PUT_ENTRIES, end - at)
        yield Put(last.host, first_table * SECTOR + 4 * (at - first), little_endian(values))


def _switch_sparse(
    vmdk: Vmdk,
    last: SparseExtent,
    before: Iterable[Step],
    new: SparseHeader,
    length: int,
    space: tuple[int, int] | None,
    after: Iterable[Step] = (),
) -> Plan:
    """Go by another header and the descriptor that fits it, the one that has less first."""
    descriptor = _with_length(vmdk, length)
    in_descriptor = vmdk.place.put(vmdk.descriptor, descriptor)
    in_header = Put(last.host, 0, new.pack(), before=last.header.pack())
    # A descriptor of its own must never say more than the header; one inside does not count.
    puts: list[Put] = [in_header]
    if in_descriptor is not None:
        header_first = length > last.length or last.host is vmdk.place.host
        puts.insert(len(puts) if header_first else 0, in_descriptor)
    sync = Barrier(tuple(dict.fromkeys((last.host, vmdk.place.host))))
    ordered: list[Step] = [step for put in puts for step in (put, sync)]

    def done() -> None:
        last.take(new, length)
        if space is not None:
            last.used_space(*space)
        vmdk.take(descriptor, vmdk.extents)

    return Plan(chain(before, (sync,), ordered, after), done, exclusive=True)


def _shrink_sparse(vmdk: Vmdk, last: SparseExtent, length: int) -> Plan:
    new = replace(last.header, capacity=length // SECTOR)
    unit = new.grain * SECTOR

    def given_back() -> Iterator[Step]:
        for _, page in last.table.runs(new.grains, last.header.grains):
            for entry in page:
                if entry not in (FREE, last.layout.zero):
                    yield Punch(last.host, entry * SECTOR, unit)

    last.is_cut = True
    return _switch_sparse(vmdk, last, (), new, length, None, given_back())


# Extents in files of their own


def _drop(vmdk: Vmdk) -> Plan:
    """Forget the last extent, and remove its file."""
    *kept, last = vmdk.extents
    descriptor = vmdk.descriptor.without_extents_from(len(kept))
    shared = any(extent.host is last.host for extent in kept)
    plan = _switch(vmdk, (), descriptor, tuple(kept))

    def done() -> None:
        plan.done()
        if last.host is not None and not shared:
            with suppress(OSError):
                os.unlink(last.host.path)
            last.host.close()

    return replace(plan, done=done)


def _add(vmdk: Vmdk, length: int) -> Plan:
    """Another extent in a new file, of the kind of the last one."""
    number, path = len(vmdk.extents), vmdk.place.host.path
    if not vmdk.descriptor.create_type.startswith("twoGbMaxExtent"):
        raise InvalidArgument(f"a VMDK of this kind has at most {vmdk.extents[-1].length} bytes",
                              path=path)  # fmt: skip
    if number >= EXTENTS_MAX:
        raise InvalidArgument(f"a VMDK has at most {EXTENTS_MAX} extents", path=path)
    vmdk.remove_made()
    is_flat = "Flat" in vmdk.descriptor.create_type
    line = split_line(path.stem, number, length // SECTOR, is_flat)
    assert line.name is not None
    host = vmdk.made = vmdk.opening.make_file(line.name)
    extent: DiskExtent
    if is_flat:
        host.truncate(length)
        extent = FlatExtent(vmdk.size, length, host, 0, writable=True)
    else:
        extent = _new_sparse(vmdk, line)
    host.flush()
    descriptor = vmdk.descriptor.with_extent(number, line)
    plan = _switch(vmdk, (), descriptor, (*vmdk.extents, extent))

    def done() -> None:
        vmdk.made = None
        plan.done()

    return replace(plan, done=done)


def _new_sparse(vmdk: Vmdk, line: ExtentLine) -> SparseExtent:
    """A sparse extent in the file that was made, which hides the parent if that is larger."""
    host, last = vmdk.made, vmdk.extents[-1]
    assert host is not None
    grain = last.header.grain if isinstance(last, SparseExtent) else 128
    length = line.sectors * SECTOR
    hidden = 0 if vmdk.parent is None else vmdk.parent.size - vmdk.size
    zeros = hidden > 0 or (isinstance(last, SparseExtent) and last.layout.zero == ZERO)
    header = layout(line.sectors, grain, zero_grains=zeros)
    write_sparse(host, header)
    extent = SparseExtent(
        vmdk.size, length, host, header, vmdk.beneath, is_overlay=vmdk.parent is not None
    )
    grains = min(max(-(-hidden // (grain * SECTOR)), 0), header.grains)
    for first in range(0, grains, header.table_entries):
        count = min(header.table_entries, grains - first)
        for put in extent.table.puts(first, [ZERO] * count):
            host.write(put.host_offset, put.data)
    return SparseExtent(
        vmdk.size, length, host, header, vmdk.beneath, is_overlay=vmdk.parent is not None
    )
