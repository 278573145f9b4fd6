"""Opening a VMDK: its descriptor, the files of its extents, and its parent."""

from __future__ import annotations

import ntpath
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from vdisk.errors import Corrupt, DiskError, InvalidFormat, Unsupported
from vdisk.formats.base import Opening, ParentReference, beneath
from vdisk.formats.disk_extent import DiskExtent
from vdisk.formats.vmdk import DescriptorPlace, Vmdk
from vdisk.formats.vmdk_descriptor import (
    DESCRIPTOR_BYTES_MAX,
    MAGIC,
    NO_PARENT,
    Descriptor,
    ExtentLine,
    extents_of,
    new_descriptor,
)
from vdisk.formats.vmdk_extent import FlatExtent, ZeroExtent
from vdisk.formats.vmdk_header import Flag, SparseHeader
from vdisk.formats.vmdk_sparse import SparseExtent
from vdisk.host import HostFile
from vdisk.units import SECTOR

if TYPE_CHECKING:
    from vdisk.image_disk import ImageDisk

FLAT_TYPES = frozenset({"FLAT", "VMFS"})
_SPARSE_TYPES = frozenset({"SPARSE", "VMFSSPARSE"})
_ENCRYPTION = frozenset({"encryption.keysafe", "encryption.data"})


def open_vmdk(host: HostFile, opening: Opening) -> Vmdk:
    """The VMDK in `host`, with its extents and, if it is a delta, its parent.

    Raises InvalidFormat, Corrupt, Unsupported; NotFound and NotPermitted for what it names.
    """
    place, descriptor, header = read_descriptor(host)
    if _ENCRYPTION & descriptor.fields.keys():
        raise Unsupported("is an encrypted VMDK", path=host.path)
    parent = None
    files = _Files(host, opening)
    try:
        if descriptor.parent_cid != NO_PARENT:
            parent = _parent(host, descriptor, opening)
        if header is not None:
            extents: tuple[DiskExtent, ...] = (_embedded(host, descriptor, header, parent),)
        else:
            extents = tuple(
                _extent(files, start, line, parent) for start, line in extents_of(descriptor)
            )
        if not extents:
            raise Corrupt("its descriptor names no extents", path=host.path)
        return Vmdk(place, descriptor, extents, parent, opening, _unwritable(descriptor, extents))
    except BaseException:
        files.close()
        if parent is not None:
            parent.close()
        raise


def read_descriptor(host: HostFile) -> tuple[DescriptorPlace, Descriptor, SparseHeader | None]:
    """The descriptor in `host` and where it is; and the header of the extent that it lies in.

    The header is None where the descriptor is a file of its own.
    """
    size = host.size()
    if host.read(0, min(size, len(MAGIC))) == MAGIC.encode():
        if size > DESCRIPTOR_BYTES_MAX:
            raise Corrupt(f"has a descriptor of {size} bytes", path=host.path)
        return DescriptorPlace(host, 0, None), Descriptor.parse(host.read(0, size), host.path), None
    header = SparseHeader.read(host)
    if header.is_cowd:
        return DescriptorPlace(host, 0, 0), _descriptor_of_cowd(host, header), header
    offset, room = header.descriptor * SECTOR, header.descriptor_sectors * SECTOR
    raw = host.read(offset, min(room, DESCRIPTOR_BYTES_MAX))
    if not offset or not raw.rstrip(b"\0"):
        raise InvalidFormat(
            "is one extent of a VMDK, without its descriptor", path=host.path,
            hint="open the file that names it: the one without -s001 and the like",
        )
    return DescriptorPlace(host, offset, room), Descriptor.parse(raw, host.path), header


def _descriptor_of_cowd(host: HostFile, header: SparseHeader) -> Descriptor:
    """An extent of ESX that holds a whole disk has no descriptor, and its geometry itself."""
    if not header.is_root:
        raise InvalidFormat(
            "is one extent of a VMDK, without its descriptor", path=host.path,
            hint="open the file that names it",
        )
    line = ExtentLine("RDONLY", header.capacity, "VMFSSPARSE", host.path.name)
    return new_descriptor("vmfsSparse", (line,), header.geometry)


@dataclass(slots=True)
class _Files:
    """The files of extents, each opened once."""

    host: HostFile
    opening: Opening
    opened: dict[str, HostFile] = field(default_factory=dict)

    def open(self, name: str) -> HostFile:
        if name not in self.opened:
            found = self.opening.open_file(name)
            self.opened[name] = found
            others = [self.host, *(each for each in self.opened.values() if each is not found)]
            if any(found.identity == other.identity for other in others):
                raise Corrupt(f"names {name!r} as an extent, which it has already",
                              path=self.host.path)  # fmt: skip
        return self.opened[name]

    def close(self) -> None:
        for each in self.opened.values():
            each.close()


