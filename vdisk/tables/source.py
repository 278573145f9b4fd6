"""The disk that a table is looked for on, seen through a reader that remembers its reads."""

from __future__ import annotations

from vdisk.tables.partition import Reader, Region, apart

MBR_BYTES = 512
"""An MBR and an extended boot record have this many bytes, whatever the disk's sectors have."""


class Source:
    """A disk to look at: bytes by LBA, and which of them were looked at.

    An answer made only of what `read` gave can change only when one of those bytes does (or the
    disk's size).  That is what `regions` is for.
    """

    def __init__(self, read: Reader, size_bytes: int, sector_size: int) -> None:
        self._read = read
        self._asked: list[Region] = []
        self.size_bytes = size_bytes
        self.sector_size = sector_size
        self.sectors = size_bytes // sector_size
        """Whole sectors of the disk; an incomplete one at its end is none."""

    def holds(self, lba: int, length: int) -> bool:
        """Whether `length` bytes from the start of `lba` lie in the disk's whole sectors."""
        return lba * self.sector_size + length <= self.sectors * self.sector_size

    def read(self, lba: int, length: int, *, skip: int = 0) -> bytes:
        """`length` bytes that begin `skip` bytes after the start of `lba`.

        The range must lie in the disk (`holds` tells).  Errors of the reader pass through.
        """
        offset = lba * self.sector_size + skip
        self._asked.append((offset, offset + length))
        return self._read(offset, length)

    def sectors_of(self, length: int) -> int:
        """How many sectors `length` bytes take up, the last one perhaps in part."""
        return -(-length // self.sector_size)

    def regions(self) -> tuple[Region, ...]:
        """The ranges of bytes that were read: half-open, in order, neither touching another."""
        return apart(self._asked)
