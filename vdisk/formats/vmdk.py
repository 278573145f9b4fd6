"""VMDK (VMware): flat and sparse images, in one file or in several, and deltas.

A descriptor names the extents that the disk consists of, one after the other.  Each lies in a file
of its own, in the descriptor's folder; a single sparse extent may hold the descriptor itself.

A child remembers the CID that its parent had.  The first change after opening gives the image
another one, before anything else is written.

Sources: VMware, "Virtual Disk Format 5.0"; libvmdk's documentation; QEMU, `block/vmdk.c`.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from vdisk.errors import InvalidArgument
from vdisk.extent import Extent, Host, Kind
from vdisk.formats import vmdk_check, vmdk_resize
from vdisk.formats.base import ImageFormat, Opening, Problem
from vdisk.formats.disk_extent import DiskExtent
from vdisk.formats.vmdk_descriptor import NO_PARENT, Descriptor
from vdisk.formats.vmdk_sparse import SparseExtent
from vdisk.geometry import Geometry
from vdisk.host import HostFile
from vdisk.plan import Barrier, Plan, Put
from vdisk.units import SECTOR

if TYPE_CHECKING:
    from vdisk.image_disk import ImageDisk


@dataclass(frozen=True, slots=True)
class DescriptorPlace:
    """Where the descriptor lies: `host_offset` of `host`; `room` bytes, None where it may grow."""

    host: HostFile
    host_offset: int
    room: int | None

    def put(self, old: Descriptor, new: Descriptor) -> Put | None:
        """The step that changes the descriptor, by the bytes that differ; None where none do.

        Raises InvalidArgument where there is no room for it.
        """
        before, after = old.encoded(), new.encoded()
        if self.room is not None and len(after) > self.room:
            raise InvalidArgument(
                f"the descriptor has room for {self.room} bytes, not for {len(after)}",
                path=self.host.path,
            )
        filling = b"\0" if self.room is not None else b"\n"
        length = max(len(before), len(after))
        before, after = before.ljust(length, filling), after.ljust(length, filling)
        differ = [at for at in range(length) if before[at] != after[at]]
        if not differ:
            return None
        first, end = differ[0], differ[-1] + 1
        return Put(
            self.host, self.host_offset + first, after[first:end], sync=True,
            before=before[first:end],
        )


class Vmdk(ImageFormat):
    """An open VMDK image.  The tables of its sparse extents are read as needed."""

    name: ClassVar[str] = "vmdk"
    stores_geometry: ClassVar[bool] = True

    def __init__(
        self,
        place: DescriptorPlace,
        descriptor: Descriptor,
        extents: tuple[DiskExtent, ...],
        parent: ImageDisk | None,
        opening: Opening,
        unwritable: str | None,
    ) -> None:
        self.place = place
        self.parent = parent
        self.sector_size = SECTOR
        self.unwritable = unwritable
        self.opening = opening
        self.made: HostFile | None = None
        """A new extent's file that the descriptor does not name yet."""
        self.take(descriptor, extents)

    def take(self, descriptor: Descriptor, extents: tuple[DiskExtent, ...]) -> None:
        """Go by these from now on, which the host has already."""
        self.descriptor = descriptor
        self.header_geometry = descriptor.geometry
        self.extents = extents
        self._starts = [extent.start for extent in extents]
        self.size = extents[-1].end

    def hosts(self) -> tuple[HostFile, ...]:
        found = [self.place.host]
        found += [extent.host for extent in self.extents if extent.host is not None]
        return tuple(dict.fromkeys(found))

    @property
    def sparse_extents(self) -> Iterator[tuple[int, SparseExtent]]:
        """(number, extent) of those that have grain tables."""
        for number, extent in enumerate(self.extents):
            if isinstance(extent, SparseExtent):
                yield number, extent

    def extent_at(self, offset: int) -> DiskExtent:
        """The extent that holds guest byte `offset`."""
        return self.extents[bisect_right(self._starts, offset) - 1]

    # Where bytes are

    def map(self, offset: int, length: int) -> Iterator[Extent]:
        end = offset + length
        while offset < end:
            extent = self.extent_at(offset)
            stop = min(end, extent.end)
            yield from extent.map(offset, stop - offset)
            offset = stop

    def locate(self, offset: int, length: int) -> tuple[Kind, Host | None, int] | None:
        extent = self.extent_at(offset)
        if offset + length > extent.end:
            return None
        return extent.locate(offset, length)

    # Changes

    def plan_first_write(self) -> Plan:
        return self.put_descriptor(self.descriptor.with_new_cid())

    def put_descriptor(self, descriptor: Descriptor) -> Plan:
        """Write a descriptor that names the same extents."""

        def done() -> None:
            self.descriptor = descriptor
            self.header_geometry = descriptor.geometry

        put = self.place.put(self.descriptor, descriptor)
        return Plan(() if put is None else (put,), done)

    def plan_write(self, offset: int, length: int) -> Plan:
        extent = self.extent_at(offset)
        return extent.plan_write(offset, min(length, extent.end - offset))

    def plan_zero(self, offset: int, length: int) -> Plan:
        extent = self.extent_at(offset)
        return extent.plan_zero(offset, min(length, extent.end - offset))

    def plan_flush(self) -> Plan | None:
        waiting = [plan for _, extent in self.sparse_extents if (plan := extent.plan_flush())]
        if not waiting:
            return None
        together = _together(waiting)
        return replace(together, steps=(*together.steps, Barrier(self.hosts())))

    def remove_made(self) -> None:
        """Remove the file of an extent that came to nothing."""
        if self.made is not None:
            with suppress(OSError):
                self.made.path.unlink()
            self.made.close()
            self.made = None

    def plan_close(self) -> Plan | None:
        self.remove_made()
        closing = [plan for _, extent in self.sparse_extents if (plan := extent.plan_close())]
        return _together(closing) if closing else None

    def plan_geometry(self, geometry: Geometry) -> Plan:
        if geometry.sector_size != SECTOR:
            raise InvalidArgument(
                f"a VMDK stores no geometry in sectors of {geometry.sector_size} bytes",
                path=self.place.host.path,
            )
        return self.put_descriptor(self.descriptor.with_geometry(geometry))

    def plan_resize(self, size: int) -> Plan:
        return vmdk_resize.plan_resize(self, size)

    # What it is like

    def check(self) -> Iterator[Problem]:
        return vmdk_check.check(self)

    def info(self) -> dict[str, Any]:
        descriptor = self.descriptor
        found: dict[str, Any] = {
            "subformat": descriptor.create_type,
            "extents": len(self.extents),
            "cid": f"{descriptor.cid:08x}",
        }
        grains = {extent.header.grain * SECTOR for _, extent in self.sparse_extents}
        if grains:
            found["grain_size"] = max(grains)
        if "ddb.adaptertype" in descriptor.fields:
            found["adapter_type"] = descriptor.fields["ddb.adaptertype"]
        if descriptor.parent_cid != NO_PARENT:
            found["parent_cid"] = f"{descriptor.parent_cid:08x}"
        return found


def _together(plans: list[Plan]) -> Plan:
    def done() -> None:
        for plan in plans:
            plan.done()

    return Plan(tuple(step for plan in plans for step in plan.steps), done)
