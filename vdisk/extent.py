"""V as a value: runs of guest bytes and what each maps to, and the one loop that walks them.

A *map* is an iterator of `Extent`s that are ordered, non-empty, contiguous, and together cover
exactly the range asked for.  Whoever holds the host moves the bytes; a map only says where they
are.  `pieces` is the only split-and-merge loop in the project: read, write, zero and discard of
every format and every layer go through it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Protocol

from vdisk.codec import Codec
from vdisk.host import HostFile


class Host(Protocol):
    """What holds the bytes of an extent: a host file, or another disk.

    Offsets and lengths are bytes; every operation is positional and safe from several threads.
    """

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` with the bytes from `offset`."""

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Write all of `data` at `offset`.  Not durable before `flush`."""

    def zero(self, offset: int, length: int) -> None:
        """Make the range read as zeros, keeping its space."""

    def discard(self, offset: int, length: int) -> None:
        """Make the range read as zeros and give its space back where that can be done."""

    def flush(self) -> None:
        """Make every write that has returned durable."""

    def try_read_into(self, offset: int, buffer: memoryview) -> bool:
        """Fill `buffer` from `offset` if that needs no waiting; say whether it was done."""

    def try_write(self, offset: int, data: bytes | memoryview) -> bool:
        """Write `data` at `offset` if that needs no waiting; say whether all of it was done."""


class Kind(StrEnum):
    """What a run of guest bytes maps to."""

    DATA = "data"
    """Bytes at `host_offset` of `host`."""
    ZERO = "zero"
    """Zeros.  Where `host` is set, the place in the host file that would hold them."""
    PARENT = "parent"
    """Bytes of the parent disk `host`, at `host_offset` in it (the same guest offset)."""
    COMPRESSED = "compressed"
    """A part of a `unit` that is decoded from the bytes at `host_offset` of `host`."""


@dataclass(frozen=True, slots=True)
class Unit:
    """A compressed cluster or grain: what its bytes are decoded from and by.

    `host_length` bytes in the host hold it, perhaps with padding after it; decoded, it is `length`
    bytes, never more.  `skip` is where in the decoded bytes the extent begins.
    """

    host_length: int
    length: int
    codec: Codec
    skip: int = 0


@dataclass(frozen=True, slots=True)
class Extent:
    """`length` guest bytes from `guest_offset`, and what they map to.

    `host` and `host_offset` (bytes) are both set or both None; they are always set but for ZERO.
    `unit` is set for COMPRESSED alone.  `shared` is True where DATA has another owner too (a
    snapshot), so that a write must go elsewhere.
    """

    guest_offset: int
    length: int
    kind: Kind
    host: Host | None = None
    host_offset: int | None = None
    shared: bool = False
    unit: Unit | None = None

    @property
    def guest_end(self) -> int:
        """The first guest byte past the run."""
        return self.guest_offset + self.length

    @property
    def in_place(self) -> bool:
        """Whether a write may go straight to the host bytes."""
        return self.kind is Kind.DATA and not self.shared

    @property
    def place(self) -> tuple[Host, int]:
        """(host, host_offset).  AssertionError where the run has no place: a format's bug."""
        assert self.host is not None, "this extent has no host bytes"
        assert self.host_offset is not None
        return self.host, self.host_offset

    @property
    def file(self) -> HostFile | None:
        """The host file of a run of `Disk.map`, None where it has none."""
        assert self.host is None or isinstance(self.host, HostFile), "not a run of Disk.map"
        return self.host

    def cut(self, start: int, end: int) -> Extent:
        """The part of the run inside guest bytes [start, end), which must overlap it."""
        first, last = max(start, self.guest_offset), min(end, self.guest_end)
        skipped = first - self.guest_offset
        if not skipped and last == self.guest_end:
            return self
        if self.unit is not None:
            unit = replace(self.unit, skip=self.unit.skip + skipped)
            return replace(self, guest_offset=first, length=last - first, unit=unit)
        host_offset = None if self.host_offset is None else self.host_offset + skipped
        return Extent(first, last - first, self.kind, self.host, host_offset, self.shared)

    def shifted(self, distance: int) -> Extent:
        """The same run at `guest_offset + distance`: a slice's map in its own offsets."""
        return replace(self, guest_offset=self.guest_offset + distance)

    def continued_by(self, other: Extent) -> bool:
        """Whether `other` follows on directly, in the guest and in the host."""
        if other.kind is not self.kind or other.host is not self.host:
            return False
        if other.guest_offset != self.guest_end or other.shared is not self.shared:
            return False
        if self.unit is not None:
            rest = replace(self.unit, skip=self.unit.skip + self.length)
            return other.host_offset == self.host_offset and other.unit == rest
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
