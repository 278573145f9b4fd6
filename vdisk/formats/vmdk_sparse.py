"""A sparse extent of a VMDK: a grain directory, grain tables, and grains where they are needed.

`vdisk.formats.appended` has the order of writes.  There are two copies of all tables; that of an
entry is written before the entry, which is the one that is read.  `unclean` is set in the header
before the first grain is placed and cleared when the disk is closed.  Found set, the tables are
gone through once: the copies are set right, and the space is found that was set aside.

Sources: VMware, "Virtual Disk Format 5.0", "Hosted Sparse Extents"; QEMU, `block/vmdk.c`.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import chain

from vdisk.codec import Deflate
from vdisk.errors import Corrupt
from vdisk.extent import Extent, Host, Kind, Unit
from vdisk.formats.appended import AppendedClusters, Layout
from vdisk.formats.disk_extent import Beneath
from vdisk.formats.scattered_table import ScatteredTable
from vdisk.formats.table import Table, little_endian
from vdisk.formats.vmdk_header import ZERO, Flag, SparseHeader
from vdisk.host import HostFile
from vdisk.plan import Plan, Put, Step
from vdisk.units import SECTOR

_ENTRIES_END = 1 << 32
_MARKER = struct.Struct("<QI")  # Before a compressed grain: its LBA, its length in bytes.
_CODEC = Deflate(15)


class SparseExtent(AppendedClusters):
    """A sparse extent in `host`; where it holds nothing, `beneath` says what there is."""

    def __init__(
        self, start: int, length: int, host: HostFile, header: SparseHeader, beneath: Beneath, *,
        is_overlay: bool, writable: bool = True,
    ) -> None:
        super().__init__(start, length, host, beneath, is_overlay=is_overlay, writable=writable)
        self.take(header, length)
        self._end = self._after(self._touched)

    def _after(self, size: int) -> int:
        """Where the next grain goes in a file that long; its last one may go on past the end."""
        is_aligned = self.header.overhead % self.header.grain == 0
        more = 0 if is_aligned or size % self.layout.unit == 0 else self.layout.unit
        return self.layout.aligned(size + more)

    def take(self, header: SparseHeader, length: int) -> None:
        """Go by `header` from now on, which the host has already."""
        self.header = header
        self.length = length
        self.is_compressed = self.may_overlap = header.has(Flag.COMPRESSED)
        # Compressed grains may lie before anything else; what lies in front of others is no grain.
        first = 1 if self.is_compressed else max(header.overhead, 1)
        self.layout = Layout(
            header.grain * SECTOR, SECTOR, ZERO if header.has(Flag.ZERO_GRAINS) else -1,
            first * SECTOR, _ENTRIES_END,
        )
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

    # Compressed grains

    def run_max(self, step: int, count: int) -> int:
        return 1 if step and self.is_compressed else count

    def placed(self, entry: int, at: int, run_start: int, run_end: int) -> Extent:
        if self.is_compressed:
            return self._compressed(entry, run_start, run_end)
        return super().placed(entry, at, run_start, run_end)

    def _compressed(self, entry: int, at: int, end: int) -> Extent:
        """One compressed grain, which a marker may go before."""
        place = self.place(entry)
        left = self._touched - place
        # Deflate makes at most a little more of what it cannot compress.
        length, most = end - at, self.layout.unit + self.layout.unit // 8 + 64
        if not self.header.has(Flag.MARKERS):
            unit = Unit(min(most, left), length, _CODEC)
            return Extent(at, length, Kind.COMPRESSED, self.host, place, unit=unit)
        lba, size = _MARKER.unpack(self.host.read(place, _MARKER.size))
        if lba * SECTOR != at - self.start or not 0 < size <= min(most, left - _MARKER.size):
            raise Corrupt(
                f"the marker at sector {entry} says that {size} bytes are for sector {lba}, "
                f"not for {(at - self.start) // SECTOR}",
                path=self.host.path,
            )
        unit = Unit(size, length, _CODEC)
        return Extent(at, length, Kind.COMPRESSED, self.host, place + _MARKER.size, unit=unit)

    def locate(self, offset: int, length: int) -> tuple[Kind, Host | None, int] | None:
        return None if self.is_compressed else super().locate(offset, length)

    # Before the first change, and after the last

    def prepare(self, part: int) -> Plan | None:
        if not self.is_written:
            return self.plan_begin()
        if not self.directory.get(part):
            directories = [each for each in (self.redundant, self.directory) if each is not None]
            return self.new_part(part, directories, self.header.table_entries * 4)
        return None

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
        for page in self.entries():
            put = self.copy_put(*page)
            if put is not None:
                yield put
        end[0] = min(self.used_end(), self._end)

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

    def fixed_ends(self) -> Iterator[int]:
        header = self.header
        yield header.overhead * SECTOR
        yield (header.descriptor + header.descriptor_sectors) * SECTOR
        for directory in (self.directory, self.redundant):
            if directory is not None:
                yield directory.host_offset + header.tables * 4
                for _, page in directory.runs():
                    yield max(page) * SECTOR + header.table_entries * 4

    def plan_close(self) -> Plan | None:
        """What waits, the file as long as it has to be, and the mark cleared once all is there."""
        if not self.is_written:
            return None
        ended, _ = self.ended()
        header = replace(self.header, unclean=False)
        put = Put(self.host, 0, header.pack(), before=self.header.pack())

        def done() -> None:
            ended.done()
            self.header = header

        return Plan((*ended.steps, put), done)


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
