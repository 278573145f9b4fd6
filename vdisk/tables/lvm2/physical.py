"""What one physical volume says: its label, and for each metadata area the text that counts."""

from __future__ import annotations

from dataclasses import dataclass, replace

from vdisk.errors import Corrupt, Unsupported
from vdisk.tables.lvm2.area import (
    HEADER_BYTES,
    Header,
    Location,
    unpack_header,
    unpack_unchecked,
)
from vdisk.tables.lvm2.label import Label, find_label
from vdisk.tables.lvm2.layout import Area
from vdisk.tables.lvm2.ring import read_text
from vdisk.tables.partition import Reader
from vdisk.units import SECTOR

AREAS_MAX = 8
"""Metadata areas that are looked at; LVM2 makes two at most."""


@dataclass(frozen=True, slots=True)
class MetadataArea:
    """A metadata area as it was found.

    `header` is what a change goes on from: its `current` is where `text` is, or None where there
    is no sound text.  `problem` says what is wrong, as the rest of a sentence that begins with the
    area, and is None where nothing is.  `salvaged` tells that the header is damaged and that the
    text was found by its own checksum.
    """

    header: Header
    text: bytes | None = None
    problem: str | None = None
    salvaged: bool = False

    @property
    def is_sound(self) -> bool:
        """Whether it has a text that its header vouches for."""
        return self.text is not None and not self.salvaged


@dataclass(frozen=True, slots=True)
class FoundPv:
    """A drive of `size` bytes that is a physical volume."""

    label: Label
    size: int
    areas: tuple[MetadataArea, ...]

    @property
    def problems(self) -> tuple[str, ...]:
        """What is wrong with it, a sentence each."""
        said = [
            f"the metadata area at byte {area.header.area.offset} is damaged: {area.problem}"
            for area in self.areas
            if area.problem is not None
        ]
        if self.label.device_size > self.size:
            said.append(
                f"the drive has {self.size} bytes, and its label says {self.label.device_size}"
            )
        return tuple(said)


def read_pv(read: Reader, size: int) -> FoundPv | None:
    """The physical volume on a drive of `size` bytes, or None where there is no label.

    Raises Corrupt where the label is damaged, or names no metadata area that lies on the drive.
    What is wrong with an area is told by its `problem`.
    """
    label = find_label(read, size)
    if label is None:
        return None
    if len(label.metadata_areas) > AREAS_MAX:
        raise Corrupt(f"the LVM2 label names {len(label.metadata_areas)} metadata areas")
    areas = tuple(
        _read_area(read, area) for area in label.metadata_areas if _lies_on_drive(area, size)
    )
    if label.metadata_areas and not areas:
        raise Corrupt("the metadata areas that the LVM2 label names are past the drive's end")
    return FoundPv(label, size, areas)


def is_unchanged(read: Reader, area: MetadataArea) -> bool:
    """Whether the header of `area` leads where it did when it was read or written last.

    One read of 512 bytes.  Of an area that was damaged, nothing is asked.
    """
    if area.problem is not None:
        return True
    place = area.header.area
    try:
        header = unpack_header(read(place.offset, HEADER_BYTES), place)
    except (Corrupt, Unsupported):
        return False
    return header.current == area.header.current


def _lies_on_drive(area: Area, size: int) -> bool:
    return area.length >= HEADER_BYTES + SECTOR and area.end <= size


def _read_area(read: Reader, area: Area) -> MetadataArea:
    sector = read(area.offset, HEADER_BYTES)
    try:
        header = unpack_header(sector, area)
    except Unsupported as error:
        return MetadataArea(Header(area, ignored=True), problem=error.message)
    except Corrupt as error:
        return _salvage(read, sector, area, error.message)
    if header.ignored or header.current is None:
        return MetadataArea(header)
    try:
        return MetadataArea(header, read_text(read, header, header.current))
    except Unsupported as error:
        return MetadataArea(replace(header, ignored=True), problem=error.message)
    except Corrupt as error:
        return MetadataArea(replace(header, current=None), problem=error.message)


def _salvage(read: Reader, sector: bytes, area: Area, problem: str) -> MetadataArea:
    """The area with a damaged header, and the text that one of its slots still leads to.

    A header is prepared before it commits: slot 1 has the new text until slot 0 has it.  So however
    far its writing came, one of the two leads to a text whose checksum is right.
    """
    try:
        header = unpack_unchecked(sector, area)
    except (Corrupt, Unsupported):
        return MetadataArea(Header(area), problem=problem)
    for location in (header.current, header.prepared):
        text = _text_or_none(read, header, location)
        if text is not None:
            found = Header(header.area, location, ignored=header.ignored)
            return MetadataArea(found, text, problem, salvaged=True)
    return MetadataArea(Header(area), problem=problem)


def _text_or_none(read: Reader, header: Header, location: Location | None) -> bytes | None:
    if location is None:
        return None
    try:
        return read_text(read, header, location)
    except (Corrupt, Unsupported):
        return None
