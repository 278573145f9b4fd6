"""Making a VDI image."""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, cast
from uuid import UUID, uuid4

from vdisk.errors import InvalidArgument
from vdisk.formats.creation import Creation, Option
from vdisk.formats.table import little_endian
from vdisk.formats.vdi_header import (
    BLOCK_SIZE_MAX,
    BLOCK_SIZE_MIN,
    BLOCKS_MAX,
    FREE,
    VdiHeader,
    VdiType,
)
from vdisk.units import MIB, SECTOR

if TYPE_CHECKING:
    from vdisk.formats.vdi import Vdi
    from vdisk.image_disk import ImageDisk

_TYPES = {"dynamic": VdiType.DYNAMIC, "fixed": VdiType.FIXED}
_MAP_OFFSET = MIB  # As VirtualBox does: map and data each begin at a whole MiB.
_ENTRIES_AT_ONCE = 1 << 18

VDI_OPTIONS = (
    Option("subformat", "whether space is taken as it is written, or all at once", "dynamic",
           tuple(_TYPES)),
    Option("block-size", "bytes that are allocated at once; QEMU opens 1M only", "1M"),
)  # fmt: skip


def create_vdi(creation: Creation) -> None:
    """Write a new VDI image: dynamic, fixed, or differencing where there is a parent.

    Raises InvalidArgument for a size or sector size that a VDI image cannot have, and for a parent
    that is no VDI image: a child knows its parent by an identity that only those have.
    """
    header = _header(creation)
    host, is_fixed = creation.host, header.type is VdiType.FIXED
    for first in range(0, header.blocks, _ENTRIES_AT_ONCE):
        end = min(first + _ENTRIES_AT_ONCE, header.blocks)
        entries = range(first, end) if is_fixed else [FREE] * (end - first)
        host.write(header.map_offset + 4 * first, little_endian(array("I", entries)))
    size = header.data_offset + header.allocated * header.block_size
    host.truncate(size)
    if is_fixed:
        host.zero(header.data_offset, size - header.data_offset)  # Takes the space up.
    host.write(0, header.pack())  # Last: until now it is no VDI image.


def _header(creation: Creation) -> VdiHeader:
    if creation.sector_size != SECTOR:
        raise InvalidArgument(
            f"a VDI image has sectors of {SECTOR} bytes, not {creation.sector_size}",
            path=creation.host.path,
        )
    block_size = creation.power("block-size", BLOCK_SIZE_MIN, BLOCK_SIZE_MAX)
    blocks = -(-creation.size // block_size)
    if blocks > BLOCKS_MAX:
        raise InvalidArgument(
            f"a VDI image cannot be {creation.size} bytes large", path=creation.host.path,
            hint=f"with blocks of {block_size} bytes it is at most {BLOCKS_MAX * block_size}",
        )
    kind = _TYPES[creation.options["subformat"]]
    linkage, parent_modify = linkage_to(creation.parent)
    if creation.parent is not None:
        if kind is VdiType.FIXED:
            raise InvalidArgument("an overlay is never fixed", path=creation.host.path)
        kind = VdiType.DIFFERENCING
    map_end = _MAP_OFFSET + 4 * blocks
    return VdiHeader(
        kind, _MAP_OFFSET, -(-map_end // MIB) * MIB, creation.size, block_size, blocks,
        blocks if kind is VdiType.FIXED else 0, create=uuid4(), modify=uuid4(), linkage=linkage,
        parent_modify=parent_modify, geometry=creation.geometry,
    )


def linkage_to(parent: ImageDisk | None) -> tuple[UUID, UUID]:
    """The identity of a parent and that of its state; zeros where there is none.

    Raises InvalidArgument for one that is no VDI image.
    """
    if parent is None:
        return UUID(int=0), UUID(int=0)
    if parent.image.name != "vdi":
        raise InvalidArgument(
            "a VDI overlay needs a VDI image beneath it", path=parent.address,
            hint="convert it to VDI first, or choose another format for the overlay",
        )
    header = cast("Vdi", parent.image).header
    return header.create, header.modify
