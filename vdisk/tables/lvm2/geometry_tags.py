"""A volume's geometry and sector size, kept as LV tags so that LVM2 carries and shows them.

    vdisk.geometry=1024/16/63       cylinders/heads/sectors per track
    vdisk.sector_size=512           bytes per sector
"""

from __future__ import annotations

from collections.abc import Iterable

from vdisk.errors import InvalidArgument
from vdisk.geometry import Geometry, check_sector_size
from vdisk.units import SECTOR

_GEOMETRY = "vdisk.geometry="
_SECTOR_SIZE = "vdisk.sector_size="


def with_geometry(
    tags: Iterable[str], geometry: Geometry | None, sector_size: int | None
) -> tuple[str, ...]:
    """`tags` with those of `geometry` and `sector_size`; None leaves the tag out.

    Other tags keep their order.  Where there is a geometry, its sector size counts.
    """
    kept = [tag for tag in tags if not tag.startswith((_GEOMETRY, _SECTOR_SIZE))]
    if geometry is not None:
        kept.append(f"{_GEOMETRY}{geometry}")
        sector_size = geometry.sector_size
    if sector_size is not None:
        kept.append(f"{_SECTOR_SIZE}{sector_size}")
    return tuple(kept)


def geometry_of(tags: Iterable[str]) -> tuple[Geometry | None, int | None]:
    """The geometry and the sector size that `tags` record; None for what they do not.

    Whoever can run lvchange can write any tag: one that makes no sense counts as not there.
    """
    tags = tuple(tags)
    sector_size = _sector_size(_value(tags, _SECTOR_SIZE))
    text = _value(tags, _GEOMETRY)
    try:
        return Geometry.parse(text, sector_size or SECTOR), sector_size
    except InvalidArgument:
        return None, sector_size


def _value(tags: tuple[str, ...], start: str) -> str:
    return next((tag[len(start) :] for tag in tags if tag.startswith(start)), "")


def _sector_size(text: str) -> int | None:
    if not (text.isascii() and text.isdigit() and len(text) < 6):
        return None
    try:
        check_sector_size(int(text))
    except InvalidArgument:
        return None
    return int(text)
