"""Making a VMDK: its extents, and the descriptor that names them."""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, cast

from vdisk.errors import InvalidArgument
from vdisk.formats.creation import Creation, Option
from vdisk.formats.table import little_endian
from vdisk.formats.vmdk_descriptor import (
    EXTENTS_MAX,
    SECTORS_MAX,
    Descriptor,
    ExtentLine,
    new_descriptor,
)
from vdisk.formats.vmdk_header import (
    CAPACITY_SECTORS_MAX,
    GRAIN_SECTORS_MAX,
    GRAIN_SECTORS_MIN,
    TABLE_ENTRIES,
    Flag,
    SparseHeader,
)
from vdisk.geometry import Geometry
from vdisk.host import HostFile
from vdisk.image_geometry import vmdk_geometry
from vdisk.translation import fixed_heads
from vdisk.units import MIB, SECTOR

if TYPE_CHECKING:
    from vdisk.formats.vmdk import Vmdk

SPLIT_SECTORS_MAX = 2047 * MIB // SECTOR
"""What VMware puts into one of several extents: a file of them is less than 2 GiB large."""
_SPLIT_BYTES_MIN = MIB
_DESCRIPTOR_SECTORS = 20
_TABLE_SECTORS = TABLE_ENTRIES * 4 // SECTOR
_ENTRIES_AT_ONCE = 1 << 18

SUBFORMAT_DEFAULT = "monolithicSparse"
STREAM = "streamOptimized"
"""The subformat that is written once, by whoever has all of the disk."""
_SUBFORMATS = (
    SUBFORMAT_DEFAULT, "monolithicFlat", "twoGbMaxExtentSparse", "twoGbMaxExtentFlat", STREAM,
)

VMDK_OPTIONS = (
    Option("subformat", "whether it takes space as it is written, and is one file or several; "
           "or compressed, by convert", SUBFORMAT_DEFAULT, _SUBFORMATS),
    Option("adapter-type", "the controller that a virtual machine is to have for it", "ide",
           ("ide", "buslogic", "lsilogic", "legacyESX")),
    Option("grain-size", "bytes that are allocated at once; VMware makes 64K", "64K"),
    Option("zeroed-grain", "whether a delta can say that it reads as zeros where its parent does "
           "not; makes it version 2", "off", ("off", "on")),
    Option("extent-size", "what goes into each of several files, at most 2047M", "2047M"),
    Option("hwversion", "the version of the virtual machine's hardware", "4",
           tuple(str(number) for number in range(3, 23))),
)  # fmt: skip


def create_vmdk(creation: Creation) -> None:
    """Write a new VMDK of any subformat that can be written to, a delta where there is a parent.

    Raises InvalidArgument for a size or sector size that a VMDK cannot have, for a flat delta, and
    for a parent that is no VMDK: a child knows its parent by a number that only those have.
    """
    subformat = creation.options["subformat"]
    check_creation(creation, subformat)
    if subformat == STREAM:
        raise InvalidArgument(
            f"a {STREAM} VMDK is written once, with all that it is to hold",
            path=creation.host.path, hint="vdisk convert --compress makes one of another image",
        )
    sectors, path = creation.size // SECTOR, creation.host.path
    if subformat == SUBFORMAT_DEFAULT:
        line = ExtentLine("RW", sectors, "SPARSE", path.name)
        descriptor = _descriptor(creation, (line,))
        header = new_header(sectors, creation, descriptor=descriptor)
        write_sparse(creation.host, header, descriptor)
        return
    lines = tuple(_lines(creation, subformat))
    for line in lines:
        assert line.name is not None
        host = creation.another(line.name)
        if line.type == "FLAT":
            host.truncate(line.sectors * SECTOR)
        else:
            write_sparse(host, new_header(line.sectors, creation))
    creation.host.write(0, _descriptor(creation, lines).encoded())  # Last: until now it is none.


def check_creation(creation: Creation, subformat: str) -> None:
    """Raises InvalidArgument for what no VMDK of that subformat can be."""
    path = creation.host.path
    if creation.sector_size != SECTOR:
        raise InvalidArgument(
            f"a VMDK has sectors of {SECTOR} bytes, not {creation.sector_size}", path=path
        )
    in_one = subformat in (SUBFORMAT_DEFAULT, STREAM)
    limit = CAPACITY_SECTORS_MAX if in_one else SECTORS_MAX
    if creation.size // SECTOR > limit:
        raise InvalidArgument(
            f"a VMDK in one sparse file cannot be {creation.size} bytes large", path=path,
            hint="it is at most 2 TiB; give -o subformat=twoGbMaxExtentSparse",
        )
    if creation.parent is None:
        return
    if subformat.endswith("Flat"):
        raise InvalidArgument("a delta is never flat", path=path)
    if creation.parent.image.name != "vmdk":
        raise InvalidArgument(
            "a VMDK delta needs a VMDK beneath it", path=creation.parent.address,
            hint="convert it to VMDK first, or choose another format for the overlay",
        )


