"""A new image with all that a disk holds."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

from vdisk.contents import ZERO_UNIT, data_ranges, widened
from vdisk.copying import Advance, copy_disk, pieces_of
from vdisk.create import NewDisk, creatable_format, create_image, plan_disk
from vdisk.disk import Disk
from vdisk.errors import InvalidArgument
from vdisk.formats.creation import Creation
from vdisk.formats.registry import FORMATS
from vdisk.geometry import Source
from vdisk.open import open_image
from vdisk.options import OpenOptions


def plan_conversion(source: Disk, path: Path, asked: OpenOptions) -> NewDisk:
    """What the new image `path` of `source` is to be, with what the user asks of it.

    Its geometry is the source's, unless another is asked for, or nothing but the size tells it.
    """
    usual = creatable_format(path, asked.format).sector_size
    new = plan_disk(
        size_bytes=source.size, chs=asked.chs, profile=asked.profile,
        sector_size=asked.sector_size or source.sector_size, usual_sector_size=usual,
    )
    kept = source.choice
    silent = asked.chs is None and asked.profile is None
    if silent and kept is not None and kept.source is not Source.PROFILE:
        geometry = kept.geometry
        if geometry.sector_size == new.geometry.sector_size:
            new = replace(new, geometry=geometry)
    return replace(new, format=asked.format)


def convert(
    source: Disk, path: Path, new: NewDisk, advance: Advance, *, compress: bool = False
) -> bool:
    """Make the image `path` with all that `source` holds; whether its geometry could be recorded.

    Its data are compressed with `compress`, or where an option of the format asks for it.  Raises
    what `create_image` and `copy_disk` do; then, and when interrupted, no new file is left.
    """
    if compress or creatable_format(path, new.format).compressing & new.options.items():
        return create_image(path, new, write=partial(_compressed, source, path, new, advance))

    made = OpenOptions(format=creatable_format(path, new.format).name)

    def fill() -> None:
        with open_image(path, writable=True, options=made) as target:
            target.is_throwaway = True  # Until all is in it: after a crash it is none.
            copy_disk(source, target, advance, fresh=True)

    return create_image(path, new, fill=fill)


def _compressed(
    source: Disk, path: Path, new: NewDisk, advance: Advance, creation: Creation
) -> None:
    entry = creatable_format(path, new.format)
    if entry.write_compressed is None:
        able = ", ".join(sorted(e.name for e in FORMATS.values() if e.write_compressed))
        raise InvalidArgument(
            f"{entry.name} images are not compressed", path=path,
            hint=f"formats that can be: {able or 'none in this version'}",
        )
    ranges = widened(data_ranges(source), ZERO_UNIT, source.size)
    entry.write_compressed(creation, pieces_of(source, ranges, advance))
