"""A sparse extent of a VMDK: a grain directory, grain tables, and grains where they are needed.

The order of writes.  A grain is placed at the end of the file, where it reads as zeros until it is
written.  Others give the next grain the place behind the end of the file, and think a table's entry
wrong that names a place past it; so the file is made larger, durably and ahead of need (`_ahead`),
before an entry names a place there, and cut to what is used when the disk is closed.  The copy of
an entry is written before the entry, which is the one that is read.

An extent that is no overlay's has its entry in the host when a write is acknowledged, so that a
killed process loses nothing.  An overlay's entry waits in memory until the data is durable (at
`flush`): before that, the grain reads as the parent's, never as something in between.

`unclean` is set in the header before the first grain is placed and cleared when the disk is closed.
Found set, the tables are gone through once: the copies are set right, and the space is found that
was set aside.

Sources: VMware, "Virtual Disk Format 5.0", "Hosted Sparse Extents"; QEMU, `block/vmdk.c`.
"""

from __future__ import annotations

import errno
import struct
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import chain

from vdisk.codec import Deflate
from vdisk.errors import Corrupt, HostError
from vdisk.extent import Extent, Host, Kind, Unit
from vdisk.formats.scattered_table import ScatteredTable
from vdisk.formats.table import Table, little_endian
from vdisk.formats.vmdk_extent import Beneath, DiskExtent
from vdisk.formats.vmdk_header import FREE, ZERO, Flag, SparseHeader
from vdisk.host import HostFile
from vdisk.plan import Barrier, Fill, Grow, Guest, Plan, Punch, Put, Step, Truncate
from vdisk.units import MIB, SECTOR

_GRAINS_AT_ONCE = 256  # No more are placed by one plan.
_AHEAD_GRAINS = 64  # As many, or an eighth of the file, are set aside at once,
_AHEAD_BYTES_MAX = 64 * MIB  # but no more than this.
_WAITING_PAGES_MAX = 1024  # An overlay's entries that wait are written when there are more.
_PLACES_END = 1 << 32  # Sectors that a table's entry can name.
_MARKER = struct.Struct("<QI")  # Before a compressed grain: its LBA, its length in bytes.
_CODEC = Deflate(15)
_EMPTY_SECTOR = bytes(SECTOR)


