"""The geometry that a new or resized VHD gets.

Some programs take a VHD to be as large as its geometry says, others as large as its current size.
So a geometry whose product is the size is best; for sizes that have none, one that is smaller.
"""

from __future__ import annotations

from vdisk.formats.vhd_footer import CYLINDERS_MAX, HEADS_MAX, SECTORS_PER_TRACK_MAX
from vdisk.geometry import Geometry, cover, derive
from vdisk.translation import vhd
from vdisk.units import SECTOR

_HEADS = range(16, 0, -1)  # The specification has no more than 16.
# What an MBR can name comes first, longer tracks after that.
_SECTORS_PER_TRACK = (*range(63, 0, -1), *range(SECTORS_PER_TRACK_MAX, 63, -1))


def new_geometry(size: int) -> Geometry:
    """The geometry of a new disk of `size` bytes, whole sectors and at least one.

    The specification's where that is exactly the size, else the one with the fewest cylinders that
    is, if one is; else the specification's, which is up to a cylinder smaller.
    """
    return exact_geometry(size) or derive("vhd", size)


def exact_geometry(size: int) -> Geometry | None:
    """A geometry of exactly `size` bytes, None where a footer can hold none."""
    sectors = size // SECTOR
    usual = vhd(sectors).geometry()
    if usual is not None and usual.sectors == sectors:
        return usual
    for heads in _HEADS:
        for sectors_per_track in _SECTORS_PER_TRACK:
            cylinders, rest = divmod(sectors, heads * sectors_per_track)
            if not rest and 0 < cylinders <= CYLINDERS_MAX:
                return Geometry(cylinders, heads, sectors_per_track)
    return None


def fitted_geometry(geometry: Geometry, size: int) -> Geometry | None:
    """`geometry` with the cylinders that fit a disk of `size` bytes; another one where none do."""
    fits = geometry.heads <= HEADS_MAX and geometry.sectors_per_track <= SECTORS_PER_TRACK_MAX
    if fits and geometry.sector_size == SECTOR:
        fitted = cover(size, geometry.heads, geometry.sectors_per_track)
        if fitted is not None and fitted.cylinders <= CYLINDERS_MAX:
            return fitted
    return new_geometry(size) if size >= SECTOR else None
