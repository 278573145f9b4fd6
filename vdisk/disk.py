"""A virtual disk: what a guest sees, by byte, by LBA and by CHS.

`Disk` is what every disk can do.  `Slice` is a part of another disk (a partition, a track, a
sector) and is itself a disk, so that layers compose; `vdisk.image_disk` has the disk in an image.

Offsets and lengths are bytes; every operation is positional and safe from several threads at
once, as long as nobody resizes the disk meanwhile.  A range that does not lie inside the disk is
OutOfRange, and then nothing is read or written.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Self

from vdisk.errors import InvalidArgument, NotPermitted, OutOfRange, ReadOnly, Unsupported
from vdisk.extent import Extent
from vdisk.geometry import CHS, Choice, Geometry
from vdisk.host import HostFile

SIZE_MAX = 2**63 - 1
"""The largest disk in bytes: what a Linux file offset holds."""


class Disk(ABC):
    """What every disk can do.

    `size` is in bytes and need not be whole sectors.  `address` names the disk to a person.
    `choice` is the geometry with its provenance, None for a disk of less than one sector.
    """

    address: str
    sector_size: int
    read_only: bool
    choice: Choice | None = None

    @property
    @abstractmethod
    def size(self) -> int:
        """The disk's size in bytes."""

    @abstractmethod
    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` with the bytes from `offset`."""

    @abstractmethod
    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Write all of `data` at `offset`.  Not durable before `flush`."""

    @abstractmethod
    def zero(self, offset: int, length: int) -> None:
        """Make the range read as zeros, keeping its space."""

    @abstractmethod
    def discard(self, offset: int, length: int) -> None:
        """Make the range read as zeros and give its space back to the host where it can."""

    def allocate(self, offset: int, length: int) -> None:
        """Set space aside for the range, whose bytes stay: a write to it will not find the host
        full.  Unsupported where the host or this kind of disk cannot.
        """
        raise Unsupported("cannot set space aside", path=self.address)

    @abstractmethod
    def flush(self) -> None:
        """Make every write that has returned durable."""

    @abstractmethod
    def resize(self, size: int) -> None:
        """Make the disk `size` bytes; what is cut off is lost, what is added reads as zeros."""

    @abstractmethod
    def map(self, offset: int, length: int) -> Iterator[Extent]:
        """V of the range: guest runs and the bytes of host files that hold them.

        Through every layer, so `host` is a `HostFile` or None, and the kind DATA, ZERO or
        COMPRESSED.  Ordered, contiguous, as few extents as say it; holes are told from data, as
        SEEK_HOLE says now.
        """

    @abstractmethod
    def window(self) -> tuple[HostFile, int] | None:
        """(host, base) where guest byte g is always host byte base + g; None otherwise.

        A server may then move the bytes of a request itself, with one host call.
        """

    @abstractmethod
    def hosts(self) -> tuple[HostFile, ...]:
        """The host files that it lies in, without its parents', the one it was opened by first."""

    def run(self, offset: int, length: int) -> tuple[HostFile, int, int] | None:
        """(host, host_offset, length) of the first of these bytes, as many as are one run there.

        They are read and written in place, and stay there as long as the disk is not resized.
        None where the disk promises no such thing.
        """
        window = self.window()
        return None if window is None else (window[0], window[1] + offset, length)

    def try_read_into(self, offset: int, buffer: memoryview) -> bool:
        """Fill `buffer` from `offset` if that takes one host call and no waiting; whether it did.

        False is always right: the caller then reads in a thread that may wait.
        """
        return False

    def try_write(self, offset: int, data: bytes | memoryview) -> bool:
        """Write `data` at `offset` if that takes one host call and no waiting; whether it did."""
        return False

    @abstractmethod
    def close(self) -> None:
        """Let go of the host files and their locks.  Closing twice is harmless."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    # By byte

    def read(self, offset: int, length: int) -> bytes:
        """The `length` bytes from `offset`."""
        self.check_range(offset, length)
        buffer = bytearray(length)
        self.read_into(offset, memoryview(buffer))
        return bytes(buffer)

    def check_range(self, offset: int, length: int) -> None:
        """Raise OutOfRange unless [offset, offset + length) lies inside the disk."""
        if offset < 0 or length < 0 or offset + length > self.size:
            raise OutOfRange(
                f"bytes {offset} to {offset + length} are not inside the disk's {self.size} bytes",
                path=self.address,
            )

    def check_writable(self) -> None:
        """Raise ReadOnly where the disk was opened for reading only."""
        if self.read_only:
            raise ReadOnly("is open read-only", path=self.address)

    # By LBA

    @property
    def sectors(self) -> int:
        """Whole sectors on the disk."""
        return self.size // self.sector_size

    def read_lba(self, lba: int, sectors: int = 1) -> bytes:
        """`sectors` sectors from `lba`.  OutOfRange where they are not all on the disk."""
        return self.read(lba * self.sector_size, sectors * self.sector_size)

    def write_lba(self, lba: int, data: bytes | memoryview) -> None:
        """Write whole sectors from `lba`.  InvalidArgument where `data` is not whole sectors."""
        if len(data) % self.sector_size:
            raise InvalidArgument(
                f"{len(data)} bytes are not whole sectors of {self.sector_size} bytes",
                path=self.address,
            )
        self.write(lba * self.sector_size, data)

    # By CHS

    @property
    def geometry(self) -> Geometry:
        """The disk's geometry.  InvalidArgument for a disk smaller than one sector."""
        if self.choice is None:
            raise InvalidArgument("has no geometry: it is smaller than a sector", path=self.address)
        return self.choice.geometry

    def read_chs(self, chs: CHS, sectors: int = 1) -> bytes:
        """`sectors` sectors from `chs`.  OutOfRange where `chs` is not in the geometry."""
        return self.read_lba(self.geometry.lba(chs), sectors)

    def write_chs(self, chs: CHS, data: bytes | memoryview) -> None:
        """Write whole sectors from `chs` on."""
        self.write_lba(self.geometry.lba(chs), data)


class Slice(Disk):
    """Bytes [start, start + length) of another disk, as a disk.  It cannot be resized."""

    def __init__(self, base: Disk, start: int, length: int, *, address: str) -> None:
        """OutOfRange where the range does not lie inside `base`."""
        base.check_range(start, length)
        self.base = base
        self.start = start
        self.address = address
        self.sector_size = base.sector_size
        self.read_only = base.read_only
        self._length = length

    @property
    def size(self) -> int:
        return self._length

    def read_into(self, offset: int, buffer: memoryview) -> None:
        self.check_range(offset, len(buffer))
        self.base.read_into(self.start + offset, buffer)

    def write(self, offset: int, data: bytes | memoryview) -> None:
        self.check_range(offset, len(data))
        self.base.write(self.start + offset, data)

    def try_read_into(self, offset: int, buffer: memoryview) -> bool:
        inside = 0 <= offset <= self._length - len(buffer)
        return inside and self.base.try_read_into(self.start + offset, buffer)

    def try_write(self, offset: int, data: bytes | memoryview) -> bool:
        inside = 0 <= offset <= self._length - len(data)
        return inside and self.base.try_write(self.start + offset, data)

    def zero(self, offset: int, length: int) -> None:
        self.check_range(offset, length)
        self.base.zero(self.start + offset, length)

    def discard(self, offset: int, length: int) -> None:
        self.check_range(offset, length)
        self.base.discard(self.start + offset, length)

    def allocate(self, offset: int, length: int) -> None:
        self.check_range(offset, length)
        self.base.allocate(self.start + offset, length)

    def flush(self) -> None:
        self.base.flush()

    def resize(self, size: int) -> None:
        """NotPermitted, unless `size` is the size it has: its table says how large it is."""
        if size != self._length:
            raise NotPermitted(
                "is a part of a disk and cannot be resized by itself",
                path=self.address,
                hint="change the partition table on the disk",
            )

    def map(self, offset: int, length: int) -> Iterator[Extent]:
        self.check_range(offset, length)
        return (e.shifted(-self.start) for e in self.base.map(self.start + offset, length))

    def window(self) -> tuple[HostFile, int] | None:
        beneath = self.base.window()
        return None if beneath is None else (beneath[0], beneath[1] + self.start)

    def hosts(self) -> tuple[HostFile, ...]:
        return self.base.hosts()

    def run(self, offset: int, length: int) -> tuple[HostFile, int, int] | None:
        return self.base.run(self.start + offset, length)

    def close(self) -> None:
        self.base.close()
