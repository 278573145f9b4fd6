"""The label: one of a physical volume's first four sectors says what it is and where its areas are.

    0   "LABELONE"                      8   its own sector number (64 bits)
    16  CRC of bytes 20 to 512          20  where the PV header begins in the sector (32)
    24  "LVM2 001"
    32  the PV header: 32 bytes of UUID, the drive's size in bytes, then two lists of areas
        (data, metadata), then, in newer labels, an extension: version, flags and the list of
        bootloader areas

Source: LVM2 `lib/format_text/layout.h` (`pv_header`, `pv_header_extension`), `lib/label/label.h`.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from vdisk.errors import Corrupt
from vdisk.tables.lvm2.layout import Area, checksum, pack_areas, unpack_areas
from vdisk.tables.lvm2.uuids import UUID_CHARACTERS, bare, hyphenated, is_uuid
from vdisk.tables.partition import Reader
from vdisk.units import SECTOR

LABEL_SECTORS = 4
"""A label is in one of so many sectors at the start of a drive."""

EXTENSION_VERSION = 2
"""The extension's version that has flags which mean something."""

USED = 0x1
"""The extension's flag of a physical volume that belongs to a volume group."""

_MAGIC = b"LABELONE"
_TYPE = b"LVM2 001"
_LABEL = struct.Struct("<8sQII8s")
_CHECKED_FROM = 20
_PV = struct.Struct(f"<{UUID_CHARACTERS}sQ")
_EXTENSION = struct.Struct("<II")


@dataclass(frozen=True, slots=True)
class Label:
    """A physical volume as its label describes it.

    `sector` is the label's own, 0 to 3; `pv_id` the UUID in its written form; `device_size` is in
    bytes.  `extension_version` is 0 where the label has no extension; then there are no `flags`
    (`USED`) and no bootloader areas.
    """

    pv_id: str
    device_size: int
    data_areas: tuple[Area, ...]
    metadata_areas: tuple[Area, ...]
    sector: int = 1
    extension_version: int = EXTENSION_VERSION
    flags: int = 0
    bootloader_areas: tuple[Area, ...] = ()


def find_label(read: Reader, size: int) -> Label | None:
    """The label of a drive of `size` bytes, or None where none of its first sectors has one.

    One read of at most 2048 bytes.  Raises Corrupt where there is one and it is damaged.
    """
    start = read(0, min(size, LABEL_SECTORS * SECTOR) // SECTOR * SECTOR) if size >= SECTOR else b""
    damaged: Corrupt | None = None
    for at in range(0, len(start), SECTOR):
        sector = start[at : at + SECTOR]
        if _is_label(sector):
            try:
                return unpack_label(sector, at // SECTOR)
            except Corrupt as error:
                damaged = damaged or error
    if damaged is not None:
        raise damaged
    return None


def _is_label(sector: bytes) -> bool:
    return sector[:8] == _MAGIC and sector[24:32] == _TYPE


def unpack_label(sector: bytes, number: int) -> Label:
    """The label in the 512 bytes of sector `number`.  Raises Corrupt where it is damaged."""
    _, stated, crc, at, _ = _LABEL.unpack_from(sector)
    if crc != checksum(sector[_CHECKED_FROM:SECTOR]):
        raise _damaged(number, "its checksum is wrong")
    if stated != number:
        raise _damaged(number, f"it says that it is in sector {stated}")
    if not _LABEL.size <= at <= SECTOR - _PV.size:
        raise _damaged(number, f"its PV header would begin at byte {at}")
    try:
        return _unpack_pv(sector, number, at)
    except struct.error:
        raise _damaged(number, "a list of areas does not end") from None


def _unpack_pv(sector: bytes, number: int, at: int) -> Label:
    uuid, device_size = _PV.unpack_from(sector, at)
    pv_id = hyphenated(uuid.decode("latin-1"))
    if not is_uuid(pv_id):
        raise _damaged(number, "its UUID has characters that no UUID has")
    data_areas, at = unpack_areas(sector, at + _PV.size)
    metadata_areas, at = unpack_areas(sector, at)
    version, flags = 0, 0
    bootloader_areas: tuple[Area, ...] = ()
    if at + _EXTENSION.size <= SECTOR:
        version, flags = _EXTENSION.unpack_from(sector, at)
    if version:
        bootloader_areas, at = unpack_areas(sector, at + _EXTENSION.size)
    return Label(
        pv_id, device_size, data_areas, metadata_areas, number, version,
        flags if version else 0, bootloader_areas,
    )  # fmt: skip


def pack_label(label: Label) -> bytes:
    """The 512 bytes of `label`'s sector.  Its areas must fit: a few of each kind do."""
    packed = _PV.pack(bare(label.pv_id).encode("ascii"), label.device_size)
    packed += pack_areas(label.data_areas) + pack_areas(label.metadata_areas)
    if label.extension_version:
        packed += _EXTENSION.pack(label.extension_version, label.flags)
        packed += pack_areas(label.bootloader_areas)
    start = _LABEL.pack(_MAGIC, label.sector, 0, _LABEL.size, _TYPE)
    sector = (start + packed).ljust(SECTOR, b"\0")
    assert len(sector) == SECTOR, "the areas do not fit into a label"
    crc = checksum(sector[_CHECKED_FROM:])
    return _LABEL.pack(_MAGIC, label.sector, crc, _LABEL.size, _TYPE) + sector[_LABEL.size :]


def _damaged(number: int, reason: str) -> Corrupt:
    return Corrupt(
        f"the LVM2 label in sector {number} is damaged: {reason}",
        hint="pvcreate --restorefile, with the same --uuid, writes it again",
    )
