"""QED: an L1 table, L2 tables, and clusters; perhaps on top of a backing file.

`vdisk.formats.appended` has the order of writes.  The header says that the image needs a check from
before the first cluster is placed until it is closed.  Found so, the tables are gone through once:
an entry that names what a crash has kept from the file is dropped, as other readers do.

Sources: QEMU, `docs/interop/qed_spec.rst`, `block/qed.c`.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any, ClassVar

from vdisk.errors import Corrupt, InvalidArgument
from vdisk.extent import Extent, Host, Kind
from vdisk.formats.appended import FREE, AppendedClusters, Layout
from vdisk.formats.appended_check import left_by_a_crash, wrong_entries
from vdisk.formats.base import (
    ImageFormat,
    Opening,
    ParentReference,
    Problem,
    ProblemKind,
    beneath,
)
from vdisk.formats.qed_header import Feature, QedHeader
from vdisk.formats.raw import Raw
from vdisk.formats.scattered_table import ScatteredTable
from vdisk.formats.table import Table, little_endian
from vdisk.host import HostFile
from vdisk.plan import Barrier, Clear, Plan, Punch, Put, Step
from vdisk.units import SECTOR

if TYPE_CHECKING:
    from vdisk.image_disk import ImageDisk

ZERO = 1
"""An L2 entry: the cluster reads as zeros, whatever is beneath it."""


class Qed(ImageFormat):
    """An open QED image."""

    name: ClassVar[str] = "qed"

    def __init__(self, host: HostFile, header: QedHeader, parent: ImageDisk | None) -> None:
        self.parent = parent
        self.clusters = QedClusters(host, header, parent)
        self.size = header.size

    def hosts(self) -> tuple[HostFile, ...]:
        return (self.clusters.host,)

    def map(self, offset: int, length: int) -> Iterator[Extent]:
        return self.clusters.map(offset, length)

    def locate(self, offset: int, length: int) -> tuple[Kind, Host | None, int] | None:
        return self.clusters.locate(offset, length)

    def plan_first_write(self) -> Plan | None:
        """What other programs keep about the contents, in ways not known here, is not so any more.
        """
        header = self.clusters.header
        return self.clusters.put_header(replace(header, autoclear=0)) if header.autoclear else None

    def plan_write(self, offset: int, length: int) -> Plan:
        return self.clusters.plan_write(offset, length)

    def plan_zero(self, offset: int, length: int) -> Plan:
        return self.clusters.plan_zero(offset, length)

    def plan_flush(self) -> Plan | None:
        return self.clusters.plan_flush()

    def plan_close(self) -> Plan | None:
        return self.clusters.plan_close()

    def plan_resize(self, size: int) -> Plan:
        clusters = self.clusters
        plan = clusters.plan_flush() or clusters.plan_resize(size)

        def done() -> None:
            plan.done()
            self.size = clusters.length

        return replace(plan, done=done)

    def check(self) -> Iterator[Problem]:
        return self.clusters.check()

    def info(self) -> dict[str, Any]:
        header = self.clusters.header
        return {
            "cluster_size": header.cluster,
            "table_size": header.table,
            "needs_check": bool(header.features & Feature.NEED_CHECK),
        }


class QedClusters(AppendedClusters):
    """The clusters of an image, which are all of its disk."""

    def __init__(self, host: HostFile, header: QedHeader, parent: ImageDisk | None) -> None:
        super().__init__(
            0, header.size, host, partial(beneath, parent), is_overlay=parent is not None
        )
        self._parent = parent
        self._made: set[int] = set()  # L2 tables behind the end of the disk, for it to grow over.
        self.header = header
        self.layout = Layout(
            header.cluster, 1, ZERO, header.header * header.cluster, 1 << 63
        )
        self.l1 = Table(
            host, header.l1_offset, header.table_entries, width=8, byteorder="little"
        )
        self.take(header)
        self._end = self.layout.aligned(self._touched)

    def take(self, header: QedHeader) -> None:
        """Go by `header` from now on, which the host has already."""
        self.header = header
        self.length = header.size
        self._made.clear()
        entries = header.table_entries
        parts = -(-header.size // (header.cluster * entries))
        self.table = ScatteredTable(
            self.host, self._part, parts * entries, entries, width=8, byteorder="little"
        )

    def _part(self, part: int) -> int:
        place = self.l1.get(part)
        if place and not self._holds_table(place):
            raise Corrupt(f"L2 table {part} is said to be at byte {place}, where none can be",
                          path=self.host.path)  # fmt: skip
        return place

    def _holds_table(self, place: int) -> bool:
        return (
            place >= self.layout.first
            and place % self.layout.unit == 0
            and place + self.header.table_bytes <= max(self.host.size(), self._touched)
        )

    def is_aligned(self, place: int) -> bool:
        return place % self.layout.unit == 0

    # Before the first change, and after the last

    def prepare(self, part: int) -> Plan | None:
        if not self.is_written:
            return self.plan_begin()
        if not self.l1.get(part):
            return self.new_part(part, [self.l1], self.header.table_bytes)
        return None

    def plan_begin(self) -> Plan:
        header = replace(self.header, features=self.header.features | Feature.NEED_CHECK)
        end = [self._end]
        put = self.put_header(header, sync=True)
        steps: Iterable[Step] = put.steps
        if self.is_marked:
            steps = chain(self._recovery(end), steps)

        def done() -> None:
            put.done()
            self.take(header)  # Entries that were dropped are read anew.
            self.is_written = True
            self._end = end[0]

        return Plan(steps, done)

    @property
    def is_marked(self) -> bool:
        """Whether the image was not closed."""
        return bool(self.header.features & Feature.NEED_CHECK)

    def put_header(self, header: QedHeader, *, sync: bool = False) -> Plan:
        """Write a header that changes neither the size nor where anything is."""

        def done() -> None:
            self.header = header

        put = Put(self.host, 0, header.pack(), sync, before=self.header.pack())
        return Plan((put,), done)

    def _recovery(self, end: list[int]) -> Iterator[Step]:
        yield from self._dropping()
        end[0] = min(self.used_end(self._kept()), self._end)

    def _dropping(self) -> Iterator[Put]:
        """Drop the entries of clusters that the file does not have."""
        for first, page in self._readable():
            kept = self._without_lost(page)
            if kept != page:
                yield self.table.put(first, kept)

    def _kept(self) -> Iterator[tuple[int, array[int]]]:
        """The entries without those that are dropped, which memory has until the plan is done."""
        return ((first, self._without_lost(page)) for first, page in self._readable())

    def _without_lost(self, page: array[int]) -> array[int]:
        size = self.host.size()
        if max(page) < size:
            return page
        return array("Q", [entry if entry < size else FREE for entry in page])

    def _readable(self) -> Iterator[tuple[int, array[int]]]:
        """The entries of all L2 tables that can be read, each table once."""
        entries, seen = self.header.table_entries, set()
        for part in range(self.table.entries // entries):
            place = self.l1.get(part)
            if place and place not in seen and self._holds_table(place):
                seen.add(place)
                yield from self.entries(part * entries, (part + 1) * entries)

    def fixed_ends(self) -> Iterator[int]:
        yield self.layout.first
        yield self.header.l1_offset + self.header.table_bytes
        for part in range(self.table.entries // self.header.table_entries):
            place = self.l1.get(part)
            if place and self._holds_table(place):
                yield place + self.header.table_bytes

    def plan_close(self) -> Plan | None:
        """What waits, the file as long as it has to be, and no check needed once all is there."""
        if not self.is_written:
            return None
        ended, _ = self.ended()
        features = self.header.features & ~Feature.NEED_CHECK
        put = self.put_header(replace(self.header, features=features))

        def done() -> None:
            ended.done()
            put.done()

        return Plan((*ended.steps, *put.steps), done)

    # Another size

    def plan_resize(self, size: int) -> Plan:
        """One step towards `size` bytes, as far as the L1 table reaches."""
        if not 0 < size <= self.header.size_max or size % SECTOR:
            raise InvalidArgument(
                f"this QED image cannot be {size} bytes large", path=self.host.path,
                hint=f"it is whole sectors, and at most {self.header.size_max} bytes",
            )
        if not self.is_written:
            return self.plan_begin()
        if size < self.length:
            self.is_cut = True
            plan = self._switch(size, (), self._given_back(size))
            gone = range(self._parts(size), self._parts(self.length))

            def done() -> None:
                plan.done()
                for part in gone:
                    self.l1.set(part, FREE)

            return replace(plan, done=done)
        return self._forget_stale(size) or self._grow(size)

    def _parts(self, size: int) -> int:
        return -(-size // (self.header.table_entries * self.layout.unit))

    def _forget_stale(self, size: int) -> Plan | None:
        """L1 entries behind the end say what was there before the disk shrank, if it did."""
        parts = range(self._parts(self.length), self._parts(size))
        stale = [part for part in parts if self.l1.get(part) and part not in self._made]
        if not stale:
            return None

        def done() -> None:
            for part in stale:
                self.l1.set(part, FREE)

        return Plan((*(self.l1.put(part, [FREE]) for part in stale), Barrier((self.host,))), done)

    def _grow(self, size: int) -> Plan:
        """At once, or, where a larger parent would be seen, by what one L2 table covers."""
        unit, entries = self.layout.unit, self.header.table_entries
        hidden = 0 if self._parent is None else min(size, self._parent.size)
        index, inside = divmod(self.length, unit)
        part = self.length // (entries * unit)
        if hidden > self.length:
            if inside and self.table.get(index) == FREE:
                return self.plan_write(self.length, 0)  # Else the rest would read as the parent's.
            if not self.l1.get(part):
                self._made.add(part)
                return self.new_part(part, [self.l1], self.header.table_bytes)
            size = min(size, (part + 1) * entries * unit)
        return self._switch(size, self._added(size, hidden), ())

    def _added(self, size: int, hidden: int) -> Iterator[Step]:
        """The rest of the last cluster, which may hold anything, and the entries behind it."""
        unit, entries = self.layout.unit, self.header.table_entries
        index, inside = divmod(self.length, unit)
        entry = self.table.get(index) if inside else FREE
        if entry not in (FREE, ZERO):
            yield Clear(self.host, self.place(entry) + inside, unit - inside)
        first = index + bool(inside)
        part = first // entries
        table = self.l1.get(part) if part < self.l1.entries else 0
        if table:
            end = min((part + 1) * entries, -(-size // unit))
            values = array("Q", [ZERO if n * unit < hidden else FREE for n in range(first, end)])
            yield Put(self.host, table + 8 * (first % entries), little_endian(values))

    def _given_back(self, size: int) -> Iterator[Step]:
        """The clusters behind a new end, and the entries, which other programs look at."""
        entries, first = self.header.table_entries, -(-size // self.layout.unit)
        for _, page in self.table.runs(first):
            for entry in page:
                if entry not in (FREE, ZERO) and entry < self.host.size():
                    yield Punch(self.host, entry, self.layout.unit)
        kept, old = self._parts(size), self._parts(self.length)
        if first < kept * entries and self.l1.get(kept - 1):
            yield from self.table.puts(first, [FREE] * (kept * entries - first))
        if kept < old:
            yield self.l1.put(kept, [FREE] * (old - kept))

    def _switch(self, size: int, before: Iterable[Step], after: Iterable[Step]) -> Plan:
        """When `before` is durable, have another size; and then `after`."""
        new, sync = replace(self.header, size=size), Barrier((self.host,))
        put = Put(self.host, 0, new.pack(), before=self.header.pack())
        return Plan(
            chain(before, (sync, put, sync), after), lambda: self.take(new), exclusive=True
        )

    # What is wrong with it

    def check(self) -> Iterator[Problem]:
        """Tables and clusters in each other's place or in nobody's, and what a crash has left."""
        yield from self._wrong_tables()
        if self.is_marked and not self.is_written and next(self._dropping(), None):
            yield Problem(
                ProblemKind.UNCLEAN, "its tables name clusters past the end of the file",
                Plan(self._dropping(), lambda: self.take(self.header)),
            )
        else:
            yield from wrong_entries(self, self._readable, "cluster")
        if not self.is_written:
            yield from left_by_a_crash(self, self._kept, is_marked=self.is_marked)

    def _wrong_tables(self) -> Iterator[Problem]:
        seen: set[int] = set()
        for part in range(self._parts(self.length)):
            place = self.l1.get(part)
            if place and (place in seen or not self._holds_table(place)):
                where = "where another is" if place in seen else "where none can be"
                message = f"L2 table {part} is said to be at byte {place}, {where}"
                yield Problem(ProblemKind.CORRUPTION, message)
            seen.add(place)


def open_qed(host: HostFile, opening: Opening) -> Qed:
    """The QED image in `host`, with its backing file.

    Raises InvalidFormat, Corrupt, Unsupported; NotFound and NotPermitted for the backing file.
    """
    header = QedHeader.read(host)
    parent = None
    if header.backing is not None:
        known = Raw.name if header.features & Feature.BACKING_IS_RAW else None
        parent = opening.open_parent(ParentReference((header.backing,), known))
    try:
        return Qed(host, header, parent)
    except BaseException:
        if parent is not None:
            parent.close()
        raise
