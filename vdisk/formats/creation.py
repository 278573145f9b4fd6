"""What a format is handed when it is to write a new image, and the options it may be given."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vdisk.errors import InvalidArgument
from vdisk.geometry import Geometry
from vdisk.host import HostFile
from vdisk.units import parse_size

if TYPE_CHECKING:
    from vdisk.image_disk import ImageDisk


@dataclass(frozen=True, slots=True)
class Option:
    """An option for creating, `-o name=value`: what it means, what holds without it, what it takes.

    `values` are all the values there are, () where it is a number or a size.
    """

    name: str
    meaning: str
    default: str
    values: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Creation:
    """A new image to be written into the empty file `host`.

    `size` is in bytes and whole sectors of `sector_size`; the format may make the disk larger where
    it cannot be that size, and never smaller.  `geometry` is to be stored where the format can.
    `options` has every option of the format, with its default where it was not given.  `parent` is
    the open disk that the image is to be an overlay of, `parent_name` how the child is to name it.
    `another(name)` makes another new file in the same folder; all are removed after an error.
    """

    host: HostFile
    size: int
    sector_size: int
    geometry: Geometry
    options: Mapping[str, str]
    another: Callable[[str], HostFile]
    geometry_given: bool = False
    parent: ImageDisk | None = None
    parent_name: str | None = None

    def number(self, name: str, low: int, high: int) -> int:
        """The option `name` as a size in bytes from `low` to `high`.  InvalidArgument otherwise."""
        value = parse_size(self.options[name])
        if not low <= value <= high:
            raise InvalidArgument(
                f"{name}={self.options[name]} is not possible", path=self.host.path,
                hint=f"it is from {low} to {high}",
            )
        return value

    def power(self, name: str, low: int, high: int) -> int:
        """The option `name` as a power of two from `low` to `high` bytes."""
        value = self.number(name, low, high)
        if value & (value - 1):
            raise InvalidArgument(
                f"{name}={self.options[name]} is not a power of two", path=self.host.path
            )
        return value


@dataclass(frozen=True, slots=True)
class Piece:
    """Bytes of a disk: `data` from guest byte `offset` on.  They are good until the next is read.
    """

    offset: int
    data: memoryview


CompressedWriter = Callable[[Creation, Iterator[Piece]], None]
"""Writes a whole image whose data are compressed.

The pieces are all that the disk holds but zeros, in order.  Each begins at a multiple of 64 KiB,
ends at one or at the disk's end, and lies in one MiB.
"""


def settle_options(
    known: tuple[Option, ...], given: Mapping[str, str], format_name: str
) -> dict[str, str]:
    """`given`, and the defaults of the others.  InvalidArgument for one that is not `known`."""
    settled = {option.name: option.default for option in known}
    for name, value in given.items():
        option = next((option for option in known if option.name == name), None)
        if option is None:
            names = ", ".join(settled) or "none"
            raise InvalidArgument(
                f"{format_name} has no option {name!r}", hint=f"its options: {names}"
            )
        if option.values and value not in option.values:
            raise InvalidArgument(
                f"{name}={value} is not possible", hint=f"it is one of {', '.join(option.values)}"
            )
        settled[name] = value
    return settled
