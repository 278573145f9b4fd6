"""The region table of a VHDX image: where its block table (BAT) and its metadata are.

There are two copies; the second is believed where the first is not valid.

Source: [MS-VHDX] 2.2.3, "Region Table".
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self
from uuid import UUID

from vdisk.errors import Corrupt, Unsupported
from vdisk.formats.vhdx_header import crc32c, with_crc32c
from vdisk.host import HostFile
from vdisk.plan import Put
from vdisk.units import KIB, MIB

TABLE_OFFSETS = (192 * KIB, 256 * KIB)
TABLE_BYTES = 64 * KIB
BAT_GUID = UUID("2DC27766-F623-4200-9D64-115E9BFD4A08")
METADATA_GUID = UUID("8B7CA206-4790-4B9A-B8FE-575F050F886E")
_MAGIC = b"regi"
_HEAD = struct.Struct("<4sIII")  # Signature, checksum, entries, reserved.
_ENTRY = struct.Struct("<16sQII")  # GUID, offset, length, whether it must be understood.
_ENTRIES_MAX = 2047


@dataclass(frozen=True, slots=True)
class Region:
    """`length` bytes at `offset`, both whole MiB."""

    offset: int
    length: int

    @property
    def end(self) -> int:
        """The first byte past it."""
        return self.offset + self.length


@dataclass(frozen=True, slots=True)
class Regions:
    """Where block table and metadata are; `others` are regions that need not be understood.

    `copies` are the two tables as the host has them, which may be damaged.
    """

    bat: Region
    metadata: Region
    others: tuple[tuple[UUID, Region], ...] = ()
    copies: tuple[bytes, ...] = ()

    @classmethod
    def read(cls, host: HostFile, file_end: int) -> Self:
        """The regions of the image in `host`, which ends at `file_end`.  Corrupt or Unsupported."""
        copies = [host.read(offset, TABLE_BYTES) for offset in TABLE_OFFSETS]
        valid = [raw for raw in copies if _is_valid(raw)]
        if not valid:
            raise Corrupt("neither of its region tables is valid", path=host.path)
        found: dict[UUID, Region] = {}
        for guid, region, is_required in _entries(valid[0]):
            if guid in found:
                raise Corrupt(f"its region table has two regions {guid}", path=host.path)
            if is_required and guid not in (BAT_GUID, METADATA_GUID):
                raise Unsupported(f"has a region {guid} that must be understood", path=host.path)
            found[guid] = region
        _check(host, found.values(), file_end)
        if BAT_GUID not in found or METADATA_GUID not in found:
            raise Corrupt("has no block table, or no metadata", path=host.path)
        bat, metadata = found.pop(BAT_GUID), found.pop(METADATA_GUID)
        return cls(bat, metadata, tuple(found.items()), tuple(copies))

    @property
    def is_whole(self) -> bool:
        """Whether both copies of the table are valid and the same."""
        return len(set(self.copies)) == 1

    def puts(self, host: HostFile, new: bytes) -> tuple[Put, Put]:
        """The steps that make both copies `new`, one after the other."""
        first, second = (
            Put(host, offset, new, sync=True, before=old)
            for offset, old in zip(TABLE_OFFSETS, self.copies, strict=True)
        )
        return first, second

    def pack(self) -> bytes:
        """The 64 KiB of each copy."""
        entries = [(BAT_GUID, self.bat, 1), (METADATA_GUID, self.metadata, 1)]
        entries += [(guid, region, 0) for guid, region in self.others]
        raw = bytearray(TABLE_BYTES)
        _HEAD.pack_into(raw, 0, _MAGIC, 0, len(entries), 0)
        for number, (guid, region, is_required) in enumerate(entries):
            _ENTRY.pack_into(
                raw, _HEAD.size + number * _ENTRY.size,
                guid.bytes_le, region.offset, region.length, is_required,
            )
        return with_crc32c(raw)

    @property
    def all(self) -> list[Region]:
        """Every region."""
        return [self.bat, self.metadata, *(region for _, region in self.others)]


def _is_valid(raw: bytes) -> bool:
    magic, found, entries, _ = _HEAD.unpack_from(raw)
    return bool(magic == _MAGIC and found == crc32c(raw) and entries <= _ENTRIES_MAX)


def _entries(raw: bytes) -> Iterable[tuple[UUID, Region, int]]:
    for number in range(_HEAD.unpack_from(raw)[2]):
        guid, offset, length, is_required = _ENTRY.unpack_from(
            raw, _HEAD.size + number * _ENTRY.size
        )
        yield UUID(bytes_le=guid), Region(offset, length), is_required


def _check(host: HostFile, regions: Iterable[Region], file_end: int) -> None:
    end = MIB
    for region in sorted(regions, key=lambda each: each.offset):
        if region.offset % MIB or region.length % MIB or not region.length:
            raise Corrupt("its region table has a region of no whole MiB", path=host.path)
        if region.offset < end or region.end > file_end:
            raise Corrupt(
                f"its region table has a region at {region.offset}, over another or past the end",
                path=host.path,
            )
        end = region.end
