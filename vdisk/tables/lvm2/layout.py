"""What the label, the metadata areas and the metadata text have in common on disk.

All numbers are little-endian.  Source: LVM2 `lib/format_text/layout.h` and `lib/misc/crc.c`.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass

_INITIAL_CRC = 0xF597A6CF
_ALL_ONES = 0xFFFFFFFF
_LOCATION = struct.Struct("<QQ")


@dataclass(frozen=True, slots=True)
class Area:
    """A range of bytes of a physical volume.

    A data area's `length` is 0 where it goes on to the end of the drive.
    """

    offset: int
    length: int

    @property
    def end(self) -> int:
        """The first byte past it."""
        return self.offset + self.length


def checksum(data: bytes) -> int:
    """LVM2's CRC-32: zlib's polynomial, another initial value, and no inversion at the end."""
    return zlib.crc32(data, _INITIAL_CRC ^ _ALL_ONES) ^ _ALL_ONES


def unpack_areas(sector: bytes, at: int) -> tuple[tuple[Area, ...], int]:
    """The list of areas at byte `at` of `sector`, and where what follows it begins.

    A list ends with an offset of 0.  Raises `struct.error` where the sector ends first.
    """
    areas: list[Area] = []
    while True:
        offset, length = _LOCATION.unpack_from(sector, at)
        at += _LOCATION.size
        if offset == 0:
            return tuple(areas), at
        areas.append(Area(offset, length))


def pack_areas(areas: Iterable[Area]) -> bytes:
    """The bytes of a list of areas, with the entry that ends it."""
    packed = (_LOCATION.pack(area.offset, area.length) for area in areas)
    return b"".join(packed) + bytes(_LOCATION.size)
