"""Which sectors of each block of a VHD image hold data: the bitmap in front of every block.

The first sector is the highest bit of the first byte.  A sector whose bit is clear reads as the
parent, or as zeros where there is none, whatever lies in its place.

In memory a bitmap is a text of one "0" or "1" a sector, so that finding where a run ends is a
search for a character, and it never changes: another one takes its place.  Of a block that is full,
which most are, only that is kept.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from threading import Lock

from vdisk.formats.vhd_header import bitmap_bytes
from vdisk.host import HostFile
from vdisk.units import SECTOR

_KEPT_CHARS = 8 << 20  # Of bitmaps that do not wait.
WAITING_CHARS_MAX = 16 << 20
"""When more than this waits in memory, it is time to write it."""


class SectorBitmaps:
    """The bitmaps of `blocks` blocks of `block_size` bytes in `host`, read as they are needed.

    `get` and `peek` may be called by any number of threads at once, also while one other sets.
    """

    def __init__(self, host: HostFile, block_size: int, blocks: int) -> None:
        self._host = host
        self._sectors = block_size // SECTOR
        self._bytes = bitmap_bytes(block_size)
        self._full = bytearray(blocks)
        self._partial: OrderedDict[int, str] = OrderedDict()
        self._waiting: set[int] = set()
        self._lock = Lock()
        self.all_set = "1" * self._sectors
        self.all_clear = "0" * self._sectors

    def get(self, index: int, place: int) -> str:
        """The bitmap of block `index`, which begins at host offset `place`.  Raises HostError."""
        known = self.peek(index)
        if known is not None:
            return known
        with self._lock:
            found = self._partial.get(index)
            if found is None:
                found = self._unpacked(self._host.read(place, self._bytes))
                self._keep(index, found)
            return found

    def peek(self, index: int) -> str | None:
        """The bitmap of block `index` if it is in memory, None otherwise.  Never waits."""
        return self.all_set if self._full[index] else self._partial.get(index)

    def is_full(self, index: int) -> bool:
        """Whether all sectors of block `index` are known to hold data."""
        return self._full[index] == 1

    def set(self, index: int, bits: str, *, waiting: bool = False) -> None:
        """Make the bitmap of block `index` `bits` in memory.

        With `waiting` the host has the old one until `waiting_bitmaps` are written.
        """
        with self._lock:
            if waiting:
                self._waiting.add(index)
                self._full[index] = 0
                self._partial[index] = bits
            else:
                self._keep(index, bits)

    def forget(self) -> None:
        """Read all bitmaps anew.  None may wait."""
        assert not self._waiting
        with self._lock:
            self._partial.clear()
            self._full[:] = bytes(len(self._full))

    def packed(self, bits: str) -> bytes:
        """A bitmap as the file holds it."""
        return int(bits.ljust(self._bytes * 8, "0"), 2).to_bytes(self._bytes, "big")

    @property
    def is_much_waiting(self) -> bool:
        """Whether so much waits that it should be written."""
        return len(self._waiting) * self._sectors > WAITING_CHARS_MAX

    def waiting_bitmaps(self) -> Iterator[tuple[int, str]]:
        """(block, bitmap) of those that wait, in order."""
        for index in sorted(self._waiting):
            yield index, self._partial[index]

    def written(self) -> None:
        """The host has every bitmap: nothing waits any more."""
        with self._lock:
            for index in self._waiting:
                self._keep(index, self._partial[index])
            self._waiting.clear()

    def _keep(self, index: int, bits: str) -> None:
        if bits == self.all_set:
            self._full[index] = 1
            self._partial.pop(index, None)
            return
        self._full[index] = 0
        self._partial[index] = bits
        room = _KEPT_CHARS // self._sectors + len(self._waiting) + 8
        if len(self._partial) > room:
            for old in [each for each in self._partial if each not in self._waiting][: room // 8]:
                del self._partial[old]

    def _unpacked(self, packed: bytes) -> str:
        return format(int.from_bytes(packed, "big"), f"0{self._bytes * 8}b")[: self._sectors]


def runs(bits: str, start: int, end: int) -> Iterator[tuple[int, int, bool]]:
    """(first sector, end, whether they hold data) of the runs in sectors [start, end)."""
    while start < end:
        stop = bits.find("0" if bits[start] == "1" else "1", start, end)
        stop = end if stop < 0 else stop
        yield start, stop, bits[start] == "1"
        start = stop


def with_set(bits: str, start: int, end: int) -> str:
    """`bits` with those of sectors [start, end) set."""
    return f"{bits[:start]}{'1' * (end - start)}{bits[end:]}"
