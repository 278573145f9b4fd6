"""One copy of a GPT: its header, its array of entries, and whether both are what they claim.

Layout: UEFI Specification 2.10, section 5.3.2 (header) and 5.3.3 (entries); little-endian.  A copy
counts only if all of its checks pass, the ones that the Linux kernel and libfdisk make as well.
A header's numbers are believed only after its CRC, and its counts are limited even then.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass, replace
from uuid import UUID

from vdisk.tables.partition import Partition
from vdisk.tables.partition_types import gpt_type_name
from vdisk.tables.source import Source

SIGNATURE = b"EFI PART"
REVISION = 0x00010000
SECTOR_SIZE_MIN = 512
"""A header has 92 bytes and section 5.3.1 gives it a sector of its own of at least this size."""

HEADER_SIZE_MIN = 92
ENTRY_SIZE_MIN = 128
ENTRY_SIZE_MAX = 4096
"""An entry has 128 times a power of two bytes; nothing is known that makes more than 128."""

ENTRIES_BYTES_MAX = 4 << 20
"""The longest array of entries that is read: 32768 of them, the kernel's own limit on x86."""

_CHUNK_BYTES = 64 << 10
_HEADER = struct.Struct("<8sIIII QQQQ 16s QIII")
_ENTRY = struct.Struct("<16s16sQQQ72s")
_UNUSED = bytes(16)
LEGACY_BIOS_BOOTABLE = 1 << 2
"""The attribute bit of a partition that a BIOS may start from (section 5.3.3)."""


@dataclass(frozen=True, slots=True)
class Header:
    """A header's fields; `last_usable_lba` is inclusive, as it is stored."""

    revision: int
    size: int
    crc: int
    my_lba: int
    alternate_lba: int
    first_usable_lba: int
    last_usable_lba: int
    disk_guid: str
    entries_lba: int
    entry_count: int
    entry_size: int
    entries_crc: int

    @property
    def entries_bytes(self) -> int:
        """The length of the array of entries, as claimed."""
        return self.entry_count * self.entry_size


@dataclass(frozen=True, slots=True)
class Copy:
    """What is at `lba`, where a copy of the GPT should be.

    `fault` says why it cannot be used, None where it is sound.  `header` is what the header says,
    None where there is no "EFI PART"; `header_sound` is whether the header by itself may be
    believed.  `entries` are the used entries of a sound copy, each with its number, as stored.
    """

    lba: int
    fault: str | None
    header: Header | None = None
    header_sound: bool = False
    entries: tuple[tuple[int, bytes], ...] = ()

    def partitions(self) -> tuple[Partition, ...]:
        """The partitions of a sound copy, in the order of their numbers."""
        return tuple(unpack_entry(number, raw) for number, raw in self.entries)

    @property
    def is_sound(self) -> bool:
        """Whether header and entries passed every check."""
        return self.fault is None


def read_copy(source: Source, lba: int) -> Copy:
    """The copy of the GPT whose header is at `lba`, with its entries."""
    copy = read_header(source, lba)
    if copy.header is None or not copy.header_sound:
        return copy
    fault = _entries_fault(source, copy.header)
    if fault is not None:
        return replace(copy, fault=fault)
    crc, entries = _read_entries(source, copy.header)
    if crc != copy.header.entries_crc:
        fault = f"the entries' CRC is {crc:08x}, not {copy.header.entries_crc:08x}"
        return replace(copy, fault=fault)
    return replace(copy, entries=entries)


def read_header(source: Source, lba: int) -> Copy:
    """The copy of the GPT whose header is at `lba`, without a look at its entries.

    Only the eight bytes of the signature are read where that is not there.
    """
    if source.sector_size < SECTOR_SIZE_MIN:
        return Copy(lba, f"a GPT needs sectors of at least {SECTOR_SIZE_MIN} bytes")
    if lba == 0 or not source.holds(lba, source.sector_size):
        return Copy(lba, "it is outside the disk")
    if source.read(lba, len(SIGNATURE)) != SIGNATURE:
        return Copy(lba, 'no "EFI PART" there')
    raw = source.read(lba, source.sector_size)
    header = _unpack_header(raw)
    fault = _header_fault(source, lba, header, raw)
    return Copy(lba, fault, header, header_sound=fault is None)


def _unpack_header(raw: bytes) -> Header:
    (_signature, revision, size, crc, _reserved, my_lba, alternate_lba, first_usable, last_usable,
     guid, entries_lba, entry_count, entry_size, entries_crc) = _HEADER.unpack_from(raw)
    return Header(
        revision=revision,
        size=size,
        crc=crc,
        my_lba=my_lba,
        alternate_lba=alternate_lba,
        first_usable_lba=first_usable,
        last_usable_lba=last_usable,
        disk_guid=format_guid(guid),
        entries_lba=entries_lba,
        entry_count=entry_count,
        entry_size=entry_size,
        entries_crc=entries_crc,
    )


