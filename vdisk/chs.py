"""Cylinders, heads and sectors: a disk's geometry, and an address in it.

The map is the one every PC uses (ATA-1, 7.1.2)::

    lba = (cylinder * heads + head) * sectors_per_track + (sector - 1)

Cylinders and heads count from 0, sectors from 1, LBAs from 0.  All of it is exact integer
arithmetic on immutable values; nothing here touches a file.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from vdisk.errors import InvalidArgument, OutOfRange
from vdisk.units import SECTOR, SIZE_BYTES_MAX, format_size

CYLINDERS_MAX = (1 << 32) - 1
"""The largest number the 32-bit cylinder fields of HDI, VDI and RDB headers hold."""

HEADS_MAX = (1 << 16) - 1
"""An MBR stops at 256 heads, a boot sector's BPB counts them in 16 bits; nobody makes more."""

SECTORS_PER_TRACK_MAX = (1 << 16) - 1
"""MBR stops at 63, a VHD footer at 255, a BPB and an NHD header count in 16 bits."""

SECTOR_SIZES = (128, 256, 512, 1024, 2048, 4096)
"""128 bytes are the single-density floppy's, 4096 those of a 4Kn drive."""

# No field is longer than the ten digits of 2**32-1, so a hostile text never becomes a huge number.
_TRIPLE = re.compile(r"[ \t]*([0-9]{1,10})/([0-9]{1,10})/([0-9]{1,10})[ \t]*", re.ASCII)


def check_sector_size(sector_size: int) -> int:
    """`sector_size` itself.  Raises InvalidArgument if it is not a power of two, 128 to 4096."""
    if sector_size not in SECTOR_SIZES:
        raise InvalidArgument(
            f"{sector_size} is not a sector size",
            hint=f"it is one of {', '.join(map(str, SECTOR_SIZES))}",
        )
    return sector_size


def _triple(text: str, what: str, example: str) -> tuple[int, int, int]:
    match = _TRIPLE.fullmatch(text)
    if match is None:
        shown = text if len(text) <= 40 else f"{text[:40]}…"
        raise InvalidArgument(f"{shown!r} is not {what}", hint=f"write it as {example}")
    return int(match[1]), int(match[2]), int(match[3])


@dataclass(frozen=True, slots=True, order=True)
class CHS:
    """One sector's address: `cylinder` and `head` count from 0, `sector` from 1.

    Addresses sort in the order of their LBAs.  Raises InvalidArgument for a number that no geometry
    reaches; whether a certain geometry reaches it, `Geometry.lba` tells.
    """

    cylinder: int
    head: int
    sector: int

    def __post_init__(self) -> None:
        _check("cylinder", self.cylinder, 0, CYLINDERS_MAX - 1)
        _check("head", self.head, 0, HEADS_MAX - 1)
        _check("sector", self.sector, 1, SECTORS_PER_TRACK_MAX)

    @classmethod
    def parse(cls, text: str) -> CHS:
        """The address written "C/H/S", such as "0/0/1".  Raises InvalidArgument."""
        return cls(*_triple(text, "a sector's address", "cylinder/head/sector, for instance 0/0/1"))

    def __str__(self) -> str:
        return f"{self.cylinder}/{self.head}/{self.sector}"


