"""Clusters that are placed at the end of a file as they are written, and a table that names them.

What sparse VMDK extents, QED and Parallels images have in common: an entry of the table is the
host offset of its cluster, in some unit, or says that there is none.

The order of writes.  A cluster is placed behind everything else, where it reads as zeros until it
is written.  Others give the next cluster the place behind the end of the file, and think an entry
wrong that names a place past it; so the file is made larger, durably and ahead of need (`space`),
before an entry names a place there, and cut to what is used when the disk is closed.

An image that is no overlay has its entry in the host when a write is acknowledged, so that a killed
process loses nothing.  An overlay's entry waits in memory until the data is durable (at `flush`):
before that, the cluster reads as the parent's, never as something in between.
"""

from __future__ import annotations

import errno
from abc import abstractmethod
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from vdisk.errors import Corrupt, HostError
from vdisk.extent import Extent, Host, Kind
from vdisk.formats.disk_extent import Beneath, DiskExtent
from vdisk.formats.scattered_table import ScatteredTable
from vdisk.formats.table import Table
from vdisk.host import HostFile
from vdisk.plan import Barrier, Fill, Grow, Guest, Plan, Punch, Put, Step, Truncate
from vdisk.units import MIB, SECTOR

FREE = 0
"""An entry: the cluster was never placed.  It reads as the parent, or as zeros."""

_AT_ONCE = 256  # No more clusters are placed by one plan.
_AHEAD = 64  # As many clusters, or an eighth of the file, are set aside at once,
_AHEAD_BYTES_MAX = 64 * MIB  # but no more than this.
_WAITING_BYTES_MAX = 2 * MIB  # Of table pages whose entries wait; they are written when it is more.
_EMPTY_SECTOR = bytes(SECTOR)


@dataclass(frozen=True, slots=True)
class Layout:
    """How a table names clusters of `unit` bytes.

    An entry counts `scale` bytes from the start of the file.  `zero` is the entry of a cluster that
    reads as zeros, -1 where there is none.  No cluster begins before host offset `first`, and none
    has an entry of `entries_end` or more.  Clusters lie at `base` plus whole multiples of `unit`.
    """

    unit: int
    scale: int
    zero: int
    first: int
    entries_end: int
    base: int = 0

    @property
    def step(self) -> int:
        """By how much the entry of the next cluster in the file is larger."""
        return self.unit // self.scale

    def aligned(self, offset: int) -> int:
        """The first place of a cluster at or behind host offset `offset`."""
        return self.base - (self.base - offset) // self.unit * self.unit