def with_fields(
    raw: bytes, *, my_lba: int, alternate_lba: int, first_usable_lba: int, last_usable_lba: int,
    disk_guid: bytes, entries_lba: int, entry_count: int, entry_size: int, entries_crc: int,
) -> bytes:  # fmt: skip
    """`raw`, a header's sector, with these fields; all else, the CRC as well, is as it was."""
    signature, revision, size, crc, reserved, *_ = _HEADER.unpack_from(raw)
    fields = _HEADER.pack(
        signature, revision, size, crc, reserved, my_lba, alternate_lba, first_usable_lba,
        last_usable_lba, disk_guid, entries_lba, entry_count, entry_size, entries_crc,
    )  # fmt: skip
    return fields + raw[len(fields) :]


def with_checksum(raw: bytes) -> bytes:
    """`raw`, a header's sector, with the CRC that its bytes have."""
    _size, crc = _size_and_crc(raw)
    return raw[:16] + crc.to_bytes(4, "little") + raw[20:]


def _size_and_crc(raw: bytes) -> tuple[int, int]:
    """The size that a header gives itself, which its sector must hold, and its bytes' CRC."""
    (size,) = struct.unpack_from("<I", raw, 12)
    return size, zlib.crc32(raw[:16] + bytes(4) + raw[20:size])


def new_header(sector_size: int) -> bytes:
    """The sector of a header of today's revision and size whose other fields are all 0."""
    fields = struct.pack("<8sII", SIGNATURE, REVISION, HEADER_SIZE_MIN)
    return fields.ljust(sector_size, b"\0")


def _header_fault(source: Source, lba: int, header: Header, raw: bytes) -> str | None:
    """Why the header at `lba` cannot be believed; `raw` is its whole sector."""
    if not HEADER_SIZE_MIN <= header.size <= len(raw):
        return f"the header's size is {header.size}, not {HEADER_SIZE_MIN} to {len(raw)}"
    _size, crc = _size_and_crc(raw)
    if crc != header.crc:
        return f"the header's CRC is {crc:08x}, not {header.crc:08x}"
    if header.my_lba != lba:
        return f"the header says that it is at LBA {header.my_lba}"
    if header.last_usable_lba >= source.sectors:
        return (
            f"the disk has {source.sectors} sectors, and its last usable LBA is said to be "
            f"{header.last_usable_lba}"
        )
    if header.first_usable_lba > header.last_usable_lba:
        return f"the first usable LBA, {header.first_usable_lba}, is after the last one"
    return None


def _entries_fault(source: Source, header: Header) -> str | None:
    """Why the array that `header` describes is not read at all."""
    size, multiple = header.entry_size, header.entry_size // ENTRY_SIZE_MIN
    is_doubled = size % ENTRY_SIZE_MIN == 0 and multiple > 0 and multiple & (multiple - 1) == 0
    if not is_doubled or size > ENTRY_SIZE_MAX:
        return f"an entry is said to have {size} bytes"
    if not 0 < header.entries_bytes <= ENTRIES_BYTES_MAX:
        return f"there are said to be {header.entry_count} entries of {size} bytes"
    if not source.holds(header.entries_lba, header.entries_bytes):
        return f"the entries, from LBA {header.entries_lba}, are outside the disk"
    return None


def _read_entries(source: Source, header: Header) -> tuple[int, tuple[tuple[int, bytes], ...]]:
    """The CRC of the array, and the used entries, read a bounded piece at a time."""
    crc = 0
    used = []
    for skip in range(0, header.entries_bytes, _CHUNK_BYTES):
        length = min(_CHUNK_BYTES, header.entries_bytes - skip)
        chunk = source.read(header.entries_lba, length, skip=skip)
        crc = zlib.crc32(chunk, crc)
        for place in range(0, length, header.entry_size):
            if chunk[place : place + 16] != _UNUSED:
                number = (skip + place) // header.entry_size + 1
                used.append((number, chunk[place : place + _ENTRY.size]))
    return crc, tuple(used)


def unpack_entry(number: int, raw: bytes) -> Partition:
    """What the 128 bytes of entry `number` say."""
    type_guid, guid, first_lba, last_lba, attributes, name = _ENTRY.unpack(raw)
    start_lba, sectors = half_open(first_lba, last_lba)
    problem = None
    if sectors == 0:
        problem = f"ends at LBA {last_lba}, before its start at LBA {first_lba}"
    return Partition(
        number=number,
        start_lba=start_lba,
        sectors=sectors,
        type=format_guid(type_guid),
        type_name=gpt_type_name(format_guid(type_guid)),
        name=_text(name),
        bootable=bool(attributes & LEGACY_BIOS_BOOTABLE),
        uuid=format_guid(guid),
        attributes=attributes,
        problem=problem,
    )


def half_open(first_lba: int, last_lba: int) -> tuple[int, int]:
    """`(start_lba, sectors)` of a range that includes its last LBA, as a GPT stores it.

    A range that ends before it starts has no sectors.
    """
    return first_lba, max(0, last_lba + 1 - first_lba)


def format_guid(raw: bytes) -> str:
    """A GUID's 16 bytes as they are stored (mixed-endian; UEFI, appendix A), in upper case."""
    return str(UUID(bytes_le=raw)).upper()


def _text(raw: bytes) -> str:
    """A name: UTF-16LE up to the first NUL; what is no text becomes U+FFFD."""
    text = raw.decode("utf-16-le", errors="replace")
    return text.partition("\0")[0]
