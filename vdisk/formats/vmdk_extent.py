"""The extents of a VMDK that are no table's: flat ones, and those that read as zeros."""

from __future__ import annotations

from collections.abc import Iterator

from vdisk.extent import Extent, Host, Kind
from vdisk.formats.disk_extent import DiskExtent
from vdisk.host import HostFile


class ZeroExtent(DiskExtent):
    """One that reads as zeros and has no file."""

    def map(self, offset: int, length: int) -> Iterator[Extent]:
        yield Extent(offset, length, Kind.ZERO)


class FlatExtent(DiskExtent):
    """One whose bytes lie in `host` as they are, from `host_offset` on."""

    def __init__(
        self, start: int, length: int, host: HostFile, host_offset: int, *, writable: bool
    ) -> None:
        super().__init__(start, length)
        self.host: HostFile = host
        self.host_offset = host_offset
        self.writable = writable

    def map(self, offset: int, length: int) -> Iterator[Extent]:
        place = self.host_offset + offset - self.start
        yield Extent(offset, length, Kind.DATA, self.host, place, shared=not self.writable)

    def locate(self, offset: int, length: int) -> tuple[Kind, Host | None, int] | None:
        if not self.writable:
            return None
        return Kind.DATA, self.host, self.host_offset + offset - self.start
