"""The dynamic disk header of a VHD image, big-endian: where its block table is, and its parent.

What a resize changes lies in the header's first sector, which a disk writes wholly or not at all.

Source: "Virtual Hard Disk Image Format Specification" 1.0, "Dynamic Disk Header Format".
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Self
from uuid import UUID

from vdisk.errors import Corrupt, Unsupported
from vdisk.formats.vhd_footer import FOOTER_BYTES, checksum
from vdisk.host import HostFile
from vdisk.units import SECTOR

HEADER_BYTES = 1024
FREE = 0xFFFFFFFF
"""An entry of the block table: the block has no place.  It reads as the parent, or as zeros."""
BLOCK_SIZE_MIN = 4 << 10
BLOCK_SIZE_MAX = 256 << 20
"""2 MiB are usual, 512 KiB are met; all are powers of two."""
BLOCKS_MAX = 1 << 22
"""2 TiB in blocks of 512 KiB: a block table of 16 MiB."""

NO_UUID = UUID(int=0)
_COOKIE = b"cxsparse"
_VERSION = 0x00010000
# At 0: cookie, next structure (none), block table, version, entries, block size, checksum, parent's
# UUID, its time, reserved, its name.
_FIELDS = struct.Struct(">8sQQIIII16sII512s")
_CHECKSUM_AT = 36
_LOCATORS_AT, _LOCATORS = 576, 8
_LOCATOR = struct.Struct(">4sIIIQ")  # Platform code, space, length, reserved, offset.


@dataclass(frozen=True, slots=True)
class Locator:
    """Where a name of the parent is: `length` bytes at `offset`, in the way of `code`'s platform.

    `space` is what is set aside for it, in bytes, as programs write it (the specification says
    sectors).
    """

    code: bytes
    space: int
    length: int
    offset: int

    @property
    def region(self) -> tuple[int, int]:
        """(first byte, end) of what it takes up, in whole sectors."""
        return self.offset, self.offset + -(-self.length // SECTOR) * SECTOR


@dataclass(frozen=True, slots=True)
class DynamicHeader:
    """The fields of the header; offsets and sizes are bytes, `entries` counts blocks.

    `parent_name` is a name for people; the `locators` say where the parent is.
    """

    table_offset: int
    entries: int
    block_size: int
    parent_uuid: UUID = NO_UUID
    parent_timestamp: int = 0
    parent_name: str = ""
    locators: tuple[Locator, ...] = ()
    raw: bytes = field(default=bytes(HEADER_BYTES), repr=False)

    @classmethod
    def read(cls, host: HostFile, offset: int) -> Self:
        """The header at `offset`, every number in it checked against its limit.

        Raises Corrupt or Unsupported.
        """
        size = host.size()
        if offset % SECTOR or not FOOTER_BYTES <= offset <= size - HEADER_BYTES:
            raise Corrupt(f"the footer says that its header is at {offset}", path=host.path)
        raw = host.read(offset, HEADER_BYTES)
        cookie, _, table_offset, version, entries, block_size, found, uuid, when, _, name = (
            _FIELDS.unpack_from(raw)
        )
        if cookie != _COOKIE:
            raise Corrupt("has no dynamic disk header where the footer says", path=host.path)
        if found != checksum(raw, _CHECKSUM_AT):
            raise Corrupt("the checksum of its dynamic disk header is wrong", path=host.path)
        if version >> 16 != _VERSION >> 16:
            raise Unsupported(f"has a dynamic disk header of version {version:#x}", path=host.path)
        header = cls(
            table_offset, entries, block_size, UUID(bytes=uuid), when,
            name.decode("utf-16-be", "replace").split("\0")[0], _locators(raw), raw,
        )
        header._check(host, size)
        return header

    def _check(self, host: HostFile, size: int) -> None:
        block_is_possible = (
            BLOCK_SIZE_MIN <= self.block_size <= BLOCK_SIZE_MAX
            and not self.block_size & (self.block_size - 1)
        )
        checks = (
            (block_is_possible, f"blocks of {self.block_size} bytes"),
            (0 < self.entries <= BLOCKS_MAX, f"{self.entries} blocks"),
            (
                self.table_offset >= FOOTER_BYTES and self.table_offset % SECTOR == 0
                and self.table_offset + 4 * self.entries <= size,
                f"its block table at {self.table_offset}, in a file of {size} bytes",
            ),
        )
        for holds, what in checks:
            if not holds:
                raise Corrupt(f"the dynamic disk header says {what}", path=host.path)

    def pack(self) -> bytes:
        """The header's 1024 bytes."""
        raw = bytearray(self.raw)
        name = self.parent_name.encode("utf-16-be", "surrogatepass")[:510].ljust(512, b"\0")
        if self.raw[:8] == _COOKIE:
            name = self.raw[64:576]
        _FIELDS.pack_into(
            raw, 0, _COOKIE, (1 << 64) - 1, self.table_offset, _VERSION, self.entries,
            self.block_size, 0, self.parent_uuid.bytes, self.parent_timestamp, 0, name,
        )
        for number, each in enumerate(self.locators):
            _LOCATOR.pack_into(
                raw, _LOCATORS_AT + number * _LOCATOR.size,
                each.code, each.space, each.length, 0, each.offset,
            )
        struct.pack_into(">I", raw, _CHECKSUM_AT, checksum(bytes(raw), _CHECKSUM_AT))
        return bytes(raw)

    @property
    def table_end(self) -> int:
        """The end of the block table, in whole sectors."""
        return self.table_offset + table_bytes(self.entries)


def table_bytes(entries: int) -> int:
    """How large a block table is, in whole sectors."""
    return -(-4 * entries // SECTOR) * SECTOR


def bitmap_bytes(block_size: int) -> int:
    """How large the sector bitmap before each block is, in whole sectors."""
    return -(-block_size // SECTOR // 8 // SECTOR) * SECTOR


def _locators(raw: bytes) -> tuple[Locator, ...]:
    found = []
    for number in range(_LOCATORS):
        code, space, length, _, offset = _LOCATOR.unpack_from(
            raw, _LOCATORS_AT + number * _LOCATOR.size
        )
        found.append(Locator(code, space, length, offset))
    while found and found[-1].code == bytes(4):
        found.pop()
    return tuple(found)
