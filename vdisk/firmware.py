"""What a BIOS and the machine under it make of a disk: SeaBIOS, QEMU, VirtualBox.

A physical geometry (PCHS) is what the drive answers to IDENTIFY, a logical one (LCHS) what INT 13h
gives to software; a translation is the rule between them.  All sectors here are of 512 bytes.
"""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

from vdisk.evidence import mbr_entries
from vdisk.packed_chs import unpack_chs
from vdisk.tables.entry import MbrEntry
from vdisk.translation import (
    ATA_CYLINDERS_MAX,
    ATA_HEADS,
    BIOS_CYLINDERS_MAX,
    BIOS_HEADS_MAX,
    BIOS_SECTORS_PER_TRACK_MAX,
    Counts,
    bit_shift,
    fixed_heads,
    lba_assisted,
    revised_bit_shift,
)

# The cylinders times heads of 8192/16, which doubled to 1024/128 still are within bit-shift's
# reach.
_LARGE_TRACKS_MAX = 131072


class Translation(StrEnum):
    """How PCHS becomes LCHS, by SeaBIOS's names."""

    NONE = "none"
    LBA = "lba"
    LARGE = "large"
    RECHS = "r-echs"
    HOST = "host-supplied"


class Seen(NamedTuple):
    """A geometry and the translation that goes with it."""

    counts: Counts
    translation: Translation


class QemuGuess(NamedTuple):
    """QEMU's physical geometry, the translation it tells the BIOS, and the MBR's logical one."""

    physical: Counts
    translation: Translation
    from_mbr: Counts | None


def qemu_guess(sectors: int, first_sector: bytes | None = None) -> QemuGuess:
    """What QEMU gives a disk to which the user gave no geometry (`hw/block/hd-geometry.c`)."""
    logical = _first_entry_geometry(sectors, first_sector, ATA_CYLINDERS_MAX)
    standard = _ata(sectors, 2)
    if logical is None:
        return QemuGuess(standard, without_translation(standard) or Translation.LBA, None)
    if logical.heads <= ATA_HEADS:
        return QemuGuess(logical, Translation.NONE, logical)
    return QemuGuess(standard, _large_or_lba(standard), logical)


def _ata(sectors: int, cylinders_min: int) -> Counts:
    """What IDENTIFY usually answers: 16/63, and from `cylinders_min` to 16383 cylinders."""
    counts = fixed_heads(sectors, ATA_HEADS, BIOS_SECTORS_PER_TRACK_MAX)
    return counts._replace(cylinders=min(max(counts.cylinders, cylinders_min), ATA_CYLINDERS_MAX))


def without_translation(counts: Counts) -> Translation | None:
    """`Translation.NONE` if INT 13h and ATA both reach all of it (1024/16/63), else None.

    QEMU's rule for a geometry that the user gave is this, or else LBA.
    """
    small = (
        counts.cylinders <= BIOS_CYLINDERS_MAX
        and counts.heads <= ATA_HEADS
        and counts.sectors_per_track <= BIOS_SECTORS_PER_TRACK_MAX
    )
    return Translation.NONE if small else None


def _large_or_lba(physical: Counts) -> Translation:
    tracks = physical.cylinders * physical.heads
    return Translation.LARGE if tracks <= _LARGE_TRACKS_MAX else Translation.LBA


def _first_entry_geometry(
    sectors: int, first_sector: bytes | None, cylinders_max: int
) -> Counts | None:
    """Heads and sectors where the first MBR entry ends that says so, and 1 to `cylinders_max`."""
    for entry in mbr_entries(first_sector or b""):
        counts = _entry_end(entry, sectors)
        if counts is not None and 1 <= counts.cylinders <= cylinders_max:
            return counts
    return None


def _entry_end(entry: MbrEntry, sectors: int) -> Counts | None:
    end = unpack_chs(entry.end_chs)
    if entry.sectors == 0 or end.head == 0 or end.sector == 0:
        return None
    return fixed_heads(sectors, end.head + 1, end.sector)


