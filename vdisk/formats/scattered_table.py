"""A table in parts that lie anywhere in the host: grain tables, or L2 tables, below a directory.

For whoever reads it this is one table of numbers.  Where each part lies, the format says: it has
the directory.  A part that is nowhere yet reads as zeros.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator

from vdisk.formats.table import _CODES, _PAGE_BYTES, PAGES_MAX, Table
from vdisk.host import HostFile
from vdisk.plan import Put

_FEW = 16  # No more are compared one by one.

def whole_pages(entries: int, width: int) -> int:
    """`part_entries` of a table that is one part with `entries` of `width` bytes."""
    page = _PAGE_BYTES // width
    return -(-entries // page) * page


Directory = Callable[[int], int]
"""The host offset of the part of that number, 0 where there is none.  Raises as `map` does."""


class ScatteredTable(Table):
    """`entries` numbers of `width` bytes, `part_entries` in each part, the last part whole too.

    `directory` says where each part lies; `copies` say the same of further copies, which are
    written and never read.  A part's entries are set and put only when it lies somewhere.
    """

    def __init__(
        self, host: HostFile, directory: Directory, entries: int, part_entries: int, *,
        width: int, byteorder: str, copies: tuple[Directory, ...] = (),
    ) -> None:
        page = min(part_entries, _PAGE_BYTES // width)
        assert part_entries % page == 0, "pages do not cross from one part into the next"
        pages_max = PAGES_MAX * _PAGE_BYTES // (page * width)
        super().__init__(host, 0, entries, width=width, byteorder=byteorder, pages_max=pages_max)
        self._per_page = page
        self.part_entries = part_entries
        self._directory = directory
        self._copies = copies

    def run(self, index: int, limit: int, step: int) -> int:
        """How many entries from `index` on, each `step` more than the one before, are in a row.

        At least 1 and at most `limit`; a run ends with its page, so this takes little time.
        """
        number, at = divmod(index, self._per_page)
        page = self._pages.get(number)
        if page is None:
            page = self._load(number)
        entry, end = page[at], min(at + limit, len(page))
        if end - at > _FEW and page[at:end] == self._expected(entry, end - at, step):
            return end - at
        stop = at + 1
        while stop < end and page[stop] == entry + step * (stop - at):
            stop += 1
        return stop - at

    def _expected(self, entry: int, count: int, step: int) -> array[int] | None:
        code = _CODES[self._width]
        if step == 0:
            return array(code, [entry]) * count
        last = entry + step * (count - 1)
        if last >= 1 << 8 * self._width:
            return None
        return array(code, range(entry, last + 1, step))

    def puts(self, index: int, values: Iterable[int]) -> Iterator[Put]:
        """The steps that write `values`, all of one part, as the entries from `index` on.

        The copies are written first, so that what is read never says more than they do.
        """
        put = self.put(index, values)
        for place in self._copies_of(index):
            yield Put(self.host, place, put.data, before=put.before)
        yield put

    @property
    def bytes_waiting(self) -> int:
        """Of the pages whose entries wait, which stay in memory whatever the limit is."""
        return len(self._waiting) * self._per_page * self._width

    def waiting_puts(self) -> Iterator[Put]:
        for number, indices in sorted(self._waiting.items()):
            if not indices:
                continue
            first, last = min(indices), max(indices)
            index = number * self._per_page + first
            data = self._packed(self._pages[number][first : last + 1])
            for place in (*self._copies_of(index), self._place(index)):
                yield Put(self.host, place, data)

    def forget_part(self, part: int) -> None:
        """The part lies somewhere now: what was read of it before is no longer so."""
        pages = range(
            part * self.part_entries // self._per_page,
            (part + 1) * self.part_entries // self._per_page,
        )
        with self._lock:
            for number in pages:
                self._pages.pop(number, None)

    def _copies_of(self, index: int) -> Iterator[int]:
        for directory in self._copies:
            place = self._place_by(directory, index)
            if place:
                yield place

    def _place(self, index: int) -> int:
        return self._place_by(self._directory, index)

    def _place_by(self, directory: Directory, index: int) -> int:
        part, at = divmod(index, self.part_entries)
        start = directory(part)
        return start + at * self._width if start else 0

    def _read(self, number: int) -> array[int]:
        if not self._directory(number * self._per_page // self.part_entries):
            # As many as there would be: `map` may look at any of them.
            return array(_CODES[self._width], [0]) * self._page_entries(number)
        return super()._read(number)

    def _page_entries(self, number: int) -> int:
        return min(self._per_page, self.entries - number * self._per_page)
