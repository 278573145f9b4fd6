"""An extent of a VMDK: a run of the disk's sectors that lies in one file, or nowhere.

Flat ones and those that read as zeros; `vmdk_sparse` has the sparse ones.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator

from vdisk.errors import NotPermitted
from vdisk.extent import Extent, Host, Kind
from vdisk.host import HostFile
from vdisk.plan import Plan

Beneath = Callable[[int, int], Iterator[Extent]]
"""The map of guest bytes [offset, offset + length) that an extent does not hold itself."""


class DiskExtent(ABC):
    """Guest bytes [start, end).  Every offset that is asked about is the disk's, inside these."""

    host: HostFile | None = None

    def __init__(self, start: int, length: int) -> None:
        self.start = start
        self.length = length

    @property
    def end(self) -> int:
        """The first guest byte past it."""
        return self.start + self.length

    @abstractmethod
    def map(self, offset: int, length: int) -> Iterator[Extent]:
        """As `ImageFormat.map`."""

    def locate(self, offset: int, length: int) -> tuple[Kind, Host | None, int] | None:
        """As `ImageFormat.locate`."""
        return None

    def plan_write(self, offset: int, length: int) -> Plan:
        """As `ImageFormat.plan_write`."""
        raise NotPermitted(
            f"the descriptor says that bytes from {self.start} to {self.end} are never written",
            path=None if self.host is None else self.host.path,
        )

    def plan_zero(self, offset: int, length: int) -> Plan:
        """As `ImageFormat.plan_zero`."""
        return self.plan_write(offset, length)


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
