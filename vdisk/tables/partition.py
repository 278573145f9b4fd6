"""What a partition table says: plain values, the same for MBR, GPT and RDB.

A `Partition` is listed even where it makes no sense, so that a person can see what is wrong; its
`problem` then says why it is not given as a slice.  Ranges are half-open and in sectors of the
disk's own size (`lba`, `sectors`), except for regions, which are half-open ranges of bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from vdisk.chs import Geometry

Reader = Callable[[int, int], bytes]
"""`read(offset, length)` gives exactly `length` bytes of the disk; never asked past its end."""

Region = tuple[int, int]
"""A half-open range of bytes of the disk, `(start, end)`."""

TableKind = Literal["mbr", "gpt", "rdb"]
PartitionKind = Literal["primary", "extended", "logical"]


@dataclass(frozen=True, slots=True)
class Partition:
    """One used entry of a partition table.

    `number` is the one the kernel and sfdisk give it: an MBR's primary entries are 1 to 4 and its
    logical ones count from 5 in the order of their chain; a GPT's entries count from 1.  The
    partition is the half-open range `[start_lba, start_lba + sectors)`.

    `type` is "0x83" for an MBR, an upper-case GUID for a GPT, and "0x444f5303" for an RDB, whose
    types are three letters and a number, here "DOS" and 3; `type_name` is what people call it, ""
    when not known here.  `name` is the one a GPT or an RDB stores ("" for an MBR): whatever a guest
    wrote there, so a consumer makes it printable.  `bootable` is the MBR's 0x80 flag, the GPT's
    legacy BIOS bootable attribute, or the RDB's flag.  `uuid` is the PARTUUID: a GPT's unique GUID
    in upper case, or an MBR's "<disk signature>-<number>" in hexadecimal, "" where the disk has no
    signature.

    `attributes` are a GPT's 64 attribute bits (0 for an MBR); `start_chs` and `end_chs` are an
    MBR's packed three-byte tuples as they are stored (empty for a GPT).

    `geometry` is the one that an RDB gives each of its partitions, None for the others, which have
    their disk's heads and sectors.

    `problem` says why it is not given as a slice, and is None where it is sound.
    """

    number: int
    start_lba: int
    sectors: int
    type: str
    type_name: str = ""
    name: str = ""
    bootable: bool = False
    uuid: str = ""
    kind: PartitionKind = "primary"
    attributes: int = 0
    start_chs: bytes = b""
    end_chs: bytes = b""
    geometry: Geometry | None = None
    problem: str | None = None

    @property
    def end_lba(self) -> int:
        """The LBA after the last sector."""
        return self.start_lba + self.sectors

    @property
    def is_slice(self) -> bool:
        """Whether it is given as a disk of its own: sound, and no mere container of others."""
        return self.problem is None and self.kind != "extended"


@dataclass(frozen=True, slots=True)
class Table:
    """A partition table.

    `disk_id` is as sfdisk prints it: "0x1234abcd" or an upper-case GUID; "" where none could be
    read, and for an RDB.  `partitions` are in the order of their numbers, empty slots left out.
    `problems` are about the table itself, one sentence each: a damaged copy, a loop, a hybrid MBR.
    """

    kind: TableKind
    disk_id: str
    partitions: tuple[Partition, ...] = ()
    problems: tuple[str, ...] = ()

    @property
    def slices(self) -> tuple[Partition, ...]:
        """The partitions that are given as disks of their own, in the order of their numbers."""
        return tuple(partition for partition in self.partitions if partition.is_slice)


@dataclass(frozen=True, slots=True)
class Scan:
    """What looking for a partition table gave.

    `table` is None where the disk has none.  `regions` are the ranges of bytes that were read to
    find out, merged and in order: as long as no byte in them changes, and the disk's size does
    not, another look gives the same answer.  They are there without a table as well, since that
    is where one would appear.
    """

    table: Table | None
    regions: tuple[Region, ...]

    @property
    def slices(self) -> tuple[Partition, ...]:
        """The table's slices; none where there is no table."""
        return () if self.table is None else self.table.slices
