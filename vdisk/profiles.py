"""Profiles: a name for the rule that derives a disk's geometry from its size, or for a fixed size.

`docs/geometry.md` has them as a table, with what each does past its limits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from vdisk.chs import CYLINDERS_MAX, Geometry, check_sector_size
from vdisk.drive_types import DRIVE_TYPES
from vdisk.errors import InvalidArgument
from vdisk.floppies import FLOPPIES
from vdisk.translation import (
    Counts,
    bit_shift,
    fixed_heads,
    lba_assisted,
    revised_bit_shift,
    vhd,
)
from vdisk.units import SECTOR

DEFAULT_PROFILE = "ata"


@dataclass(frozen=True, slots=True)
class Profile:
    """One profile: either a `rule` from sectors to counts, or a `fixed` geometry, never both."""

    name: str
    summary: str
    rule: Callable[[int], Counts] | None = None
    fixed: Geometry | None = None


_DERIVED = (
    Profile(
        "ata", "16 heads, 63 sectors, every cylinder there is", lambda n: fixed_heads(n, 16, 63)
    ),
    Profile("bios", "LBA-assisted INT 13h, at most 1024/255/63", lba_assisted),
    Profile("large", "bit-shift, at most 1024/128/63", lambda n: bit_shift(fixed_heads(n, 16, 63))),
    Profile(
        "rechs",
        "revised bit-shift, at most 1024/240/63",
        lambda n: revised_bit_shift(fixed_heads(n, 16, 63)),
    ),
    Profile("fdisk", "255 heads, 63 sectors", lambda n: fixed_heads(n, 255, 63)),
    Profile("vhd", "as the VHD specification, at most 65535/16/255", vhd),
    Profile("zip", "64 heads, 32 sectors", lambda n: fixed_heads(n, 64, 32)),
    Profile("scsi", "64 heads, 32 sectors", lambda n: fixed_heads(n, 64, 32)),
)
_FIXED = (
    *(Profile(floppy.name, "floppy", fixed=floppy.geometry) for floppy in FLOPPIES),
    *(Profile(name, "drive type", fixed=geometry) for name, geometry in DRIVE_TYPES.items()),
)

PROFILES: dict[str, Profile] = {profile.name: profile for profile in (*_DERIVED, *_FIXED)}
"""Every profile by the name that is shown: derived ones first, then floppies, then drive types."""

# A floppy goes by its KiB as well: "1440K" is "1.44M".
_BY_NAME = {f"{floppy.kib}k": PROFILES[floppy.name] for floppy in reversed(FLOPPIES)} | {
    name.lower(): profile for name, profile in PROFILES.items()
}


def profile(name: str) -> Profile:
    """The profile of that name, in either case.  Raises InvalidArgument, listing the names."""
    found = _BY_NAME.get(name.lower())
    if found is None:
        families = [*(p.name for p in (*_DERIVED, *_FIXED) if p.summary != "drive type")]
        raise InvalidArgument(
            f"no profile {name[:40]!r}",
            hint=f"one of {', '.join(families)}, at-1 to at-23, xt-0 to xt-3, pc98-0 to pc98-6",
        )
    return found


def profile_size(name: str) -> int | None:
    """The size in bytes that the profile fixes, or None.  Raises InvalidArgument for no profile."""
    fixed = profile(name).fixed
    return None if fixed is None else fixed.size_bytes


def profile_sector_size(name: str) -> int | None:
    """The bytes per sector that the profile fixes, or None.  Raises as `profile_size` does."""
    fixed = profile(name).fixed
    return None if fixed is None else fixed.sector_size


def derive(name: str, size_bytes: int, sector_size: int = SECTOR) -> Geometry:
    """The geometry that profile `name` gives a disk of `size_bytes`; never larger than the disk.

    A disk too small for one cylinder of the rule gets one cylinder with as many of its tracks as
    fit, and a disk too small for a track gets one shorter track.

    Raises InvalidArgument for no such profile, a disk of less than one sector, a sector size that
    is none, and a size or sector size other than the one the profile fixes.
    """
    chosen = profile(name)
    sectors = size_bytes // check_sector_size(sector_size)
    if sectors < 1:
        raise InvalidArgument(
            f"a disk of {size_bytes} bytes has no sector of {sector_size} bytes, and no geometry"
        )
    if chosen.rule is None:
        return _fixed(chosen, size_bytes, sector_size)
    counts = chosen.rule(sectors)
    counts = counts._replace(cylinders=min(counts.cylinders, CYLINDERS_MAX))
    return counts.geometry(sector_size) or _part_of_cylinder(counts, sectors, sector_size)


def _part_of_cylinder(counts: Counts, sectors: int, sector_size: int) -> Geometry:
    tracks = sectors // counts.sectors_per_track
    if tracks == 0:
        return Geometry(1, 1, sectors, sector_size)
    return Geometry(1, min(tracks, counts.heads), counts.sectors_per_track, sector_size)


def _fixed(chosen: Profile, size_bytes: int, sector_size: int) -> Geometry:
    assert chosen.fixed is not None
    if (size_bytes, sector_size) != (chosen.fixed.size_bytes, chosen.fixed.sector_size):
        raise InvalidArgument(
            f"profile {chosen.name} is a disk of {chosen.fixed.size_bytes} bytes in sectors of "
            f"{chosen.fixed.sector_size}, not of {size_bytes} in sectors of {sector_size}"
        )
    return chosen.fixed
