"""Making a VHD image."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING, cast

from vdisk.errors import InvalidArgument
from vdisk.formats.creation import Creation, Option
from vdisk.formats.vhd_fixed import FixedVhd, check_size
from vdisk.formats.vhd_footer import FOOTER_BYTES, Footer, VhdType, vhd_time
from vdisk.formats.vhd_geometry import new_geometry
from vdisk.formats.vhd_header import (
    BLOCK_SIZE_MAX,
    BLOCK_SIZE_MIN,
    BLOCKS_MAX,
    HEADER_BYTES,
    DynamicHeader,
    Locator,
    table_bytes,
)
from vdisk.formats.vhd_locators import locator_texts, placed
from vdisk.geometry import Geometry
from vdisk.image_geometry import qemu_vhd_footer
from vdisk.translation import Counts
from vdisk.units import SECTOR

if TYPE_CHECKING:
    from vdisk.formats.vhd import Vhd

_HEADER_OFFSET = FOOTER_BYTES
_WRITE_BYTES = 1 << 20

VHD_OPTIONS = (
    Option("subformat", "whether space is taken as it is written, or all at once", "dynamic",
           ("dynamic", "fixed")),
    Option("block-size", "bytes that are allocated at once; other programs make 2M or 512K", "2M"),
    Option("size", "exact, or rounded up to the specification's geometry, for programs that go by "
           "that", "exact", ("exact", "geometry")),
)  # fmt: skip


def create_vhd(creation: Creation) -> None:
    """Write a new VHD image: dynamic, fixed, or differencing where there is a parent.

    Raises InvalidArgument for a size, sector size or geometry that a VHD image cannot have, and
    for a parent that is no VHD image: a child knows its parent by an identity that only those have.
    """
    if creation.sector_size != SECTOR:
        raise InvalidArgument(
            f"a VHD image has sectors of {SECTOR} bytes, not {creation.sector_size}",
            path=creation.host.path,
        )
    check_size(creation.host, creation.size)
    footer = _footer(creation)
    check_size(creation.host, footer.current_size)
    if footer.type is VhdType.FIXED:
        _create_fixed(creation, footer)
    else:
        _create_dynamic(creation, footer)


def _create_fixed(creation: Creation, footer: Footer) -> None:
    host, size = creation.host, footer.current_size
    host.truncate(size)
    host.zero(0, size)  # Takes the space up.
    host.write(size, footer.pack())


def _create_dynamic(creation: Creation, footer: Footer) -> None:
    host = creation.host
    block_size = creation.power("block-size", BLOCK_SIZE_MIN, BLOCK_SIZE_MAX)
    entries = -(-footer.current_size // block_size)
    if entries > BLOCKS_MAX:
        raise InvalidArgument(
            f"with blocks of {block_size} bytes a VHD image is at most "
            f"{BLOCKS_MAX * block_size} bytes large", path=host.path,
        )
    header, names = _header(creation, entries, block_size)
    for locator, text in names:
        host.write(locator.offset, text)
    for at in range(0, table_bytes(entries), _WRITE_BYTES):
        length = min(_WRITE_BYTES, table_bytes(entries) - at)
        host.write(header.table_offset + at, b"\xff" * length)
    host.write(_HEADER_OFFSET, header.pack())
    host.write(header.table_end, footer.pack())
    host.write(0, footer.pack())  # Last: until now it is no VHD image.


def _footer(creation: Creation) -> Footer:
    kind = VhdType.FIXED if creation.options["subformat"] == "fixed" else VhdType.DYNAMIC
    if creation.parent is not None:
        if kind is VhdType.FIXED:
            raise InvalidArgument("an overlay is never fixed", path=creation.host.path)
        kind = VhdType.DIFFERENCING
    size, geometry = _size(creation)
    empty = Footer(kind, _HEADER_OFFSET, size, Counts(0, 0, 0))
    return empty.sized(size, geometry)


def _size(creation: Creation) -> tuple[int, Geometry]:
    """The size in bytes, and the geometry; the one given, if one was."""
    size = creation.size
    if creation.options["size"] == "geometry":
        if creation.geometry_given:
            whole = creation.geometry.cylinder_bytes
            given = replace(creation.geometry, cylinders=-(-size // whole))
            return given.size_bytes, given
        size = qemu_vhd_footer(size).current_size
    return size, creation.geometry if creation.geometry_given else new_geometry(size)


def _header(
    creation: Creation, entries: int, block_size: int
) -> tuple[DynamicHeader, list[tuple[Locator, bytes]]]:
    """The header, and the parent's names with their places."""
    at = _HEADER_OFFSET + HEADER_BYTES
    header = DynamicHeader(at, entries, block_size)
    if creation.parent is None:
        return header, []
    name = creation.parent_name or ""
    parent = _parent_footer(creation)
    path = creation.parent.image.hosts()[0].path
    names = list(placed(locator_texts(os.path.realpath(path), name), at))
    at = names[-1][0].offset + names[-1][0].space
    return replace(
        header, table_offset=at, parent_uuid=parent.uuid, parent_name=os.path.basename(name),
        parent_timestamp=vhd_time(os.stat(path).st_mtime),
        locators=tuple(locator for locator, _ in names),
    ), names


def _parent_footer(creation: Creation) -> Footer:
    assert creation.parent is not None
    if creation.parent.image.name != "vhd":
        raise InvalidArgument(
            "a VHD overlay needs a VHD image beneath it", path=creation.parent.address,
            hint="convert it to VHD first, or choose another format for the overlay",
        )
    return cast("FixedVhd | Vhd", creation.parent.image).footer
