"""Writing a streamOptimized VMDK: compressed grains, from the first byte of the file to the last.

Nothing is gone back to, so the file can go into a pipe.  Each grain table comes behind the grains
it names, the grain directory behind all of them, and a second header, which says where that is, at
the end.  Grains are compressed one by one: `pack` may be called in any number of threads.

Source: VMware, "Virtual Disk Format 5.0", "Stream-Optimized Compressed Sparse Extents".
"""

from __future__ import annotations

import struct
import zlib
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import replace
from enum import IntEnum

from vdisk.errors import InvalidArgument
from vdisk.formats.table import little_endian
from vdisk.formats.vmdk_descriptor import ExtentLine, new_descriptor
from vdisk.formats.vmdk_header import (
    CAPACITY_SECTORS_MAX,
    IN_FOOTER,
    TABLE_ENTRIES,
    Flag,
    SparseHeader,
)
from vdisk.geometry import Geometry
from vdisk.units import SECTOR

GRAIN_BYTES = 64 << 10
"""The only length of grains that all readers take."""

_GRAIN_MARKER = struct.Struct("<QI")  # LBA, bytes of compressed data.
_MARKER = struct.Struct("<QII")  # Sectors that follow, 0, type.
_OVERHEAD_SECTORS = 128
_DESCRIPTOR_SECTORS = 20
_LEVEL = 6
_TABLE_SECTORS = TABLE_ENTRIES * 4 // SECTOR


class _Type(IntEnum):
    END = 0
    TABLE = 1
    DIRECTORY = 2
    FOOTER = 3


def pack(data: bytes) -> bytes:
    """A grain compressed; `data` may be shorter than one at the end of the disk."""
    return zlib.compress(data.ljust(GRAIN_BYTES, b"\0"), _LEVEL)


def framed(guest_offset: int, packed: bytes) -> bytes:
    """The grain as it is in the file: marker, compressed bytes, and what fills the sector up.

    `guest_offset` is a multiple of `GRAIN_BYTES`, `packed` what `pack` made of it.
    """
    return _whole_sectors(_GRAIN_MARKER.pack(guest_offset // SECTOR, len(packed)) + packed)


def stream_optimized(
    size: int,
    packed: Iterable[tuple[int, bytes]],
    *,
    file_name: str,
    geometry: Geometry | None,
    adapter_type: str = "ide",
    hardware_version: str = "4",
) -> Iterator[bytes]:
    """The bytes of the file, in order, of a disk of `size` bytes.

    `packed` has (guest offset, what `framed` made of it) in ascending order; what is not in it
    reads as zeros.  `size` is whole sectors, 2 TiB at most: InvalidArgument otherwise, and where
    the file becomes larger than that.
    """
    sectors = size // SECTOR
    if size <= 0 or size % SECTOR or sectors > CAPACITY_SECTORS_MAX:
        raise InvalidArgument(f"a streamOptimized VMDK cannot be {size} bytes large")
    header = SparseHeader(
        sectors, GRAIN_BYTES // SECTOR, IN_FOOTER, 0, _OVERHEAD_SECTORS, 1, _DESCRIPTOR_SECTORS,
        version=3, flags=Flag.NEWLINES | Flag.COMPRESSED | Flag.MARKERS,
    )
    line = ExtentLine("RW", sectors, "SPARSE", file_name)
    text = new_descriptor(
        "streamOptimized", (line,), geometry, adapter_type=adapter_type,
        hardware_version=hardware_version,
    ).encoded()
    if len(text) > _DESCRIPTOR_SECTORS * SECTOR:
        raise InvalidArgument("the file's name is too long for a VMDK")
    yield (header.pack() + text).ljust(_OVERHEAD_SECTORS * SECTOR, b"\0")
    tables = _Tables(header)
    for guest_offset, data in packed:
        yield from tables.before(guest_offset)
        tables.add(guest_offset, data)
        yield data
    yield from tables.end()


class _Tables:
    """The grain tables of a file that is being written: those that are done, and the one that is
    not.
    """

    def __init__(self, header: SparseHeader) -> None:
        self._header = header
        self._sector = _OVERHEAD_SECTORS
        self._directory = array("I", bytes(4 * header.tables))
        self._part = -1
        self._table = array("I")

    def before(self, guest_offset: int) -> Iterator[bytes]:
        """What comes before the grain of that offset: the table before it, if this is another's."""
        part = guest_offset // GRAIN_BYTES // TABLE_ENTRIES
        if part != self._part:
            yield from self._finish()
            self._part = part
            self._table = array("I", bytes(4 * TABLE_ENTRIES))

    def add(self, guest_offset: int, data: bytes) -> None:
        """The grain is the next thing in the file."""
        self._table[guest_offset // GRAIN_BYTES % TABLE_ENTRIES] = self._sector
        self._advance(data)

    def _finish(self) -> Iterator[bytes]:
        if self._part < 0:
            return
        yield self._advance(_marker(_Type.TABLE, _TABLE_SECTORS))
        self._directory[self._part] = self._sector
        yield self._advance(little_endian(self._table))

    def end(self) -> Iterator[bytes]:
        """All that comes behind the last grain."""
        yield from self._finish()
        directory = _whole_sectors(little_endian(self._directory[:]))
        yield self._advance(_marker(_Type.DIRECTORY, len(directory) // SECTOR))
        footer = replace(self._header, directory=self._sector)
        yield self._advance(directory)
        yield _marker(_Type.FOOTER, 1) + footer.pack() + _marker(_Type.END, 0)

    def _advance(self, data: bytes) -> bytes:
        self._sector += len(data) // SECTOR
        if self._sector >= CAPACITY_SECTORS_MAX:
            raise InvalidArgument("a streamOptimized VMDK cannot have a file of 2 TiB")
        return data


def _marker(kind: _Type, sectors: int) -> bytes:
    return _MARKER.pack(sectors, 0, kind).ljust(SECTOR, b"\0")


def _whole_sectors(data: bytes) -> bytes:
    return data.ljust(-(-len(data) // SECTOR) * SECTOR, b"\0")
