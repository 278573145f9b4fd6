"""Making a VHDX image.

As Hyper-V lays it out: log at 1 MiB, metadata at 2, block table at 3, then the blocks.
"""

from __future__ import annotations

import struct
from uuid import uuid4

from vdisk.errors import InvalidArgument
from vdisk.formats import vhdx_bat as bat
from vdisk.formats.creation import Creation, Option
from vdisk.formats.vhdx_header import HEADER_OFFSETS, NO_GUID, SIGNATURE, Header
from vdisk.formats.vhdx_metadata import (
    BLOCK_SIZE_MAX,
    BLOCK_SIZE_MIN,
    METADATA_BYTES,
    SIZE_MAX,
    Metadata,
)
from vdisk.formats.vhdx_parent import locator
from vdisk.formats.vhdx_regions import TABLE_OFFSETS, Region, Regions
from vdisk.units import GIB, MIB

_CREATOR = "vdisk"
_LOG = Region(MIB, MIB)
_METADATA = Region(2 * MIB, METADATA_BYTES)
_BAT_OFFSET = 3 * MIB
_ENTRIES_AT_ONCE = 1 << 16
_PHYSICAL_SECTOR = 4096
# As QEMU chooses: (disks above that size, blocks of that size).
_BLOCK_SIZES = ((32 * 1024 * GIB, 64 * MIB), (100 * GIB, 32 * MIB), (GIB, 16 * MIB), (0, 8 * MIB))
_OVERLAY_BLOCK = 2 * MIB  # Which is copied from the parent when a sector of it is written.

VHDX_OPTIONS = (
    Option("subformat", "whether space is taken as it is written, or all at once", "dynamic",
           ("dynamic", "fixed")),
    Option("block-size", "bytes that are allocated at once: a power of two, 1M to 256M; auto is 8M "
           "to 64M by the size, and 2M for an overlay", "auto"),
)  # fmt: skip


def create_vhdx(creation: Creation) -> None:
    """Write a new VHDX image: dynamic, fixed, or differencing where there is a parent.

    Raises InvalidArgument for a size or sector size that a VHDX image cannot have, and for a parent
    that is no VHDX image: a child knows its parent by an identity that only those have.
    """
    metadata, host = _metadata(creation), creation.host
    layout = bat.Layout(
        metadata.block_size, metadata.sector_size, has_parent=metadata.parent is not None
    )
    entries = layout.entries(metadata.size)
    table = Region(_BAT_OFFSET, -(-entries * bat.ENTRY_BYTES // MIB) * MIB)
    blocks = layout.blocks(metadata.size) if metadata.is_fixed else 0
    host.truncate(table.end + blocks * metadata.block_size)
    if metadata.is_fixed:
        _allocate_all(creation, layout, table, metadata.block_size, blocks)
    host.write(_METADATA.offset, metadata.pack())
    packed = Regions(table, _METADATA).pack()
    for offset in TABLE_OFFSETS:
        host.write(offset, packed)
    file_write, data_write = uuid4(), uuid4()
    for sequence, offset in enumerate(HEADER_OFFSETS, 1):
        header = Header(sequence, file_write, data_write, NO_GUID, _LOG.length, _LOG.offset)
        host.write(offset, header.pack())
    # Last: until now it is no VHDX image.
    host.write(0, SIGNATURE + _CREATOR.encode("utf-16-le").ljust(512, b"\0"))


def _allocate_all(
    creation: Creation, layout: bat.Layout, table: Region, block_size: int, blocks: int
) -> None:
    """Give every block its place, and take the space up."""
    for first in range(0, blocks, _ENTRIES_AT_ONCE):
        for block in range(first, min(first + _ENTRIES_AT_ONCE, blocks)):
            entry = struct.pack("<Q", bat.full(table.end + block * block_size))
            creation.host.write(table.offset + layout.index(block) * bat.ENTRY_BYTES, entry)
    creation.host.zero(table.end, blocks * block_size)


def _metadata(creation: Creation) -> Metadata:
    if creation.sector_size not in (512, 4096):
        raise InvalidArgument(
            f"a VHDX image has sectors of 512 or 4096 bytes, not {creation.sector_size}",
            path=creation.host.path,
        )
    if not 0 < creation.size <= SIZE_MAX:
        raise InvalidArgument(
            f"a VHDX image cannot be {creation.size} bytes large", path=creation.host.path,
            hint="it is at most 64 TiB",
        )
    is_fixed = creation.options["subformat"] == "fixed"
    if creation.parent is not None and is_fixed:
        raise InvalidArgument("an overlay is never fixed", path=creation.host.path)
    return Metadata(
        _block_size(creation), creation.size, creation.sector_size, _PHYSICAL_SECTOR, is_fixed,
        _parent(creation),
    )


def _block_size(creation: Creation) -> int:
    if creation.options["block-size"] != "auto":
        return creation.power("block-size", BLOCK_SIZE_MIN, BLOCK_SIZE_MAX)
    if creation.parent is not None:
        return _OVERLAY_BLOCK
    return next(block for least, block in _BLOCK_SIZES if creation.size > least)


def _parent(creation: Creation) -> dict[str, str] | None:
    """What an overlay says of its parent."""
    if creation.parent is None:
        return None
    return locator(
        creation.host, creation.sector_size, creation.parent, creation.parent_name
    )
