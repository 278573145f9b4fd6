"""What a disk's first 512 bytes tell about its geometry: an MBR's entries, or a boot sector's BPB.

Everything here is a guess that was checked as far as it can be; a guest writes these bytes, so any
of them may lie.  A `Finding` therefore has a reason where it has no geometry.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple

from vdisk.chs import Geometry, cover
from vdisk.packed_chs import UnpackedCHS, is_overflow, unpack_chs
from vdisk.tables.entry import MbrEntry, has_signature, unpack_entries
from vdisk.tables.partition_types import PROTECTIVE_TYPE
from vdisk.tables.source import MBR_BYTES

_MBR_HEADS_MAX = 256
_MBR_SECTORS_MAX = 63
# A VHD's geometry reaches 255 sectors per track, and mformat writes into a BPB what it is told.
_BPB_HEADS_MAX = 256
_BPB_SECTORS_MAX = 255


class Finding(NamedTuple):
    """A geometry and why it is believed, or None and why there is none."""

    geometry: Geometry | None
    detail: str


def mbr_entries(first_sector: bytes) -> tuple[MbrEntry, ...]:
    """The four entries of the MBR in `first_sector`, empty ones included; () if it has no 55 AA."""
    if len(first_sector) < MBR_BYTES or not has_signature(first_sector):
        return ()
    return unpack_entries(first_sector)


class _Point(NamedTuple):
    """A C/H/S address and the LBA that an entry says is the same sector."""

    chs: UnpackedCHS
    lba: int

    @property
    def track_start(self) -> int:
        return self.lba - (self.chs.sector - 1)


def from_mbr(first_sector: bytes | None, size_bytes: int, sector_size: int) -> Finding:
    """The one geometry that every non-empty entry of the MBR agrees with, if there is one.

    A start or an end gives one equation in heads and sectors per track; two that are independent
    give both.  Every other one must then hold exactly, or say "past cylinder 1023" about an LBA
    that is.  Entries of type EE, addresses of all zeros and an entry that starts at LBA 0 say
    nothing: the last is what mformat writes into the boot sector of a whole disk, which its BPB
    speaks for.
    """
    entries = mbr_entries(first_sector or b"")
    if not entries:
        return Finding(None, "no MBR: no 55 AA at the end of the first 512 bytes")
    if any(entry.boot_flag not in (0x00, 0x80) for entry in entries):
        return Finding(None, "no MBR: a boot flag is neither 00 nor 80")
    points = _points(entries)
    if not points:
        return Finding(None, "the MBR has no entry that gives C/H/S addresses")
    agreed = {found for found in _candidates(points) if _all_agree(found, points)}
    if len(agreed) != 1:
        return Finding(None, "the MBR's C/H/S addresses do not agree with one geometry")
    heads, sectors_per_track = agreed.pop()
    geometry = cover(size_bytes, heads, sectors_per_track, sector_size)
    shape = f"{heads} heads and {sectors_per_track} sectors"
    if geometry is None:
        return Finding(None, f"the MBR agrees with {shape}, of which no cylinder fits the disk")
    return Finding(geometry, f"all entries of the MBR agree with {shape}")


def _points(entries: tuple[MbrEntry, ...]) -> list[_Point]:
    used = [e for e in entries if e.type not in (0, PROTECTIVE_TYPE) and e.sectors and e.start > 0]
    pairs = [_Point(unpack_chs(e.start_chs), e.start) for e in used]
    pairs += [_Point(unpack_chs(e.end_chs), e.start + e.sectors - 1) for e in used]
    return [point for point in pairs if point.chs != (0, 0, 0)]


def _candidates(points: list[_Point]) -> set[tuple[int, int]]:
    """Every (heads, sectors per track) worth checking: solved from two points, or where one ends.

    A partition that ends with a cylinder, and one whose end is past cylinder 1023, names both in
    its last address.
    """
    exact = [point for point in points if not is_overflow(point.chs)]
    solved = {found for a, b in combinations(exact, 2) if (found := _solve(a, b)) is not None}
    ends = {(point.chs.head + 1, point.chs.sector) for point in points if point.chs.sector}
    return solved | ends


def _solve(a: _Point, b: _Point) -> tuple[int, int] | None:
    """Heads and sectors from two points: track_start = sectors * (cylinder * heads + head)."""
    across = b.track_start * a.chs.cylinder - a.track_start * b.chs.cylinder
    down = a.track_start * b.chs.head - b.track_start * a.chs.head
    minor = a.chs.cylinder * b.chs.head - b.chs.cylinder * a.chs.head
    if across == 0 or minor == 0 or down % across or across % minor:
        return None
    heads, sectors_per_track = down // across, across // minor
    possible = 0 < heads <= _MBR_HEADS_MAX and 0 < sectors_per_track <= _MBR_SECTORS_MAX
    return (heads, sectors_per_track) if possible else None


def _all_agree(found: tuple[int, int], points: list[_Point]) -> bool:
    """Whether every point holds, and one of them exactly and past the first track.

    An address in the first track holds in any geometry, and one past cylinder 1023 in many.
    """
    verdicts = [_agrees(found, point) for point in points]
    return all(verdicts) and any(
        verdict == "exact" and point.track_start > 0
        for verdict, point in zip(verdicts, points, strict=True)
    )


def _agrees(found: tuple[int, int], point: _Point) -> str | None:
    heads, sectors_per_track = found
    track, rest = divmod(point.lba, sectors_per_track)
    cylinder, head = divmod(track, heads)
    if point.chs == (cylinder, head, rest + 1):
        return "exact"
    past = cylinder > 1023 and is_overflow(point.chs, Geometry(1, heads, sectors_per_track))
    return "overflow" if past else None


@dataclass(frozen=True, slots=True)
class Bpb:
    """The fields of a boot sector's BIOS parameter block that bear on geometry (FAT and NTFS)."""

    jump: bytes
    oem: bytes
    bytes_per_sector: int
    sectors_per_cluster: int
    reserved_sectors: int
    fats: int
    total_sectors: int
    media: int
    sectors_per_track: int
    heads: int
    hidden_sectors: int


