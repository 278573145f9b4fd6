"""VHD, fixed: the disk's bytes from the beginning of the file, and a footer at its end.

The footer is the only one, so a resize writes it at its new place, durable, before it writes over
the old one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

from vdisk.errors import InvalidArgument
from vdisk.extent import Extent, Host, Kind
from vdisk.formats.base import ImageFormat
from vdisk.formats.vhd_footer import FOOTER_BYTES, Footer, Footers
from vdisk.formats.vhd_geometry import fitted_geometry, new_geometry
from vdisk.geometry import Geometry
from vdisk.host import HostFile
from vdisk.image_geometry import QEMU_VHD_SECTORS_MAX
from vdisk.plan import Barrier, Clear, Plan, Put, Step, Truncate
from vdisk.units import SECTOR

SIZE_MAX = QEMU_VHD_SECTORS_MAX * SECTOR
"""2040 GiB: no program makes a larger VHD."""


class FixedVhd(ImageFormat):
    """An open fixed VHD image."""

    name: ClassVar[str] = "vhd"
    stores_geometry: ClassVar[bool] = True

    def __init__(self, host: HostFile, footers: Footers, rule: str | None) -> None:
        assert footers.tail_offset is not None, "a fixed image is known by its tail"
        self.host = host
        self.sector_size = SECTOR
        self.tail = footers.tail_offset
        self.take(footers.footer, rule)
        self._is_cut_short = False  # A resize failed, and the footer may not be at the end.

    def take(self, footer: Footer, rule: str | None = None) -> None:
        """Go by `footer` from now on, which the host has already."""
        self.footer = footer
        self.header_geometry = footer.geometry
        self.size, self.size_rule = footer.size(self.tail, rule)

    def map(self, offset: int, length: int) -> Iterator[Extent]:
        yield Extent(offset, length, Kind.DATA, self.host, offset)

    def locate(self, offset: int, length: int) -> tuple[Kind, Host | None, int]:
        return Kind.DATA, self.host, offset

    def window(self) -> tuple[HostFile, int]:
        return self.host, 0

    def hosts(self) -> tuple[HostFile, ...]:
        return (self.host,)

    def plan_geometry(self, geometry: Geometry) -> Plan:
        footer = self.footer.sized(self.size, geometry)
        put = Put(self.host, self.tail, footer.pack(), sync=True, before=self.footer.pack())
        return Plan((put,), lambda: self.take(footer))

    def fitted_geometry(self, geometry: Geometry, size: int) -> Geometry | None:
        return fitted_geometry(geometry, size)

    def plan_resize(self, size: int) -> Plan:
        check_size(self.host, size)
        footer = resized_footer(self.footer, size)
        end = self.host.size()
        steps: list[Step] = []
        if size + FOOTER_BYTES <= end:
            before = self.host.read(size, FOOTER_BYTES)
            steps.append(Put(self.host, size, footer.pack(), sync=True, before=before))
            steps.append(Truncate(self.host, size + FOOTER_BYTES))
        else:
            steps.append(Put(self.host, size, footer.pack(), sync=True))
        uncovered = min(size, end) - self.size
        if uncovered > 0:  # The old footer, and what only the other reading of the size showed.
            steps += [Clear(self.host, self.size, uncovered), Barrier((self.host,))]
        self._is_cut_short = True

        def done() -> None:
            self._is_cut_short = False
            self.tail = size
            self.take(footer)

        return Plan(tuple(steps), done, exclusive=True)

    def plan_flush(self) -> Plan | None:
        return self._made_whole()

    def plan_close(self) -> Plan | None:
        return self._made_whole()

    def _made_whole(self) -> Plan | None:
        """After a resize that failed: the footer where it was, at the end of the file."""
        if not self._is_cut_short:
            return None
        put = Put(self.host, self.tail, self.footer.pack(), sync=True)

        def done() -> None:
            self._is_cut_short = False

        end = Truncate(self.host, self.tail + FOOTER_BYTES)
        return Plan((put, end, Barrier((self.host,))), done)

    def info(self) -> dict[str, Any]:
        return footer_info(self.footer, self.size_rule)


def resized_footer(footer: Footer, size: int) -> Footer:
    """The footer for another size, with the geometry it has as far as that goes."""
    old = footer.geometry
    geometry = (old and fitted_geometry(old, size)) or new_geometry(size)
    return footer.sized(size, geometry)


def check_size(host: HostFile, size: int) -> None:
    """Raise InvalidArgument for what is no size of a VHD image, in bytes."""
    if not 0 < size <= SIZE_MAX or size % SECTOR:
        raise InvalidArgument(
            f"a VHD image cannot be {size} bytes large", path=host.path,
            hint=f"it is whole sectors of {SECTOR} bytes, at least one, and at most 2040 GiB",
        )


def footer_info(footer: Footer, size_rule: str) -> dict[str, Any]:
    """What the footer says, in JSON's terms: both sizes, and which of them counts."""
    found: dict[str, Any] = {
        "subformat": footer.type.name.lower(),
        "creator": footer.creator.decode("latin-1").rstrip("\0 "),
        "uuid": str(footer.uuid),
        "current_size": footer.current_size,
        "chs_size": footer.chs_size,
        "size_by": size_rule,
    }
    if footer.saved_state:
        found["saved_state"] = "a virtual machine was suspended while it used this disk"
    return found
