"""V of a logical volume: which bytes of which physical volume its bytes are."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass

from vdisk.tables.lvm2.model import LogicalVolume, Segment, VolumeGroup
from vdisk.units import SECTOR


@dataclass(frozen=True, slots=True)
class Run:
    """`length` bytes of a volume from `guest_offset`, at byte `offset` of the physical volume `pv`.

    `pv` is a UUID.  Both are None where the volume has no bytes and reads as zeros.
    """

    guest_offset: int
    length: int
    pv: str | None
    offset: int | None


@dataclass(frozen=True, slots=True)
class _Span:
    """Bytes `[start, start + length)` of a volume on one or more stripes, or on none (zeros).

    `places` are (physical volume's UUID, byte in it), one a stripe.  Bytes go to the stripes in
    turn, `chunk` to each; with one stripe, `chunk` is `length`.
    """

    start: int
    length: int
    places: tuple[tuple[str, int], ...]
    chunk: int


class VolumeMap:
    """The map of one volume.  `size` is its size in bytes.

    The volume's segments must all be mappable, as `volumes` says of each.
    """

    def __init__(self, vg: VolumeGroup, lv: LogicalVolume) -> None:
        self.size = lv.extents * vg.extent_bytes
        pvs = {pv.key: (pv.id, pv.pe_start * SECTOR) for pv in vg.pvs}
        self._spans: list[_Span] = []
        for segment in lv.segments:
            self._add(_span(segment, vg.extent_bytes, pvs))
        self._starts = [span.start for span in self._spans]

    def _add(self, span: _Span) -> None:
        """Append `span`, or let it be part of the last one where that goes on directly."""
        last = self._spans[-1] if self._spans else None
        if last is not None and _follows(last, span):
            length = last.length + span.length
            self._spans[-1] = _Span(last.start, length, last.places, length)
        else:
            self._spans.append(span)

    @property
    def signature(self) -> object:
        """A value that is equal, and can be a key, for maps that are the same."""
        return tuple(self._spans)

    def window(self) -> tuple[str, int] | None:
        """(UUID, base) where byte g is always at byte base + g of that physical volume, or None."""
        if len(self._spans) == 1 and len(self._spans[0].places) == 1:
            return self._spans[0].places[0]
        return None

    def runs(self, offset: int, length: int) -> Iterator[Run]:
        """Where bytes [offset, offset + length) are, in order and without a gap.

        The range lies inside the volume.  The first run is found in O(log n) of the segments.
        """
        end = offset + length
        number = bisect_right(self._starts, offset) - 1
        while offset < end:
            span = self._spans[number]
            last = min(end, span.start + span.length)
            yield from _runs(span, offset, last)
            offset = last
            number += 1


def _span(segment: Segment, extent_bytes: int, pvs: dict[str, tuple[str, int]]) -> _Span:
    length = segment.count * extent_bytes
    places = []
    for stripe in segment.stripes:
        uuid, base = pvs[stripe.pv]
        places.append((uuid, base + stripe.first * extent_bytes))
    chunk = segment.stripe_size * SECTOR if len(places) > 1 else length
    return _Span(segment.start * extent_bytes, length, tuple(places), chunk)


def _follows(last: _Span, span: _Span) -> bool:
    if len(last.places) != 1 or len(span.places) != 1:
        return False
    (uuid, offset), (next_uuid, next_offset) = last.places[0], span.places[0]
    return uuid == next_uuid and offset + last.length == next_offset


def _runs(span: _Span, offset: int, end: int) -> Iterator[Run]:
    """The runs of bytes [offset, end) of the volume, which lie inside `span`."""
    if not span.places:
        yield Run(offset, end - offset, None, None)
        return
    while offset < end:
        chunk, skip = divmod(offset - span.start, span.chunk)
        row, column = divmod(chunk, len(span.places))
        uuid, base = span.places[column]
        length = min(span.chunk - skip, end - offset)
        yield Run(offset, length, uuid, base + row * span.chunk + skip)
        offset += length