def read_bpb(first_sector: bytes) -> Bpb | None:
    """The BPB as it stands, believable or not; None if `first_sector` is shorter than one."""
    if len(first_sector) < 0x24:
        return None
    (jump, oem, size, cluster, reserved, fats, _root, total16, media, _fat, spt, heads, hidden,
     total32) = struct.unpack_from("<3s8sHBHBHHBHHHII", first_sector)  # fmt: skip
    return Bpb(
        jump, oem, size, cluster, reserved, fats, total16 or total32, media, spt, heads, hidden
    )


def from_bpb(first_sector: bytes | None, size_bytes: int, sector_size: int) -> Finding:
    """The heads and sectors of a boot sector that begins the disk, with the cylinders that fit."""
    bpb = read_bpb(first_sector or b"")
    if bpb is None:
        return Finding(None, "no boot sector")
    doubt = _doubt(bpb, size_bytes // sector_size, sector_size)
    if doubt is not None:
        return Finding(None, f"no boot sector with a BPB: {doubt}")
    geometry = cover(size_bytes, bpb.heads, bpb.sectors_per_track, sector_size)
    shape = f"{bpb.heads} heads and {bpb.sectors_per_track} sectors"
    if geometry is None:
        return Finding(None, f"the BPB has {shape}, of which no cylinder fits the disk")
    return Finding(geometry, f"the boot sector's BPB has {shape}")


def _doubt(bpb: Bpb, disk_sectors: int, sector_size: int) -> str | None:
    """The first reason not to believe that this is a BPB of this disk, or None."""
    ntfs = bpb.oem == b"NTFS    "
    powers = {1 << shift for shift in range(8)}
    checks = (
        (bpb.jump[0] == 0xE9 or (bpb.jump[0], bpb.jump[2]) == (0xEB, 0x90), "no jump"),
        (bpb.bytes_per_sector == sector_size, f"its sectors are of {bpb.bytes_per_sector} bytes"),
        (ntfs or bpb.sectors_per_cluster in powers, "no power of two of sectors per cluster"),
        (ntfs or (bpb.reserved_sectors > 0 and bpb.fats in (1, 2)), "no FATs"),
        (bpb.media == 0xF0 or bpb.media >= 0xF8, f"media byte {bpb.media:02x}"),
        (ntfs or bpb.total_sectors > 0, "no size"),
        (
            bpb.total_sectors <= disk_sectors,
            f"{bpb.total_sectors} sectors are more than the disk's",
        ),
        (0 < bpb.heads <= _BPB_HEADS_MAX, f"{bpb.heads} heads"),
        (
            0 < bpb.sectors_per_track <= _BPB_SECTORS_MAX,
            f"{bpb.sectors_per_track} sectors per track",
        ),
    )
    return next((reason for holds, reason in checks if not holds), None)


def media_byte(first_sector: bytes | None, sector_size: int) -> int | None:
    """The media byte of a boot sector whose sector size is this disk's, or None."""
    bpb = read_bpb(first_sector or b"")
    return bpb.media if bpb is not None and bpb.bytes_per_sector == sector_size else None
