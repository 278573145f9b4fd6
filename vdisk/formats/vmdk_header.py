"""The header of a sparse VMDK extent: "KDMV" of hosted products, "COWD" of ESX.  Little-endian.

Sources: VMware, "Virtual Disk Format 5.0", "Hosted Sparse Extents" and "ESX Server Sparse Extents";
QEMU, `block/vmdk.c` (`VMDK4Header`, `VMDK3Header`); libvmdk's documentation.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntFlag
from typing import Self

from vdisk.errors import Corrupt, InvalidArgument, InvalidFormat, Unsupported
from vdisk.geometry import Geometry
from vdisk.host import HostFile
from vdisk.units import SECTOR

HEADER_BYTES = 512
MAGIC = b"KDMV"
COWD_MAGIC = b"COWD"
_SESPARSE_MAGICS = (b"\xbe\xba\xfe\xca\0\0\0\0", b"\xfe\xca\xfe\xca\0\0\0\0")
VERSION_MAX = 3
CAPACITY_SECTORS_MAX = 1 << 32
"""2 TiB: a grain's sector has 32 bits."""
GRAIN_SECTORS_MIN = 8
GRAIN_SECTORS_MAX = 1 << 15
"""4 KiB to 16 MiB.  VMware and QEMU make 128 sectors; an extent of ESX may have a sector alone."""
TABLE_ENTRIES = 512
_COWD_TABLE_ENTRIES = 4096
IN_FOOTER = 0xFFFFFFFFFFFFFFFF
"""A grain directory's sector where the header at the end of the file has it."""
FREE = 0
"""A grain table's entry: the grain was never allocated.  It reads as the parent, or as zeros."""
ZERO = 1
"""A grain table's entry, where `Flag.ZERO_GRAINS` is set: the grain reads as zeros."""

_FIELDS = struct.Struct("<4sIIQQQQIQQQB4sH")
_NEWLINES = b"\n \r\n"  # What a transfer as text would change.
_COWD = struct.Struct("<4sIIIIIII")
_COWD_GEOMETRY = struct.Struct("<III")  # At 32, of a disk without a parent.
_COWD_IS_ROOT = 1
_DEFLATE = 1


class Flag(IntFlag):
    """What else there is in the file."""

    NEWLINES = 1
    REDUNDANT = 2
    ZERO_GRAINS = 4
    COMPRESSED = 0x10000
    MARKERS = 0x20000


_KNOWN_FLAGS = sum(Flag)