def cmos_translation(translation: Translation) -> int:
    """The two bits of CMOS byte 0x39 that tell the BIOS.  ValueError for host-supplied."""
    return (Translation.NONE, Translation.LBA, Translation.LARGE, Translation.RECHS).index(
        translation
    )


def cmos_drive_bytes(physical: Counts) -> bytes:
    """The nine CMOS bytes of a drive of type 47, at 0x1B for the first and 0x24 for the second.

    QEMU, `hw/i386/pc.c`.  OverflowError for more than 65535 cylinders or 255 heads or sectors.
    """
    cylinders = physical.cylinders.to_bytes(2, "little")
    control = 0xC0 | (physical.heads > 8) << 3
    heads = physical.heads.to_bytes(1, "little")
    sectors_per_track = physical.sectors_per_track.to_bytes(1, "little")
    return cylinders + heads + bytes((0xFF, 0xFF, control)) + cylinders + sectors_per_track


def bios_geometry_line(device_path: str, logical: Counts) -> str:
    """The line of QEMU's fw_cfg file `bios-geometry` that makes `logical` host-supplied."""
    return f"{device_path} {' '.join(map(str, logical))}"


def seabios_logical(
    sectors: int,
    physical: Counts,
    translation: Translation | None = None,
    *,
    host_logical: Counts | None = None,
) -> Seen:
    """What SeaBIOS's INT 13h answers (`src/block.c`).

    `translation` is what the CMOS says of an IDE disk; None for disks of other kinds, where
    SeaBIOS chooses one itself.  `host_logical` is from QEMU's `bios-geometry`, and wins where it
    can be a BIOS's.
    """
    if host_logical is not None and _within_bios(host_logical):
        return Seen(_clipped(host_logical), Translation.HOST)
    if translation is None:
        translation = _seabios_choice(sectors, physical)
    return Seen(_clipped(_translate(sectors, physical, translation)), translation)


def _translate(sectors: int, physical: Counts, translation: Translation) -> Counts:
    match translation:
        case Translation.LBA:
            return lba_assisted(sectors)
        case Translation.LARGE:
            return bit_shift(physical)
        case Translation.RECHS:
            return revised_bit_shift(physical)
        case _:
            return physical


def _seabios_choice(sectors: int, physical: Counts) -> Translation:
    reach = physical.cylinders * physical.heads * physical.sectors_per_track
    if reach == 0 or reach > sectors:
        return Translation.LBA
    return without_translation(physical) or _large_or_lba(physical)


def _within_bios(counts: Counts) -> bool:
    return (
        counts.cylinders > 0
        and 1 <= counts.heads <= BIOS_HEADS_MAX
        and 1 <= counts.sectors_per_track <= BIOS_SECTORS_PER_TRACK_MAX
    )


def _clipped(counts: Counts) -> Counts:
    return counts._replace(cylinders=min(counts.cylinders, BIOS_CYLINDERS_MAX))


def virtualbox_logical(
    sectors: int, first_sector: bytes | None = None, *, stored: Counts | None = None
) -> Counts:
    """The logical geometry VirtualBox gives a disk (`DevPcBios.cpp`; read there, not run).

    The one stored in the image, else the MBR's, else the physical one; where the BIOS cannot take
    that, LBA-assisted with the fewest heads of which 1024 cylinders are enough.
    """
    if stored is not None and _within_bios(stored):
        return stored
    from_mbr = _first_entry_geometry(sectors, first_sector, sectors)
    guess = _clipped(from_mbr) if from_mbr is not None else _ata(sectors, 1)
    if _within_bios(guess) and guess.cylinders <= BIOS_CYLINDERS_MAX:
        return guess
    choices = (
        fixed_heads(sectors, heads, BIOS_SECTORS_PER_TRACK_MAX) for heads in (16, 32, 64, 128)
    )
    fitting = (counts for counts in choices if counts.cylinders <= BIOS_CYLINDERS_MAX)
    largest = fixed_heads(sectors, BIOS_HEADS_MAX, BIOS_SECTORS_PER_TRACK_MAX)
    return next(fitting, _clipped(largest))
