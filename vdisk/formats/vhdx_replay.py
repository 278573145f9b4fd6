"""A VHDX image as it is when its log is replayed.

An image is opened as if that had been done: its tables are read so.  The host has it only once the
image is written to.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Self

from vdisk.errors import Corrupt, Unsupported
from vdisk.formats.vhdx_header import NO_GUID, Header
from vdisk.formats.vhdx_log import SECTOR_BYTES, Change, Log
from vdisk.host import HostFile
from vdisk.plan import Clear, Grow, Put, Step
from vdisk.units import MIB

_FILE_OFFSET_MAX = 1 << 52
_CHANGES_MAX = 1 << 16
_ZEROS_MAX = 1 << 10  # Runs of zeros, each of which is looked at whenever something is read.


@dataclass
class Replayed:
    """The image's file as it is when its log is replayed; `end` is how long it then is.

    `changes` are in the order in which they are made; there are none where the log is clean.
    """

    host: HostFile
    end: int
    changes: list[Change] = field(default_factory=list)
    _sectors: dict[int, int] = field(default_factory=dict)  # Offset -> index of the last change.
    _zeros: list[int] = field(default_factory=list)  # Indices of changes that are zeros.

    @classmethod
    def of(cls, host: HostFile, header: Header) -> Self:
        """Look at the log.  Raises Corrupt where what it holds cannot be done, and Unsupported."""
        size = host.size()
        if header.log_guid == NO_GUID:
            return cls(host, size)
        if header.log_version != 0:
            raise Unsupported(f"its log is of version {header.log_version}", path=host.path)
        entries = Log(host, header).active()
        if not entries:
            return cls(host, size)
        if entries[-1].flushed > size:
            raise Corrupt(
                f"ends at byte {size}, and was {entries[-1].flushed} bytes large when its log was "
                "written: it has been cut", path=host.path,
            )
        end = max(size, entries[-1].last)
        if end > _FILE_OFFSET_MAX:
            raise Corrupt(f"its log wants a file of {end} bytes", path=host.path)
        found = cls(host, end)
        log = Log(host, header)
        for entry in entries:
            for change in log.changes(entry):
                found._add(change, header)
        return found

    def _add(self, change: Change, header: Header) -> None:
        end, log_end = change.offset + change.length, header.log_offset + header.log_length
        if change.offset < MIB or end > self.end or (
            change.offset < log_end and header.log_offset < end
        ):
            raise Corrupt(
                f"its log changes byte {change.offset}, past the end, in the log, or in a header",
                path=self.host.path,
            )
        if change.source is None:
            self._zeros.append(len(self.changes))
        else:
            self._sectors[change.offset] = len(self.changes)
        self.changes.append(change)
        if len(self.changes) > _CHANGES_MAX or len(self._zeros) > _ZEROS_MAX:
            raise Unsupported("its log has too many changes", path=self.host.path)

    @property
    def is_pending(self) -> bool:
        """Whether the host does not have all that yet."""
        return bool(self.changes) or self.end > self.host.size()

    def touches(self, offset: int, length: int) -> bool:
        """Whether anything in [offset, offset + length) is still to be changed in the host."""
        return bool(self.changes) and bool(self._inside(offset, length))

    def _inside(self, offset: int, length: int) -> list[int]:
        """The indices of the changes that reach into a range, in order."""
        end = offset + length
        first = offset - offset % SECTOR_BYTES
        if (end - first) // SECTOR_BYTES < len(self._sectors):
            sectors = [
                self._sectors[at] for at in range(first, end, SECTOR_BYTES) if at in self._sectors
            ]
        else:
            sectors = [index for at, index in self._sectors.items() if first <= at < end]
        zeros = [
            index for index in self._zeros
            if self.changes[index].offset < end
            and self.changes[index].offset + self.changes[index].length > offset
        ]
        return sorted(sectors + zeros)

    def read(self, offset: int, length: int) -> bytes:
        """The `length` bytes from `offset`: a table, whose length the caller has limited."""
        if not self.changes:
            return self.host.read(offset, length)
        there = max(0, min(length, self.host.size() - offset))
        buffer = bytearray(self.host.read(offset, there) + bytes(length - there))
        for index in self._inside(offset, length):
            change = self.changes[index]
            low = max(offset, change.offset)
            high = min(offset + length, change.offset + change.length)
            data = bytes(high - low)
            if change.source is not None:
                data = change.data(self.host)[low - change.offset : high - change.offset]
            buffer[low - offset : high - offset] = data
        return bytes(buffer)

    def steps(self) -> Iterator[Step]:
        """What brings the host up to date.  To be made durable before the log is given up."""
        yield Grow(self.host, self.end)
        for change in self.changes:
            if change.source is None:
                yield Clear(self.host, change.offset, change.length)
            else:
                yield Put(self.host, change.offset, change.data(self.host))

    def done(self) -> None:
        """The host is up to date."""
        self.changes.clear()
        self._sectors.clear()
        self._zeros.clear()
