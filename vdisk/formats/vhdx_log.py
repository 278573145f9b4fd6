"""The log of a VHDX image, read: changes that were to be made when its writer stopped.

A ring of entries of whole 4 KiB sectors.  An entry has a sequence number, says where in the ring
the oldest entry is that counts with it, and describes changes: 4 KiB of the file each, or a run of
zeros.  What counts is the unbroken run of valid entries with the highest number at its end; all of
it is done again, from the oldest entry on.

Source: [MS-VHDX] 2.3, "Log"; QEMU, `block/vhdx-log.c`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from uuid import UUID

from vdisk.errors import Corrupt, Unsupported
from vdisk.formats.vhdx_header import Header
from vdisk.host import HostFile
from vdisk.units import MIB

SECTOR_BYTES = 4096
LOG_BYTES_MAX = 256 * MIB
"""A log that has to be replayed is at most so long; 1 MiB is usual."""
ENTRY_HEAD = struct.Struct("<4sIIIQII16sQQ")
"""Signature, checksum, length, tail, sequence, descriptors, reserved, log GUID, flushed, last."""
DATA_DESCRIPTOR = struct.Struct("<4s4s8sQQ")
"""Signature, last 4 bytes, first 8 bytes, file offset, sequence."""
ZERO_DESCRIPTOR = struct.Struct("<4sIQQQ")
"""Signature, reserved, length, file offset, sequence."""
DATA_SECTOR = struct.Struct("<4sI4084sI")
"""Signature, high half of the sequence, all but the first 8 and last 4 bytes, low half."""
_DESCRIPTORS_AT = 64
_EFFORT = 16  # How often all of the log may be read over to find what counts in it.


def descriptor_sectors(descriptors: int) -> int:
    """How many sectors an entry's head and its descriptors take up."""
    return -(-(_DESCRIPTORS_AT + DATA_DESCRIPTOR.size * descriptors) // SECTOR_BYTES)


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry's head: `position` and `tail` are bytes from the log's beginning."""

    position: int
    length: int
    tail: int
    sequence: int
    descriptors: int
    flushed: int
    last: int


@dataclass(frozen=True, slots=True)
class Change:
    """`length` bytes of the file from `offset` on become zeros, or, where `source` is set, data.

    Then they are 4096: `first`, the 4084 bytes at `source` of the file, and `final`.
    """

    offset: int
    length: int
    source: int | None = None
    first: bytes = b""
    final: bytes = b""

    def data(self, host: HostFile) -> bytes:
        """The bytes, read from the log."""
        if self.source is None:
            return bytes(self.length)
        return self.first + host.read(self.source, SECTOR_BYTES - 12) + self.final


def log_problem(host: HostFile, header: Header) -> str | None:
    """Why no log can be where the header says that it is; None where one can."""
    offset, length = header.log_offset, header.log_length
    if offset < MIB or offset % MIB or length % MIB or not length or offset + length > host.size():
        return f"its header says that {length} bytes of log are at byte {offset}"
    return None


class Log:
    """The ring in a file.  Raises Corrupt where none can be, Unsupported for one too long."""

    def __init__(self, host: HostFile, header: Header) -> None:
        self.host = host
        self.offset, self.length = header.log_offset, header.log_length
        self.guid = header.log_guid
        problem = log_problem(host, header)
        if problem is not None:
            raise Corrupt(problem, path=host.path)
        if self.length > LOG_BYTES_MAX:
            raise Unsupported(f"has a log of {self.length} bytes to replay", path=host.path)
        self._effort = _EFFORT * self.length
        self._valid: dict[int, bool] = {}

    def active(self) -> list[Entry]:
        """The entries that count, the oldest first; none where the log holds nothing valid."""
        entries = {entry.position: entry for entry in self._heads()}
        for head in sorted(entries.values(), key=lambda each: -each.sequence):
            found = self._run(entries, head)
            if found:
                return found
        return []

    def _heads(self) -> Iterator[Entry]:
        """Whatever looks like an entry of this log."""
        for position in range(0, self.length, SECTOR_BYTES):
            raw = self.host.read(self.offset + position, ENTRY_HEAD.size)
            magic, _, length, tail, sequence, descriptors, _, guid, flushed, last = (
                ENTRY_HEAD.unpack(raw)
            )
            if magic != b"loge" or UUID(bytes_le=guid) != self.guid or not sequence:
                continue
            if length % SECTOR_BYTES or not 0 < length <= self.length:
                continue
            if tail % SECTOR_BYTES or tail >= self.length:
                continue
            if descriptor_sectors(descriptors) * SECTOR_BYTES > length:
                continue
            yield Entry(position, length, tail, sequence, descriptors, flushed, last)

    def _run(self, entries: dict[int, Entry], head: Entry) -> list[Entry]:
        """The entries from the tail of `head` to itself, if all are valid and in order."""
        found: list[Entry] = []
        left, position = self.length, head.tail
        while True:
            self._spend(SECTOR_BYTES)
            entry = entries.get(position)
            if entry is None or (found and entry.sequence != found[-1].sequence + 1):
                return []
            left -= entry.length
            if left < 0 or entry.sequence > head.sequence:
                return []
            found.append(entry)
            if entry is head:
                break
            position = (position + entry.length) % self.length
        return found if all(self._is_valid(entry) for entry in found) else []

    def _spend(self, amount: int) -> None:
        self._effort -= amount
        if self._effort < 0:
            raise Corrupt("its log cannot be made sense of", path=self.host.path)

    def _is_valid(self, entry: Entry) -> bool:
        if entry.position not in self._valid:
            self._spend(entry.length)
            self._valid[entry.position] = self._sum_is_right(entry) and self._is_complete(entry)
        return self._valid[entry.position]

    def _sector(self, entry: Entry, number: int) -> bytes:
        position = (entry.position + number * SECTOR_BYTES) % self.length
        return self.host.read(self.offset + position, SECTOR_BYTES)

    def _sum_is_right(self, entry: Entry) -> bool:
        from google_crc32c import extend

        first = self._sector(entry, 0)
        (wanted,) = struct.unpack_from("<I", first, 4)
        found = extend(0, first[:4] + bytes(4) + first[8:])
        for number in range(1, entry.length // SECTOR_BYTES):
            found = extend(found, self._sector(entry, number))
        return bool(found == wanted)

    def _is_complete(self, entry: Entry) -> bool:
        try:
            for _ in self.changes(entry):
                pass
        except Corrupt:
            return False
        return True

    def changes(self, entry: Entry) -> Iterator[Change]:
        """What an entry describes, in order.  Corrupt where that is no whole."""
        number = descriptor_sectors(entry.descriptors)
        for raw in self._descriptors(entry):
            if raw[:4] == b"zero":
                _, _, length, offset, sequence = ZERO_DESCRIPTOR.unpack(raw)
                change = Change(offset, length)
            else:
                magic, final, first, offset, sequence = DATA_DESCRIPTOR.unpack(raw)
                if magic != b"desc" or number * SECTOR_BYTES >= entry.length:
                    raise Corrupt("an entry of its log is not whole", path=self.host.path)
                self._check_data(entry, number)
                position = (entry.position + number * SECTOR_BYTES) % self.length
                change = Change(
                    offset, SECTOR_BYTES, self.offset + position + 8, first, final
                )
                number += 1
            if sequence != entry.sequence or change.offset % SECTOR_BYTES or (
                change.length % SECTOR_BYTES
            ):
                raise Corrupt("an entry of its log is not whole", path=self.host.path)
            yield change

    def _check_data(self, entry: Entry, number: int) -> None:
        magic, high, _, low = DATA_SECTOR.unpack(self._sector(entry, number))
        if magic != b"data" or high << 32 | low != entry.sequence:
            raise Corrupt("a sector of its log is not whole", path=self.host.path)

    def _descriptors(self, entry: Entry) -> Iterator[bytes]:
        at = _DESCRIPTORS_AT
        sector, number = self._sector(entry, 0), 0
        for _ in range(entry.descriptors):
            if at == SECTOR_BYTES:
                at, number = 0, number + 1
                sector = self._sector(entry, number)
            yield sector[at : at + DATA_DESCRIPTOR.size]
            at += DATA_DESCRIPTOR.size
