"""raw: the host file's bytes are the disk's bytes.

There is no header, so V is the identity and a raw image maps, reads and writes without a table.
Its geometry, sector size and format are recorded beside it (`vdisk.record`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from vdisk.extent import Extent, Kind
from vdisk.formats.base import ImageFormat
from vdisk.host import HostFile


class Raw(ImageFormat):
    """A raw image: `size` is the host file's size, to the byte."""

    name: ClassVar[str] = "raw"

    def __init__(self, host: HostFile) -> None:
        self._host = host
        self.size = host.size()

    def map(self, offset: int, length: int) -> Iterator[Extent]:
        yield Extent(offset, length, Kind.DATA, self._host, offset)

    def window(self) -> tuple[HostFile, int]:
        return self._host, 0

    def resize(self, size: int) -> None:
        self._host.truncate(size)
        self.size = size

    def hosts(self) -> tuple[HostFile, ...]:
        return (self._host,)
