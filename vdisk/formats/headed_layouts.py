"""The headers of plain images that say their geometry: those of PC-98 emulators, and 86Box's HDX.

A header of fixed fields, little-endian, then the disk's bytes without a gap.  The disk is as large
as its cylinders, heads, sectors and bytes per sector make it; some headers say the size once more.

Sources: Neko Project II kai, `fdd/sxsihdd.h`, `fdd/newdisk.c` and `diskimage/fd/fdd_xdf.c` (HDI,
FDI, NHD, THD, Virtual98, SLH); 86Box, `src/disk/hdd_image.c` (HDX).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import NamedTuple

from vdisk.chs import SECTOR_SIZES
from vdisk.geometry import Geometry
from vdisk.units import MIB


class Field(NamedTuple):
    """A number in a header: its byte offset, and its code in `struct`, always little-endian."""

    offset: int
    code: str

    @property
    def end(self) -> int:
        """The first byte behind it."""
        return self.offset + struct.calcsize(f"<{self.code}")

    @property
    def maximum(self) -> int:
        """The largest number it holds."""
        return (1 << (8 * struct.calcsize(f"<{self.code}"))) - 1

    def get(self, raw: bytes) -> int:
        """The number in a header."""
        value: int = struct.unpack_from(f"<{self.code}", raw, self.offset)[0]
        return value

    def put(self, raw: bytearray, value: int) -> None:
        """Write the number into a header; it fits."""
        struct.pack_into(f"<{self.code}", raw, self.offset, value)


@dataclass(frozen=True, slots=True)
class Layout:
    """A kind of header.

    `header_size` is that of a new image, in bytes, and of every image where no `header_size_field`
    says another.  A count that is no field is the same in every image.  `size_fields` repeat the
    size, rounded down, in units of so many bytes (0: of sectors).  The `…_max` and `sector_sizes`
    are what the programs that the format belongs to open, and so what is made here.  `shapes` are
    (heads, sectors per track) of a new image whose size is no geometry's, the first that does.
    """

    name: str
    title: str
    header_size: int
    cylinders: Field
    heads: Field | int
    sectors_per_track: Field | int
    sector_size: Field | int
    magic: bytes = b""
    header_size_field: Field | None = None
    size_fields: tuple[tuple[Field, int], ...] = ()
    floppy_type: Field | None = None
    cylinders_max: int = 65535
    heads_max: int = 255
    sectors_per_track_max: int = 255
    sector_sizes: tuple[int, ...] = SECTOR_SIZES
    shapes: tuple[tuple[int, int], ...] = ((8, 17), (16, 63), (16, 255), (255, 255))

    @property
    def fields_end(self) -> int:
        """The first byte behind all fields: so long a header is, at least."""
        places = (
            self.cylinders, self.heads, self.sectors_per_track, self.sector_size,
            self.header_size_field, self.floppy_type, *(field for field, _ in self.size_fields),
        )  # fmt: skip
        ends = (place.end for place in places if isinstance(place, Field))
        return max(len(self.magic), *ends)

    def counts(self, raw: bytes) -> tuple[int, int, int, int]:
        """Cylinders, heads, sectors per track and bytes per sector, whatever the header says."""
        places = (self.cylinders, self.heads, self.sectors_per_track, self.sector_size)
        cylinders, heads, sectors, sector_size = (
            place if isinstance(place, int) else place.get(raw) for place in places
        )
        return cylinders, heads, sectors, sector_size

    def repeats(self, geometry: Geometry) -> list[tuple[Field, int]]:
        """What each field that repeats the size holds for this geometry."""
        size = geometry.size_bytes
        return [
            (field, size // (unit or geometry.sector_size)) for field, unit in self.size_fields
        ]

    def pack(self, raw: bytes | bytearray, geometry: Geometry) -> bytes:
        """The header `raw` with this geometry in it, which the fields hold; all else is kept."""
        new = bytearray(raw)
        counts = (
            (self.cylinders, geometry.cylinders), (self.heads, geometry.heads),
            (self.sectors_per_track, geometry.sectors_per_track),
            (self.sector_size, geometry.sector_size), *self.repeats(geometry),
        )  # fmt: skip
        for place, count in counts:
            if isinstance(place, Field):
                place.put(new, min(count, place.maximum))
        if self.floppy_type is not None:
            self.floppy_type.put(new, _floppy_type(geometry))
        return bytes(new)

    def new(self, geometry: Geometry) -> bytes:
        """The header of a new image, `header_size` bytes."""
        raw = bytearray(self.magic.ljust(self.header_size, b"\0"))
        if self.header_size_field is not None:
            self.header_size_field.put(raw, self.header_size)
        return self.pack(raw, geometry)


def _floppy_type(geometry: Geometry) -> int:
    """What a PC-98's drive takes the floppy for: 2DD, 2HD, or 2HD as other PCs write it."""
    if geometry.sector_size == 256:
        return 0x10
    if geometry.sector_size != 512:
        return 0x90
    if geometry.sectors_per_track < 10:
        return 0x70
    return 0x90 if geometry.sectors_per_track < 18 else 0x30


_ANEX86_SIZE = ((Field(12, "I"), 1),)

HDI = Layout(
    "hdi", "Anex86 hard disk", 4096, Field(28, "I"), Field(24, "I"), Field(20, "I"),
    Field(16, "I"), header_size_field=Field(8, "I"), size_fields=_ANEX86_SIZE,
)  # fmt: skip
FDI = Layout(
    "fdi", "Anex86 floppy", 4096, Field(28, "I"), Field(24, "I"), Field(20, "I"),
    Field(16, "I"), header_size_field=Field(8, "I"), size_fields=_ANEX86_SIZE,
    floppy_type=Field(4, "I"), cylinders_max=127, heads_max=2, shapes=(),
)  # fmt: skip
NHD = Layout(
    "nhd", "T98-Next hard disk", 512, Field(0x114, "I"), Field(0x118, "H"), Field(0x11A, "H"),
    Field(0x11C, "H"), b"T98HDDIMAGE.R0\0", header_size_field=Field(0x110, "I"),
)  # fmt: skip
THD = Layout(
    "thd", "T98 hard disk", 256, Field(0, "H"), 8, 33, 256,
    sector_sizes=(256,), shapes=((8, 33),),
)  # fmt: skip
VIRTUAL98 = Layout(
    "virtual98", "Virtual98 hard disk", 220, Field(0x92, "H"), Field(0x91, "B"), Field(0x90, "B"),
    Field(0x8E, "H"), b"VHD1.00\0",
    size_fields=((Field(0x94, "I"), 0), (Field(0x8C, "H"), MIB)),
    shapes=((8, 32), (16, 63), (16, 255), (255, 255)),
)  # fmt: skip
SLH = Layout(
    "slh", "SL9821 hard disk", 512, Field(0x10, "I"), Field(0x14, "I"), Field(0x18, "I"),
    Field(0x0C, "I"), b"HDIM", size_fields=((Field(4, "Q"), 1),),
)  # fmt: skip
HDX = Layout(
    "hdx", "86Box hard disk", 40, Field(0x1C, "I"), Field(0x18, "I"), Field(0x14, "I"),
    Field(0x10, "I"), struct.pack("<Q", 0xD778A82044445459), size_fields=((Field(8, "Q"), 1),),
    sector_sizes=(512,), shapes=((16, 63), (16, 255), (255, 255)),
)  # fmt: skip

LAYOUTS = (HDI, FDI, NHD, THD, VIRTUAL98, SLH, HDX)