class SparseExtent(DiskExtent):
    """A sparse extent in `host`; where it holds nothing, `beneath` says what there is."""

    def __init__(
        self,
        start: int,
        length: int,
        host: HostFile,
        header: SparseHeader,
        beneath: Beneath,
        *,
        is_overlay: bool,
        writable: bool = True,
    ) -> None:
        super().__init__(start, length)
        self.host: HostFile = host
        self.is_overlay = is_overlay
        self.is_written = False  # Since it was opened: marked, and perhaps longer than it needs.
        self.is_cut = False  # By a resize: grains at the end of the file may be unused.
        self._writable = writable
        self._beneath = beneath
        host.zeros_past_end = True  # QEMU does not write the rest of the last grain.
        self.take(header, length)
        self._reserved = 0  # The file is that large, durably.
        self._touched = size = host.size()  # What lies behind was never written to: zeros.
        self._end = self._after(size)

    def _after(self, size: int) -> int:
        """Where the next grain goes in a file that long; its last one may go on past the end."""
        unit = self._unit
        is_aligned = size % unit == 0 or self.header.overhead % self.header.grain == 0
        return -(-size // unit) * unit if is_aligned else (size // unit + 2) * unit

    def take(self, header: SparseHeader, length: int) -> None:
        """Go by `header` from now on, which the host has already."""
        self.header = header
        self.length = length
        self._unit = header.grain * SECTOR
        self.zero_entry = ZERO if header.has(Flag.ZERO_GRAINS) else -1
        self.is_compressed = header.has(Flag.COMPRESSED)
        # Compressed grains may lie before anything else; what lies in front of others is no grain.
        self.first_place = 1 if self.is_compressed else max(header.overhead, 1)
        self.directory = self._directory(header.directory)
        self.redundant = self._directory(header.redundant) if header.redundant else None
        copies = () if self.redundant is None else (self._parts(self.redundant),)
        self.table = ScatteredTable(
            self.host, self._parts(self.directory), header.tables * header.table_entries,
            header.table_entries, width=4, byteorder="little", copies=copies,
        )

    def _directory(self, sector: int) -> Table:
        return Table(self.host, sector * SECTOR, self.header.tables, width=4, byteorder="little")

    def _parts(self, directory: Table) -> Parts:
        return Parts(directory, self.header)

    # Where bytes are

    def map(self, offset: int, length: int) -> Iterator[Extent]:
        unit, grain = self._unit, self.header.grain
        index = (offset - self.start) // unit
        end = -(-(offset + length - self.start) // unit)
        while index < end:
            entry = self.table.get(index)
            first = index
            step = 0 if entry in (FREE, self.zero_entry) else grain
            is_one = bool(step) and self.is_compressed
            index += 1 if is_one else self.table.run(index, end - index, step)
            at = self.start + first * unit
            run_end = min(self.start + index * unit, self.end)
            yield from self._run(entry, max(at, offset), run_end, at)

    def _run(self, entry: int, at: int, run_end: int, run_start: int) -> Iterator[Extent]:
        if entry == FREE:
            # The parent may end inside the first grain, before the request begins.
            yield from self._beneath(at, run_end - at)
        elif entry == self.zero_entry:
            yield Extent(at, run_end - at, Kind.ZERO)
        elif self.is_compressed:
            yield self._compressed(entry, run_start, run_end)
        else:
            place = self._place(entry, run_end - run_start) + at - run_start
            yield Extent(
                at, run_end - at, Kind.DATA, self.host, place, shared=not self._writable
            )

    def _place(self, entry: int, length: int) -> int:
        """The host offset of a run of grains.  Corrupt where none can be."""
        place = entry * SECTOR
        last = place + (length - 1) // self._unit * self._unit
        if entry < self.first_place or last >= self._touched:
            raise Corrupt(f"a grain table names sector {entry}, which is no grain's",
                          path=self.host.path)  # fmt: skip
        return place

    def _compressed(self, entry: int, at: int, end: int) -> Extent:
        """One compressed grain, which a marker may go before."""
        place = self._place(entry, 1)
        left = self._touched - place
        # Deflate makes at most a little more of what it cannot compress.
        length, most = end - at, self._unit + self._unit // 8 + 64
        if not self.header.has(Flag.MARKERS):
            unit = Unit(min(most, left), length, _CODEC)
            return Extent(at, end - at, Kind.COMPRESSED, self.host, place, unit=unit)
        lba, size = _MARKER.unpack(self.host.read(place, _MARKER.size))
        if lba * SECTOR != at - self.start or not 0 < size <= min(most, left - _MARKER.size):
            raise Corrupt(
                f"the marker at sector {entry} says that {size} bytes are for sector {lba}, "
                f"not for {(at - self.start) // SECTOR}",
                path=self.host.path,
            )
        unit = Unit(size, length, _CODEC)
        return Extent(at, end - at, Kind.COMPRESSED, self.host, place + _MARKER.size, unit=unit)

    def locate(self, offset: int, length: int) -> tuple[Kind, Host | None, int] | None:
        index, inside = divmod(offset - self.start, self._unit)
        entry = self.table.peek(index)
        if entry is None or self.is_compressed or not self._writable:
            return None
        step = 0 if entry in (FREE, self.zero_entry) else self.header.grain
        for number in range(1, (inside + length - 1) // self._unit + 1):
            if self.table.peek(index + number) != entry + number * step:
                return None
        if entry == self.zero_entry:
            return Kind.ZERO, None, 0
        if entry == FREE:
            return self._locate_beneath(offset, length)
        place = entry * SECTOR + inside
        if entry < self.first_place or place + length > self._touched:
            return None
        return Kind.DATA, self.host, place

    def _locate_beneath(self, offset: int, length: int) -> tuple[Kind, Host | None, int] | None:
        run = next(self._beneath(offset, length))
        if run.length < length:
            return None
        return (run.kind, run.host, run.host_offset or 0)

    # Placing grains

    def plan_write(self, offset: int, length: int) -> Plan:
        if not self._writable:
            return super().plan_write(offset, length)
        return self._prepared(offset, length) or self._allocate(offset, length)

    def _prepared(self, offset: int, length: int) -> Plan | None:
        """What has to be done before a table's entry can be changed, if anything has."""
        if not self.is_written:
            return self.plan_begin()
        if self.table.pages_waiting > _WAITING_PAGES_MAX:
            return self.plan_flush()
        part = (offset - self.start) // self._unit // self.header.table_entries
        if not self.directory.get(part):
            return self._new_table(part)
        return None

    def _allocate(self, offset: int, length: int) -> Plan:
        """Place the grains that the range touches, none of which has a place: some of them."""
        unit, grain = self._unit, self.header.grain
        index = (offset - self.start) // unit
        wanted = -(-(offset + length - self.start) // unit) - index
        in_table = self.header.table_entries - index % self.header.table_entries
        count = min(wanted, in_table, _GRAINS_AT_ONCE)
        end = min(offset + length, self.start + (index + count) * unit)
        place, steps, reserved = self.space(count * unit)
        steps.extend(self._content(offset, end, place - self.start - index * unit))
        entry, waits = place // SECTOR, self.is_overlay
        if waits:
            self.table.hold(index, count)
        else:
            steps.extend(self.table.puts(index, range(entry, entry + count * grain, grain)))

        def done() -> None:
            self.used_space(place + count * unit, reserved)
            for number in range(count):
                self.table.set(index + number, entry + number * grain, waiting=waits)

        return Plan(tuple(steps), done, end - offset)

    def space(self, length: int) -> tuple[int, list[Step], int]:
        """Room behind everything else, which reads as zeros and outlives a loss of power.

        (host offset, the steps that make it, how large the file is durably then).
        """
        place, end = self._end, self._end + length
        if end > _PLACES_END * SECTOR:
            raise HostError(
                "has no room: a sparse extent is at most 2 TiB large", errno=errno.ENOSPC,
                path=self.host.path,
            )
        was_touched = place < self._touched
        self._touched = max(self._touched, end)
        steps: list[Step] = []
        reserved = self._reserved
        if self.is_overlay:
            steps.append(Grow(self.host, end))
        elif end > reserved:
            ahead = min(max(end // 8, _AHEAD_GRAINS * self._unit), _AHEAD_BYTES_MAX)
            reserved = end + ahead // SECTOR * SECTOR
            # By its last sector alone: a barrier would have to write out the guest's data too.
            steps.append(Put(self.host, reserved - SECTOR, _EMPTY_SECTOR, sync=True))
        if was_touched:
            steps.append(Punch(self.host, place, length))
            if not self.is_overlay:
                steps.append(Barrier((self.host,)))  # What was there before must not come back.
        return place, steps, reserved

    def used_space(self, end: int, reserved: int) -> None:
        """Room that `space` made is in use up to `end`."""
        self._end, self._reserved = end, reserved

    def _content(self, offset: int, end: int, distance: int) -> Iterator[Step]:
        """What goes into newly placed grains that read as zeros: the request, and around it."""
        unit = self._unit
        before = offset - (offset - self.start) % unit
        after = min(end + (self.start - end) % unit, self.end)
        if self.is_overlay and before < offset:
            yield Fill(before, offset - before, self.host, before + distance, fresh=True)
        if offset < end:
            yield Guest(offset, end - offset, self.host, offset + distance)
        if self.is_overlay and end < after:
            yield Fill(end, after - end, self.host, end + distance, fresh=True)

    def _new_table(self, part: int) -> Plan:
        """A grain table, and its copy, at the end of the file: zeros, which is what it must say."""
        size = self.header.table_entries * 4
        whole = -(-size // SECTOR) * SECTOR
        directories = [each for each in (self.redundant, self.directory) if each is not None]
        length = -(-whole * len(directories) // self._unit) * self._unit
        place, steps, reserved = self.space(length)
        steps.append(Barrier((self.host,)))  # The directory must not name what is not there yet.
        sectors = [(place + number * whole) // SECTOR for number in range(len(directories))]
        for directory, sector in zip(directories, sectors, strict=True):
            steps.append(directory.put(part, [sector]))

        def done() -> None:
            self.used_space(place + length, reserved)
            for directory, sector in zip(directories, sectors, strict=True):
                directory.set(part, sector)
            self.table.forget(part)

        return Plan(tuple(steps), done)

    def plan_zero(self, offset: int, length: int) -> Plan:
        """Whole grains of an overlay become `ZERO` where the header allows that."""
        if self.zero_entry < 0 or not self._writable:
            return self.plan_write(offset, length)
        unit, entries = self._unit, self.header.table_entries
        index, inside = divmod(offset - self.start, unit)
        end = offset - self.start + length
        count = (end // unit if end < self.length else -(-end // unit)) - index
        if inside or count == 0:
            return self.plan_write(offset, min(length, unit - inside))
        prepared = self._prepared(offset, length)
        if prepared is not None:
            return prepared
        count = min(count, entries - index % entries)
        self.table.hold(index, count)

        def done() -> None:
            for number in range(index, index + count):
                self.table.set(number, ZERO, waiting=True)

        return Plan((), done, min(count * unit, length))

    # Before the first change, and after the last

    def plan_begin(self) -> Plan:
        """Mark the file as written to; after a writer that did not close it, set it right."""
        header = replace(self.header, unclean=True)
        end = [self._end]
        put = Put(self.host, 0, header.pack(), sync=True, before=self.header.pack())
        steps: Iterable[Step] = (put,)
        if self.header.unclean:
            steps = chain(self._recovery(end), steps)

        def done() -> None:
            self.header = header
            self.is_written = True
            self._end = end[0]

        return Plan(steps, done)

    def _recovery(self, end: list[int]) -> Iterator[Put]:
        """Set the copies of tables right; `end` is then where the grains really end."""
        for page in self.table.runs():
            put = self.copy_put(*page)
            if put is not None:
                yield put
        end[0] = min(self.used_end(self.table.runs()), self._end)

    def used_end(self, tables: Iterable[tuple[int, array[int]]]) -> int:
        """The host offset behind all that is in use, by `tables`: where a grain could go."""
        last = max(self._metadata_ends())
        for _, page in tables:
            last = max(last, max(page) * SECTOR + self._unit)
        return -(-last // self._unit) * self._unit

    def plan_cut(self, end: int) -> Plan:
        """Make the file end at host offset `end`, behind all that is in use."""

        def done() -> None:
            self._touched = self._end = end
            self._reserved = 0

        return Plan((Truncate(self.host, end),), done)

    def copy_put(self, first: int, page: array[int]) -> Put | None:
        """The step that makes the copy of the entries from `first` on say what they do."""
        if self.redundant is None:
            return None
        part, at = divmod(first, self.header.table_entries)
        place = self._parts(self.redundant)(part)
        data = little_endian(page[:])
        if not place or self.host.read(place + at * 4, len(data)) == data:
            return None
        return Put(self.host, place + at * 4, data)

    def _metadata_ends(self) -> Iterator[int]:
        """Host offsets at which header, descriptor, directories and tables end."""
        header = self.header
        yield header.overhead * SECTOR
        yield (header.descriptor + header.descriptor_sectors) * SECTOR
        for directory in (self.directory, self.redundant):
            if directory is not None:
                yield directory.host_offset + header.tables * 4
                for _, page in directory.runs():
                    yield max(page) * SECTOR + header.table_entries * 4

    def plan_flush(self) -> Plan | None:
        """The entries that wait; None if none does."""
        if not self.table.pages_waiting:
            return None
        sync = Barrier((self.host,))
        return Plan((sync, *self.table.waiting_puts(), sync), self.table.written)

    def plan_close(self) -> Plan | None:
        """What waits, the file as long as it has to be, and the mark cleared once all is there."""
        if not self.is_written:
            return None
        waiting = self.plan_flush() or Plan()
        header = replace(self.header, unclean=False)
        sync = Barrier((self.host,))
        end = self.used_end(self.table.runs()) if self.is_cut else self._end
        cut = () if self.host.is_block else (Truncate(self.host, end),)
        put = Put(self.host, 0, header.pack(), before=self.header.pack())

        def done() -> None:
            waiting.done()
            self.header = header
            self._touched = self._end = end
            self._reserved = 0
            self.is_written = self.is_cut = False

        return Plan((*waiting.steps, *cut, sync, put), done)


class Parts:
    """Where each grain table lies, by a grain directory: a `scattered_table.Directory`."""

    def __init__(self, directory: Table, header: SparseHeader) -> None:
        self._directory = directory
        self._bytes = header.table_entries * 4

    def __call__(self, part: int) -> int:
        place = self._directory.get(part) * SECTOR
        if place and place + self._bytes > self._directory.host.size():
            raise Corrupt(f"grain table {part} lies past the end of the file",
                          path=self._directory.host.path)  # fmt: skip
        return place