class AppendedClusters(DiskExtent):
    """Guest bytes [start, end) in clusters of `host`; `beneath` says what there is else."""

    table: ScatteredTable
    layout: Layout

    def __init__(
        self, start: int, length: int, host: HostFile, beneath: Beneath, *, is_overlay: bool,
        writable: bool = True,
    ) -> None:
        super().__init__(start, length)
        self.host: HostFile = host
        self.is_overlay = is_overlay
        self.writable = writable
        self.is_written = False  # Since it was opened: marked, and perhaps longer than it needs.
        self.is_cut = False  # By a resize: clusters at the end of the file may be unused.
        self._beneath = beneath
        host.zeros_past_end = True  # Not every program writes the rest of the last cluster.
        self._reserved = 0  # The file is that large, durably.
        self._touched = host.size()  # What lies behind was never written to, and reads as zeros.
        self._end = self._touched  # Where the next cluster goes.

    # Where bytes are

    def map(self, offset: int, length: int) -> Iterator[Extent]:
        layout = self.layout
        unit = layout.unit
        index = (offset - self.start) // unit
        end = -(-(offset + length - self.start) // unit)
        while index < end:
            entry = self.table.get(index)
            first = index
            step = 0 if entry in (FREE, layout.zero) else layout.step
            index += self.table.run(index, self.run_max(step, end - index), step)
            run_start = self.start + first * unit
            run_end = min(self.start + index * unit, self.end)
            yield from self._run(entry, max(run_start, offset), run_end, run_start)

    def run_max(self, step: int, count: int) -> int:
        """How many of `count` clusters may be one run, where entries are `step` apart."""
        return count

    def _run(self, entry: int, at: int, run_end: int, run_start: int) -> Iterator[Extent]:
        if entry == FREE:
            # The parent may end inside the first cluster, before the request begins.
            yield from self._beneath(at, run_end - at)
        elif entry == self.layout.zero:
            yield Extent(at, run_end - at, Kind.ZERO)
        else:
            yield self.placed(entry, at, run_start, run_end)

    def placed(self, entry: int, at: int, run_start: int, run_end: int) -> Extent:
        """The extent of guest bytes from `at` on in a run of clusters, the first of which `entry`
        names.
        """
        place = self.place(entry, run_end - run_start) + at - run_start
        return Extent(at, run_end - at, Kind.DATA, self.host, place, shared=not self.writable)

    def place(self, entry: int, length: int = 1) -> int:
        """The host offset of a run of clusters.  Corrupt where none can be."""
        layout = self.layout
        place = entry * layout.scale
        last = place + (length - 1) // layout.unit * layout.unit
        if place < layout.first or last >= self._touched:
            raise Corrupt(f"its table names byte {place}, where no cluster can be",
                          path=self.host.path)  # fmt: skip
        return place

    def locate(self, offset: int, length: int) -> tuple[Kind, Host | None, int] | None:
        layout = self.layout
        index, inside = divmod(offset - self.start, layout.unit)
        entry = self.table.peek(index)
        if entry is None or not self.writable:
            return None
        step = 0 if entry in (FREE, layout.zero) else layout.step
        for number in range(1, (inside + length - 1) // layout.unit + 1):
            if self.table.peek(index + number) != entry + number * step:
                return None
        if entry == layout.zero:
            return Kind.ZERO, None, 0
        if entry == FREE:
            return self._locate_beneath(offset, length)
        place = entry * layout.scale + inside
        if place < layout.first or place + length > self._touched:
            return None
        return Kind.DATA, self.host, place

    def _locate_beneath(self, offset: int, length: int) -> tuple[Kind, Host | None, int] | None:
        run = next(self._beneath(offset, length))
        if run.length < length:
            return None
        return run.kind, run.host, run.host_offset or 0

    may_overlap = False
    """Whether clusters are shorter than `Layout.unit` in the file, so that several may lie in one.
    """

    def is_aligned(self, place: int) -> bool:
        """Whether a cluster may begin at that host offset, as far as its alignment goes."""
        return True

    # Placing clusters

    @abstractmethod
    def plan_begin(self) -> Plan:
        """Mark the image as written to; after a writer that did not close it, set it right."""

    @abstractmethod
    def prepare(self, part: int) -> Plan | None:
        """What has to be done before entries of that part of the table change, if anything has."""

    def plan_write(self, offset: int, length: int) -> Plan:
        if not self.writable:
            return super().plan_write(offset, length)
        return self._prepared(offset) or self._allocate(offset, length)

    def _prepared(self, offset: int) -> Plan | None:
        if self.is_cut and not self.host.is_block:
            return self.plan_cut(self.used_end())
        if self.table.bytes_waiting > _WAITING_BYTES_MAX:
            return self.plan_flush()
        return self.prepare((offset - self.start) // self.layout.unit // self.table.part_entries)

    def _in_part(self, index: int, count: int) -> int:
        """As many of `count` entries from `index` on as are in one part of the table."""
        return min(count, self.table.part_entries - index % self.table.part_entries)

    def _allocate(self, offset: int, length: int) -> Plan:
        """Place the clusters that the range touches, none of which has a place: some of them."""
        unit, step = self.layout.unit, self.layout.step
        index = (offset - self.start) // unit
        wanted = -(-(offset + length - self.start) // unit) - index
        count = self._in_part(index, min(wanted, _AT_ONCE))
        end = min(offset + length, self.start + (index + count) * unit)
        place, steps, reserved = self.space(count * unit)
        steps.extend(self._content(offset, end, place - self.start - index * unit))
        entry, waits = place // self.layout.scale, self.is_overlay
        if waits:
            self.table.hold(index, count)
        else:
            steps.extend(self.table.puts(index, range(entry, entry + count * step, step)))

        def done() -> None:
            self.used_space(place + count * unit, reserved)
            for number in range(count):
                self.table.set(index + number, entry + number * step, waiting=waits)

        return Plan(tuple(steps), done, end - offset)

    def space(self, length: int) -> tuple[int, list[Step], int]:
        """Room behind everything else, which reads as zeros and outlives a loss of power.

        `length` is whole clusters.  (Host offset, the steps that make it, how large the file is
        durably then).
        """
        place, end = self._end, self._end + length
        if end > self.layout.entries_end * self.layout.scale:
            raise HostError(
                "has no room: its table cannot name what lies further behind",
                errno=errno.ENOSPC, path=self.host.path,
            )
        was_touched = place < self._touched
        self._touched = max(self._touched, end)
        steps: list[Step] = []
        reserved = self._reserved
        if self.is_overlay:
            steps.append(Grow(self.host, end))
        elif end > reserved:
            ahead = min(max(end // 8, _AHEAD * self.layout.unit), _AHEAD_BYTES_MAX)
            reserved = self.layout.aligned(end + ahead)
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
        """What goes into newly placed clusters that read as zeros: the request, and around it."""
        unit = self.layout.unit
        before = offset - (offset - self.start) % unit
        after = min(end + (self.start - end) % unit, self.end)
        if self.is_overlay and before < offset:
            yield Fill(before, offset - before, self.host, before + distance, fresh=True)
        if offset < end:
            yield Guest(offset, end - offset, self.host, offset + distance)
        if self.is_overlay and end < after:
            yield Fill(end, after - end, self.host, end + distance, fresh=True)

    def new_part(self, part: int, directories: list[Table], length: int) -> Plan:
        """A part of the table behind everything else: zeros, which is what it must say.

        `length` bytes, whole sectors, for each of `directories`, which count as the table does.
        """
        whole = self.layout.aligned(self._end + length * len(directories)) - self._end
        place, steps, reserved = self.space(whole)
        steps.append(Barrier((self.host,)))  # The directory must not name what is not there yet.
        scale = self.layout.scale
        entries = [(place + n * length) // scale for n in range(len(directories))]
        for directory, entry in zip(directories, entries, strict=True):
            steps.append(directory.put(part, [entry]))

        def done() -> None:
            self.used_space(place + whole, reserved)
            for directory, entry in zip(directories, entries, strict=True):
                directory.set(part, entry)
            self.table.forget_part(part)

        return Plan(tuple(steps), done)

    def plan_zero(self, offset: int, length: int) -> Plan:
        """Whole clusters of an overlay become `zero` where there is such an entry."""
        unit, zero = self.layout.unit, self.layout.zero
        if zero < 0 or not self.writable:
            return self.plan_write(offset, length)
        index, inside = divmod(offset - self.start, unit)
        end = offset - self.start + length
        count = (end // unit if end < self.length else -(-end // unit)) - index
        if inside or count == 0:
            return self.plan_write(offset, min(length, unit - inside))
        prepared = self._prepared(offset)
        if prepared is not None:
            return prepared
        count = self._in_part(index, count)
        self.table.hold(index, count)

        def done() -> None:
            for number in range(index, index + count):
                self.table.set(number, zero, waiting=True)

        return Plan((), done, min(count * unit, length))

    def entries(self, start: int = 0, end: int | None = None) -> Iterator[tuple[int, array[int]]]:
        """(index of the first, entries) of those that are about bytes of the disk, page by page.

        Behind them a table may say anything, for instance what was there before the disk shrank.
        """
        clusters = -(-self.length // self.layout.unit)
        return self.table.runs(start, clusters if end is None else min(end, clusters))

    # The end

    def plan_flush(self) -> Plan | None:
        """The entries that wait, durably; None if none does."""
        if not self.table.pages_waiting:
            return None
        sync = Barrier((self.host,))
        return Plan((sync, *self.table.waiting_puts(), sync), self.table.written)

    @abstractmethod
    def fixed_ends(self) -> Iterator[int]:
        """Host offsets at which what is no cluster ends: headers, directories, tables."""

    def used_end(self, tables: Iterable[tuple[int, array[int]]] | None = None) -> int:
        """The host offset behind all that is in use, by `tables` or all of the table's entries."""
        last = max(self.fixed_ends())
        for _, page in self.entries() if tables is None else tables:
            highest = max(page)
            if highest not in (FREE, self.layout.zero):
                last = max(last, highest * self.layout.scale + self.layout.unit)
        return self.layout.aligned(last)

    def ended(self) -> tuple[Plan, int]:
        """What waits, and the file as long as it has to be; and how long that is."""
        waiting = self.plan_flush() or Plan()
        end = self.used_end() if self.is_cut else self._end
        cut = () if self.host.is_block else (Truncate(self.host, end),)

        def done() -> None:
            waiting.done()
            self._touched = self._end = end
            self._reserved = 0
            self.is_written = self.is_cut = False

        return Plan((*waiting.steps, *cut, Barrier((self.host,))), done), end

    def plan_cut(self, end: int) -> Plan:
        """Make the file end at host offset `end`, behind all that is in use."""

        def done() -> None:
            self._touched = self._end = end
            self._reserved = 0
            self.is_cut = False

        return Plan((Barrier((self.host,)), Truncate(self.host, end)), done)
