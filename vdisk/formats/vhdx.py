"""VHDX (Hyper-V): fixed, dynamic and differencing images.

Two headers, two region tables, a log, metadata, and a block table (BAT) of one 64-bit number a
block; all of it, and every block, begins at a whole MiB.

The order of writes.  A change to the block table or the metadata goes into the log, durable, then
into its place (`vhdx_journal`).  An image that is no overlay does that before a write is
acknowledged: a new block is past the end of the file, and reads as zeros if power fails before the
data is there.  An overlay's entries wait in memory until the data is durable (`plan_flush`): before
that, a block reads as the parent's.

An overlay gets whole blocks, filled up from the parent.  A block of which another program has put
some sectors here is filled up when a sector is written that is not.

Children know their parent by the identity of its data, which changes before the first write.

Sources: [MS-VHDX]; QEMU, `block/vhdx.c`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar
from uuid import uuid4

from vdisk.errors import Corrupt, Unsupported
from vdisk.extent import Extent, Host, Kind
from vdisk.formats import vhdx_bat as bat
from vdisk.formats import vhdx_blocks, vhdx_check, vhdx_compact, vhdx_parent, vhdx_resize
from vdisk.formats.base import ImageFormat, Problem
from vdisk.formats.bits import runs
from vdisk.formats.census import Census, Region, in_order, take_census
from vdisk.formats.table import Table
from vdisk.formats.vhdx_bat import BlockState
from vdisk.formats.vhdx_header import Header, Headers
from vdisk.formats.vhdx_journal import Journal
from vdisk.formats.vhdx_log import log_problem
from vdisk.formats.vhdx_metadata import Metadata
from vdisk.formats.vhdx_regions import Regions
from vdisk.formats.vhdx_replay import Replayed
from vdisk.host import HostFile
from vdisk.plan import Barrier, Plan, Put, Step
from vdisk.units import MIB

if TYPE_CHECKING:
    from vdisk.image_disk import ImageDisk

_FILE_BYTES_MAX = 66 << 40  # The largest disk and its tables: a larger file is not written to.


class Vhdx(ImageFormat):
    """An open VHDX image."""

    name: ClassVar[str] = "vhdx"

    def __init__(
        self, host: HostFile, headers: Headers, replayed: Replayed, regions: Regions,
        metadata: Metadata, parent: ImageDisk | None,
    ) -> None:
        self.host = host
        self.parent = parent
        self.replayed = replayed
        self.regions = regions
        self.sector_size = metadata.sector_size
        self.block_size = metadata.block_size
        self.journal = Journal(host, headers)
        self.layout = bat.Layout(
            metadata.block_size, metadata.sector_size, has_parent=metadata.parent is not None
        )
        self.limit = replayed.end  # No place ends past this.
        self.next_data = uuid4()  # The data's identity from the first write on.
        self._census: Census | None = None
        self.take(metadata, regions)

    def take(self, metadata: Metadata, regions: Regions) -> None:
        """Go by these from now on, which the host has already.  Corrupt where they do not fit."""
        entries = self.layout.entries(metadata.size)
        if entries * bat.ENTRY_BYTES > regions.bat.length:
            raise Corrupt(
                f"its block table of {regions.bat.length} bytes is too short for "
                f"{metadata.size} bytes", path=self.host.path,
            )
        self.metadata, self.regions, self.size = metadata, regions, metadata.size
        self.table = Table(
            self.host, regions.bat.offset, entries, width=bat.ENTRY_BYTES, byteorder="little",
            reader=self.replayed,
        )
        self._bits = bat.SectorBits(self.replayed)

    def hosts(self) -> tuple[HostFile, ...]:
        return (self.host,)

    # Where bytes are

    def map(self, offset: int, length: int) -> Iterator[Extent]:
        unit, end = self.block_size, offset + length
        block, stop = offset // unit, -(-end // unit)
        while block < stop:
            entry, first = self.entry(block), block
            block += 1
            state = bat.state(entry)
            if state == BlockState.FULL:
                yield Extent(first * unit, unit, Kind.DATA, self.host, self.place(entry))
            elif state == BlockState.PARTIAL:
                yield from self._partial(first, entry, offset, end)
            elif state == BlockState.NOT_PRESENT:
                while block < stop and bat.state(self.entry(block)) == state:
                    block += 1
                at = max(first * unit, offset)
                yield from self.beneath(at, min(block * unit, end) - at)
            elif state in list(BlockState):
                yield Extent(first * unit, unit, Kind.ZERO)
            else:
                raise Corrupt(f"block {first} is in state {state}", path=self.host.path)

    def _partial(self, block: int, entry: int, offset: int, end: int) -> Iterator[Extent]:
        """The map of a block that is here in part, as far as [offset, end) reaches into it."""
        start, data = block * self.block_size, self.place(entry)
        bits = self.sector_bits(block)
        low = max(offset - start, 0) // self.metadata.sector_size
        high = min(-(-(end - start) // self.metadata.sector_size), len(bits))
        for first, stop, is_here in runs(bits, low, high):
            skipped = first * self.metadata.sector_size
            at, length = start + skipped, (stop - first) * self.metadata.sector_size
            if is_here:
                yield Extent(at, length, Kind.DATA, self.host, data + skipped)
            else:
                inside = max(at, offset)
                yield from self.beneath(inside, min(at + length, end) - inside)

    def entry(self, block: int) -> int:
        """The entry of a block."""
        return self.table.get(self.layout.index(block))

    def place(self, entry: int, length: int = 0) -> int:
        """Where a block begins.  Corrupt where none can be, or the log still has to be replayed."""
        found, length = bat.place(entry), length or self.block_size
        if found < MIB or found + length > self.limit:
            raise Corrupt(
                f"its block table names byte {found} of {self.limit}", path=self.host.path
            )
        if self.replayed.touches(found, length):
            raise Unsupported(
                "its log has a change to what the guest wrote, which is not made yet",
                path=self.host.path, hint="write to it once, and it is",
            )
        return found

    def sector_bits(self, block: int) -> str:
        """Which sectors of a block are in this file.  Corrupt where nothing says so."""
        entry = self.table.get(self.layout.bitmap_index(block)) if self.metadata.parent else 0
        if bat.state(entry) != BlockState.FULL:
            raise Corrupt(
                f"block {block} is there in part, and no bitmap says in which",
                path=self.host.path,
            )
        self._check_bitmap(entry)
        return self._bits.get(
            block, self.layout.bitmap_place(entry, block), self.layout.bitmap_bytes
        )

    def _check_bitmap(self, entry: int) -> None:
        found = bat.place(entry)
        if found < MIB or found + bat.BITMAP_BLOCK > self.limit:
            raise Corrupt(f"a sector bitmap is at byte {found}", path=self.host.path)

    def locate(self, offset: int, length: int) -> tuple[Kind, Host | None, int] | None:
        block, inside = divmod(offset, self.block_size)
        entry = self.table.peek(self.layout.index(block))
        if entry is None or inside + length > self.block_size:
            return None
        state = bat.state(entry)
        if state == BlockState.FULL:
            found = bat.place(entry)
            if found < MIB or found + self.block_size > self.limit or self.replayed.changes:
                return None
            return Kind.DATA, self.host, found + inside
        if state == BlockState.PARTIAL or state == 4:
            return None
        if state != BlockState.NOT_PRESENT or self.parent is None or offset >= self.parent.size:
            return Kind.ZERO, None, 0
        if offset + length <= self.parent.size:
            return Kind.PARENT, self.parent, offset
        return None

    # Allocating

    @property
    def census(self) -> Census:
        """What of the file is in use.  Corrupt where it cannot be written without damage."""
        if self._census is None:
            if self.limit > _FILE_BYTES_MAX:
                raise Unsupported(f"the file is {self.limit} bytes large", path=self.host.path)
            self._census = self.take_census()
            if self._census.problem is not None:
                raise Corrupt(
                    self._census.problem, path=self.host.path, hint="see vdisk check"
                )
        return self._census

    def take_census(self) -> Census:
        """Look at every entry."""
        census = take_census(self.places(), self.block_size, self.others(), self.limit)
        census.problem = log_problem(self.host, self.journal.headers.current) or census.problem
        return census

    def forget_census(self) -> None:
        """Blocks have moved or gone: find out anew what is in use."""
        self._census = None

    def places(self) -> Iterator[int]:
        """Where blocks are, in bytes, in order."""
        with_place = (BlockState.FULL, BlockState.PARTIAL)
        return in_order(
            [
                bat.place(entry) for number, entry in enumerate(page, first)
                if entry & 7 in with_place and not self.layout.is_bitmap(number)
            ]
            for first, page in self.table.runs()
        )

    def others(self) -> Iterator[Region]:
        """What lies in the file besides blocks."""
        header = self.journal.headers.current
        yield 0, MIB
        yield header.log_offset, header.log_offset + header.log_length
        yield from ((region.offset, region.end) for region in self.regions.all)
        if self.metadata.parent is None:
            return
        for index in self.layout.bitmaps(self.table.entries):
            entry = self.table.get(index)
            if bat.state(entry) == BlockState.FULL:
                yield bat.place(entry), bat.place(entry) + bat.BITMAP_BLOCK

    def plan_first_write(self) -> Plan:
        """The log replayed in the host; other identities of file and data; copies set right."""
        self.census  # noqa: B018 - it refuses what cannot be written without damage.
        return self._settled(replace(self.journal.headers.current, data_write=self.next_data))

    def plan_settle(self) -> Plan:
        """As before a first write, but the data is the same: so is its identity."""
        return self._settled(self.journal.headers.current)

    def _settled(self, header: Header) -> Plan:
        header = replace(header, file_write=uuid4())
        replayed = self.replayed

        def steps() -> Iterator[Step]:
            if replayed.is_pending:
                yield from replayed.steps()
            if not self.regions.is_whole:
                yield from self.regions.puts(self.host, self.regions.pack())
            yield from self.journal.ended(header)

        def done() -> None:
            replayed.done()
            self.journal.commit()
            self.journal.settled()
            if not self.regions.is_whole:
                packed = self.regions.pack()
                self.regions = replace(self.regions, copies=(packed, packed))

        return Plan(steps(), done, exclusive=True)

    def plan_write(self, offset: int, length: int) -> Plan:
        return vhdx_blocks.plan_write(self, offset, length)

    def plan_zero(self, offset: int, length: int) -> Plan:
        return vhdx_blocks.plan_zero(self, offset, length)

    # Tables

    def logged(self, puts: Iterable[Put]) -> Iterator[Step]:
        """Steps that make changes to tables, by way of the log."""
        return self.journal.logged(puts, self.host.size)

    def plan_flush(self) -> Plan | None:
        """Besides what waits: the log, which does not count any more.

        So after a flush other programs open the image as it is, also those that replay no log.
        """
        waits = self.table.pages_waiting > 0
        if not waits and not self.journal.is_begun:
            return None

        def steps() -> Iterator[Step]:
            if waits:
                yield Barrier((self.host,))
                yield from self.logged(self.table.waiting_puts())
            yield from self.journal.ended(then=waits)

        def done() -> None:
            if waits:
                self.table.written()
            self.journal.commit()
            self.journal.settled()

        return Plan(steps(), done)

    def plan_close(self) -> Plan | None:
        return self.plan_flush()

    def plan_resize(self, size: int) -> Plan:
        return vhdx_resize.plan_resize(self, size)

    def plan_parent(
        self, parent: ImageDisk | None, name: str | None, *, any_state: bool = False
    ) -> Plan:
        return vhdx_parent.plan_parent(self, parent, name, any_state=any_state)

    def creation_options(self) -> dict[str, str]:
        return {"block-size": str(self.block_size)}

    def plan_compact(self) -> Plan | None:
        return vhdx_compact.plan_compact(self)

    # What it is like

    def check(self) -> Iterator[Problem]:
        return vhdx_check.check(self)

    def info(self) -> dict[str, Any]:
        metadata, header = self.metadata, self.journal.headers.current
        kind = "fixed" if metadata.is_fixed else "dynamic"
        found: dict[str, Any] = {
            "subformat": kind if metadata.parent is None else "differencing",
            "block_size": metadata.block_size,
            "physical_sector_size": metadata.physical_sector_size,
            "disk_id": str(metadata.page_83),
            "data_id": str(header.data_write),
            "log": "to be replayed" if self.replayed.changes else "clean",
        }
        if metadata.parent is not None:
            found["parent_data_id"] = metadata.parent.get("parent_linkage", "").strip("{}")
        return found
