"""The three changes a guest can ask for, as one kind of thing: a range, and what goes into it.

Where a request is split, at what is already there and what needs space first, is the same for all
three (`vdisk.image_disk`); what is put into each piece is not.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from vdisk.extent import Extent, Host, Kind
from vdisk.formats.base import ImageFormat
from vdisk.plan import Plan


@dataclass(frozen=True, slots=True)
class Request(ABC):
    """A change of guest bytes [offset, offset + length)."""

    offset: int
    length: int

    @property
    def end(self) -> int:
        """The first guest byte past it."""
        return self.offset + self.length

    @abstractmethod
    def put(self, guest_offset: int, length: int, host: Host, host_offset: int) -> None:
        """Put the request's bytes for that guest range, inside it, at a place in a host."""

    @abstractmethod
    def plan(self, image: ImageFormat, offset: int, length: int) -> Plan:
        """What the format has to say about a part that cannot be done in place."""

    def is_done(self, extent: Extent) -> bool:
        """Whether that run is as the request wants it to be."""
        return False

    def in_place(self, image: ImageFormat, extent: Extent) -> bool:
        """Whether that run can be changed where it is."""
        return extent.in_place


@dataclass(frozen=True, slots=True)
class Write(Request):
    """Write `data`."""

    data: memoryview

    def put(self, guest_offset: int, length: int, host: Host, host_offset: int) -> None:
        start = guest_offset - self.offset
        host.write(host_offset, self.data[start : start + length])

    def plan(self, image: ImageFormat, offset: int, length: int) -> Plan:
        return image.plan_write(offset, length)


@dataclass(frozen=True, slots=True)
class Zero(Request):
    """Make it read as zeros, keeping its space."""

    def put(self, guest_offset: int, length: int, host: Host, host_offset: int) -> None:
        host.zero(host_offset, length)

    def plan(self, image: ImageFormat, offset: int, length: int) -> Plan:
        return image.plan_zero(offset, length)

    def is_done(self, extent: Extent) -> bool:
        return extent.kind is Kind.ZERO


@dataclass(frozen=True, slots=True)
class Discard(Request):
    """Make it read as zeros, giving its space up."""

    def put(self, guest_offset: int, length: int, host: Host, host_offset: int) -> None:
        host.discard(host_offset, length)

    def plan(self, image: ImageFormat, offset: int, length: int) -> Plan:
        return image.plan_discard(offset, length)

    def is_done(self, extent: Extent) -> bool:
        return extent.kind is Kind.ZERO

    def in_place(self, image: ImageFormat, extent: Extent) -> bool:
        return extent.in_place and not image.frees_on_discard
