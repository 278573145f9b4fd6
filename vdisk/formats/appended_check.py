"""What can be wrong with clusters at the end of a file and the table that names them."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator

from vdisk.formats.appended import FREE, AppendedClusters
from vdisk.formats.base import Problem, ProblemKind

Tables = Callable[[], Iterable[tuple[int, "array[int]"]]]
"""(index of the first, entries) of all that can be read of a table, each time anew."""

_CELLS_AT_ONCE = 1 << 26  # A byte each.


def wrong_entries(clusters: AppendedClusters, tables: Tables, noun: str) -> Iterator[Problem]:
    """Entries that name a place where no cluster can be, or where another one is.

    Two clusters that begin within one cluster's length of the file overlap.
    """
    cells = clusters.host.size() // clusters.layout.unit + 1
    for start in range(0, cells, _CELLS_AT_ONCE):
        seen = bytearray(min(_CELLS_AT_ONCE, cells - start))
        for first, page in tables():
            if any(page):
                yield from _wrong_in_page(clusters, first, page, seen, start, noun)


def _wrong_in_page(
    clusters: AppendedClusters, first: int, page: array[int], seen: bytearray, start: int, noun: str
) -> Iterator[Problem]:
    """As `wrong_entries`, of those in the part of the file that `seen` is about."""
    layout, size = clusters.layout, clusters.host.size()
    for number, entry in enumerate(page):
        if entry in (FREE, layout.zero):
            continue
        place = entry * layout.scale
        what = f"{noun} {first + number} is said to be at byte {place}, "
        if not layout.first <= place < size or not clusters.is_aligned(place):
            if start == 0:
                yield Problem(ProblemKind.CORRUPTION, what + "where none can be")
            continue
        cell = place // layout.unit - start
        if not clusters.may_overlap and 0 <= cell < len(seen):
            if seen[cell]:
                yield Problem(ProblemKind.CORRUPTION, what + "where another one is")
            seen[cell] = 1


def left_by_a_crash(
    clusters: AppendedClusters, tables: Tables, *, is_marked: bool
) -> Iterator[Problem]:
    """Space at the end of the file that nothing uses, and the mark of one who did not close it."""
    size, end = clusters.host.size(), clusters.used_end(tables())
    if end + 2 * clusters.layout.unit < size:
        yield Problem(
            ProblemKind.UNCLEAN if is_marked else ProblemKind.LEAK,
            f"{size - end} bytes at the end of the file belong to nothing",
            None if clusters.host.is_block else clusters.plan_cut(end),
        )
    if is_marked:
        yield Problem(
            ProblemKind.UNCLEAN, "its last writer did not close it", clusters.plan_begin()
        )
