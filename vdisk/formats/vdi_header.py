"""The header of a VDI image (VirtualBox), little-endian, version 1.1.

Sources: VirtualBox, `Storage/VDICore.h` (`VDIPREHEADER`, `VDIHEADER1PLUS`); QEMU, `block/vdi.c`.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Self
from uuid import UUID

from vdisk.errors import Corrupt, InvalidArgument, InvalidFormat, Unsupported
from vdisk.geometry import Geometry
from vdisk.host import HostFile
from vdisk.units import SECTOR, SIZE_BYTES_MAX

HEADER_BYTES = 512
MAGIC = 0xBEDA107F
_VERSION = 0x00010001
BLOCK_SIZE_MIN = 4 << 10
BLOCK_SIZE_MAX = 64 << 20
"""VirtualBox and QEMU make blocks of 1 MiB; others are powers of two."""
BLOCKS_MAX = 1 << 26
"""64 TiB in blocks of 1 MiB: a map of 256 MiB."""
_MOVED_MAX = 4 * BLOCKS_MAX // BLOCK_SIZE_MIN  # Places that a map takes up while it is moved.
FREE = 0xFFFFFFFF
"""A map entry: the block was never allocated.  It reads as the parent, or as zeros."""
ZERO = 0xFFFFFFFE
"""A map entry: the block reads as zeros and takes no space."""

# The two sizes of the header after its first 0x48 bytes: QEMU's has no logical geometry.
HEADER_SIZE_OLD = 0x180
HEADER_SIZE = 0x190

_TEXT = b"<<< Oracle VM VirtualBox Disk Image >>>\n"  # For a person; makers have their own.
_PRE = struct.Struct("<IIIII")  # At 0x40: magic, version, header size, type, flags.
_OFFSETS = struct.Struct("<II")  # At 0x154: block map, data.
_CHS = struct.Struct("<IIII")  # At 0x15C and 0x1C8: cylinders, heads, sectors, bytes per sector.
_SIZES = struct.Struct("<QIIII")  # At 0x170: disk size, block size, extra bytes, blocks, allocated.
_UUIDS_AT = {"create": 0x188, "modify": 0x198, "linkage": 0x1A8, "parent_modify": 0x1B8}
_LEGACY_GEOMETRY_AT, _GEOMETRY_AT = 0x15C, 0x1C8


class VdiType(IntEnum):
    """How the disk's blocks came to be."""

    DYNAMIC = 1
    FIXED = 2
    UNDO = 3
    DIFFERENCING = 4


