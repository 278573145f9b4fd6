"""raw: the host file's bytes are the disk's bytes.

There is no header, so V is the identity and a raw image maps, reads and writes without a table.
Its geometry, sector size and format are recorded beside it (`vdisk.record`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from vdisk.extent import Extent, Host, Kind
from vdisk.formats.base import ImageFormat, Opening
from vdisk.formats.creation import Creation
from vdisk.host import HostFile
from vdisk.plan import Plan, Truncate


class Raw(ImageFormat):
    """A raw image: `size` is the host file's size, to the byte."""

    name: ClassVar[str] = "raw"

    def __init__(self, host: HostFile) -> None:
        self._host = host
        self.size = host.size()

    def map(self, offset: int, length: int) -> Iterator[Extent]:
        yield Extent(offset, length, Kind.DATA, self._host, offset)

    def locate(self, offset: int, length: int) -> tuple[Kind, Host | None, int]:
        return Kind.DATA, self._host, offset

    def window(self) -> tuple[HostFile, int]:
        return self._host, 0

    def plan_resize(self, size: int) -> Plan:
        def done() -> None:
            self.size = size

        return Plan((Truncate(self._host, size),), done, exclusive=True)

    def hosts(self) -> tuple[HostFile, ...]:
        return (self._host,)


def open_raw(host: HostFile, opening: Opening) -> Raw:
    """The raw image in `host`."""
    return Raw(host)


def create_raw(creation: Creation) -> None:
    """Make the new host file a sparse raw image."""
    creation.host.truncate(creation.size)