@dataclass(frozen=True, slots=True)
class Geometry:
    """How many cylinders, heads and sectors per track a disk has, and bytes per sector.

    `cylinders` 1 to 2**32-1, `heads` and `sectors_per_track` 1 to 65535, `sector_size` a power of
    two from 128 to 4096; all together not above 2**63-1 bytes.  Raises InvalidArgument.
    """

    cylinders: int
    heads: int
    sectors_per_track: int
    sector_size: int = SECTOR

    def __post_init__(self) -> None:
        _check("cylinders", self.cylinders, 1, CYLINDERS_MAX)
        _check("heads", self.heads, 1, HEADS_MAX)
        _check("sectors per track", self.sectors_per_track, 1, SECTORS_PER_TRACK_MAX)
        check_sector_size(self.sector_size)
        if self.size_bytes > SIZE_BYTES_MAX:
            raise InvalidArgument(
                f"geometry {self} with {self.sector_size}-byte sectors is {self.size_bytes} bytes: "
                f"no disk is larger than {SIZE_BYTES_MAX}"
            )

    @classmethod
    def parse(cls, text: str, sector_size: int = SECTOR) -> Geometry:
        """The geometry written "C/H/S", such as "1024/16/63".

        The bytes per sector are always said apart (`--sector-size`), so that a geometry's text
        means the same on every disk.  Raises InvalidArgument.
        """
        counts = _triple(text, "a geometry", "cylinders/heads/sectors, for instance 1024/16/63")
        return cls(*counts, sector_size)

    def __str__(self) -> str:
        return f"{self.cylinders}/{self.heads}/{self.sectors_per_track}"

    @property
    def sectors(self) -> int:
        """The sectors that a C/H/S address reaches."""
        return self.cylinders * self.sectors_per_cylinder

    @property
    def size_bytes(self) -> int:
        """The bytes that a C/H/S address reaches."""
        return self.sectors * self.sector_size

    @property
    def sectors_per_cylinder(self) -> int:
        return self.heads * self.sectors_per_track

    @property
    def track_bytes(self) -> int:
        return self.sectors_per_track * self.sector_size

    @property
    def cylinder_bytes(self) -> int:
        return self.sectors_per_cylinder * self.sector_size

    def lba(self, chs: CHS) -> int:
        """The LBA, from 0, of the sector at `chs`.  Raises OutOfRange if there is none."""
        if (
            chs.cylinder >= self.cylinders
            or chs.head >= self.heads
            or chs.sector > self.sectors_per_track
        ):
            raise OutOfRange(
                f"no sector {chs} in geometry {self}",
                hint=f"cylinders 0 to {self.cylinders - 1}, heads 0 to {self.heads - 1}, "
                f"sectors 1 to {self.sectors_per_track}",
            )
        return (chs.cylinder * self.heads + chs.head) * self.sectors_per_track + chs.sector - 1

    def chs(self, lba: int) -> CHS:
        """The address of sector `lba`.

        Raises OutOfRange for an LBA below 0 or at or past `sectors`: past the last full cylinder
        only LBA reaches.
        """
        if not 0 <= lba < self.sectors:
            raise OutOfRange(
                f"LBA {lba} has no address in geometry {self}",
                hint=f"its LBAs are 0 to {self.sectors - 1}",
            )
        track, sector = divmod(lba, self.sectors_per_track)
        cylinder, head = divmod(track, self.heads)
        return CHS(cylinder, head, sector + 1)

    def unaddressed_sectors(self, size_bytes: int) -> int:
        """How many whole sectors of a disk of `size_bytes` only LBA reaches, maybe 0."""
        return max(0, size_bytes // self.sector_size - self.sectors)


def cover(
    size_bytes: int, heads: int, sectors_per_track: int, sector_size: int = SECTOR
) -> Geometry | None:
    """The geometry of these heads and sectors with the most cylinders that fit in `size_bytes`.

    None if not even one cylinder fits.  Never more than 2**32-1 cylinders.  Raises InvalidArgument
    for heads, sectors or a sector size that no geometry has.
    """
    cylinder = Geometry(1, heads, sectors_per_track, sector_size)
    cylinders = min(size_bytes // cylinder.cylinder_bytes, CYLINDERS_MAX)
    return Geometry(cylinders, heads, sectors_per_track, sector_size) if cylinders > 0 else None


def check_fits(geometry: Geometry, size_bytes: int) -> None:
    """Refuses a geometry that is larger than the disk; a smaller one leaves sectors to LBA alone.

    A geometry is never rescaled behind somebody's back: the InvalidArgument this raises says how
    large the disk would have to be, and what would fit this one.
    """
    if geometry.size_bytes <= size_bytes:
        return
    largest = cover(size_bytes, geometry.heads, geometry.sectors_per_track, geometry.sector_size)
    fits = (
        f"{largest} would fit this disk"
        if largest is not None
        else f"not one cylinder of {geometry.cylinder_bytes} bytes fits this disk"
    )
    raise InvalidArgument(
        f"geometry {geometry} needs {geometry.size_bytes} bytes "
        f"({format_size(geometry.size_bytes)}), and the disk has {size_bytes}",
        hint=f"{fits}; or make the disk {geometry.size_bytes} bytes",
    )


def _check(what: str, number: int, low: int, high: int) -> None:
    if not low <= number <= high:
        raise InvalidArgument(f"{what} {number} is not in {low} to {high}")
