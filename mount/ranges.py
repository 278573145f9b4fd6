"""Operations on ranges of open disks beside reading and writing: space, holes and copies.

A server that carries fallocate(2), lseek(2) with SEEK_DATA or SEEK_HOLE, and copy_file_range(2)
calls these; they do what the methods of `FileSystem` do, in the same trio thread.
"""

from __future__ import annotations

import os

from mount.errors import NoData
from mount.filesystem import FileSystem, OpenFile
from vdisk.disk import Disk
from vdisk.errors import InvalidArgument, OutOfRange, ReadOnly, Unsupported
from vdisk.extent import Kind
from vdisk.host import FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE, FALLOC_FL_ZERO_RANGE
from vdisk.transfer import copy_range

_MODES = FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE


async def allocate(
    filesystem: FileSystem, handle: int, mode: int, offset: int, length: int
) -> None:
    """fallocate(2): give space back, make zeros, or set space aside, as `mode` says.

    A disk has an end: a range that leaves it is OutOfRange, or is cut off there where FALLOC_FL_
    KEEP_SIZE says that it may lie outside.  Only a disk that still grows becomes longer.
    """
    opened = _writable(filesystem, handle)
    if mode & ~_MODES:
        raise Unsupported("no such mode of fallocate")
    size, end = opened.view.size, offset + length
    if mode & FALLOC_FL_KEEP_SIZE:
        end = min(end, size)
    elif end > size and opened.can_grow:
        await filesystem.growing(opened, offset, length, lambda: length)
    elif end > size:
        raise OutOfRange("the disk ends here", path=opened.node.name)
    length = end - offset
    if length <= 0:
        return
    disk = opened.view.disk
    start = opened.view.start + offset
    if not mode & (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE):
        await filesystem.in_thread(opened.node, disk.allocate, start, length)
        return
    work = disk.discard if mode & FALLOC_FL_PUNCH_HOLE else disk.zero
    async with filesystem.changing(opened, offset, length):
        await filesystem.in_thread(opened.node, work, start, length)


async def seek(filesystem: FileSystem, handle: int, offset: int, whence: int) -> int:
    """lseek(2): the first byte at or after `offset` that is data (SEEK_DATA) or not (SEEK_HOLE).

    The end of a disk counts as the beginning of a hole.  NoData where there is none, or where
    `offset` is not in the disk.
    """
    opened = filesystem.open_file(handle)
    if whence not in (os.SEEK_DATA, os.SEEK_HOLE):
        raise InvalidArgument("no such way to seek")
    if not 0 <= offset < opened.view.size:
        raise NoData("the disk ends here", path=opened.node.name)
    part = opened.view.as_disk
    kind = Kind.DATA if whence == os.SEEK_DATA else Kind.ZERO
    found = await filesystem.in_thread(opened.node, _first, part, offset, kind)
    if found is None and kind is Kind.ZERO:
        return part.size
    if found is None:
        raise NoData("no data from there on", path=opened.node.name)
    return found


def _first(disk: Disk, offset: int, kind: Kind) -> int | None:
    runs = disk.map(offset, disk.size - offset)
    return next((extent.guest_offset for extent in runs if extent.kind is kind), None)


async def copy(
    filesystem: FileSystem,
    source_handle: int,
    source_offset: int,
    target_handle: int,
    target_offset: int,
    length: int,
) -> int:
    """copy_file_range(2): how many bytes were copied, perhaps not all; 0 at the source's end."""
    source = filesystem.open_file(source_handle)
    target = _writable(filesystem, target_handle)
    length = min(length, source.view.size - source_offset)
    if not target.can_grow:
        room = target.view.size - target_offset
        if room <= 0 < length:
            raise OutOfRange("the disk ends here", path=target.node.name)
        length = min(length, room)
    if length <= 0:
        return 0

    def work() -> int:
        return copy_range(
            source.view.disk, source.view.start + source_offset,
            target.view.disk, target.view.start + target_offset, length,
        )  # fmt: skip

    if target.can_grow:
        return await filesystem.growing(target, target_offset, length, work)
    async with filesystem.changing(target, target_offset, length):
        return await filesystem.in_thread(target.node, work)


def _writable(filesystem: FileSystem, handle: int) -> OpenFile:
    opened = filesystem.open_file(handle)
    if not opened.writable:
        raise ReadOnly("is open for reading only", path=opened.node.name)
    return opened