@dataclass(slots=True)
class VdiHeader:
    """The fields of the header; offsets and sizes are bytes, `allocated` counts blocks.

    `raw` are the 512 bytes it was read from: what is not a field here is kept as it was.
    """

    type: VdiType
    map_offset: int
    data_offset: int
    size: int
    block_size: int
    blocks: int
    allocated: int
    create: UUID
    modify: UUID
    linkage: UUID
    parent_modify: UUID
    geometry: Geometry | None = None
    header_size: int = HEADER_SIZE
    raw: bytes = field(default=_TEXT.ljust(HEADER_BYTES, b"\0"), repr=False)

    @classmethod
    def read(cls, host: HostFile) -> Self:
        """The header of the image in `host`, every number in it checked against its limit.

        Raises InvalidFormat, Unsupported or Corrupt.
        """
        if host.size() < HEADER_BYTES:
            raise InvalidFormat("is too short for a VDI image", path=host.path)
        raw = host.read(0, HEADER_BYTES)
        magic, version, header_size, kind, _flags = _PRE.unpack_from(raw, 0x40)
        if magic != MAGIC:
            raise InvalidFormat("is no VDI image: its magic number is wrong", path=host.path)
        if version != _VERSION:
            raise Unsupported(
                f"is a VDI image of version {version >> 16}.{version & 0xFFFF}, not 1.1",
                path=host.path, hint="VBoxManage clonemedium makes one of today's",
            )
        if kind not in (VdiType.DYNAMIC, VdiType.FIXED, VdiType.DIFFERENCING):
            raise Unsupported(f"is a VDI image of type {kind}", path=host.path)
        size, block_size, extra, blocks, allocated = _SIZES.unpack_from(raw, 0x170)
        if extra:
            raise Unsupported(f"has {extra} extra bytes in each block", path=host.path)
        map_offset, data_offset = _OFFSETS.unpack_from(raw, 0x154)
        create, modify, linkage, parent_modify = (
            UUID(bytes_le=raw[at : at + 16]) for at in _UUIDS_AT.values()
        )
        header = cls(
            VdiType(kind), map_offset, data_offset, size, block_size, blocks, allocated,
            create, modify, linkage, parent_modify,
            geometry=_geometry(raw, header_size), header_size=header_size, raw=raw,
        )
        header._check(host)
        return header

    def _check(self, host: HostFile) -> None:
        block_is_possible = (
            BLOCK_SIZE_MIN <= self.block_size <= BLOCK_SIZE_MAX
            and not self.block_size & (self.block_size - 1)
        )
        checks = (
            (self.header_size in (HEADER_SIZE_OLD, HEADER_SIZE), f"{self.header_size} bytes of it"),
            (block_is_possible, f"blocks of {self.block_size} bytes"),
            (0 < self.size <= SIZE_BYTES_MAX, f"a size of {self.size} bytes"),
            (0 < self.blocks <= BLOCKS_MAX, f"{self.blocks} blocks"),
            (
                self.size <= self.blocks * self.block_size,
                f"{self.size} bytes in {self.blocks} blocks",
            ),
            (
                self.allocated <= self.blocks + _MOVED_MAX,
                f"{self.allocated} of {self.blocks} blocks allocated",
            ),
            (
                self.map_offset >= HEADER_BYTES and self.map_offset % SECTOR == 0,
                f"its block map at {self.map_offset}",
            ),
            (
                self.map_offset + 4 * self.blocks <= self.data_offset
                and self.data_offset % SECTOR == 0,
                f"its data at {self.data_offset}, over its block map",
            ),
            (
                self.map_offset + 4 * self.blocks <= host.size(),
                "a block map that ends past the end of the file",
            ),
        )
        for holds, what in checks:
            if not holds:
                raise Corrupt(f"the VDI header says {what}", path=host.path)

    def pack(self) -> bytes:
        """The header's 512 bytes: one sector, which a disk writes wholly or not at all."""
        raw = bytearray(self.raw)
        flags = _PRE.unpack_from(raw, 0x40)[4]
        _PRE.pack_into(raw, 0x40, MAGIC, _VERSION, self.header_size, self.type, flags)
        _OFFSETS.pack_into(raw, 0x154, self.map_offset, self.data_offset)
        _SIZES.pack_into(raw, 0x170, self.size, self.block_size, 0, self.blocks, self.allocated)
        for name, at in _UUIDS_AT.items():
            raw[at : at + 16] = getattr(self, name).bytes_le
        if self.geometry is not None:
            chs = (self.geometry.cylinders, self.geometry.heads,
                   self.geometry.sectors_per_track, SECTOR)  # fmt: skip
            _CHS.pack_into(raw, _LEGACY_GEOMETRY_AT, *chs)
            if self.header_size >= HEADER_SIZE:
                _CHS.pack_into(raw, _GEOMETRY_AT, *chs)
        return bytes(raw)


def _geometry(raw: bytes, header_size: int) -> Geometry | None:
    """The logical geometry, the older field's where that is unset; None where neither makes sense.
    """
    fields = [_GEOMETRY_AT] if header_size >= HEADER_SIZE else []
    for at in (*fields, _LEGACY_GEOMETRY_AT):
        cylinders, heads, sectors, sector_size = _CHS.unpack_from(raw, at)
        if cylinders and heads and sectors and sector_size in (0, SECTOR):
            try:
                return Geometry(cylinders, heads, sectors)
            except InvalidArgument:
                continue
    return None
