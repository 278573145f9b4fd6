"""All L2 tables of an image as one table of words, which L1 puts together.

So a word is found by its guest cluster alone, and reading, keeping within a limit, changing and
waiting are those of every other table (`vdisk.formats.table`).  Where L1 has no L2 table there are
zeros, as if there was one.
"""

from __future__ import annotations

from array import array

from vdisk.errors import Corrupt
from vdisk.formats.qcow2.entry import COPIED, OFFSET
from vdisk.formats.qcow2.header import Header
from vdisk.formats.table import Table
from vdisk.host import HostFile

_PAGES_BYTES_MAX = 16 << 20
_PAGE_BYTES_MAX = 16 << 10


def open_l1(host: HostFile, offset: int, entries: int) -> Table:
    """The L1 table at `offset`, of the active disk or of a snapshot."""
    return Table(host, offset, entries, width=8, byteorder="big")


class L2(Table):
    """The words of all L2 tables, from guest cluster 0 on."""

    def __init__(self, host: HostFile, header: Header, l1: Table) -> None:
        page_bytes = min(_PAGE_BYTES_MAX, header.cluster_size)
        self.words_per_table = header.cluster_size // 8
        super().__init__(
            host, 0, l1.entries * self.words_per_table, width=8, byteorder="big",
            pages_max=_PAGES_BYTES_MAX // page_bytes, page_bytes=page_bytes,
        )
        self.l1 = l1
        self._alignment = header.cluster_size - 1

    def table_at(self, number: int) -> int:
        """The host offset of L2 table `number`, 0 where there is none.  Raises Corrupt."""
        offset = self.l1.get(number) & OFFSET
        if offset & self._alignment:
            raise Corrupt(
                f"L1 entry {number} names {offset}, which is not where a cluster begins",
                path=self.host.path,
            )
        return offset

    def is_owned(self, number: int) -> bool:
        """Whether L2 table `number` is there and may be written in place."""
        return self.table_at(number) != 0 and bool(self.l1.get(number) & COPIED)

    def _place(self, index: int) -> int:
        number, at = divmod(index, self.words_per_table)
        offset = self.table_at(number)
        assert offset, "an L2 table is there before it is written"
        return offset + 8 * at

    def _read(self, number: int) -> array[int]:
        offset = self.table_at(number * self._per_page // self.words_per_table)
        if offset == 0:
            return array("Q", bytes(8 * self._per_page))
        if offset >= self.host.size():
            raise Corrupt(
                f"an L2 table at {offset} lies past the end of the file", path=self.host.path
            )
        return super()._read(number)