@dataclass(frozen=True, slots=True)
class SparseHeader:
    """The fields of the header.  All places and lengths are in sectors.

    `directory` and `redundant` are where the grain directory and its copy are, 0 for none;
    `overhead` is what comes before the grains.  `unclean` says that the last writer did not close
    the file.  `raw` are the bytes it was read from: what is not a field here is kept as it was.
    """

    capacity: int
    grain: int
    directory: int
    redundant: int
    overhead: int
    descriptor: int = 0
    descriptor_sectors: int = 0
    version: int = 1
    flags: int = Flag.NEWLINES | Flag.REDUNDANT
    table_entries: int = TABLE_ENTRIES
    unclean: bool = False
    is_cowd: bool = False
    geometry: Geometry | None = None
    raw: bytes = bytes(HEADER_BYTES)

    @classmethod
    def read(cls, host: HostFile) -> Self:
        """The header of the extent in `host`, every number in it checked against its limit.

        Raises InvalidFormat, Unsupported or Corrupt.
        """
        if host.size() < HEADER_BYTES:
            raise InvalidFormat("is too short for a sparse VMDK extent", path=host.path)
        raw = host.read(0, HEADER_BYTES)
        if raw.startswith(_SESPARSE_MAGICS):
            raise Unsupported(
                "is a seSparse VMDK extent, which this version does not open", path=host.path,
                hint="qemu-img convert reads it",
            )
        header = (cls._cowd if raw.startswith(COWD_MAGIC) else cls._hosted)(raw, host)
        if header.directory == IN_FOOTER:
            header = cls._footer(host)
        header._check(host)
        return header

    @classmethod
    def _hosted(cls, raw: bytes, host: HostFile) -> Self:
        (magic, version, flags, capacity, grain, descriptor, descriptor_sectors, table_entries,
         redundant, directory, overhead, unclean, newlines, compression) = (
            _FIELDS.unpack_from(raw))  # fmt: skip
        if magic != MAGIC:
            raise InvalidFormat("is no sparse VMDK extent: its magic is wrong", path=host.path)
        if not 1 <= version <= VERSION_MAX:
            raise Unsupported(f"is a VMDK of version {version}", path=host.path)
        if flags & ~_KNOWN_FLAGS & 0xFFFF0000:
            raise Unsupported(f"has the unknown VMDK flags {flags & ~_KNOWN_FLAGS:#x}",
                              path=host.path)  # fmt: skip
        if flags & Flag.NEWLINES and newlines != _NEWLINES:
            raise Corrupt("was damaged by a transfer as text", path=host.path,
                          hint="copy it again, as binary")  # fmt: skip
        if flags & Flag.COMPRESSED and compression != _DEFLATE:
            raise Unsupported(f"is compressed by algorithm {compression}", path=host.path)
        return cls(
            capacity, grain, directory, redundant if flags & Flag.REDUNDANT else 0, overhead,
            descriptor, descriptor_sectors, version, flags, table_entries, bool(unclean), raw=raw,
        )

    @classmethod
    def _cowd(cls, raw: bytes, host: HostFile) -> Self:
        _, version, flags, capacity, grain, directory, entries, _ = _COWD.unpack_from(raw)
        if version != 1:
            raise Unsupported(f"is a COWD extent of version {version}", path=host.path)
        if entries < -(-capacity // (_COWD_TABLE_ENTRIES * max(grain, 1))):
            raise Corrupt(f"the COWD header says {entries} grain tables", path=host.path)
        geometry = None
        if flags & _COWD_IS_ROOT:
            try:
                geometry = Geometry(*_COWD_GEOMETRY.unpack_from(raw, 32))
            except InvalidArgument:
                geometry = None
        return cls(
            capacity, grain, directory, 0, overhead=1, flags=flags & _COWD_IS_ROOT,
            table_entries=_COWD_TABLE_ENTRIES, is_cowd=True, geometry=geometry, raw=raw,
        )

    @classmethod
    def _footer(cls, host: HostFile) -> Self:
        """The header's copy before the last sector of the file, which is the end marker."""
        end = host.size() // SECTOR * SECTOR
        if end < 4 * SECTOR:
            raise Corrupt("ends before the footer that its header speaks of", path=host.path)
        raw = host.read(end - 2 * SECTOR, HEADER_BYTES)
        if not raw.startswith(MAGIC):
            raise Corrupt("has no footer, which its header speaks of: is it whole?", path=host.path)
        return cls._hosted(raw, host)

    @property
    def tables(self) -> int:
        """How many grain tables it takes."""
        return -(-self.capacity // (self.grain * self.table_entries))

    @property
    def grains(self) -> int:
        """How many grains there are; the last one may go on past the end."""
        return -(-self.capacity // self.grain)

    @property
    def is_root(self) -> bool:
        """Whether a "COWD" extent begins a disk without a parent."""
        return self.is_cowd and bool(self.flags & _COWD_IS_ROOT)

    def has(self, flag: Flag) -> bool:
        """Whether that flag is set.  Flags of "COWD" mean other things."""
        return bool(self.flags & flag) and not self.is_cowd

    def _check(self, host: HostFile) -> None:
        sectors = host.size() // SECTOR
        least = 1 if self.is_cowd else GRAIN_SECTORS_MIN
        grain_is_possible = (
            least <= self.grain <= GRAIN_SECTORS_MAX and not self.grain & (self.grain - 1)
        )
        checks = (
            (grain_is_possible, f"grains of {self.grain} sectors"),
            (0 < self.capacity <= CAPACITY_SECTORS_MAX, f"{self.capacity} sectors"),
            (
                self.is_cowd or self.table_entries == TABLE_ENTRIES,
                f"{self.table_entries} entries in a grain table",
            ),
        )
        for holds, what in checks:
            if not holds:
                raise Corrupt(f"the VMDK header says {what}", path=host.path)
        length = -(-self.tables * 4 // SECTOR)
        places = (
            ("grain directory", self.directory, length),
            ("descriptor", self.descriptor, self.descriptor_sectors),
            ("second grain directory", self.redundant, length),
        )
        for what, start, count in places:
            required = what == "grain directory"
            if (start == 0 and required) or (start and start + count > sectors):
                raise Corrupt(f"the VMDK header says that its {what} is at sector {start}, "
                              f"{count} long", path=host.path)  # fmt: skip

    def pack(self) -> bytes:
        """The header's 512 bytes: one sector, which a disk writes wholly or not at all."""
        assert not self.is_cowd, "extents of ESX are not written"
        raw = bytearray(self.raw)
        compression = _DEFLATE if self.flags & Flag.COMPRESSED else 0
        _FIELDS.pack_into(
            raw, 0, MAGIC, self.version, self.flags, self.capacity, self.grain, self.descriptor,
            self.descriptor_sectors, self.table_entries, self.redundant, self.directory,
            self.overhead, self.unclean, _NEWLINES, compression,
        )
        return bytes(raw)
