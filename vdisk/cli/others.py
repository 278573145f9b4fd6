"""The geometry that each profile would give a disk, and what other programs make of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from vdisk.errors import InvalidArgument
from vdisk.firmware import Translation, qemu_guess, seabios_logical, virtualbox_logical
from vdisk.geometry import PROFILES, Geometry, derive
from vdisk.partitioners import LinuxDriver, fdisk_geometry, linux_getgeo, parted_geometry
from vdisk.translation import Counts
from vdisk.units import SECTOR


class Seen(NamedTuple):
    """A geometry and whose it is; None where there is none."""

    by: str
    geometry: Geometry | Counts | None
    remark: str = ""

    def text(self) -> str | None:
        """ "C/H/S", None where there is none."""
        return None if self.geometry is None else str(self.geometry)


def seen_by_profiles(size_bytes: int, sector_size: int) -> Iterator[Seen]:
    """The geometry by each profile that a disk of this size can have, in the profiles' order."""
    for name, profile in PROFILES.items():
        try:
            geometry = derive(name, size_bytes, sector_size)
        except InvalidArgument:
            continue  # It fixes another size.
        yield Seen(f"profile {name}", geometry, profile.summary)


def seen_by_others(
    size_bytes: int, sector_size: int, first_sector: bytes | None
) -> Iterator[Seen]:
    """What QEMU, two BIOSes, the kernel's drivers, fdisk and parted make of the disk.

    `first_sector` is its first 512 bytes, which several of them look at.  Nothing where sectors
    are not of 512 bytes: their rules are for those.
    """
    if sector_size != SECTOR:
        return
    sectors = size_bytes // SECTOR
    guess = qemu_guess(sectors, first_sector)
    logical = seabios_logical(sectors, guess.physical, guess.translation)
    yield Seen("QEMU, IDE", guess.physical, "what the drive answers to IDENTIFY")
    yield Seen("SeaBIOS, IDE", logical.counts, f"INT 13h, {_named(logical.translation)}")
    other = seabios_logical(sectors, guess.physical)
    yield Seen("SeaBIOS, others", other.counts, f"INT 13h, {_named(other.translation)}")
    yield Seen("VirtualBox", virtualbox_logical(sectors, first_sector), "INT 13h")
    for driver in LinuxDriver:
        counts = linux_getgeo(driver, sectors, first_sector)
        remark = "HDIO_GETGEO" if counts is not None else "has no HDIO_GETGEO"
        yield Seen(f"Linux, {driver}", counts, remark)
    yield Seen("fdisk, sfdisk", fdisk_geometry(sectors, first_sector), "of an image file")
    yield Seen("parted", parted_geometry(sectors, first_sector), "of an image file")


def _named(translation: Translation) -> str:
    return "no translation" if translation is Translation.NONE else f"translation {translation}"
