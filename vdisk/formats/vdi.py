"""VDI (VirtualBox): dynamic, fixed and differencing images.

A header, a block map of one 32-bit number a block, then the blocks.  A number is the index of the
block's place behind the data offset, or `FREE` or `ZERO`.

The order of writes.  A reader believes the header's count of allocated blocks and gives the next
place behind it to the next block, so the count must never be durable after a map entry: else two
blocks get the same place.  It is therefore raised ahead of need (`_AHEAD` blocks at once, in one
durable write), and set to the exact number when the disk is closed.  A count that is too high loses
nothing; it is set right the next time the image is written to.

An image that is no overlay has its map entry in the host when a write is acknowledged, so that a
killed process loses nothing; the place is fresh, and reads as zeros if power fails before the data
is there.  An overlay's entry waits in memory until the data is durable (at `flush`): before that,
the block reads as the parent's, never as something in between.

Discarding punches the block where it is and keeps its place: the places stay without gaps, which
is what other programs expect, and the host has its space back all the same.

Sources: VirtualBox, `Storage/VDI.cpp` (`vdiWrite`); QEMU, `block/vdi.c`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar
from uuid import UUID, uuid4

from vdisk.errors import Corrupt, DiskError, InvalidArgument
from vdisk.extent import Extent, Host, Kind
from vdisk.formats import vdi_check, vdi_compact, vdi_resize
from vdisk.formats.base import ImageFormat, Opening, ParentReference, Problem
from vdisk.formats.table import Table
from vdisk.formats.vdi_census import Census, take_census
from vdisk.formats.vdi_create import linkage_to
from vdisk.formats.vdi_header import FREE, HEADER_SIZE, ZERO, VdiHeader, VdiType
from vdisk.geometry import Geometry
from vdisk.host import HostFile
from vdisk.plan import Barrier, Fill, Grow, Guest, Plan, Punch, Put, Step
from vdisk.units import SECTOR

if TYPE_CHECKING:
    from vdisk.image_disk import ImageDisk

_AHEAD = 64  # Blocks by which the count runs ahead of the map.
_BLOCKS_AT_ONCE = 64  # No more are allocated by one plan.
_WAITING_PAGES_MAX = 256  # An overlay's map entries that wait are written when there are more.


class Vdi(ImageFormat):
    """An open VDI image.  Its map is read as needed; its places are counted at the first write."""

    name: ClassVar[str] = "vdi"
    stores_geometry: ClassVar[bool] = True

    def __init__(self, host: HostFile, header: VdiHeader, parent: ImageDisk | None) -> None:
        self.host = host
        self.parent = parent
        self.sector_size = SECTOR
        self.is_written = False  # Since it was opened; its count may then run ahead.
        self.take(header)
        self._census: Census | None = None

    def take(self, header: VdiHeader) -> None:
        """Go by `header` from now on, which the host has already: its size, map and places."""
        self.header = header
        self.size = header.size
        self.header_geometry = header.geometry
        self.table = Table(
            self.host, header.map_offset, header.blocks, width=4, byteorder="little"
        )
        self._block_size = header.block_size
        self._census = None

    def hosts(self) -> tuple[HostFile, ...]:
        return (self.host,)

    # Where bytes are

    def map(self, offset: int, length: int) -> Iterator[Extent]:
        unit = self._block_size
        index, end = offset // unit, -(-(offset + length) // unit)
        while index < end:
            entry = self.table.get(index)
            first = index
            index += 1
            step = 0 if entry >= ZERO else 1  # Places in a row are one run, and so is nothing.
            while index < end and self.table.get(index) == entry + step * (index - first):
                index += 1
            at, run_end = first * unit, index * unit
            if entry < ZERO:
                place = self.place(entry, run_end - at)
                yield Extent(at, run_end - at, Kind.DATA, self.host, place)
            elif entry == FREE:
                # The parent may end inside the first block, before the request begins.
                yield from self.beneath(max(at, offset), run_end - max(at, offset))
            else:
                yield Extent(at, run_end - at, Kind.ZERO)

    def place(self, entry: int, length: int = 0) -> int:
        """The host offset of a place by its number.  Corrupt where the image has no such place."""
        if entry + max(length - 1, 0) // self._block_size >= self.places:
            raise Corrupt(f"its map names place {entry} of {self.places}", path=self.host.path)
        return self.header.data_offset + entry * self._block_size

    @property
    def places(self) -> int:
        """How many places there can be: one a block, and more while the map is being moved."""
        return max(self.header.blocks, self.header.allocated)

    def locate(self, offset: int, length: int) -> tuple[Kind, Host | None, int] | None:
        index, inside = divmod(offset, self._block_size)
        entry = self.table.peek(index)
        if entry is None or inside + length > self._block_size:
            return None
        if entry < self.places:
            return Kind.DATA, self.host, self.header.data_offset + entry * self._block_size + inside
        if entry == ZERO or (entry == FREE and self.parent is None):
            return Kind.ZERO, None, 0
        if entry == FREE and self.parent is not None and offset + length <= self.parent.size:
            return Kind.PARENT, self.parent, offset
        return None

    # Allocating

    @property
    def census(self) -> Census:
        """Which places are in use.  Corrupt where two blocks have the same one."""
        if self._census is None:
            self._census = take_census(self.table, self.places)
            if self._census.shared:
                raise Corrupt(
                    "two of its blocks lie in the same place: writing one would change the other",
                    path=self.host.path, hint="see vdisk check",
                )
        return self._census

    def forget_census(self) -> None:
        """The map was changed by other means than `allocate`: count again."""
        self._census = None

    def plan_first_write(self) -> Plan:
        self.is_written = True
        # Children compare the identity of this state with the one they were made on.
        found = self.census
        header = replace(self.header, modify=uuid4(), allocated=found.end)
        put = self.put_header(header, sync=found.end > self.header.allocated)
        if self.host.is_block:
            return put
        # After a loss of power the last block may not be in the file, and others expect it there.
        whole = Grow(self.host, header.data_offset + found.end * header.block_size)
        return Plan((whole, *put.steps), put.done)

    def plan_write(self, offset: int, length: int) -> Plan:
        if self.table.pages_waiting > _WAITING_PAGES_MAX:
            return self.plan_flush() or Plan()
        return self.allocate(offset, length)

    def allocate(self, offset: int, length: int) -> Plan:
        """Space for the blocks that the range touches, none of which has any."""
        unit = self._block_size
        first = offset // unit
        wanted = min(-(-(offset + length) // unit) - first, _BLOCKS_AT_ONCE)
        entry, count = self.census.next_run(wanted)
        end = min(offset + length, (first + count) * unit)
        place = self.place(entry, count * unit)
        fresh = place >= self.host.size()
        steps: list[Step] = []
        header = self._raised(entry + count)
        if header is not self.header:
            steps.append(Put(self.host, 0, header.pack(), sync=True))
        if not fresh:
            steps.append(Punch(self.host, place, count * unit))
        steps.append(Grow(self.host, place + count * unit))
        steps.extend(self._content(offset, end, place - first * unit))
        waits = self.parent is not None
        if waits:
            self.table.hold(first, count)
        else:
            if not fresh:
                steps.append(Barrier((self.host,)))  # What was there before must not come back.
            steps.append(self.table.put(first, range(entry, entry + count)))

        def done() -> None:
            self.header = header
            self.census.used(entry, count)
            for number in range(count):
                self.table.set(first + number, entry + number, waiting=waits)

        return Plan(tuple(steps), done, end - offset)

    def _content(self, offset: int, end: int, distance: int) -> Iterator[Step]:
        """What goes into newly allocated blocks that read as zeros: the request, and around it."""
        unit = self._block_size
        before, after = offset - offset % unit, min(-(-end // unit) * unit, self.size)
        if self.parent is not None and before < offset:
            yield Fill(before, offset - before, self.host, before + distance, fresh=True)
        if offset < end:
            yield Guest(offset, end - offset, self.host, offset + distance)
        if self.parent is not None and end < after:
            yield Fill(end, after - end, self.host, end + distance, fresh=True)

    def _raised(self, used: int) -> VdiHeader:
        """The header with a count that covers `used` places, and some more if it has to be raised.
        """
        if used <= self.header.allocated:
            return self.header
        return replace(self.header, allocated=max(used, min(used + _AHEAD, self.header.blocks)))

    def plan_zero(self, offset: int, length: int) -> Plan:
        """Only an overlay has what is neither zeros nor its own: whole blocks become `ZERO`."""
        unit = self._block_size
        if self.table.pages_waiting > _WAITING_PAGES_MAX:
            return self.plan_flush() or Plan()
        first, inside = divmod(offset, unit)
        end = offset + length
        count = (end // unit if end < self.size else -(-end // unit)) - first
        if inside or count == 0:
            return self.allocate(offset, min(length, unit - inside))
        self.table.hold(first, count)

        def done() -> None:
            for index in range(first, first + count):
                self.table.set(index, ZERO, waiting=True)

        return Plan((), done, min(count * unit, length))

    def plan_flush(self) -> Plan | None:
        if not self.table.pages_waiting:
            return None
        sync = Barrier((self.host,))
        return Plan((sync, *self.table.waiting_puts(), sync), self.table.written)

    def plan_close(self) -> Plan:
        waiting = self.plan_flush() or Plan()
        if self.header.allocated == self.census.end:
            return waiting
        exact = self.put_header(replace(self.header, allocated=self.census.end))

        def done() -> None:
            waiting.done()
            exact.done()

        return Plan((*waiting.steps, *exact.steps), done)

    # The header

    def put_header(self, header: VdiHeader, *, sync: bool = False) -> Plan:
        """Write a header that changes neither the size nor where anything is."""

        def done() -> None:
            self.header = header
            self.header_geometry = header.geometry

        put = Put(self.host, 0, header.pack(), sync, before=self.header.pack())
        return Plan((put,), done)

    def plan_geometry(self, geometry: Geometry) -> Plan:
        if geometry.sector_size != SECTOR:
            raise InvalidArgument(
                f"a VDI header stores no geometry in sectors of {geometry.sector_size} bytes",
                path=self.host.path,
            )
        return self.put_header(replace(self.header, geometry=geometry, header_size=HEADER_SIZE))

    def plan_resize(self, size: int) -> Plan:
        return vdi_resize.plan_resize(self, size)

    def plan_parent(
        self, parent: ImageDisk | None, name: str | None, *, any_state: bool = False
    ) -> Plan:
        """A VDI image knows its parent by its identity, not by its name."""
        linkage, state = linkage_to(parent)
        if any_state:
            state = UUID(int=0)
        kind = self.header.type
        if parent is not None:
            kind = VdiType.DIFFERENCING
        elif kind is VdiType.DIFFERENCING:
            kind = VdiType.DYNAMIC
        header = replace(self.header, type=kind, linkage=linkage, parent_modify=state)
        return self.put_header(header, sync=True)

    def creation_options(self) -> dict[str, str]:
        return {"block-size": str(self.header.block_size)}

    def plan_compact(self) -> Plan | None:
        return vdi_compact.plan_compact(self)

    # What it is like

    def check(self) -> Iterator[Problem]:
        return vdi_check.check(self)

    def info(self) -> dict[str, Any]:
        header = self.header
        found: dict[str, Any] = {
            "subformat": header.type.name.lower(),
            "block_size": header.block_size,
            "blocks": header.blocks,
            "allocated_blocks": header.allocated,
            "uuid": str(header.create),
        }
        if header.type is VdiType.DIFFERENCING:
            found["parent_uuid"] = str(header.linkage)
        return found


def open_vdi(host: HostFile, opening: Opening) -> Vdi:
    """The VDI image in `host`, with its parent if it is a differencing one.

    Such an image names its parent by its UUID alone.  Raises InvalidFormat, Corrupt, Unsupported,
    and NotFound where no image with that UUID is in a folder that is allowed.
    """
    header = VdiHeader.read(host)
    host.zeros_past_end = True  # After a loss of power the last block may not be there in whole.
    parent = None
    if header.type is VdiType.DIFFERENCING:
        parent = opening.open_parent(
            ParentReference(format=Vdi.name, matches=lambda other: _is_image(other, header.linkage))
        )
        try:
            _check_state(host, header, parent, opening)
        except BaseException:
            parent.close()
            raise
    return Vdi(host, header, parent)


def _check_state(host: HostFile, header: VdiHeader, parent: ImageDisk, opening: Opening) -> None:
    """Raise Corrupt where the parent was written to after the child was made."""
    _, state = linkage_to(parent)
    if opening.any_state or not header.parent_modify.int or header.parent_modify == state:
        return
    raise Corrupt(
        f"its parent {parent.address} was written to after this overlay was made: "
        "what both say together is nobody's disk",
        path=host.path, hint="to take them as they are all the same: vdisk rebase --unsafe",
    )


def _is_image(host: HostFile, uuid: UUID) -> bool:
    """Whether the file is a VDI image of that UUID."""
    try:
        return VdiHeader.read(host).create == uuid
    except DiskError:
        return False
