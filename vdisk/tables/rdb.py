"""The Amiga's rigid disk block (RDB): a disk's geometry, and a list of partitions with theirs.

Blocks of big-endian 32-bit words.  The rigid disk block, "RDSK", is one of the first 16 blocks of
the disk; each partition block, "PART", leads to the next.  A block's first words are its name, how
many words are summed, and what makes their sum 0.

Who is believed: what the Linux kernel believes.  The first sound RDSK block counts; positions are
in blocks of the size that it gives; a partition is whole cylinders of its *own* heads and sectors.

Sources: the Amiga's `devices/hardblocks.h`; Linux, `block/partitions/amiga.c`; WinUAE,
`hardfile.cpp`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from vdisk.chs import Geometry
from vdisk.errors import InvalidArgument
from vdisk.tables.partition import Partition, Table
from vdisk.tables.partition_types import rdb_type_name
from vdisk.tables.soundness import LbaRange, judge
from vdisk.tables.source import Source

PARTITIONS_MAX = 128
"""So many blocks of the list are read; AmigaOS has letters for far fewer."""

_SEARCHED = 16  # RDB_LOCATION_LIMIT.
_HEADER_BYTES = 256  # 64 words: as long both kinds of block are, and so many words are summed.
_END = 0xFFFFFFFF
_BLOCK_BYTES = frozenset(1 << power for power in range(8, 16))
_NAME_MAX = 31
_BOOTABLE = 1
# Windows writes a disk's signature here, into whatever lies in the first sector.
_TRASHED = slice(0xDC, 0xE0)


@dataclass(frozen=True, slots=True)
class RigidDisk:
    """A sound RDSK block: where it is, and what it says of the disk.

    `first_partition` is the number of a block; all blocks have `block_bytes` bytes.  `geometry` is
    None where it makes no sense.
    """

    lba: int
    block_bytes: int
    first_partition: int
    geometry: Geometry | None


def find_rigid_disk(source: Source) -> RigidDisk | None:
    """The first sound RDSK block of the disk, None where there is none."""
    unit = source.sector_size
    count = min(_SEARCHED, source.sectors)
    if unit < _HEADER_BYTES or count == 0:
        return None
    blocks = source.read(0, count * unit)
    for lba in range(count):
        block = blocks[lba * unit : (lba + 1) * unit]
        if block[:4] == b"RDSK" and (_is_sound(block) or _is_sound(_without_signature(block))):
            return _rigid_disk(lba, block)
    return None


def _without_signature(block: bytes) -> bytes:
    return block[: _TRASHED.start] + bytes(4) + block[_TRASHED.stop :]


def _is_sound(block: bytes) -> bool:
    (words,) = struct.unpack_from(">I", block, 4)
    if not _HEADER_BYTES // 4 <= words <= len(block) // 4:
        return False
    total: int = sum(struct.unpack_from(f">{words}I", block))
    return total % (1 << 32) == 0


def _rigid_disk(lba: int, block: bytes) -> RigidDisk | None:
    (block_bytes,) = struct.unpack_from(">I", block, 16)
    (first,) = struct.unpack_from(">I", block, 28)
    cylinders, sectors, heads = struct.unpack_from(">III", block, 64)
    if block_bytes not in _BLOCK_BYTES:
        return None
    return RigidDisk(lba, block_bytes, first, _geometry(cylinders, heads, sectors, block_bytes))


def _geometry(cylinders: int, heads: int, sectors: int, block_bytes: int) -> Geometry | None:
    try:
        return Geometry(cylinders, heads, sectors, block_bytes)
    except InvalidArgument:
        return None


def rdb_table(source: Source) -> Table | None:
    """The table of a disk with a rigid disk block, None where it has none.

    Partitions are numbered from 1 in the order of the list, as the kernel does.
    """
    disk = find_rigid_disk(source)
    if disk is None:
        return None
    if disk.block_bytes % source.sector_size:
        problem = f"its blocks have {disk.block_bytes} bytes, the sectors {source.sector_size}"
        return Table("rdb", "", problems=(problem,))
    found = _List(source, disk)
    partitions = list(found.partitions())
    return Table("rdb", "", judge(source, partitions, found.blocks), tuple(found.problems))


class _List:
    """The partition blocks, followed once: `blocks` are the LBAs read, `problems` what ended it."""

    def __init__(self, source: Source, disk: RigidDisk) -> None:
        self._source = source
        self._disk = disk
        self._per_block = disk.block_bytes // source.sector_size
        self.blocks: list[LbaRange] = [(disk.lba, disk.lba + 1)]
        self.problems: list[str] = []

    def partitions(self) -> Iterator[Partition]:
        number, at, seen = 0, self._disk.first_partition, set[int]()
        while at != _END:
            block = self._block(at, seen)
            if block is None:
                return
            number += 1
            yield self._partition(number, block)
            (at,) = struct.unpack_from(">I", block, 16)

    def _block(self, at: int, seen: set[int]) -> bytes | None:
        """The partition block at block number `at`, unless it is none or the list ends here."""
        lba = at * self._per_block
        if at in seen:
            self.problems.append(f"the list of partitions comes back to block {at}")
        elif len(seen) == PARTITIONS_MAX:
            self.problems.append(f"partitions after number {PARTITIONS_MAX} are left out")
        elif not self._source.holds(lba, self._disk.block_bytes):
            self.problems.append(f"the list of partitions goes on at block {at}, past the disk")
        else:
            seen.add(at)
            block = self._source.read(lba, self._disk.block_bytes)
            if block[:4] == b"PART" and _is_sound(block):
                self.blocks.append((lba, lba + self._per_block))
                return block
            self.problems.append(f"block {at} of the list of partitions is damaged, or is none")
        return None

    def _partition(self, number: int, block: bytes) -> Partition:
        (flags,) = struct.unpack_from(">I", block, 20)
        environment = struct.unpack_from(">20I", block, 128)
        surfaces, sectors = environment[3], environment[5]
        low, high, dos_type = environment[9], environment[10], environment[16]
        cylinders = max(high + 1 - low, 0)
        cylinder = surfaces * sectors * self._per_block
        return Partition(
            number=number,
            start_lba=low * cylinder,
            sectors=cylinders * cylinder,
            type=f"0x{dos_type:08x}",
            type_name=rdb_type_name(dos_type),
            name=_name(block),
            bootable=bool(flags & _BOOTABLE),
            geometry=_geometry(cylinders, surfaces, sectors, self._disk.block_bytes),
        )


def _name(block: bytes) -> str:
    """A BCPL string: its length, and then its characters."""
    length = min(block[36], _NAME_MAX)
    return block[37 : 37 + length].decode("latin-1")
