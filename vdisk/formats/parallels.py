"""Parallels expandable images: one table that says where each cluster is.

`vdisk.formats.appended` has the order of writes.  The header says that the image is in use from
before the first change until it is closed.  Found so, the table is gone through once: an entry that
names what a crash has kept from the file is dropped, as other readers do.

Sources: QEMU, `docs/interop/parallels.rst`, `block/parallels.c`.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import Any, ClassVar

from vdisk.errors import InvalidArgument, Unsupported
from vdisk.extent import Extent, Host, Kind
from vdisk.formats.appended import FREE, AppendedClusters, Layout
from vdisk.formats.appended_check import left_by_a_crash, wrong_entries
from vdisk.formats.base import ImageFormat, Opening, Problem, ProblemKind, beneath
from vdisk.formats.parallels_header import BAT_OFFSET, ENTRIES_MAX, ParallelsHeader
from vdisk.formats.scattered_table import ScatteredTable, whole_pages
from vdisk.host import HostFile
from vdisk.plan import Barrier, Clear, Plan, Punch, Put, Step
from vdisk.units import SECTOR


class Parallels(ImageFormat):
    """An open Parallels image."""

    name: ClassVar[str] = "parallels"

    def __init__(self, host: HostFile, header: ParallelsHeader) -> None:
        self.sector_size = SECTOR
        self.clusters = ParallelsClusters(host, header)
        self.size = self.clusters.length
        self.header_geometry = header.geometry
        if header.extension:
            self.unwritable = (
                "has a format extension (dirty bitmaps), which would not know of our changes"
            )

    def hosts(self) -> tuple[HostFile, ...]:
        return (self.clusters.host,)

    def map(self, offset: int, length: int) -> Iterator[Extent]:
        return self.clusters.map(offset, length)

    def locate(self, offset: int, length: int) -> tuple[Kind, Host | None, int] | None:
        return self.clusters.locate(offset, length)

    def plan_first_write(self) -> Plan:
        return self.clusters.plan_begin()

    def plan_write(self, offset: int, length: int) -> Plan:
        return self.clusters.plan_write(offset, length)

    def plan_close(self) -> Plan | None:
        return self.clusters.plan_close()

    def plan_resize(self, size: int) -> Plan:
        clusters = self.clusters
        plan = clusters.plan_resize(size)

        def done() -> None:
            plan.done()
            self.size = clusters.length
            self.header_geometry = clusters.header.geometry

        return replace(plan, done=done)

    def check(self) -> Iterator[Problem]:
        return self.clusters.check()

    def info(self) -> dict[str, Any]:
        header = self.clusters.header
        return {
            "cluster_size": header.cluster * SECTOR,
            "clusters": header.entries,
            "in_use": header.in_use,
        }


class ParallelsClusters(AppendedClusters):
    """The clusters of an image, which are all of its disk."""

    def __init__(self, host: HostFile, header: ParallelsHeader) -> None:
        super().__init__(0, header.size, host, partial(beneath, None), is_overlay=False)
        self.take(header)
        self._end = self.layout.aligned(max(self._touched, header.data * SECTOR))

    def take(self, header: ParallelsHeader) -> None:
        """Go by `header` from now on, which the host has already."""
        self.header = header
        self.length = header.size
        data = header.data * SECTOR
        unit = header.cluster * SECTOR
        scale = unit if header.counts_clusters else SECTOR
        self.layout = Layout(unit, scale, -1, data, 1 << 32, data)
        one_part = whole_pages(header.entries, 4)
        self.table = ScatteredTable(
            self.host, lambda part: BAT_OFFSET, header.entries, one_part, width=4,
            byteorder="little",
        )

    def is_aligned(self, place: int) -> bool:
        return (place - self.layout.base) % self.layout.unit == 0

    def prepare(self, part: int) -> Plan | None:
        return None

    # Before the first change, and after the last

    def plan_begin(self) -> Plan:
        """Say that the image is in use; after a writer that did not close it, set it right."""
        header = replace(self.header, in_use=True)
        end = [self._end]
        put = Put(self.host, 0, header.pack(), sync=True, before=self.header.pack())
        steps: Iterable[Step] = (put,)
        if self.header.in_use:
            steps = chain(self._recovery(end), steps)

        def done() -> None:
            self.take(header)
            self.is_written = True
            self._end = end[0]

        return Plan(steps, done)

    def _recovery(self, end: list[int]) -> Iterator[Step]:
        yield from self._dropping()
        end[0] = min(self.used_end(self._kept()), self._end)

    def _kept(self) -> Iterator[tuple[int, array[int]]]:
        """The entries without those that are dropped, which memory has until the plan is done."""
        for first, page in self.entries():
            yield first, array("I", [FREE if self.is_lost(entry) else entry for entry in page])

    def _dropping(self) -> Iterator[Put]:
        """Drop the entries of clusters that the file does not have."""
        for (first, kept), (_, page) in zip(self._kept(), self.entries(), strict=True):
            if kept != page:
                yield self.table.put(first, kept)

    def is_lost(self, entry: int) -> bool:
        """Whether the entry names a cluster that begins past the end of the file."""
        return entry * self.layout.scale >= self.host.size()

    def fixed_ends(self) -> Iterator[int]:
        yield self.header.data * SECTOR

    def plan_close(self) -> Plan | None:
        """The file as long as it has to be, and not in use any more once all is there."""
        if not self.is_written:
            return None
        ended, _ = self.ended()
        header = replace(self.header, in_use=False)
        put = Put(self.host, 0, header.pack(), before=self.header.pack())

        def done() -> None:
            ended.done()
            self.header = header

        return Plan((*ended.steps, put), done)

    # Another size

    def plan_resize(self, size: int) -> Plan:
        """Make the disk `size` bytes large, as far as there is room for its table."""
        path, unit = self.host.path, self.layout.unit
        if size <= 0 or size % SECTOR:
            raise InvalidArgument(f"a Parallels image cannot be {size} bytes large", path=path)
        new = self.header.resized(size)
        if BAT_OFFSET + 4 * new.entries > self.layout.first or new.entries > ENTRIES_MAX:
            most = min((self.layout.first - BAT_OFFSET) // 4, ENTRIES_MAX) * unit
            raise Unsupported(f"its table has room for {most} bytes", path=path,
                              hint="convert it to another format")  # fmt: skip
        if size > self.length:
            return self._switch(new, self._added(new), ())
        self.is_cut = True
        return self._switch(new, (), self._given_back(new))

    def _switch(
        self, new: ParallelsHeader, before: Iterable[Step], after: Iterable[Step]
    ) -> Plan:
        """When `before` is durable, go by another header; and then `after`."""
        sync = Barrier((self.host,))
        put = Put(self.host, 0, new.pack(), before=self.header.pack())
        return Plan(
            chain(before, (sync, put, sync), after), lambda: self.take(new), exclusive=True
        )

    def _added(self, new: ParallelsHeader) -> Iterator[Step]:
        """The rest of the last cluster is no part of the disk yet, nor are entries behind it."""
        index, inside = divmod(self.length, self.layout.unit)
        entry = self.table.get(index) if inside else FREE
        if entry != FREE:
            yield Clear(self.host, self.place(entry) + inside, self.layout.unit - inside)
        first = -(-self.length // self.layout.unit)
        if new.entries > first:
            yield Clear(self.host, BAT_OFFSET + 4 * first, 4 * (new.entries - first))

    def _given_back(self, new: ParallelsHeader) -> Iterator[Step]:
        for _, page in self.table.runs(new.entries, -(-self.length // self.layout.unit)):
            for entry in page:
                if entry != FREE:
                    yield Punch(self.host, self.place(entry), self.layout.unit)

    def check(self) -> Iterator[Problem]:
        """Clusters in each other's place or in nobody's, and what a crash has left."""
        if self.header.in_use and not self.is_written and next(self._dropping(), None):
            yield Problem(
                ProblemKind.UNCLEAN, "its table names clusters past the end of the file",
                Plan(self._dropping(), lambda: self.take(self.header)),
            )
        else:
            yield from wrong_entries(self, self.entries, "cluster")
        if not self.is_written:
            yield from left_by_a_crash(self, self._kept, is_marked=self.header.in_use)


def open_parallels(host: HostFile, opening: Opening) -> Parallels:
    """The Parallels image in `host`.  Raises InvalidFormat, Corrupt or Unsupported."""
    return Parallels(host, ParallelsHeader.read(host))
