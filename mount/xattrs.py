"""Extended attributes of a disk in the mounted folder: what is known of it, by name.

`user.vdisk.geometry` says what `vdisk info` says, in the words that are recorded beside a host
file (`vdisk.record`), whether it is recorded or not.  So `cp -a` gives a copy the geometry of its
source.  `user.vdisk.format` is raw, whatever the image's own format: those are the bytes that are
read here, and that a copy has.  Parts of a disk have none of these.
"""

from __future__ import annotations

from mount.errors import NoAttribute
from mount.filesystem import FileSystem
from mount.inodes import NodeKind, unpack
from mount.tree import DiskNode
from vdisk.disk_geometry import record_geometry
from vdisk.errors import InvalidArgument, NotPermitted, Unsupported
from vdisk.formats.raw import Raw
from vdisk.geometry import Geometry
from vdisk.record import FORMAT_ATTRIBUTE, GEOMETRY_ATTRIBUTE, format_record, parse_record


def disk_of(filesystem: FileSystem, inode: int) -> DiskNode:
    """The disk that is the node `inode`.  Unsupported for any other node."""
    if unpack(inode).kind is not NodeKind.DISK:
        raise Unsupported("only a disk has attributes")
    return filesystem.tree.node_of(inode)


def names_of(filesystem: FileSystem, inode: int) -> list[str]:
    """The attributes that the node `inode` has; none but for a disk."""
    if unpack(inode).kind is not NodeKind.DISK:
        return []
    disk = disk_of(filesystem, inode).disk
    return [FORMAT_ATTRIBUTE] + ([] if disk.choice is None else [GEOMETRY_ATTRIBUTE])


def get(node: DiskNode, name: str) -> str:
    """An attribute's value.  NoAttribute."""
    if name == FORMAT_ATTRIBUTE:
        return Raw.name
    if name == GEOMETRY_ATTRIBUTE and node.disk.choice is not None:
        return format_record(node.disk.geometry)
    raise NoAttribute("has no such attribute", path=node.name)


def change(node: DiskNode, name: str, value: str | None) -> None:
    """Set an attribute, or remove it (None).  Reads and writes the host file.

    Only a geometry can be changed, to one that fits; removing it leaves the geometry that is
    derived.  Raises InvalidArgument, NotPermitted, Unsupported or ReadOnly.
    """
    if name == GEOMETRY_ATTRIBUTE:
        record_geometry(node.disk, None if value is None else _geometry(node, value))
    elif name != FORMAT_ATTRIBUTE:
        raise Unsupported("has only the attributes of a disk", path=node.name)
    elif value is None or value.strip() != Raw.name:
        raise NotPermitted("a format is not changed by its name", path=node.name)


def _geometry(node: DiskNode, value: str) -> Geometry:
    try:
        return parse_record(value)
    except ValueError as error:
        raise InvalidArgument(
            f"{value!r} is no geometry", path=node.name, hint='write "C/H/S BYTES"'
        ) from error
