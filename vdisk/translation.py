"""The rules that make a geometry of a number of sectors.

Each takes sectors and answers cylinders, heads and sectors per track as another program would; the
cylinders may be 0 for a disk too small for one.  They are the ground of the profiles (`profiles`)
and of what other programs see (`firmware`, `partitioners`), so each rule is written down once.
"""

from __future__ import annotations

from typing import NamedTuple

from vdisk.chs import Geometry
from vdisk.units import SECTOR

BIOS_CYLINDERS_MAX = 1024
BIOS_HEADS_MAX = 255
BIOS_SECTORS_PER_TRACK_MAX = 63
ATA_HEADS = 16
ATA_CYLINDERS_MAX = 16383

VHD_CYLINDERS_MAX = 65535
VHD_SECTORS_MAX = VHD_CYLINDERS_MAX * 16 * 255


class Counts(NamedTuple):
    """A geometry as another program answers it: not validated, any of them may be 0."""

    cylinders: int
    heads: int
    sectors_per_track: int

    def geometry(self, sector_size: int = SECTOR) -> Geometry | None:
        """The same as a geometry, or None where one of them is 0."""
        return Geometry(*self, sector_size) if all(self) else None

    def __str__(self) -> str:
        return f"{self.cylinders}/{self.heads}/{self.sectors_per_track}"


def fixed_heads(sectors: int, heads: int, sectors_per_track: int) -> Counts:
    """As many whole cylinders as there are, maybe 0 and without an upper limit."""
    return Counts(sectors // (heads * sectors_per_track), heads, sectors_per_track)


def lba_assisted(sectors: int) -> Counts:
    """LBA-assisted INT 13h translation: 63 sectors, 16 to 255 heads, at most 1024 cylinders.

    As SeaBIOS does it (`block.c`).  The step to more heads is decided after rounding down, so that
    just above 504 MiB there are still 16 heads, and what is past cylinder 1024 only LBA reaches.
    """
    if sectors > BIOS_SECTORS_PER_TRACK_MAX * BIOS_HEADS_MAX * BIOS_CYLINDERS_MAX:
        return Counts(BIOS_CYLINDERS_MAX, BIOS_HEADS_MAX, BIOS_SECTORS_PER_TRACK_MAX)
    tracks = sectors // BIOS_SECTORS_PER_TRACK_MAX
    least_heads = tracks // BIOS_CYLINDERS_MAX
    heads = next((heads for heads in (16, 32, 64, 128) if least_heads <= heads), BIOS_HEADS_MAX)
    return _clipped(Counts(tracks // heads, heads, BIOS_SECTORS_PER_TRACK_MAX))


def bit_shift(physical: Counts) -> Counts:
    """Bit-shift translation ("LARGE", ECHS): halve the cylinders and double the heads.

    As SeaBIOS does it: until 1024 cylinders are enough or there are more than 127 heads, then what
    is past cylinder 1024 is cut off.
    """
    cylinders, heads, sectors_per_track = physical
    while cylinders > BIOS_CYLINDERS_MAX and heads <= 127:
        cylinders >>= 1
        heads <<= 1
    return _clipped(Counts(cylinders, heads, sectors_per_track))


def revised_bit_shift(physical: Counts) -> Counts:
    """Revised bit-shift translation (r-ECHS): 16 heads become 15 first, so that 240 is the most.

    As SeaBIOS does it, for small disks as well.
    """
    cylinders, heads, sectors_per_track = physical
    if heads == 16:
        cylinders, heads = min(cylinders, 61439) * 16 // 15, 15
    return bit_shift(Counts(cylinders, heads, sectors_per_track))


def _clipped(counts: Counts) -> Counts:
    return counts._replace(cylinders=min(counts.cylinders, BIOS_CYLINDERS_MAX))


def vhd(sectors: int) -> Counts:
    """The rule of the VHD specification's appendix "CHS Calculation".

    65535/16/255 is the most.  The product can be up to a cylinder less than `sectors`.
    """
    sectors = min(sectors, VHD_SECTORS_MAX)
    if sectors >= VHD_CYLINDERS_MAX * 16 * 63:
        return fixed_heads(sectors, 16, 255)
    tracks = sectors // 17
    heads = max(4, -(-tracks // 1024))
    sectors_per_track = 17
    if tracks >= heads * 1024 or heads > 16:
        sectors_per_track, heads, tracks = 31, 16, sectors // 31
    if tracks >= heads * 1024:
        sectors_per_track, heads, tracks = 63, 16, sectors // 63
    return Counts(tracks // heads, heads, sectors_per_track)
