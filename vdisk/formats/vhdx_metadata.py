"""The metadata of a VHDX image: sizes, kind, and its parent's names.

Source: [MS-VHDX] 2.6, "Metadata Region".
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Self
from uuid import UUID, uuid4

from vdisk.errors import Corrupt, InvalidArgument, Unsupported
from vdisk.formats.table import Reader
from vdisk.units import KIB, MIB, TIB

BLOCK_SIZE_MIN, BLOCK_SIZE_MAX = MIB, 256 * MIB
SIZE_MAX = 64 * TIB
TABLE_BYTES = 64 * KIB
METADATA_BYTES = MIB
"""How large the metadata of a new image is; a region may be larger."""

FILE_PARAMETERS = UUID("CAA16737-FA36-4D43-B3B6-33F0AA44E76B")
VIRTUAL_SIZE = UUID("2FA54224-CD1B-4876-B211-5DBED83BF4B8")
PAGE_83 = UUID("BECA12AB-B2E6-4523-93EF-C309E000C746")
LOGICAL_SECTOR = UUID("8141BF1D-A96F-4709-BA47-F233A8FAAB5F")
PHYSICAL_SECTOR = UUID("CDA348C7-445D-4471-9CC9-E9885251C556")
PARENT_LOCATOR = UUID("A8D35F2D-B30B-454D-ABF7-D3D84834AB0C")
_VHDX_PARENT = UUID("B04AEFB7-D19E-4A81-B789-25B8E9445913")

_HEAD = struct.Struct("<8sHH")  # Signature, reserved, entries.
_ENTRY = struct.Struct("<16sIIII")  # Item, offset, length, flags, reserved.
_LOCATOR_HEAD = struct.Struct("<16sHH")  # Type, reserved, pairs.
_LOCATOR_PAIR = struct.Struct("<IIHH")  # Key's and value's offset, then their lengths.
_SIGNATURE = b"metadata"
_ENTRIES_AT = 32
_ENTRIES_MAX = 2047
_ITEM_BYTES_MAX = MIB
_PAIRS_MAX = 64
_USER, _VIRTUAL_DISK, _REQUIRED = 1, 2, 4
_LEAVE_ALLOCATED, _HAS_PARENT = 1, 2


@dataclass(frozen=True, slots=True)
class Metadata:
    """What the metadata says.  Sizes are bytes.

    `parent` has what an overlay says of its parent, by key; it is None where there is no parent.
    `size_offset` is where in the metadata region the disk's size is.
    """

    block_size: int
    size: int
    sector_size: int
    physical_sector_size: int
    is_fixed: bool = False
    parent: Mapping[str, str] | None = None
    page_83: UUID = field(default_factory=uuid4)
    size_offset: int = 0

    @classmethod
    def read(cls, reader: Reader, offset: int, length: int) -> Self:
        """The metadata in the region of `length` bytes at `offset`.  Corrupt or Unsupported."""
        items = dict(_items(reader.read(offset, TABLE_BYTES), length))

        def item(guid: UUID, size: int) -> bytes:
            at, found = items.get(guid, (0, 0))
            if found < size:
                raise Corrupt(f"its metadata has no whole item {guid}")
            return reader.read(offset + at, found)

        block_size, flags = struct.unpack_from("<II", item(FILE_PARAMETERS, 8))
        (size,) = struct.unpack_from("<Q", item(VIRTUAL_SIZE, 8))
        (sector_size,) = struct.unpack_from("<I", item(LOGICAL_SECTOR, 4))
        physical = sector_size
        if PHYSICAL_SECTOR in items:
            (physical,) = struct.unpack_from("<I", item(PHYSICAL_SECTOR, 4))
        page_83 = UUID(int=0)
        if PAGE_83 in items:
            page_83 = UUID(bytes_le=item(PAGE_83, 16)[:16])
        parent = None
        if flags & _HAS_PARENT:
            parent = _locator(item(PARENT_LOCATOR, _LOCATOR_HEAD.size))
        found = cls(
            block_size, size, sector_size, physical, bool(flags & _LEAVE_ALLOCATED), parent,
            page_83, items[VIRTUAL_SIZE][0],
        )
        found._check()
        return found

    def _check(self) -> None:
        block_is_possible = (
            BLOCK_SIZE_MIN <= self.block_size <= BLOCK_SIZE_MAX
            and not self.block_size & (self.block_size - 1)
        )
        checks = (
            (block_is_possible, f"blocks of {self.block_size} bytes"),
            (self.sector_size in (512, 4096), f"sectors of {self.sector_size} bytes"),
        )
        for holds, what in checks:
            if not holds:
                raise Corrupt(f"its metadata says {what}")
        if not 0 < self.size <= SIZE_MAX or self.size % self.sector_size:
            raise Corrupt(f"its metadata says a size of {self.size} bytes")

    def pack(self) -> bytes:
        """The metadata region of a new image, `METADATA_BYTES` long."""
        flags = self.is_fixed * _LEAVE_ALLOCATED + (self.parent is not None) * _HAS_PARENT
        disk = _VIRTUAL_DISK | _REQUIRED
        items = [
            (FILE_PARAMETERS, struct.pack("<II", self.block_size, flags), _REQUIRED),
            (VIRTUAL_SIZE, struct.pack("<Q", self.size), disk),
            (PAGE_83, self.page_83.bytes_le, disk),
            (LOGICAL_SECTOR, struct.pack("<I", self.sector_size), disk),
            (PHYSICAL_SECTOR, struct.pack("<I", self.physical_sector_size), disk),
        ]
        if self.parent is not None:
            items.append((PARENT_LOCATOR, _packed_locator(self.parent), _REQUIRED))
        raw = bytearray(METADATA_BYTES)
        _HEAD.pack_into(raw, 0, _SIGNATURE, 0, len(items))
        at = TABLE_BYTES
        for number, (guid, content, item_flags) in enumerate(items):
            _ENTRY.pack_into(
                raw, _ENTRIES_AT + number * _ENTRY.size,
                guid.bytes_le, at, len(content), item_flags, 0,
            )
            raw[at : at + len(content)] = content
            at += -(-len(content) // 8) * 8
        return bytes(raw)


def _items(table: bytes, length: int) -> Iterator[tuple[UUID, tuple[int, int]]]:
    """(item, (offset in the region, length)) of what the table names and this program knows."""
    signature, _, count = _HEAD.unpack_from(table)
    if signature != _SIGNATURE or count > _ENTRIES_MAX:
        raise Corrupt("its metadata table is not valid")
    known = (
        FILE_PARAMETERS, VIRTUAL_SIZE, PAGE_83, LOGICAL_SECTOR, PHYSICAL_SECTOR, PARENT_LOCATOR
    )
    for number in range(count):
        guid, offset, size, flags, _ = _ENTRY.unpack_from(
            table, _ENTRIES_AT + number * _ENTRY.size
        )
        item = UUID(bytes_le=guid)
        if item not in known or flags & _USER:
            if flags & _REQUIRED:
                raise Unsupported(f"has a metadata item {item} that must be understood")
            continue
        if size and (offset < TABLE_BYTES or size > _ITEM_BYTES_MAX or offset + size > length):
            raise Corrupt(f"its metadata item {item} lies outside the metadata")
        yield item, (offset, size)


def parent_changes(
    reader: Reader, offset: int, length: int, parent: Mapping[str, str] | None
) -> list[tuple[int, bytes]]:
    """(offset in the file, bytes): what makes the metadata in that region say so of a parent.

    To be done at once: they may lie over what it says now.  With None it has no parent any more.
    Raises InvalidArgument where there is no room.
    """
    table = reader.read(offset, TABLE_BYTES)
    (_, _, count) = _HEAD.unpack_from(table)
    entries = [_ENTRY.unpack_from(table, _ENTRIES_AT + n * _ENTRY.size) for n in range(count)]
    kept = [entry for entry in entries if not _is_item(entry, PARENT_LOCATOR)]
    found = []
    if parent is not None:
        packed = _packed_locator(parent)
        at = _room(kept, len(packed))
        if at + len(packed) > length or len(kept) == _ENTRIES_MAX:
            raise InvalidArgument("its metadata has no room for the parent's name")
        kept.append((PARENT_LOCATOR.bytes_le, at, len(packed), _REQUIRED, 0))
        found.append((offset + at, packed))
    place = next(entry[1] for entry in kept if _is_item(entry, FILE_PARAMETERS)) + offset + 4
    (flags,) = struct.unpack("<I", reader.read(place, 4))
    flags = flags & ~_HAS_PARENT | (parent is not None) * _HAS_PARENT
    new = _HEAD.pack(_SIGNATURE, 0, len(kept)).ljust(_ENTRIES_AT, b"\0")
    new += b"".join(_ENTRY.pack(*entry) for entry in kept)
    new = new.ljust(_ENTRIES_AT + count * _ENTRY.size, b"\0")
    return [(place, struct.pack("<I", flags)), *found, (offset, new)]


def _is_item(entry: tuple[bytes, int, int, int, int], item: UUID) -> bool:
    guid, _, _, flags, _ = entry
    return guid == item.bytes_le and not flags & _USER


def _room(entries: list[tuple[bytes, int, int, int, int]], length: int) -> int:
    """Where in the region `length` bytes are over none of these items."""
    at = TABLE_BYTES
    for start, size in sorted((entry[1], entry[2]) for entry in entries):
        if size and start < at + length:
            at = max(at, -(-(start + size) // 8) * 8)
    return at


def _locator(raw: bytes) -> dict[str, str]:
    kind, _, pairs = _LOCATOR_HEAD.unpack_from(raw)
    if UUID(bytes_le=kind) != _VHDX_PARENT:
        raise Unsupported(f"has a parent of kind {UUID(bytes_le=kind)}, not a VHDX image")
    if pairs > _PAIRS_MAX or len(raw) < _LOCATOR_HEAD.size + pairs * _LOCATOR_PAIR.size:
        raise Corrupt(f"what it says of its parent has {pairs} parts")
    found = {}
    for number in range(pairs):
        key_at, value_at, key_length, value_length = _LOCATOR_PAIR.unpack_from(
            raw, _LOCATOR_HEAD.size + number * _LOCATOR_PAIR.size
        )
        key, value = (
            raw[at : at + length].decode("utf-16-le", "replace").rstrip("\0")
            for at, length in ((key_at, key_length), (value_at, value_length))
        )
        found[key] = value
    return found


def _packed_locator(parent: Mapping[str, str]) -> bytes:
    texts = [
        text.encode("utf-16-le", "surrogateescape") for pair in parent.items() for text in pair
    ]
    at = _LOCATOR_HEAD.size + len(parent) * _LOCATOR_PAIR.size
    pairs = b""
    for key, value in zip(texts[::2], texts[1::2], strict=True):
        pairs += _LOCATOR_PAIR.pack(at, at + len(key), len(key), len(value))
        at += len(key) + len(value)
    return _LOCATOR_HEAD.pack(_VHDX_PARENT.bytes_le, 0, len(parent)) + pairs + b"".join(texts)
