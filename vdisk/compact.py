"""Giving back the space of zeros, and then whatever of the file the format does not need."""

from __future__ import annotations

from collections.abc import Iterator

from vdisk.contents import Buffers, Range, done_ahead, joined, zero_runs
from vdisk.copying import Advance
from vdisk.disk import Disk, Slice
from vdisk.extent import Kind
from vdisk.host import HostFile
from vdisk.image_disk import ImageDisk
from vdisk.plan import Plan


def compact(disk: Disk, advance: Advance) -> None:
    """Discard what reads as zeros, in units of 64 KiB, and have the format pack the image.

    Space that was set aside and never written is given back as well; a partition's own alone, and
    then nothing is packed.  Data of parents are left alone.  Raises ReadOnly, HostError.
    """
    disk.check_writable()
    own = _hosts(disk)
    for start, end in _ranges(disk, own, Kind.ZERO):
        disk.discard(start, end - start)
    for start, end in _zeros(disk, own, advance):
        disk.discard(start, end - start)
    disk.flush()
    if isinstance(disk, ImageDisk):
        _pack(disk)


def _hosts(disk: Disk) -> tuple[HostFile, ...]:
    """The host files of the image that the disk is, or lies in."""
    while isinstance(disk, Slice):
        disk = disk.base
    assert isinstance(disk, ImageDisk)
    return disk.image.hosts()


def _ranges(disk: Disk, own: tuple[HostFile, ...], kind: Kind) -> Iterator[Range]:
    """Where the disk has bytes, or zeros, with a place in its own files."""
    return joined(
        (extent.guest_offset, extent.guest_end)
        for extent in disk.map(0, disk.size)
        if extent.kind is kind and extent.host in own
    )


def _zeros(disk: Disk, own: tuple[HostFile, ...], advance: Advance) -> Iterator[Range]:
    """The ranges of zeros among the data."""
    buffers = Buffers()

    def read(start: int, end: int) -> tuple[int, bytearray]:
        return start, buffers.read(disk, start, end)

    done = 0
    for start, piece in done_ahead(_ranges(disk, own, Kind.DATA), read):
        for first, last, is_zero in zero_runs(piece, start):
            if is_zero:
                yield first, last
        buffers.give_back(piece)
        advance(start + len(piece) - done)
        done = start + len(piece)
    advance(disk.size - done)


def _pack(disk: ImageDisk) -> None:
    more = True

    def plan() -> Plan | None:
        nonlocal more
        found = disk.image.plan_compact()
        more = found is not None
        return found

    while more:
        disk.carry_out(plan)
