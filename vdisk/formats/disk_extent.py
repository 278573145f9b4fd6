"""A run of a disk's bytes that is laid out in one way: the whole of it, or a part."""

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
    """Guest bytes [start, end).  Every offset that is asked about is the disk's, inside these.

    `host` is the file that they lie in, None where they lie nowhere.
    """

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
            f"says that bytes from {self.start} to {self.end} of the disk are never written",
            path=None if self.host is None else self.host.path,
        )

    def plan_zero(self, offset: int, length: int) -> Plan:
        """As `ImageFormat.plan_zero`."""
        return self.plan_write(offset, length)
