"""The three bytes in which an MBR keeps a C/H/S address.

A head from 0 to 255, a sector from 1 to 63 and a cylinder from 0 to 1023::

    byte 0   head
    byte 1   bits 0-5 the sector, bits 6-7 bits 8-9 of the cylinder
    byte 2   bits 0-7 of the cylinder

What lies past cylinder 1023 cannot be said.  fdisk, sfdisk and parted then write the last sector of
cylinder 1023 of the geometry in use; a GPT's protective entry has FF FF FF.
"""

from __future__ import annotations

from typing import NamedTuple

from vdisk.chs import CHS, Geometry
from vdisk.errors import InvalidArgument, OutOfRange

PACKED_CYLINDER_MAX = 1023
PACKED_HEAD_MAX = 255
PACKED_SECTOR_MAX = 63


class UnpackedCHS(NamedTuple):
    """What three bytes say, right or wrong: `cylinder` 0-1023, `head` 0-255, `sector` 0-63.

    Sector 0 is no address, and stands in empty entries and in junk, so this is not a `CHS`.
    """

    cylinder: int
    head: int
    sector: int

    def address(self) -> CHS | None:
        """The same as an address, or None where the sector is 0."""
        return CHS(*self) if self.sector else None

    def __str__(self) -> str:
        return f"{self.cylinder}/{self.head}/{self.sector}"


def pack_chs(chs: CHS) -> bytes:
    """The three bytes for `chs`.  Raises OutOfRange for an address they cannot hold."""
    if (
        chs.cylinder > PACKED_CYLINDER_MAX
        or chs.head > PACKED_HEAD_MAX
        or chs.sector > PACKED_SECTOR_MAX
    ):
        raise OutOfRange(
            f"sector {chs} cannot be packed in three bytes",
            hint="an MBR holds cylinders to 1023, heads to 255 and sectors to 63",
        )
    return bytes((chs.head, chs.sector | (chs.cylinder >> 2) & 0xC0, chs.cylinder & 0xFF))


def unpack_chs(packed: bytes) -> UnpackedCHS:
    """What the three bytes say.  Raises InvalidArgument if they are not three."""
    if len(packed) != 3:
        raise InvalidArgument(f"a packed C/H/S address is 3 bytes, not {len(packed)}")
    head, sector, cylinder = packed
    return UnpackedCHS(cylinder | (sector & 0xC0) << 2, head, sector & 0x3F)


def pack_lba(lba: int, geometry: Geometry) -> bytes:
    """The three bytes that fdisk, sfdisk and parted write for sector `lba` on a disk of `geometry`.

    Past cylinder 1023 they are those of `overflow`.  The number of cylinders plays no part, as a
    partition may end in the sectors past the last full one.  Raises OutOfRange for an LBA below 0,
    and for a head or sector that an MBR cannot hold.
    """
    if lba < 0:
        raise OutOfRange(f"LBA {lba} is below 0")
    track, sector = divmod(lba, geometry.sectors_per_track)
    cylinder, head = divmod(track, geometry.heads)
    if cylinder > PACKED_CYLINDER_MAX:
        return overflow(geometry)
    return pack_chs(CHS(cylinder, head, sector + 1))


def overflow(geometry: Geometry) -> bytes:
    """The last sector of cylinder 1023: what stands for everything past it.  Raises OutOfRange."""
    return pack_chs(CHS(PACKED_CYLINDER_MAX, geometry.heads - 1, geometry.sectors_per_track))


def is_overflow(unpacked: UnpackedCHS, geometry: Geometry | None = None) -> bool:
    """Whether this may only mean "use the LBA": no evidence of a geometry.

    True for 1023/254/63 and 1023/255/63, and for the last sector of cylinder 1023 of `geometry`
    where one is given.  The real last sector of a disk of 1024 cylinders looks the same; the LBA
    tells.
    """
    if unpacked.cylinder != PACKED_CYLINDER_MAX:
        return False
    if unpacked.sector == PACKED_SECTOR_MAX and unpacked.head in (254, 255):
        return True
    return geometry is not None and (unpacked.head, unpacked.sector) == (
        geometry.heads - 1,
        geometry.sectors_per_track,
    )
