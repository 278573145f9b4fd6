"""Which places of a VDI image its map uses: from where on they are free, and where the gaps are."""

from __future__ import annotations

from array import array
from dataclasses import dataclass

from vdisk.formats.table import Table
from vdisk.formats.vdi_header import ZERO

_GAPS_MAX = 1 << 16  # As many gaps as are remembered; the map is counted again for more.


@dataclass(slots=True)
class Census:
    """`end` is the first place past all in use, `used_places` how many are.

    `gaps` are places below `end` that are not in use, the lowest last, `_GAPS_MAX` at most.
    `shared` says that two blocks have the same place.
    """

    end: int
    used_places: int
    gaps: list[int]
    shared: bool = False

    def next_run(self, wanted: int) -> tuple[int, int]:
        """(first place, how many) to be used next: one gap, or `wanted` places past all others."""
        return (self.gaps[-1], 1) if self.gaps else (self.end, wanted)

    def used(self, first: int, count: int) -> None:
        """The places that `next_run` said are in use now."""
        self.used_places += count
        if self.gaps:
            self.gaps.pop()
        else:
            self.end = first + count


def take_census(table: Table, places: int) -> Census:
    """Count the places in use.  Entries at or past `places` are no places."""
    used, top, total = 0, -1, 0
    for _, page in table.runs():
        if used > places:
            return Census(top + 1, used, [], shared=True)
        taken = _places(page, places)
        if taken:
            used += len(taken)
            top = max(top, max(taken))
            total += sum(taken)
    if used == top + 1 and total == top * (top + 1) // 2:
        return Census(top + 1, used, [])
    if used > top + 1:
        return Census(top + 1, used, [], shared=True)
    return _with_gaps(table, places, top + 1)


def _places(page: array[int], places: int) -> array[int] | list[int]:
    if max(page) < min(places, ZERO):
        return page
    return [entry for entry in page if entry < places]


def _with_gaps(table: Table, places: int, end: int) -> Census:
    """By a byte a place: only for an image that is not as its maker should have left it."""
    seen = bytearray(end)
    shared = False
    for _, page in table.runs():
        for entry in _places(page, places):
            shared = shared or seen[entry] == 1
            seen[entry] = 1
    gaps: list[int] = []
    at = seen.find(0)
    while at >= 0 and len(gaps) < _GAPS_MAX:
        gaps.append(at)
        at = seen.find(0, at + 1)
    gaps.reverse()
    return Census(end, sum(seen), gaps, shared)
