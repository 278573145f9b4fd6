"""V as a value: runs of guest bytes and what each maps to, and the one loop that walks them.

A *map* is an iterator of `Extent`s that are ordered, non-empty, contiguous, and together cover
exactly the range asked for.  Whoever holds the host file moves the bytes; a map only says where
they are.  `pieces` is the only split-and-merge loop in the project: read, write, zero and discard
of every format and every layer go through it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vdisk.host import HostFile


class Kind(StrEnum):
    """What a run of guest bytes maps to."""

    DATA = "data"
    """Bytes at `host_offset` of `host`."""
    ZERO = "zero"
    """Zeros.  Where `host` is set, the place in the host file that would hold them."""


@dataclass(frozen=True, slots=True)
class Extent:
    """`length` guest bytes from `guest_offset`, and what they map to.

    `host` and `host_offset` (bytes) are both set or both None; they are always set for DATA.
    """

    guest_offset: int
    length: int
    kind: Kind
    host: HostFile | None = None
    host_offset: int | None = None

    @property
    def guest_end(self) -> int:
        """The first guest byte past the run."""
        return self.guest_offset + self.length

    def cut(self, start: int, end: int) -> Extent:
        """The part of the run inside guest bytes [start, end), which must overlap it."""
        first, last = max(start, self.guest_offset), min(end, self.guest_end)
        skipped = first - self.guest_offset
        host_offset = None if self.host_offset is None else self.host_offset + skipped
        return replace(
            self, guest_offset=first, length=last - first, host_offset=host_offset
        )

    def shifted(self, distance: int) -> Extent:
        """The same run at `guest_offset + distance`: a slice's map in its own offsets."""
        return replace(self, guest_offset=self.guest_offset + distance)

    def continued_by(self, other: Extent) -> bool:
        """Whether `other` follows on directly, in the guest and in the host file."""
        if other.kind is not self.kind or other.host is not self.host:
            return False
        if other.guest_offset != self.guest_end:
            return False
        if self.host_offset is None:
            return other.host_offset is None
        return other.host_offset == self.host_offset + self.length


def merged(extents: Iterable[Extent]) -> Iterator[Extent]:
    """`extents` with neighbours that continue each other joined: the shortest list that says it."""
    pending: Extent | None = None
    for extent in extents:
        if pending is not None and pending.continued_by(extent):
            pending = replace(pending, length=pending.length + extent.length)
            continue
        if pending is not None:
            yield pending
        pending = extent
    if pending is not None:
        yield pending


def pieces(extents: Iterable[Extent], offset: int, length: int) -> Iterator[tuple[Extent, slice]]:
    """Split a request at the extents it crosses.

    Yields, in guest order, each extent cut to guest bytes [offset, offset + length) and the slice
    of the request's buffer that belongs to it.  Raises `AssertionError` if the map has a gap,
    an overlap or ends early: that is a format's bug, and moving data by such a map corrupts it.
    """
    end = offset + length
    at = offset
    runs = iter(extents)
    while at < end:
        extent = next(runs, None)
        if extent is None:
            raise AssertionError("map ends before the range does")
        # Only the first run may begin before the request; any later one would be an overlap.
        begins_well = extent.guest_offset == at or (at == offset and extent.guest_offset < at)
        if not begins_well or extent.guest_end <= at:
            raise AssertionError("map is not contiguous")
        piece = extent.cut(at, end)
        yield piece, slice(at - offset, piece.guest_end - offset)
        at = piece.guest_end
