"""What every image format answers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import ClassVar

from vdisk.extent import Extent
from vdisk.geometry import Geometry
from vdisk.host import HostFile


class ImageFormat(ABC):
    """One open image: its tables and nothing else.

    `size` is the disk's size in bytes.  `header_geometry` is the geometry the image's own header
    stores, None where the format stores none.  `sector_size` likewise.
    """

    name: ClassVar[str]
    size: int
    header_geometry: Geometry | None = None
    sector_size: int | None = None

    @abstractmethod
    def map(self, offset: int, length: int) -> Iterator[Extent]:
        """Where guest bytes [offset, offset + length) are: a map as `vdisk.extent` defines it.

        The range lies inside the disk.  A DATA extent may have holes in the host file.
        """

    @abstractmethod
    def window(self) -> tuple[HostFile, int] | None:
        """(host, base) where guest byte g is always at host byte base + g, else None."""

    @abstractmethod
    def resize(self, size: int) -> None:
        """Make the disk `size` bytes, keeping what remains; new bytes read as zeros."""

    @abstractmethod
    def hosts(self) -> tuple[HostFile, ...]:
        """The host files the image lies in, the one it was opened by first."""
