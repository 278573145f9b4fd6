"""A count for each of very many clusters, of which few are counted, in limited memory."""

from __future__ import annotations

from array import array
from collections.abc import Iterator

PAGE = 4096
_PAGES_MAX = 4096  # 64 MiB: dense, as many clusters as 1 TiB has of 64 KiB each.
_COUNT_MAX = (1 << 32) - 1


class Tally:
    """Counts of clusters from `start` on, up to `end`, which comes closer when memory is short.

    What is counted at or past `end` is left out: whoever needs it counts again, from there.
    """

    def __init__(self, start: int = 0, pages_max: int = _PAGES_MAX) -> None:
        self.start = start
        self.end: int | None = None
        self.highest = -1  # Of all that was to be counted, left out or not.
        self._pages_max = pages_max
        self._pages: dict[int, array[int]] = {}

    def add(self, first: int, count: int = 1, weight: int = 1) -> None:
        """Count `count` clusters from `first` on, `weight` times each."""
        self.highest = max(self.highest, first + count - 1)
        first, last = max(first, self.start), first + count
        if self.end is not None:
            last = min(last, self.end)
        while first < last:
            number, at = divmod(first, PAGE)
            page = self._pages.get(number)
            if page is None:
                page = self._new_page(number)
                if page is None:
                    return
            stop = min(PAGE, at + last - first)
            if any(page[at:stop]):
                for index in range(at, stop):
                    page[index] = min(page[index] + weight, _COUNT_MAX)
            else:
                page[at:stop] = array("I", [min(weight, _COUNT_MAX)]) * (stop - at)
            first += stop - at

    def _new_page(self, number: int) -> array[int] | None:
        if len(self._pages) >= self._pages_max:
            highest = max(self._pages)
            if number > highest:
                self.end = number * PAGE
                return None
            self.end = highest * PAGE
            del self._pages[highest]
        page = self._pages[number] = array("I", bytes(4 * PAGE))
        return page

    def get(self, cluster: int) -> int:
        """How often it was counted.  It is neither before `start` nor at or past `end`."""
        number, at = divmod(cluster, PAGE)
        page = self._pages.get(number)
        return 0 if page is None else page[at]

    def counted(self, first: int, count: int) -> list[int]:
        """Those of `count` clusters from `first` on that were counted."""
        found = []
        for start in range(first - first % PAGE, first + count, PAGE):
            page = self._pages.get(start // PAGE)
            if page is not None:
                low, high = max(first - start, 0), min(first + count - start, PAGE)
                found += [start + at for at in range(low, high) if page[at]]
        return found

    def page(self, number: int) -> array[int] | None:
        """The counts of clusters [PAGE * number, PAGE * (number + 1)); None where all are 0."""
        return self._pages.get(number)

    def pages(self) -> list[int]:
        """The numbers of the pages with counts, in order."""
        return sorted(self._pages)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """(cluster, count) of each that was counted, in order."""
        for number in self.pages():
            for at, count in enumerate(self._pages[number]):
                if count:
                    yield number * PAGE + at, count