def _embedded(
    host: HostFile, descriptor: Descriptor, header: SparseHeader, parent: ImageDisk | None
) -> SparseExtent:
    """The one extent of an image whose descriptor lies in it.  The name it says may be stale."""
    if len(descriptor.extents) > 1:
        raise Unsupported("goes on in other files, though its descriptor lies in this one",
                          path=host.path)  # fmt: skip
    read_only = any(line.access != "RW" for line in descriptor.extents)
    return SparseExtent(
        0, header.capacity * SECTOR, host, header, partial(beneath, parent),
        is_overlay=parent is not None, writable=not read_only,
    )


def _extent(
    files: _Files, start_sector: int, line: ExtentLine, parent: ImageDisk | None
) -> DiskExtent:
    start, length = start_sector * SECTOR, line.sectors * SECTOR
    path = files.host.path
    if line.access == "NOACCESS":
        raise Unsupported(f"has an extent that must not be accessed: {line}", path=path)
    if line.type == "ZERO":
        return ZeroExtent(start, length)
    if line.type not in FLAT_TYPES | _SPARSE_TYPES:
        raise Unsupported(
            f"has an extent of type {line.type}, which this version does not open", path=path
        )
    if line.name is None:
        raise Corrupt(f"has an extent without a file: {line}", path=path)
    if line.type in FLAT_TYPES:
        return flat_extent(files.open(line.name), start, line)
    if line.name in files.opened:
        raise Corrupt(f"has two sparse extents in {line.name!r}", path=path)
    return sparse_extent(files.open(line.name), start, line, parent)


def flat_extent(host: HostFile, start: int, line: ExtentLine) -> FlatExtent:
    """The flat extent in `host` that begins at guest byte `start`.

    Corrupt where the file is too short for it.
    """
    length, host_offset = line.sectors * SECTOR, line.offset * SECTOR
    if host_offset + length > host.size():
        raise Corrupt(f"is too short for the extent in it, which is {length} bytes large",
                      path=host.path)  # fmt: skip
    return FlatExtent(start, length, host, host_offset, writable=line.access == "RW")


def sparse_extent(
    host: HostFile, start: int, line: ExtentLine, parent: ImageDisk | None
) -> SparseExtent:
    """The sparse extent in `host` that begins at guest byte `start`.

    It is as large as the descriptor says; Corrupt where it cannot be.
    """
    header = SparseHeader.read(host)
    if line.sectors > header.capacity:
        raise Corrupt(
            f"has room for {header.capacity} sectors, not for the {line.sectors} that the "
            "descriptor says",
            path=host.path,
        )

    return SparseExtent(
        start, line.sectors * SECTOR, host, header, partial(beneath, parent),
        is_overlay=parent is not None, writable=line.access == "RW",
    )


def _unwritable(descriptor: Descriptor, extents: tuple[DiskExtent, ...]) -> str | None:
    headers = [extent.header for extent in extents if isinstance(extent, SparseExtent)]
    if any(header.has(Flag.COMPRESSED) for header in headers):
        return "is a compressed VMDK (streamOptimized), whose grains are written once"
    if any(header.is_cowd for header in headers):
        return "has sparse extents of ESX (COWD), which are only read here"
    if descriptor.fields.get("changetrackpath"):
        return "has its changes tracked in another file, which would miss ours"
    return None


def _parent(host: HostFile, descriptor: Descriptor, opening: Opening) -> ImageDisk:
    """The parent, which must be as it was when this was made on it."""
    cid = descriptor.parent_cid
    name = descriptor.parent_name
    if name:
        base = ntpath.basename(name)  # Takes both kinds of slashes.
        reference = ParentReference(tuple(dict.fromkeys((name, base))), Vmdk.name)
    else:
        reference = ParentReference((), Vmdk.name, lambda other: _has_cid(other, cid))
    parent = opening.open_parent(reference)
    assert isinstance(parent.image, Vmdk)
    if parent.image.descriptor.cid != cid:
        parent.close()
        raise Corrupt(
            f"its parent {parent.address} was written to after this delta was made: "
            "what both say together is nobody's disk",
            path=host.path,
        )
    return parent


def _has_cid(host: HostFile, cid: int) -> bool:
    try:
        return read_descriptor(host)[1].cid == cid
    except DiskError:
        return False
