"""The two headers of a VHDX image, little-endian: its log, and the identities of what it holds.

The valid one with the higher sequence number counts.  A header is never written over while it
counts: the other one is made the newer, and then this one, too.

Source: [MS-VHDX] 2.2.2, "Headers"; QEMU, `block/vhdx.c`.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from typing import Self
from uuid import UUID

from vdisk.errors import Corrupt, InvalidFormat, Unsupported
from vdisk.host import HostFile
from vdisk.plan import Put
from vdisk.units import KIB, MIB

SIGNATURE = b"vhdxfile"
HEADER_OFFSETS = (64 * KIB, 128 * KIB)
HEADER_BYTES = 4 * KIB
NO_GUID = UUID(int=0)
_MAGIC = b"head"
_VERSION = 1
# At 0: signature, checksum, sequence number; GUIDs of file write, data write and log; versions of
# the log and the format; length and offset of the log.
_FIELDS = struct.Struct("<4sIQ16s16s16sHHIQ")


def crc32c(data: bytes | bytearray, at: int = 4) -> int:
    """The CRC-32C (Castagnoli) of `data` with the four bytes at `at` taken as zeros."""
    from google_crc32c import value  # Here, for only who opens a VHDX has to wait for it.

    return int(value(bytes(data[:at]) + bytes(4) + bytes(data[at + 4 :])))


def with_crc32c(data: bytearray, at: int = 4) -> bytes:
    """`data` with its checksum in the four bytes at `at`."""
    struct.pack_into("<I", data, at, crc32c(data, at))
    return bytes(data)


@dataclass(frozen=True, slots=True)
class Header:
    """The fields of a header.  `log_offset` and `log_length` are bytes.

    `log_guid` is `NO_GUID` where the log holds nothing that would have to be replayed.
    """

    sequence: int
    file_write: UUID
    data_write: UUID
    log_guid: UUID
    log_length: int
    log_offset: int
    log_version: int = 0

    @classmethod
    def parse(cls, raw: bytes) -> Self | None:
        """The header in these 4096 bytes, None where they hold no valid one.

        Raises Unsupported for a version that is not 1.
        """
        magic, found, sequence, *guids, log_version, version, length, offset = _FIELDS.unpack_from(
            raw
        )
        if magic != _MAGIC or found != crc32c(raw):
            return None
        if version != _VERSION:
            raise Unsupported(f"is a VHDX image of version {version}, not 1")
        file_write, data_write, log = (UUID(bytes_le=guid) for guid in guids)
        return cls(sequence, file_write, data_write, log, length, offset, log_version)

    def pack(self) -> bytes:
        """The header's 4096 bytes."""
        raw = bytearray(HEADER_BYTES)
        _FIELDS.pack_into(
            raw, 0, _MAGIC, 0, self.sequence, self.file_write.bytes_le, self.data_write.bytes_le,
            self.log_guid.bytes_le, self.log_version, _VERSION, self.log_length, self.log_offset,
        )
        return with_crc32c(raw)


@dataclass(frozen=True, slots=True)
class Headers:
    """Both headers: `current` is the one that counts, and lies in `slot` (0 or 1).

    `raw` are the bytes of each; `is_whole` says that the other one is valid as well.
    """

    current: Header
    slot: int
    raw: tuple[bytes, bytes]
    is_whole: bool = True

    @classmethod
    def read(cls, host: HostFile) -> Self:
        """The headers of the image in `host`.

        Raises InvalidFormat where it is no VHDX image, Corrupt where no header counts, Unsupported.
        """
        if host.size() < MIB or host.read(0, len(SIGNATURE)) != SIGNATURE:
            raise InvalidFormat("is no VHDX image: its signature is missing", path=host.path)
        first, second = (host.read(offset, HEADER_BYTES) for offset in HEADER_OFFSETS)
        found = [Header.parse(first), Header.parse(second)]
        valid = [(header.sequence, slot) for slot, header in enumerate(found) if header]
        # Disk2vhd writes two that are the same; any other two of one number say nothing.
        if not valid or (len({number for number, _ in valid}) < len(valid) and first != second):
            raise Corrupt("neither of its headers is valid", path=host.path)
        _, slot = max(valid)
        current = found[slot]
        assert current is not None
        return cls(current, slot, (first, second), len(valid) == 2)

    def updated(self, change: Header) -> Headers:
        """The headers with `change` as the current one, but for its number; `puts` writes them."""
        first = replace(change, sequence=self.current.sequence + 1)
        second = replace(first, sequence=first.sequence + 1)
        packed = [b"", b""]
        packed[1 - self.slot], packed[self.slot] = first.pack(), second.pack()
        return Headers(second, self.slot, (packed[0], packed[1]))

    def puts(self, host: HostFile, new: Headers) -> tuple[Put, Put]:
        """The steps from these headers to `new`: the one that does not count comes first."""
        first, second = (
            Put(host, HEADER_OFFSETS[slot], new.raw[slot], sync=True, before=self.raw[slot])
            for slot in (1 - self.slot, self.slot)
        )
        return first, second
