"""The ring of a metadata area: texts one after another, the newest perhaps going round the end.

A new text begins at the sector after the current one, so that the current one is whole until the
header points to the new one.  Source: LVM2 `lib/format_text/format-text.c`.
"""

from __future__ import annotations

from collections.abc import Iterator

from vdisk.errors import Corrupt, NoSpace, Unsupported
from vdisk.tables.lvm2.area import HEADER_BYTES, Header, Location
from vdisk.tables.lvm2.layout import Area, checksum
from vdisk.tables.partition import Reader
from vdisk.units import SECTOR, format_size

TEXT_BYTES_MAX = 8 << 20
"""The longest text that is read or written: that of some ten thousand volumes."""


def text_bytes_max(area: Area) -> int:
    """How long a text `area` can take: half of its ring less a sector, as in LVM2.

    Two such texts fit beside each other wherever the first one begins.
    """
    return min((area.length - HEADER_BYTES) // 2 - SECTOR, TEXT_BYTES_MAX)


def read_text(read: Reader, header: Header, location: Location) -> bytes:
    """The text at `location`, its checksum verified.

    Raises Corrupt where it cannot be there or is not what was written, Unsupported where it is
    longer than `TEXT_BYTES_MAX`.
    """
    if location.length > TEXT_BYTES_MAX:
        raise Unsupported(f"its text is {format_size(location.length)} long")
    if location.length > header.area.length - HEADER_BYTES:
        raise Corrupt(f"its text of {location.length} bytes is longer than the area")
    if not HEADER_BYTES <= location.offset < header.area.length:
        raise Corrupt(f"its text would begin at byte {location.offset} of the area")
    text = b"".join(
        read(part.offset, part.length) for part in _parts(header.area, location)
    )
    if checksum(text) != location.checksum:
        raise Corrupt("the checksum of its text is wrong")
    return text


def place(header: Header, text: bytes) -> Location:
    """Where `text` goes, beside the current one.

    Raises NoSpace where it does not fit there.
    """
    most = text_bytes_max(header.area)
    if len(text) > most:
        raise NoSpace(
            f"the drive's metadata would take {format_size(len(text))}, and its metadata area has "
            f"room for {format_size(max(most, 0))}",
            hint="remove volumes, or make a drive with a larger metadata area",
        )
    return Location(_next_offset(header, len(text)), len(text), checksum(text))


def _next_offset(header: Header, length: int) -> int:
    """The sector after the current text, round the ring's end if need be."""
    current = header.current
    if current is None:
        return HEADER_BYTES
    ring = header.area.length - HEADER_BYTES
    taken = -(-(current.offset + current.length) // SECTOR) * SECTOR - current.offset
    if taken + length > ring:
        raise NoSpace(
            "the drive's metadata area has no room for the new text beside the old one",
            hint="remove one volume at a time, or make a drive with a larger metadata area",
        )
    return (current.offset + taken - HEADER_BYTES) % ring + HEADER_BYTES


def placed(area: Area, location: Location, text: bytes) -> Iterator[tuple[int, bytes]]:
    """What to write for `text` at `location`: bytes of the drive, and what goes there."""
    at = 0
    for part in _parts(area, location):
        yield part.offset, text[at : at + part.length]
        at += part.length


def _parts(area: Area, location: Location) -> Iterator[Area]:
    """The one or two ranges of the drive that a text occupies."""
    first = min(location.length, area.length - location.offset)
    yield Area(area.offset + location.offset, first)
    if first < location.length:
        yield Area(area.offset + HEADER_BYTES, location.length - first)
