"""What is wrong with a VMDK's structure: its grain tables, and what its descriptor says of them."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING

from vdisk.formats.appended_check import left_by_a_crash, wrong_entries
from vdisk.formats.base import Problem, ProblemKind
from vdisk.formats.vmdk_sparse import SparseExtent
from vdisk.plan import Plan
from vdisk.units import SECTOR

if TYPE_CHECKING:
    from vdisk.formats.vmdk import Vmdk

def check(vmdk: Vmdk) -> Iterator[Problem]:
    """Grains in each other's place or in nobody's, copies that differ, space that is lost."""
    for number, extent in vmdk.sparse_extents:
        name = f"extent {number}: " if len(vmdk.extents) > 1 else ""
        for problem in _Checker(extent).problems():
            yield replace(problem, message=name + problem.message)
    yield from _wrong_descriptor(vmdk)


def _wrong_descriptor(vmdk: Vmdk) -> Iterator[Problem]:
    """The descriptor in an extent says how large it is, which only the header is believed about."""
    lines = vmdk.descriptor.extents
    for number, extent in vmdk.sparse_extents:
        if number >= len(lines) or extent.host is not vmdk.place.host:
            continue
        sectors = extent.length // SECTOR
        if lines[number].sectors != sectors:
            right = vmdk.descriptor.with_extent(number, replace(lines[number], sectors=sectors))
            yield Problem(
                ProblemKind.UNCLEAN,
                f"the descriptor says {lines[number].sectors} sectors, the header {sectors}",
                None if vmdk.unwritable else vmdk.put_descriptor(right),
            )


class _Checker:
    """One sparse extent, looked at all over: each grain table once."""

    def __init__(self, extent: SparseExtent) -> None:
        self.extent = extent
        self.size = extent.host.size()
        self.wrong_tables: set[int] = set()  # Sectors named twice, or past the end.

    def problems(self) -> Iterator[Problem]:
        """All of the extent's, the tables' own first."""
        yield from self._wrong_tables()
        yield from wrong_entries(self.extent, self._tables, "grain")
        if not self.extent.is_written and not self.extent.is_compressed:
            yield from self._left_by_a_crash()

    def _wrong_tables(self) -> Iterator[Problem]:
        sectors = array("I")
        for _, page in self.extent.directory.runs():
            sectors.extend(entry for entry in page if entry)
        ordered = sorted(sectors)
        table_bytes = self.extent.header.table_entries * 4
        for sector, following in pairwise([*ordered, -1]):
            if sector == following:
                message = f"two grain tables are said to be at sector {sector}"
            elif sector * SECTOR + table_bytes > self.size:
                message = f"a grain table is said to be at sector {sector}, past the file's end"
            else:
                continue
            if sector not in self.wrong_tables:
                self.wrong_tables.add(sector)
                yield Problem(ProblemKind.CORRUPTION, message)

    def _tables(self) -> Iterator[tuple[int, array[int]]]:
        """(index of the first entry, entries) of every grain table that is somewhere."""
        entries = self.extent.header.table_entries
        for first, page in self.extent.directory.runs():
            for number, sector in enumerate(page):
                if sector and sector not in self.wrong_tables:
                    part = first + number
                    yield from self.extent.entries(part * entries, (part + 1) * entries)

    def _left_by_a_crash(self) -> Iterator[Problem]:
        """Copies of tables that differ, a mark, and space at the end that nothing uses."""
        extent = self.extent
        pages = (page for page in self._tables() if extent.copy_put(*page) is not None)
        differ = next(pages, None)
        if differ is not None:
            puts = (put for page in self._tables() if (put := extent.copy_put(*page)) is not None)
            yield Problem(
                ProblemKind.UNCLEAN,
                f"the copy of grain table {differ[0] // extent.header.table_entries} differs",
                Plan(puts),
            )
        yield from left_by_a_crash(extent, self._tables, is_marked=extent.header.unclean)
