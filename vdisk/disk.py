"""A virtual disk: what a guest sees, by byte, by LBA and by CHS.

`Disk` is what every disk can do.  `ImageDisk` is a disk in an image; `Slice` is a part of another
disk (a partition, a track, a sector) and is itself a disk, so that layers compose.

Offsets and lengths are bytes; every operation is positional and safe from several threads at
once, as long as nobody resizes the disk meanwhile.  A range that does not lie inside the disk is
OutOfRange, and then nothing is read or written.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import replace
from typing import Self

from vdisk.errors import InvalidArgument, NotPermitted, OutOfRange, ReadOnly, Unsupported
from vdisk.extent import Extent, Kind, merged, pieces
from vdisk.formats.base import ImageFormat
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
        """V of the range: guest runs and the host bytes that hold them, holes told from data.

        Ordered, contiguous, as few extents as say it; what is a hole is what SEEK_HOLE says now.
        """

    @abstractmethod
    def window(self) -> tuple[HostFile, int] | None:
        """(host, base) where guest byte g is always host byte base + g; None otherwise.

        A server may then move the bytes of a request itself, with one host call.
        """

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


class ImageDisk(Disk):
    """A disk in an image file: the format says where, this moves the bytes."""

    def __init__(
        self, image: ImageFormat, *, address: str, sector_size: int, read_only: bool
    ) -> None:
        self.image = image
        self.address = address
        self.sector_size = sector_size
        self.read_only = read_only

    @property
    def size(self) -> int:
        return self.image.size

    def read_into(self, offset: int, buffer: memoryview) -> None:
        self.check_range(offset, len(buffer))
        for host, host_offset, part in self._placed(offset, len(buffer)):
            if host is None:
                buffer[part] = bytes(part.stop - part.start)
            else:
                host.read_into(buffer[part], host_offset)

    def write(self, offset: int, data: bytes | memoryview) -> None:
        self.check_writable()
        self.check_range(offset, len(data))
        view = memoryview(data)
        for host, host_offset, part in self._placed(offset, len(data)):
            _present(host).write(view[part], host_offset)

    def zero(self, offset: int, length: int) -> None:
        self.check_writable()
        self.check_range(offset, length)
        for host, host_offset, part in self._placed(offset, length):
            _present(host).zero(host_offset, part.stop - part.start)

    def discard(self, offset: int, length: int) -> None:
        self.check_writable()
        self.check_range(offset, length)
        for host, host_offset, part in self._placed(offset, length):
            _present(host).punch(host_offset, part.stop - part.start)

    def allocate(self, offset: int, length: int) -> None:
        self.check_writable()
        self.check_range(offset, length)
        window = self.window()
        if window is None or not window[0].allocate(window[1] + offset, length):
            super().allocate(offset, length)

    def _placed(self, offset: int, length: int) -> Iterator[tuple[HostFile | None, int, slice]]:
        """Each piece of the request: its host file (None: zeros), host offset and buffer slice."""
        for extent, part in pieces(self.image.map(offset, length), offset, length):
            yield extent.host, extent.host_offset or 0, part

    def flush(self) -> None:
        for host in self.image.hosts():
            host.flush()

    def resize(self, size: int) -> None:
        self.check_writable()
        if not 0 <= size <= SIZE_MAX:
            raise InvalidArgument(f"cannot be {size} bytes large", path=self.address)
        self.image.resize(size)

    def map(self, offset: int, length: int) -> Iterator[Extent]:
        self.check_range(offset, length)
        whole = pieces(self.image.map(offset, length), offset, length)
        return merged(fine for extent, _ in whole for fine in _with_holes(extent))

    def window(self) -> tuple[HostFile, int] | None:
        return self.image.window()

    def close(self) -> None:
        for host in self.image.hosts():
            host.close()


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

    def close(self) -> None:
        self.base.close()


def _present(host: HostFile | None) -> HostFile:
    """The host file of a place that is written to.  A map gives every such place one."""
    assert host is not None, "a write reached a place that has no host bytes"
    return host


def _with_holes(extent: Extent) -> Iterator[Extent]:
    """A DATA extent split where the host file has holes; any other as it is."""
    if extent.kind is not Kind.DATA:
        yield extent
        return
    assert extent.host is not None
    assert extent.host_offset is not None
    start = extent.host_offset
    for low, high, is_data in extent.host.ranges(start, extent.length):
        kind = Kind.DATA if is_data else Kind.ZERO
        run = extent.cut(extent.guest_offset + low - start, extent.guest_offset + high - start)
        yield replace(run, kind=kind)
