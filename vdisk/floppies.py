"""The floppies of the PC, and what a disk's exact size says about which one it is.

Sources: the format tables of dosbox-x (`DiskGeometryList`) and SeaBIOS (`hw/floppy.c`), and what
mtools' mformat writes.  A floppy's capacity is fixed, so its size alone names it, with one
exception: 368640 bytes are 40 cylinders on two sides or 80 on one, which the media byte of the
boot sector tells.
"""

from __future__ import annotations

from dataclasses import dataclass

from vdisk.chs import Geometry


@dataclass(frozen=True, slots=True)
class Floppy:
    """A kind of floppy: its name ("1.44M"), geometry, and the media byte its FAT starts with."""

    name: str
    geometry: Geometry
    media: int

    @property
    def kib(self) -> int:
        return self.geometry.size_bytes // 1024


FLOPPIES = (
    Floppy("160K", Geometry(40, 1, 8), 0xFE),
    Floppy("180K", Geometry(40, 1, 9), 0xFC),
    Floppy("320K", Geometry(40, 2, 8), 0xFF),
    Floppy("360K", Geometry(40, 2, 9), 0xFD),
    Floppy("360K-80", Geometry(80, 1, 9), 0xF8),
    Floppy("640K", Geometry(80, 2, 8), 0xFB),
    Floppy("720K", Geometry(80, 2, 9), 0xF9),
    Floppy("1.2M", Geometry(80, 2, 15), 0xF9),
    Floppy("1.23M", Geometry(77, 2, 8, 1024), 0xFE),
    Floppy("1.44M", Geometry(80, 2, 18), 0xF0),
    Floppy("1.68M", Geometry(80, 2, 21), 0xF0),
    Floppy("2.88M", Geometry(80, 2, 36), 0xF0),
)
"""Smallest first.  "360K-80" is the single-sided one of 80 cylinders, "1.23M" the PC-98's."""


def floppy_of_size(size_bytes: int, sector_size: int, media: int | None = None) -> Floppy | None:
    """The floppy that is exactly `size_bytes` large, or None.

    Where two are, the one whose media byte is `media`, else the more common, which is first.
    """
    same = [
        floppy
        for floppy in FLOPPIES
        if (floppy.geometry.size_bytes, floppy.geometry.sector_size) == (size_bytes, sector_size)
    ]
    told = [floppy for floppy in same if floppy.media == media] if len(same) > 1 else []
    return next(iter(told or same), None)
