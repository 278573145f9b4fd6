"""The structures of a VHDX file by the specification's offsets, to look at them and break them.

The checksums are by a table of its own, not by the library that vdisk uses.
"""

from __future__ import annotations

import struct
from pathlib import Path
from uuid import UUID

MIB = 1 << 20
HEADERS = (64 << 10, 128 << 10)
TABLES = (192 << 10, 256 << 10)
BAT_GUID = UUID("2DC27766-F623-4200-9D64-115E9BFD4A08").bytes_le
METADATA_GUID = UUID("8B7CA206-4790-4B9A-B8FE-575F050F886E").bytes_le


def _crc_table() -> list[int]:
    table = []
    for number in range(256):
        for _ in range(8):
            number = (number >> 1) ^ (0x82F63B78 if number & 1 else 0)
        table.append(number)
    return table


_TABLE = _crc_table()


def crc32c(data: bytes | bytearray) -> int:
    """CRC-32C (RFC 3720, appendix B.4)."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _TABLE[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


def sealed(data: bytearray) -> bytearray:
    """`data` with its checksum, at 4, set right."""
    struct.pack_into("<I", data, 4, 0)
    struct.pack_into("<I", data, 4, crc32c(data))
    return data


class VhdxFile:
    """A VHDX file's bytes in memory; `save` writes them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.raw = bytearray(path.read_bytes())

    def save(self) -> None:
        """Write the bytes to the file."""
        self.path.write_bytes(self.raw)

    def region(self, guid: bytes) -> int:
        """Where a region begins, by the first region table."""
        at = TABLES[0] + 16
        while self.raw[at : at + 16] != guid:
            at += 32
        return int(struct.unpack_from("<Q", self.raw, at + 16)[0])

    def set_header(
        self, offset: int, code: str, value: object, slots: tuple[int, ...] = (0, 1)
    ) -> None:
        """Change a field of the headers, and correct their checksums."""
        for slot in slots:
            at = HEADERS[slot]
            struct.pack_into(code, self.raw, at + offset, value)
            self.raw[at : at + 4096] = sealed(self.raw[at : at + 4096])

    def set_table(self, offset: int, code: str, value: object) -> None:
        """Change a field of the region tables, and correct their checksums."""
        for at in TABLES:
            struct.pack_into(code, self.raw, at + offset, value)
            self.raw[at : at + 65536] = sealed(self.raw[at : at + 65536])


def log_entry(
    guid: bytes, sequence: int, changes: list[tuple[int, bytes | int]], *,
    tail: int = 0, flushed: int = 0, last: int = 0,
) -> bytes:
    """A log entry ([MS-VHDX] 2.3.1): (file offset, 4096 bytes, or how many zeros)."""
    sectors = 1 if len(changes) <= 126 else 1 + -(-(len(changes) - 126) // 128)
    head, data = bytearray(sectors * 4096), bytearray()
    at = 64
    for offset, what in changes:
        if isinstance(what, int):
            struct.pack_into("<4sIQQQ", head, at, b"zero", 0, what, offset, sequence)
        else:
            struct.pack_into("<4s4s8sQQ", head, at, b"desc", what[-4:], what[:8], offset, sequence)
            data += struct.pack("<4sI4084sI", b"data", sequence >> 32, what[8:-4], sequence)
        at += 32
    raw = head + data
    struct.pack_into(
        "<4sIIIQII16sQQ", raw, 0, b"loge", 0, len(raw), tail, sequence, len(changes), 0, guid,
        flushed, last,
    )
    return bytes(sealed(raw))
