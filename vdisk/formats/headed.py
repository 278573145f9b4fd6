"""A header that says the geometry, and behind it the disk's bytes as they are (`headed_layouts`).

V is a shift by the header's size.  The disk is exactly as large as its geometry, so it grows and
shrinks by cylinders, and what is not whole ones is refused.  A file that ends before its disk does
is usual, since emulators write no more than they must: what is missing reads as zeros.

The order of a resize: the file is never shorter than a header that is durable says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

from vdisk.errors import Corrupt, InvalidArgument, InvalidFormat, Unsupported
from vdisk.extent import Extent, Host, Kind
from vdisk.formats.base import ImageFormat, Opening, Problem, ProblemKind
from vdisk.formats.headed_create import check_counts
from vdisk.formats.headed_layouts import Layout
from vdisk.geometry import Geometry, check_sector_size
from vdisk.host import HostFile
from vdisk.plan import Barrier, Grow, Plan, Punch, Put, Step, Truncate
from vdisk.units import MIB

DATA_OFFSET_MAX = MIB
"""The longest header that is believed; 4096 bytes are the most that any program makes."""


class Headed(ImageFormat):
    """An open image of one of the layouts."""

    stores_geometry: ClassVar[bool] = True
    geometry_is_size: ClassVar[bool] = True

    def __init__(
        self, host: HostFile, layout: Layout, raw: bytes, data_offset: int, geometry: Geometry
    ) -> None:
        self.name = layout.name  # type: ignore[misc]  # One class for all of them.
        self._host = host
        self._layout = layout
        self._data_offset = data_offset
        self.sector_size = geometry.sector_size
        self._take(raw, geometry)
        host.zeros_past_end = True

    def _take(self, raw: bytes, geometry: Geometry) -> None:
        self._raw = raw
        self.header_geometry: Geometry = geometry
        self.size = geometry.size_bytes
        self.size_unit = geometry.cylinder_bytes

    def hosts(self) -> tuple[HostFile, ...]:
        return (self._host,)

    # Where bytes are

    def map(self, offset: int, length: int) -> Iterator[Extent]:
        yield Extent(offset, length, Kind.DATA, self._host, self._data_offset + offset)

    def locate(self, offset: int, length: int) -> tuple[Kind, Host | None, int]:
        return Kind.DATA, self._host, self._data_offset + offset

    def window(self) -> tuple[HostFile, int]:
        return self._host, self._data_offset

    # Changes

    def plan_resize(self, size: int) -> Plan:
        old = self.header_geometry
        cylinders, rest = divmod(size, old.cylinder_bytes)
        if rest or not 0 < cylinders <= self._layout.cylinders_max:
            raise InvalidArgument(
                f"a {self._layout.title} of this geometry cannot be {size} bytes large",
                path=self._host.path,
                hint=f"it is 1 to {self._layout.cylinders_max} cylinders of {old.cylinder_bytes} "
                "bytes",
            )
        new = replace(old, cylinders=cylinders)
        if size < self.size:
            cut = Truncate(self._host, self._data_offset + size)
            return self._switch((), new, *(() if self._host.is_block else (cut,)))
        return self._switch(self._room(size), new)

    def _room(self, size: int) -> tuple[Step, ...]:
        """What is behind the disk in the file, if anything, is no zeros; then the file grows."""
        end, file_end = self._data_offset + self.size, self._host.size()
        grow = Grow(self._host, self._data_offset + size)
        return (Punch(self._host, end, file_end - end), grow) if file_end > end else (grow,)

    def plan_geometry(self, geometry: Geometry) -> Plan:
        check_counts(self._layout, geometry, self._host)
        if geometry.size_bytes != self.size:
            raise InvalidArgument(
                f"geometry {geometry} is {geometry.size_bytes} bytes, and the disk has {self.size}",
                path=self._host.path,
                hint=f"a {self._layout.title} is as large as its geometry: resize it, or convert",
            )
        return self._switch((), geometry)

    def _switch(self, before: tuple[Step, ...], geometry: Geometry, *after: Step) -> Plan:
        """Go by a header with another geometry, once what comes before it is durable."""
        raw = self._layout.pack(self._raw, geometry)
        sync = Barrier((self._host,))
        put = Put(self._host, 0, raw, before=self._raw)
        return Plan(
            (*before, sync, put, sync, *after), partial(self._take, raw, geometry), exclusive=True
        )

    # What it is like

    def check(self) -> Iterator[Problem]:
        """A size that contradicts the geometry, and a file that ends before its disk does."""
        geometry = self.header_geometry
        for field, expected in self._layout.repeats(geometry):
            found = field.get(self._raw)
            if found != min(expected, field.maximum):
                yield Problem(
                    ProblemKind.UNCLEAN,
                    f"the header gives its size as {found} at byte {field.offset}, and its "
                    f"geometry makes it {expected}",
                    self._switch((), geometry),
                )
        end = self._data_offset + self.size
        if self._host.size() < end:
            yield Problem(
                ProblemKind.UNCLEAN,
                f"the file ends {end - self._host.size()} bytes before its disk does; "
                "they read as zeros",
                Plan((Grow(self._host, end),)),
            )

    def info(self) -> dict[str, Any]:
        return {"kind": self._layout.title, "header_size": self._data_offset}


def opener(layout: Layout) -> Callable[[HostFile, Opening], Headed]:
    """What opens images of a layout."""

    def open_headed(host: HostFile, opening: Opening) -> Headed:
        """Raises InvalidFormat where there is no such header, Unsupported, Corrupt."""
        end = layout.fields_end
        if host.size() < end:
            raise _is_none(layout, host, "it is too short")
        raw = host.read(0, end)
        if not raw.startswith(layout.magic):
            raise _is_none(layout, host, "its magic number is wrong")
        data_offset = _data_offset(layout, raw, host)
        return Headed(host, layout, raw, data_offset, _geometry(layout, raw, host))

    return open_headed


def _is_none(layout: Layout, host: HostFile, reason: str) -> InvalidFormat:
    return InvalidFormat(
        f"is no {layout.title} image: {reason}", path=host.path,
        hint="to take its bytes as they are: --format raw",
    )


def _data_offset(layout: Layout, raw: bytes, host: HostFile) -> int:
    field = layout.header_size_field
    found = layout.header_size if field is None else field.get(raw)
    if not layout.fields_end <= found <= DATA_OFFSET_MAX:
        raise _is_none(layout, host, f"its header would be {found} bytes long")
    return found


def _geometry(layout: Layout, raw: bytes, host: HostFile) -> Geometry:
    cylinders, heads, sectors, sector_size = layout.counts(raw)
    if 0 in (cylinders, heads, sectors, sector_size):
        raise _is_none(layout, host, "a count of its geometry is 0")
    try:
        check_sector_size(sector_size)
    except InvalidArgument as error:
        raise Unsupported(f"has sectors of {sector_size} bytes", path=host.path) from error
    try:
        return Geometry(cylinders, heads, sectors, sector_size)
    except InvalidArgument as error:
        raise Corrupt(f"its header: {error.message}", path=host.path) from error
