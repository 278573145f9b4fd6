"""The block table (BAT) of a VHDX image: what its entries say, and where they are in it.

After the entries of each chunk of blocks (2^23 sectors) comes one for the chunk's sector bitmap: a
MiB in which a bit says of each sector of a differencing image whether it is in this file.

Source: [MS-VHDX] 2.5, "BAT".
"""

from __future__ import annotations

from collections import OrderedDict
from enum import IntEnum
from threading import Lock

from vdisk.formats.table import Reader
from vdisk.units import MIB

_CHUNK_SECTORS = 1 << 23
_BITS_KEPT = 1 << 22  # Bits of sector bitmaps, a character each.
ENTRY_BYTES = 8
BITMAP_BLOCK = MIB
"""How large the sector bitmap of a chunk is."""


class BlockState(IntEnum):
    """What an entry says of its block: the entry's lowest three bits."""

    NOT_PRESENT = 0
    UNDEFINED = 1
    ZERO = 2
    UNMAPPED = 3
    UNMAPPED_OLD = 5  # In images of drafts of the specification.
    FULL = 6
    PARTIAL = 7


def state(entry: int) -> int:
    """The block's state, one of `BlockState` or 4, which is none."""
    return entry & 7


def place(entry: int) -> int:
    """Where the block is, in bytes from the file's beginning."""
    return entry >> 20 << 20


def full(offset: int) -> int:
    """The entry of a block that lies at `offset`, whole MiB."""
    return offset | BlockState.FULL


class Layout:
    """Where entries are, for blocks of `block_size` bytes and sectors of `sector_size`."""

    def __init__(self, block_size: int, sector_size: int, *, has_parent: bool) -> None:
        self.ratio = _CHUNK_SECTORS * sector_size // block_size
        self.bitmap_bytes = block_size // sector_size // 8
        self._block_size = block_size
        self._has_parent = has_parent

    def blocks(self, size: int) -> int:
        """How many blocks a disk of `size` bytes has."""
        return -(-size // self._block_size)

    def entries(self, size: int) -> int:
        """How many entries a disk of `size` bytes has."""
        blocks = self.blocks(size)
        if self._has_parent:
            return -(-blocks // self.ratio) * (self.ratio + 1)
        return blocks + (blocks - 1) // self.ratio

    def index(self, block: int) -> int:
        """The entry of a block."""
        return block + block // self.ratio

    def block(self, index: int) -> int:
        """The block of an entry that is not one of a sector bitmap."""
        return index - index // (self.ratio + 1)

    def bitmaps(self, entries: int) -> range:
        """Which of so many entries are those of sector bitmaps."""
        return range(self.ratio, entries, self.ratio + 1)

    def is_bitmap(self, index: int) -> bool:
        """Whether an entry is one of a sector bitmap."""
        return index % (self.ratio + 1) == self.ratio

    def bitmap_index(self, block: int) -> int:
        """The entry of the sector bitmap of a block's chunk."""
        return block // self.ratio * (self.ratio + 1) + self.ratio

    def bitmap_place(self, entry: int, block: int) -> int:
        """Where a block's bits are, given the entry of its chunk's bitmap."""
        return place(entry) + block % self.ratio * self.bitmap_bytes


class SectorBits:
    """The bits of blocks that are there in part, as texts of "0" and "1", read as needed.

    May be used by any number of threads at once.
    """

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._kept: OrderedDict[int, str] = OrderedDict()
        self._lock = Lock()

    def get(self, block: int, offset: int, length: int) -> str:
        """The bits of a block, in `length` bytes at `offset`: the lowest bit comes first."""
        known = self._kept.get(block)
        if known is not None:
            return known
        packed = self._reader.read(offset, length)
        bits = format(int.from_bytes(packed, "little"), f"0{length * 8}b")[::-1]
        with self._lock:
            self._kept[block] = bits
            while len(self._kept) * len(bits) > _BITS_KEPT and len(self._kept) > 1:
                self._kept.popitem(last=False)
        return bits