def _lines(creation: Creation, subformat: str) -> list[ExtentLine]:
    """The extents in files of their own: all as large as they may be, but for the last."""
    stem, sectors = creation.host.path.stem, creation.size // SECTOR
    if subformat == "monolithicFlat":
        return [ExtentLine("RW", sectors, "FLAT", f"{stem}-flat.vmdk")]
    size = creation.number("extent-size", _SPLIT_BYTES_MIN, SPLIT_SECTORS_MAX * SECTOR)
    each = size // SECTOR
    count = -(-sectors // each)
    if count > EXTENTS_MAX:
        raise InvalidArgument(
            f"{creation.size} bytes are more than {EXTENTS_MAX} extents", path=creation.host.path
        )
    return [
        split_line(stem, number, min(each, sectors - number * each), subformat.endswith("Flat"))
        for number in range(count)
    ]


def split_line(stem: str, number: int, sectors: int, is_flat: bool) -> ExtentLine:
    """The line of extent `number`, from 0, of an image in several files; their names count from 1.
    """
    kind, letter = ("FLAT", "f") if is_flat else ("SPARSE", "s")
    return ExtentLine("RW", sectors, kind, f"{stem}-{letter}{number + 1:03}.vmdk")


def _descriptor(creation: Creation, lines: tuple[ExtentLine, ...]) -> Descriptor:
    parent = None
    if creation.parent is not None:
        assert creation.parent_name is not None
        cid = cast("Vmdk", creation.parent.image).descriptor.cid
        parent = (creation.parent_name, cid)
    for name in (*(line.name or "" for line in lines), *(parent or ())[:1]):
        if any(char in str(name) for char in '"\n\r\0'):
            raise InvalidArgument(f"a VMDK cannot name a file {name!r}", path=creation.host.path)
    adapter = creation.options["adapter-type"]
    return new_descriptor(
        creation.options["subformat"], lines, new_geometry(creation, adapter),
        adapter_type=adapter,
        hardware_version=creation.options["hwversion"], parent=parent,
    )


def new_geometry(creation: Creation, adapter: str) -> Geometry:
    """As given; else as others make it for that controller: SCSI disks have 255 heads."""
    usual = fixed_heads(creation.size // SECTOR, 16, 63).geometry()
    if creation.geometry_given or creation.geometry != usual:
        return creation.geometry
    return vmdk_geometry(creation.size // SECTOR, adapter).geometry() or creation.geometry


def new_header(
    sectors: int, creation: Creation, *, descriptor: Descriptor | None = None
) -> SparseHeader:
    """The header of a new sparse extent by the options; with room for an embedded descriptor."""
    grain = creation.power(
        "grain-size", GRAIN_SECTORS_MIN * SECTOR, GRAIN_SECTORS_MAX * SECTOR
    )
    return layout(
        sectors, grain // SECTOR, zero_grains=creation.options["zeroed-grain"] == "on",
        descriptor_sectors=0 if descriptor is None else _room(descriptor),
    )


def _room(descriptor: Descriptor) -> int:
    """Sectors for a descriptor: what VMware keeps, or more for one with a very long name in it."""
    return max(_DESCRIPTOR_SECTORS, len(descriptor.encoded()) // SECTOR + 4)


def layout(
    sectors: int, grain: int, *, zero_grains: bool = False, descriptor_sectors: int = 0
) -> SparseHeader:
    """Header, descriptor, copy of the directory with its tables, directory with its tables.

    Then the grains, from a whole number of them on.  This is where QEMU and VMware have it all.
    """
    flags = Flag.NEWLINES | Flag.REDUNDANT | (Flag.ZERO_GRAINS if zero_grains else 0)
    tables = -(-sectors // (grain * TABLE_ENTRIES))
    directory = -(-tables * 4 // SECTOR)
    redundant = 1 + descriptor_sectors
    primary = redundant + directory + tables * _TABLE_SECTORS
    end = primary + directory + tables * _TABLE_SECTORS
    return SparseHeader(
        capacity=sectors, grain=grain, directory=primary, redundant=redundant,
        overhead=-(-end // grain) * grain, descriptor=1 if descriptor_sectors else 0,
        descriptor_sectors=descriptor_sectors, version=2 if zero_grains else 1, flags=flags,
    )


def write_sparse(
    host: HostFile, header: SparseHeader, descriptor: Descriptor | None = None
) -> None:
    """Write an empty sparse extent into the empty file `host`: every grain table, all zeros."""
    host.truncate(header.overhead * SECTOR)
    directory_sectors = -(-header.tables * 4 // SECTOR)
    for start in (header.redundant, header.directory):
        first_table = start + directory_sectors
        for first in range(0, header.tables, _ENTRIES_AT_ONCE):
            end = min(first + _ENTRIES_AT_ONCE, header.tables)
            entries = range(
                first_table + first * _TABLE_SECTORS, first_table + end * _TABLE_SECTORS,
                _TABLE_SECTORS,
            )
            host.write(start * SECTOR + 4 * first, little_endian(array("I", entries)))
    if descriptor is not None:
        host.write(header.descriptor * SECTOR, descriptor.encoded())
    host.write(0, header.pack())  # Last: until now it is no VMDK.

