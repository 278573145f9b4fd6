"""A disk's geometry: where it comes from, and everything about it under one name.

What the rest of vdisk needs of cylinders, heads and sectors it imports from here; `chs` has the
arithmetic, `packed_chs` the three bytes of an MBR, `profiles` the rules that make a geometry of a
size, `evidence` what a disk's first bytes tell.  This module weighs them: `choose`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from vdisk.chs import CHS, Geometry, check_fits, check_sector_size, cover
from vdisk.errors import Corrupt, InvalidArgument
from vdisk.evidence import from_bpb, from_mbr, media_byte
from vdisk.floppies import floppy_of_size
from vdisk.packed_chs import UnpackedCHS, is_overflow, overflow, pack_chs, pack_lba, unpack_chs
from vdisk.profiles import (
    DEFAULT_PROFILE,
    PROFILES,
    derive,
    profile_sector_size,
    profile_size,
)

__all__ = [
    "CHS",
    "DEFAULT_PROFILE",
    "PROFILES",
    "Choice",
    "Geometry",
    "Opinion",
    "Source",
    "UnpackedCHS",
    "check_fits",
    "check_sector_size",
    "choose",
    "cover",
    "derive",
    "is_overflow",
    "overflow",
    "pack_chs",
    "pack_lba",
    "profile_sector_size",
    "profile_size",
    "unpack_chs",
]


class Source(StrEnum):
    """Where a geometry can come from; the first that has one wins."""

    GIVEN = "given"
    STORED = "stored"
    HEADER = "header"
    RDB = "rdb"
    MBR = "mbr"
    BPB = "bpb"
    FLOPPY = "floppy"
    PROFILE = "profile"


@dataclass(frozen=True, slots=True)
class Opinion:
    """What one source says: a geometry that fits the disk, or None; `detail` says why."""

    source: Source
    geometry: Geometry | None
    detail: str

    def __str__(self) -> str:
        answer = "no opinion" if self.geometry is None else str(self.geometry)
        return f"{self.source}: {answer} ({self.detail})"


@dataclass(frozen=True, slots=True)
class Choice:
    """The geometry that won, whose it is, and what every source says, in order of precedence."""

    geometry: Geometry
    source: Source
    opinions: tuple[Opinion, ...]


def choose(
    size_bytes: int,
    sector_size: int,
    *,
    given: Geometry | None = None,
    stored: Geometry | None = None,
    header: Geometry | None = None,
    rdb: Geometry | None = None,
    first_sector: bytes | None = None,
    profile: str = DEFAULT_PROFILE,
) -> Choice | None:
    """The geometry of a disk of `size_bytes` in sectors of `sector_size`; None below one sector.

    `given` is the user's, `stored` what vdisk kept with the disk, `header` the image's own, `rdb`
    that of an Amiga's rigid disk block on the disk.
    `first_sector` is the first 512 bytes of the disk whatever its sector size, None or less where
    there are fewer; an MBR, a BPB and a floppy's media byte are looked for in it.  `profile`
    derives what nobody else says.

    A geometry is never rescaled.  Raises InvalidArgument where `given` does not fit the disk or
    has another sector size, and Corrupt where `stored` does not fit and none was given; both say
    what would.  A `header` that does not fit is an opinion with a reason.  Raises InvalidArgument
    as well for no such profile, for a profile that is needed and fixes another size, and for an
    impossible sector size.
    """
    check_sector_size(sector_size)
    profile_size(profile)  # A name that is no profile's is refused even where it is not needed.
    opinions = (
        _given(given, size_bytes, sector_size),
        _stored(stored, size_bytes, sector_size, overruled=given is not None),
        _told(Source.HEADER, header, size_bytes, sector_size, "the image's header"),
        _told(Source.RDB, rdb, size_bytes, sector_size, "the Amiga's rigid disk block"),
        Opinion(Source.MBR, *from_mbr(first_sector, size_bytes, sector_size)),
        Opinion(Source.BPB, *from_bpb(first_sector, size_bytes, sector_size)),
        _floppy(size_bytes, sector_size, first_sector),
    )
    if size_bytes < sector_size:
        return None
    for opinion in opinions:
        if opinion.geometry is not None:
            last = _profile(profile, size_bytes, sector_size, needed=False)
            return Choice(opinion.geometry, opinion.source, (*opinions, last))
    last = _profile(profile, size_bytes, sector_size, needed=True)
    assert last.geometry is not None
    return Choice(last.geometry, last.source, (*opinions, last))


def _given(given: Geometry | None, size_bytes: int, sector_size: int) -> Opinion:
    if given is None:
        return Opinion(Source.GIVEN, None, "none was given")
    if given.sector_size != sector_size:
        raise InvalidArgument(
            f"the geometry {given} given has sectors of {given.sector_size} bytes, "
            f"and the disk has sectors of {sector_size}"
        )
    check_fits(given, size_bytes)
    return Opinion(Source.GIVEN, given, "given by the user")


def _stored(
    stored: Geometry | None, size_bytes: int, sector_size: int, *, overruled: bool
) -> Opinion:
    opinion = _told(Source.STORED, stored, size_bytes, sector_size, "stored with the disk")
    if stored is None or opinion.geometry is not None or overruled:
        return opinion
    if stored.sector_size == sector_size:
        try:
            check_fits(stored, size_bytes)
        except InvalidArgument as error:
            raise Corrupt(f"the stored {error.message}", hint=error.hint) from error
    return opinion


def _told(
    source: Source, told: Geometry | None, size_bytes: int, sector_size: int, detail: str
) -> Opinion:
    if told is None:
        return Opinion(source, None, "none")
    if told.sector_size != sector_size:
        return Opinion(source, None, f"{told} is in sectors of {told.sector_size} bytes")
    if told.size_bytes > size_bytes:
        return Opinion(
            source, None, f"{told} needs {told.size_bytes} bytes, more than the disk has"
        )
    return Opinion(source, told, detail)


def _floppy(size_bytes: int, sector_size: int, first_sector: bytes | None) -> Opinion:
    floppy = floppy_of_size(size_bytes, sector_size, media_byte(first_sector, sector_size))
    if floppy is None:
        return Opinion(Source.FLOPPY, None, "no floppy is of this size")
    return Opinion(Source.FLOPPY, floppy.geometry, f"the size of a {floppy.name} floppy")


def _profile(name: str, size_bytes: int, sector_size: int, *, needed: bool) -> Opinion:
    try:
        return Opinion(Source.PROFILE, derive(name, size_bytes, sector_size), f"profile {name}")
    except InvalidArgument as error:
        if needed:
            raise
        return Opinion(Source.PROFILE, None, error.message)
