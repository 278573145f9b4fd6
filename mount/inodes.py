"""Inode numbers: what a node is, computed from its number.

A number holds a kind (4 bits), a disk's id (20 bits) and a place in the disk (40 bits): an LBA, a
track, a cylinder, or the serial number of a partition.  So the millions of sector files under
`chs/` are not stored anywhere.  Numbers 1 and 2 are the mounted folder and `.vdisk`.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

ROOT = 1
META = 2

PLACE_BITS = 40
DISK_BITS = 20
PLACE_MAX = 2**PLACE_BITS
"""Places a disk can have: sectors of the largest geometry whose `chs/` is shown."""
DISKS_MAX = 2**DISK_BITS
"""Ids of disks in one mount."""


class NodeKind(IntEnum):
    """What a node of the tree is."""

    FOLDER = 0  # The mounted folder (1) and `.vdisk` (2).
    DISK = 1
    PARTITION = 2
    META_DISK = 3  # .vdisk/alpha
    GEOMETRY = 4
    INFO = 5
    MAP = 6
    CHS = 7  # .vdisk/alpha/chs
    CYLINDER_FOLDER = 8  # chs/0
    HEAD_FOLDER = 9  # chs/0/0
    SECTOR = 10  # chs/0/0/1
    TRACK = 11  # chs/0/0/track
    CYLINDER = 12  # chs/0/cylinder


FOLDERS = frozenset(
    {
        NodeKind.FOLDER,
        NodeKind.META_DISK,
        NodeKind.CHS,
        NodeKind.CYLINDER_FOLDER,
        NodeKind.HEAD_FOLDER,
    }
)
REPORTS = frozenset({NodeKind.GEOMETRY, NodeKind.INFO, NodeKind.MAP})
"""Files whose content is made when they are opened."""


class Inode(NamedTuple):
    """An inode number taken apart."""

    kind: NodeKind
    disk: int
    place: int


def pack(kind: NodeKind, disk: int, place: int = 0) -> int:
    """The inode number of that node."""
    return (kind << (DISK_BITS + PLACE_BITS)) | (disk << PLACE_BITS) | place


def unpack(inode: int) -> Inode:
    """What an inode number means.  ValueError for a kind that does not exist."""
    kind = NodeKind(inode >> (DISK_BITS + PLACE_BITS))
    return Inode(kind, (inode >> PLACE_BITS) % DISKS_MAX, inode % PLACE_MAX)
