"""The header of a metadata area: which text in the area's ring is the volume group's.

    0   CRC of bytes 4 to 512           4   magic, 16 bytes
    20  version, 1 (32 bits)            24  the area's own offset, in bytes (64)
    32  its size (64)                   40  slots of 24 bytes: offset in the area, size, CRC of the
                                            text and flags; an offset of 0 ends them

Slot 0 is the committed text.  Slot 1 is one that was prepared to be committed next; it means
nothing to a reader of a sound header.  Source: LVM2 `lib/format_text/layout.h` (`mda_header`).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from vdisk.errors import Corrupt, Unsupported
from vdisk.tables.lvm2.layout import Area, checksum
from vdisk.units import SECTOR

HEADER_BYTES = 512
"""The header's size.  The ring is the rest of the area."""

_MAGIC = b"\x20LVM2\x20x[5A%r0N*>"
_VERSION = 1
_HEADER = struct.Struct("<I16sIQQ")
_SLOT = struct.Struct("<QQII")
_CHECKED_FROM = 4
_IGNORED = 0x1


@dataclass(frozen=True, slots=True)
class Location:
    """Where a text is: its first byte counted from the area's start, its length, and its CRC.

    A text that reaches the area's end goes on at byte `HEADER_BYTES` of the area.
    """

    offset: int
    length: int
    checksum: int


@dataclass(frozen=True, slots=True)
class Header:
    """A metadata area's header.  `area` is the range of bytes that the header claims.

    `current` is None where no text was ever committed.  An area that is `ignored` takes no part:
    it is neither read nor written.
    """

    area: Area
    current: Location | None = None
    prepared: Location | None = None
    ignored: bool = False


def unpack_header(sector: bytes, area: Area) -> Header:
    """The header in the first 512 bytes of `area`, an area that a label names.

    Raises Corrupt where the checksum is wrong or the header belongs to some other place, and
    Unsupported for another version of the layout.
    """
    (crc,) = struct.unpack_from("<I", sector)
    if crc != checksum(sector[_CHECKED_FROM:HEADER_BYTES]):
        raise Corrupt("the checksum of its header is wrong")
    return unpack_unchecked(sector, area)


def unpack_unchecked(sector: bytes, area: Area) -> Header:
    """As `unpack_header`, and the checksum is not looked at."""
    _, magic, version, start, length = _HEADER.unpack_from(sector)
    if magic != _MAGIC:
        raise Corrupt("its header has the wrong magic number")
    if version != _VERSION:
        raise Unsupported(f"its header has version {version}, not {_VERSION}")
    if start != area.offset:
        raise Corrupt(f"its header says that it is at byte {start}")
    if not HEADER_BYTES + SECTOR <= length <= area.length:
        raise Corrupt(f"its header claims {length} bytes of {area.length}")
    current, flags = _slot(sector, 0)
    prepared, _ = _slot(sector, 1)
    return Header(Area(start, length), current, prepared, bool(flags & _IGNORED))


def _slot(sector: bytes, number: int) -> tuple[Location | None, int]:
    offset, length, crc, flags = _SLOT.unpack_from(sector, _HEADER.size + number * _SLOT.size)
    return (Location(offset, length, crc) if offset and length else None), flags


def pack_header(header: Header) -> bytes:
    """The 512 bytes of `header`."""
    flags = _IGNORED if header.ignored else 0
    packed = _HEADER.pack(0, _MAGIC, _VERSION, header.area.offset, header.area.length)
    packed += _pack_slot(header.current, flags) + _pack_slot(header.prepared, 0)
    packed = packed.ljust(HEADER_BYTES, b"\0")
    return struct.pack("<I", checksum(packed[_CHECKED_FROM:])) + packed[_CHECKED_FROM:]


def _pack_slot(location: Location | None, flags: int) -> bytes:
    if location is None:
        return _SLOT.pack(0, 0, 0, flags)
    return _SLOT.pack(location.offset, location.length, location.checksum, flags)
