"""What the Linux kernel and the partitioning tools make of a disk: HDIO_GETGEO, fdisk, parted, GPT.

All sectors here are of 512 bytes.
"""

from __future__ import annotations

from enum import StrEnum

from vdisk.chs import Geometry
from vdisk.errors import OutOfRange
from vdisk.evidence import from_mbr, mbr_entries
from vdisk.packed_chs import UnpackedCHS, pack_lba, unpack_chs
from vdisk.tables.entry import MbrEntry
from vdisk.translation import Counts, fixed_heads
from vdisk.units import SECTOR

FDISK_HEADS, FDISK_SECTORS = 255, 63
PARTED_HEADS, PARTED_SECTORS = 4, 32

_GPT_PROTECTIVE_START = bytes((0x00, 0x02, 0x00))
_GPT_PROTECTIVE_OVERFLOW = bytes((0xFF, 0xFF, 0xFF))
_U32_MAX = (1 << 32) - 1


class LinuxDriver(StrEnum):
    """The kernel drivers whose answer to HDIO_GETGEO is known."""

    SCSI = "sd"
    LIBATA = "libata"
    NVME = "nvme"
    VIRTIO_BLK = "virtio-blk"
    LOOP = "loop"
    BRD = "brd"


def linux_getgeo(
    driver: LinuxDriver,
    sectors: int,
    first_sector: bytes | None = None,
    *,
    device_geometry: Counts | None = None,
) -> Counts | None:
    """What the ioctl HDIO_GETGEO answers on Linux 6.1; None where the driver has no such ioctl.

    `device_geometry` is the one that a virtio-blk device offers itself (VIRTIO_BLK_F_GEOMETRY), as
    QEMU's do.  The ioctl has 16 bits for cylinders, so they wrap at 65536: no size can be told
    from them.
    """
    match driver:
        case LinuxDriver.LOOP | LinuxDriver.BRD:
            return None
        case LinuxDriver.VIRTIO_BLK if device_geometry is not None:
            counts = device_geometry
        case LinuxDriver.SCSI:
            counts = _scsicam(sectors, first_sector)
        case LinuxDriver.LIBATA:
            counts = fixed_heads(sectors, 255, 63)
        case _:
            counts = fixed_heads(sectors, 64, 32)
    return counts._replace(cylinders=counts.cylinders & 0xFFFF)


def _scsicam(sectors: int, first_sector: bytes | None) -> Counts:
    """`drivers/scsi/scsicam.c`: the MBR, else at most 1024 cylinders of 62 sectors, else 64/32."""
    told = _scsicam_from_mbr(sectors, first_sector)
    if told is None and sectors > _U32_MAX:
        return fixed_heads(sectors, 64, 32)
    counts = told or _scsicam_from_size(sectors)
    if 0 < counts.heads <= 255 and 0 < counts.sectors_per_track <= 63 and counts.cylinders > 0:
        return counts
    heads, sectors_per_track = (255, 63) if sectors >> 11 > 65534 else (64, 32)
    counts = fixed_heads(sectors, heads, sectors_per_track)
    return counts._replace(cylinders=min(counts.cylinders, 65535))


def _scsicam_from_size(sectors: int) -> Counts:
    """First guesses of 1024 cylinders and 62 sectors, refined where they leave a rest."""
    cylinders, sectors_per_track = 1024, 62
    heads, rest = divmod(sectors, cylinders * sectors_per_track)
    if rest:
        heads += 1
        sectors_per_track, rest = divmod(sectors, cylinders * heads)
        if rest:
            sectors_per_track += 1
            cylinders = sectors // (heads * sectors_per_track)
    return Counts(cylinders, heads, sectors_per_track)


def _scsicam_from_mbr(sectors: int, first_sector: bytes | None) -> Counts | None:
    """The end of the entry that starts last, if its end address and its LBAs agree."""
    used = [entry for entry in mbr_entries(first_sector or b"") if entry.type]
    if not used:
        return None
    entry = max(used, key=lambda entry: unpack_chs(entry.start_chs).cylinder)
    end = unpack_chs(entry.end_chs)
    if end.sector == 0 or not _scsicam_agrees(entry, end):
        return None
    return fixed_heads(sectors, end.head + 1, end.sector)


def _scsicam_agrees(entry: MbrEntry, end: UnpackedCHS) -> bool:
    cylinder_sectors = (end.head + 1) * end.sector
    logical_end = entry.start + entry.sectors
    if logical_end == (end.cylinder + 1) * cylinder_sectors:
        return True
    # The end is that of a cylinder, as it names the last head and sector of its own geometry.
    return end.cylinder == 1023 and logical_end % cylinder_sectors == 0 < logical_end


def fdisk_geometry(sectors: int, first_sector: bytes | None = None) -> Counts:
    """What fdisk and sfdisk use for an image file: the MBR's heads and sectors, else 255/63."""
    return _told_or(sectors, first_sector, FDISK_HEADS, FDISK_SECTORS)


def parted_geometry(sectors: int, first_sector: bytes | None = None) -> Counts:
    """What parted uses for an image file: the MBR's heads and sectors, else 4/32.

    parted also asks the boot sectors of the file systems in the partitions, which are not looked
    at here.
    """
    return _told_or(sectors, first_sector, PARTED_HEADS, PARTED_SECTORS)


def _told_or(sectors: int, first_sector: bytes | None, heads: int, spt: int) -> Counts:
    told = from_mbr(first_sector, sectors * SECTOR, SECTOR).geometry
    if told is not None:
        heads, spt = told.heads, told.sectors_per_track
    return fixed_heads(sectors, heads, spt)


def parted_address(lba: int, counts: Counts) -> str:
    """Sector `lba` as parted's `unit chs` prints it: "cylinder,head,sector", all from 0.

    Raises OutOfRange for an LBA below 0.
    """
    if lba < 0:
        raise OutOfRange(f"LBA {lba} is below 0")
    track, sector = divmod(lba, counts.sectors_per_track)
    cylinder, head = divmod(track, counts.heads)
    return f"{cylinder},{head},{sector}"


def gpt_protective_entry(sectors: int, *, true_end: bool = False) -> bytes:
    """The 16 bytes of the MBR entry that keeps old tools off a GPT disk of `sectors`.

    Its end address is FF FF FF, as the UEFI specification (5.2.3) has it where the address cannot
    be said, and as sfdisk and parted always write; with `true_end` the real one at 255/63 while
    that exists, as sgdisk does.
    """
    end = _GPT_PROTECTIVE_OVERFLOW
    if true_end and sectors <= 1024 * FDISK_HEADS * FDISK_SECTORS:
        end = pack_lba(sectors - 1, Geometry(1, FDISK_HEADS, FDISK_SECTORS))
    count = min(sectors - 1, _U32_MAX)
    return (
        b"\0" + _GPT_PROTECTIVE_START + b"\xee" + end
        + (1).to_bytes(4, "little") + count.to_bytes(4, "little")
    )  # fmt: skip
