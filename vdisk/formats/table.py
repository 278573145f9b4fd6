"""A table of numbers in a host file: a block map, a BAT, an L1 or L2 table.

It is read a page at a time, when an entry is asked for, and kept in memory within a limit, so that
opening an image takes neither time nor memory in proportion to its size.  The host holds what the
table says, but for entries that were set `waiting`: those are kept until they are written.
"""

from __future__ import annotations

import sys
from array import array
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from threading import Lock
from typing import Protocol

from vdisk.host import HostFile
from vdisk.plan import Put

_PAGE_BYTES = 16 << 10
PAGES_MAX = 256
"""Pages of one table that are kept (4 MiB), beside those with entries that wait."""

_CODES = {4: "I", 8: "Q"}


class Reader(Protocol):
    """What tables are read through."""

    def read(self, offset: int, length: int) -> bytes:
        """The `length` bytes from `offset`."""


class Table:
    """`entries` numbers of `width` bytes (4 or 8), from `host_offset` of `host` on.

    They are read through `reader` where that is not the host as it is: a log may be to be replayed.
    The caller has made sure that they lie inside the file.  `get`, `peek` and `runs` may be called
    by any number of threads at once, also while one other sets entries.
    """

    def __init__(
        self, host: HostFile, host_offset: int, entries: int, *, width: int, byteorder: str,
        pages_max: int = PAGES_MAX, page_bytes: int = _PAGE_BYTES, reader: Reader | None = None,
    ) -> None:
        self.host = host
        self._reader = reader or host
        self.host_offset = host_offset
        self.entries = entries
        self._width = width
        self._swapped = byteorder != sys.byteorder
        self._per_page = page_bytes // width
        self._pages_max = pages_max
        self._pages: OrderedDict[int, array[int]] = OrderedDict()
        self._waiting: dict[int, set[int]] = {}  # Page number -> indices in that page.
        self._lock = Lock()

    def get(self, index: int) -> int:
        """Entry `index`, read from the host if need be.  Raises HostError."""
        number, at = divmod(index, self._per_page)
        page = self._pages.get(number)
        return self._load(number)[at] if page is None else page[at]

    def peek(self, index: int) -> int | None:
        """Entry `index` if it is in memory, None otherwise.  Never waits."""
        number, at = divmod(index, self._per_page)
        page = self._pages.get(number)
        return None if page is None else page[at]

    def set(self, index: int, value: int, *, waiting: bool = False) -> None:
        """Make entry `index` `value` in memory.

        With `waiting` the host has the old value until `waiting_puts` is written; the entry must
        have been `hold` by whoever made the plan, so that this reads nothing and cannot fail.
        """
        number, at = divmod(index, self._per_page)
        with self._lock:
            page = self._pages.get(number)
            if page is not None:
                page[at] = value
            if waiting:
                assert page is not None, "an entry was set to wait that was not held"
                self._waiting[number].add(at)

    def set_run(self, index: int, values: Sequence[int], *, waiting: bool = False) -> None:
        """As `set`, for the entries from `index` on."""
        at = 0
        while at < len(values):
            number, first = divmod(index + at, self._per_page)
            count = min(self._per_page - first, len(values) - at)
            with self._lock:
                page = self._pages.get(number)
                if page is not None:
                    part = array(page.typecode, values[at : at + count])
                    page[first : first + count] = part
                if waiting:
                    assert page is not None, "entries were set to wait that were not held"
                    self._waiting[number].update(range(first, first + count))
            at += count

    def hold(self, index: int, count: int) -> None:
        """Keep `count` entries from `index` on in memory, until `written`.  Raises HostError."""
        for number in range(index // self._per_page, (index + count - 1) // self._per_page + 1):
            with self._lock:
                self._waiting.setdefault(number, set())
            self._load(number)

    def put(self, index: int, values: Iterable[int]) -> Put:
        """The step that writes `values` as the entries from `index` on, and what is there before.

        None of these entries may wait.
        """
        code = _CODES[self._width]
        new = array(code, values)
        old = array(code, [self.get(index + number) for number in range(len(new))])
        return Put(
            self.host, self._place(index), self._packed(new), before=self._packed(old)
        )

    @property
    def pages_waiting(self) -> int:
        """Pages with entries that wait; they stay in memory whatever the limit is."""
        return sum(bool(indices) for indices in self._waiting.values())

    def waiting_puts(self) -> Iterator[Put]:
        """Steps that write all entries that wait: of each page, from the first to the last."""
        for number, indices in sorted(self._waiting.items()):
            if not indices:
                continue
            first, last = min(indices), max(indices)
            place = self._place(number * self._per_page + first)
            yield Put(self.host, place, self._packed(self._pages[number][first : last + 1]))

    def written(self) -> None:
        """The host has every entry: nothing waits any more."""
        with self._lock:
            self._waiting.clear()

    def forget(self) -> None:
        """The host was changed by other means: keep nothing that was read.  Nothing may wait."""
        with self._lock:
            assert not any(self._waiting.values()), "entries that wait are nowhere else"
            self._waiting.clear()
            self._pages.clear()

    def runs(self, start: int = 0, end: int | None = None) -> Iterator[tuple[int, array[int]]]:
        """(index of the first, entries) of all entries in [start, end), in order, page by page.

        Pages that are not in memory are read and not kept.
        """
        end = self.entries if end is None else end
        while start < end:
            number, at = divmod(start, self._per_page)
            page = self._pages.get(number)
            if page is None:
                page = self._read(number)
            stop = min(len(page), at + end - start)
            yield start, page[at:stop]
            start += stop - at

    def _load(self, number: int) -> array[int]:
        with self._lock:
            page = self._pages.get(number)
            if page is not None:
                return page
            page = self._pages[number] = self._read(number)
            for old in list(self._pages):
                if len(self._pages) <= self._pages_max + len(self._waiting):
                    break
                if old not in self._waiting and old != number:
                    del self._pages[old]
            return page

    def _read(self, number: int) -> array[int]:
        first = number * self._per_page
        count = min(self._per_page, self.entries - first)
        page = array(_CODES[self._width])
        page.frombytes(self._reader.read(self._place(first), count * self._width))
        if self._swapped:
            page.byteswap()
        return page

    def _packed(self, values: array[int]) -> bytes:
        values = values[:]
        if self._swapped:
            values.byteswap()
        return values.tobytes()

    def _place(self, index: int) -> int:
        return self.host_offset + index * self._width


def little_endian(values: array[int]) -> bytes:
    """The bytes of `values` as little-endian numbers; big-endian machines swap `values` for it."""
    if sys.byteorder == "big":
        values.byteswap()
    return values.tobytes()


def big_endian(values: array[int]) -> bytes:
    """The bytes of `values` as big-endian numbers."""
    swapped = values[:]
    if sys.byteorder == "little":
        swapped.byteswap()
    return swapped.tobytes()
