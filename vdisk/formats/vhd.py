"""VHD (Virtual PC, Hyper-V), dynamic and differencing: blocks that get a place when written.

A footer and its copy, a header, a block table (BAT) of one 32-bit sector number a block, then the
blocks, each behind a bitmap of its sectors.  `vhd_fixed` has the images without all that.

A dynamic image.  A new block's bitmap is all ones, so that later writes touch the data alone, and
the table entry is in the host when a write is acknowledged.  If power fails before data or bitmap
are there, the block reads as zeros.  A block that another program has filled in part is made full
before it is written to.

A differencing image.  A sector is the parent's until its bit is set; bits and table entries wait in
memory until the data is durable, then bitmaps become durable, then the table (`plan_flush`): before
that, a sector reads as the parent's, never as something in between.

Discarding punches the data where it is and keeps the block's place.

Sources: "Virtual Hard Disk Image Format Specification" 1.0; QEMU, `block/vpc.c`; libvhdi's
documentation.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from vdisk.errors import Corrupt, DiskError
from vdisk.extent import Extent, Host, Kind
from vdisk.formats import vhd_blocks, vhd_check, vhd_resize
from vdisk.formats.base import ImageFormat, Opening, ParentReference, Problem
from vdisk.formats.table import Table
from vdisk.formats.vhd_bitmaps import SectorBitmaps, runs
from vdisk.formats.vhd_census import Region, take_census
from vdisk.formats.vhd_fixed import FixedVhd, footer_info
from vdisk.formats.vhd_footer import FOOTER_BYTES, Footer, Footers, VhdType, vhd_time
from vdisk.formats.vhd_geometry import fitted_geometry
from vdisk.formats.vhd_header import FREE, HEADER_BYTES, DynamicHeader, bitmap_bytes
from vdisk.formats.vhd_locators import parent_paths
from vdisk.formats.vhd_space import Space
from vdisk.geometry import Geometry
from vdisk.host import HostFile
from vdisk.plan import Barrier, Plan, Put, Step, Truncate
from vdisk.units import SECTOR

if TYPE_CHECKING:
    from uuid import UUID

    from vdisk.image_disk import ImageDisk

_WAITING_PAGES_MAX = 256  # Table entries that wait are written when there are more.


class Vhd(ImageFormat):
    """An open dynamic or differencing VHD image."""

    name: ClassVar[str] = "vhd"
    stores_geometry: ClassVar[bool] = True

    def __init__(
        self, host: HostFile, footers: Footers, header: DynamicHeader,
        parent: ImageDisk | None, rule: str | None,
    ) -> None:
        self.host = host
        self.parent = parent
        self.sector_size = SECTOR
        self.footers = footers
        self.block_size = header.block_size
        self.bitmap_size = bitmap_bytes(header.block_size)
        self.stride = self.bitmap_size + header.block_size
        self.limit = host.size()  # No place ends past this.
        self.covered = 0  # How far `vhd_resize` has come in hiding the parent.
        self._space: Space | None = None
        self.take(footers.footer, header, rule)

    def take(self, footer: Footer, header: DynamicHeader, rule: str | None = None) -> None:
        """Go by these from now on, which the host has already."""
        self.header = header
        self.take_footer(footer, rule)
        self.table = Table(
            self.host, header.table_offset, header.entries, width=4, byteorder="big"
        )
        self.bitmaps = SectorBitmaps(self.host, header.block_size, header.entries)

    def take_footer(self, footer: Footer, rule: str | None = None) -> None:
        """Go by another footer from now on, which the host has already."""
        self.footer = footer
        self.header_geometry = footer.geometry
        self.size, self.size_rule = footer.size(self.header.entries * self.block_size, rule)

    def hosts(self) -> tuple[HostFile, ...]:
        return (self.host,)

    # Where bytes are

    def map(self, offset: int, length: int) -> Iterator[Extent]:
        unit, end = self.block_size, offset + length
        index, stop = offset // unit, -(-end // unit)
        while index < stop:
            entry = self.table.get(index)
            first = index
            index += 1
            if entry != FREE:
                yield from self._block(first, entry, offset, end)
                continue
            while index < stop and self.table.get(index) == FREE:
                index += 1
            at = max(first * unit, offset)
            yield from self.beneath(at, min(index * unit, end) - at)

    def _block(self, index: int, entry: int, offset: int, end: int) -> Iterator[Extent]:
        """The map of a block that has a place, as far as [offset, end) reaches into it."""
        start, place = index * self.block_size, self.place(entry)
        data = place + self.bitmap_size
        bits = self.bitmaps.get(index, place)
        low = max(offset - start, 0) // SECTOR
        high = min(-(-(end - start) // SECTOR), len(bits))
        for first, stop, is_set in runs(bits, low, high):
            at, length = start + first * SECTOR, (stop - first) * SECTOR
            if is_set:
                yield Extent(at, length, Kind.DATA, self.host, data + first * SECTOR)
            else:
                inside = max(at, offset)
                yield from self.beneath(inside, min(at + length, end) - inside)

    def place(self, entry: int) -> int:
        """The host offset of a block's bitmap.  Corrupt where there cannot be one."""
        place = entry * SECTOR
        if place < FOOTER_BYTES or place + self.stride > self.limit:
            raise Corrupt(
                f"its block table names byte {place} of {self.limit}", path=self.host.path
            )
        return place

    def locate(self, offset: int, length: int) -> tuple[Kind, Host | None, int] | None:
        index, inside = divmod(offset, self.block_size)
        entry = self.table.peek(index)
        if entry is None or inside + length > self.block_size:
            return None
        if entry != FREE:
            is_set = self._is_set(index, inside, length)
            if is_set is None:
                return None
            if is_set:
                return Kind.DATA, self.host, entry * SECTOR + self.bitmap_size + inside
        if self.parent is None or offset >= self.parent.size:
            return Kind.ZERO, None, 0
        if offset + length <= self.parent.size:
            return Kind.PARENT, self.parent, offset
        return None

    def _is_set(self, index: int, inside: int, length: int) -> bool | None:
        """Whether all sectors of a range hold data, or none; None where it is both or not known.

        A bitmap is in memory only where its block's place has been looked at.
        """
        if self.bitmaps.is_full(index):
            return True
        bits = self.bitmaps.peek(index)
        if bits is None:
            return None
        part = bits[inside // SECTOR : -(-(inside + length) // SECTOR)]
        return None if "0" in part and "1" in part else "1" in part

    # Changes

    @property
    def space(self) -> Space:
        """Where blocks can go.  Corrupt where the image cannot be written without damage."""
        if self._space is None:
            census = take_census(self.table, self.stride, self.regions(), self.limit)
            if census.problem is not None:
                raise Corrupt(census.problem, path=self.host.path, hint="see vdisk check")
            tail = self.footers.tail_offset if self.footers.tail_is_good else None
            if tail is not None and tail < census.end:
                tail = None  # What looks like a footer there is data of the last block.
            self._space = Space(self.host, census, self.block_size, tail)
        return self._space

    @property
    def is_written(self) -> bool:
        """Whether anything may have been written since it was opened."""
        return self._space is not None

    def tail_place(self, end: int) -> int:
        """Where the last footer belongs if it is not there; all in use is before `end`."""
        tail = self.footers.tail_offset
        if tail is not None and tail >= end and tail % SECTOR == 0:
            return tail
        return end if self.host.is_block else max(end, -(-self.limit // SECTOR) * SECTOR)

    def tail_is_at(self, tail: int) -> None:
        """The file was cut, and its last footer is at `tail` now."""
        self.limit = self.host.size()
        self.footers = replace(self.footers, tail_offset=tail, tail_is_good=True)
        self._space = None

    def regions(self) -> list[Region]:
        """What lies in the file besides blocks and the tail."""
        at, table = self.footer.data_offset, (self.header.table_offset, self.header.table_end)
        named = (each.region for each in self.header.locators) if self.parent else ()
        names = ((start, end) for start, end in named if start < end)
        return [(0, FOOTER_BYTES), (at, at + HEADER_BYTES), table, *names]

    def take_census_again(self) -> None:
        """Blocks have moved or gone: find out anew what is in use."""
        if self._space is not None:
            self._space.census = take_census(
                self.table, self.stride, self.regions(), self.limit
            )

    def plan_first_write(self) -> Plan | None:
        """A copy of the footer that is not right is set right."""
        space = self.space
        steps: list[Step] = []
        if not self.footers.head_is_good:
            steps.append(Put(self.host, 0, self.footer.pack(), sync=True))
        tail = space.tail
        if tail is None:
            tail = self.tail_place(-(-space.census.end // SECTOR) * SECTOR)
            steps.append(Put(self.host, tail, self.footer.pack(), sync=True))
        if not steps:
            return None

        def done() -> None:
            space.reserved(tail)
            self.limit = max(self.limit, tail)
            self.footers = replace(
                self.footers, head_is_good=True, tail_is_good=True, tail_offset=tail
            )

        return Plan(tuple(steps), done)

    def plan_write(self, offset: int, length: int) -> Plan:
        if self.bitmaps.is_much_waiting or self.table.pages_waiting > _WAITING_PAGES_MAX:
            return self.plan_flush() or Plan()
        return vhd_blocks.allocate(self, offset, length)

    def plan_flush(self) -> Plan | None:
        bitmaps = [
            Put(self.host, self.place(self.table.get(index)), self.bitmaps.packed(bits))
            for index, bits in self.bitmaps.waiting_bitmaps()
        ]
        if not bitmaps:
            return None
        sync = Barrier((self.host,))
        entries: tuple[Step, ...] = (*self.table.waiting_puts(),)

        def done() -> None:
            self.bitmaps.written()
            self.table.written()

        return Plan((sync, *bitmaps, *((sync, *entries) if entries else ()), sync), done)

    def plan_close(self) -> Plan | None:
        """Besides what waits: the footer back to where the last block ends."""
        waiting = self.plan_flush()
        moved = self._tail_moved_back()
        if waiting is None or moved is None:
            return waiting or moved
        return Plan((*waiting.steps, *moved.steps), waiting.done)

    def _tail_moved_back(self) -> Plan | None:
        end = -(-self.space.census.end // SECTOR) * SECTOR
        if not self.space.is_moved or self.space.tail == end:
            return None
        back = Put(self.host, end, self.footer.pack(), sync=True)
        if self.host.is_block:
            return Plan((back,))
        return Plan((back, Truncate(self.host, end + FOOTER_BYTES)))

    def put_footers(self, footer: Footer) -> Iterator[Step]:
        """Steps that make both copies `footer`: first the one that is believed."""
        new, old = footer.pack(), self.footer.pack()
        tail = self.space.tail
        assert tail is not None, "the first write has put one there"
        yield Put(self.host, 0, new, sync=True, before=old)
        yield Put(self.host, tail, new, sync=True, before=old)

    def plan_geometry(self, geometry: Geometry) -> Plan:
        footer = self.footer.sized(self.size, geometry)
        return Plan(tuple(self.put_footers(footer)), lambda: self.take_footer(footer))

    def fitted_geometry(self, geometry: Geometry, size: int) -> Geometry | None:
        return fitted_geometry(geometry, size)

    def plan_resize(self, size: int) -> Plan:
        return vhd_resize.plan_resize(self, size)

    # What it is like

    def check(self) -> Iterator[Problem]:
        return vhd_check.check(self)

    def info(self) -> dict[str, Any]:
        found = footer_info(self.footer, self.size_rule)
        found |= {"block_size": self.block_size, "blocks": -(-self.size // self.block_size)}
        if self.parent is not None:
            found["parent_uuid"] = str(self.header.parent_uuid)
            found["parent_changed"] = self._parent_changed()
        return found

    def _parent_changed(self) -> str:
        """What the parent's time says of it: the only sign there is, and copying changes it."""
        assert self.parent is not None
        when = vhd_time(self.parent.image.hosts()[0].stat().st_mtime)
        if when == self.header.parent_timestamp:
            return "no"
        return "its time is not the one recorded; it may have been written to, or only copied"


def open_vhd(host: HostFile, opening: Opening, rule: str | None = None) -> ImageFormat:
    """The VHD image in `host`, with its parent if it is a differencing one.

    `rule` is "chs" or "current" where the user says which size it is.  Raises InvalidFormat,
    Corrupt, Unsupported, and what opening the parent raises.
    """
    try:
        footers = Footers.read(host)
        if footers.footer.type is VhdType.FIXED:
            return FixedVhd(host, footers, rule)
        header = DynamicHeader.read(host, footers.footer.data_offset)
        if footers.footer.type is VhdType.DYNAMIC:
            return Vhd(host, footers, header, None, rule)
        parent = _open_parent(host, header, opening)
        try:
            return Vhd(host, footers, header, parent, rule)
        except BaseException:
            parent.close()
            raise
    except DiskError as error:
        error.path = error.path or str(host.path)
        raise


def _open_parent(host: HostFile, header: DynamicHeader, opening: Opening) -> ImageDisk:
    return opening.open_parent(
        ParentReference(
            parent_paths(host, header), Vhd.name,
            lambda other: is_image(other, header.parent_uuid), searched=True,
        )
    )


def is_image(host: HostFile, uuid: UUID) -> bool:
    """Whether the file is a VHD image of that UUID."""
    try:
        return Footers.read(host).footer.uuid == uuid
    except DiskError:
        return False
