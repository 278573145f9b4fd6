"""Pieces of a disk made into the clusters or grains of an image that compresses them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from vdisk.ahead import PROCESSORS, done_in_order
from vdisk.formats.creation import Piece

_HELD_BYTES = 8 << 20  # What waits to be compressed or written, about.


class Packed(NamedTuple):
    """The unit at guest byte `offset`: its bytes, with zeros past the disk's end, and those packed.
    """

    offset: int
    data: bytes
    packed: bytes


def packed_units(
    pieces: Iterable[Piece], unit: int, pack: Callable[[bytes], bytes]
) -> Iterator[Packed]:
    """Every unit of `unit` bytes that is not all zeros, in order, packed by threads.

    The pieces are in order and apart from another, as a `CompressedWriter` is handed them.
    """

    def work(found: tuple[int, bytes]) -> Packed:
        offset, data = found
        return Packed(offset, data, pack(data))

    ahead = max(2 * PROCESSORS, min(_HELD_BYTES // unit, 64))
    return done_in_order(units(pieces, unit), work, workers=PROCESSORS, ahead=ahead)


def units(pieces: Iterable[Piece], unit: int) -> Iterator[tuple[int, bytes]]:
    """(guest offset, bytes) of every unit that is not all zeros; zeros where no piece has any."""
    zeros = bytes(unit)
    for offset, data in _assembled(pieces, unit):
        if data != zeros:
            yield offset, data


def _assembled(pieces: Iterable[Piece], unit: int) -> Iterator[tuple[int, bytes]]:
    begun, pending = -1, bytearray()  # A unit of which there may be more in the next piece.
    for piece in pieces:
        at, end = piece.offset, piece.offset + len(piece.data)
        while at < end:
            start = at - at % unit
            cut = min(start + unit, end)
            part = piece.data[at - piece.offset : cut - piece.offset]
            if begun not in (-1, start):
                yield begun, bytes(pending)
                begun = -1
            if len(part) == unit:
                yield start, bytes(part)
            else:
                if begun == -1:
                    begun, pending = start, bytearray(unit)
                pending[at - start : cut - start] = part
            at = cut
    if begun != -1:
        yield begun, bytes(pending)
