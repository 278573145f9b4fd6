"""Where a file's bytes are on the device beneath its file system: FIEMAP, one step below V.

The ioctl and its structures: Linux, Documentation/filesystems/fiemap.rst and
include/uapi/linux/fiemap.h.  Offsets are bytes; a device offset counts from the start of the block
device that holds the file system.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from vdisk.errors import HostError, Unsupported
from vdisk.extent import Extent, Kind, pieces
from vdisk.host import HostFile

FS_IOC_FIEMAP = 0xC020660B  # _IOWR('f', 11, struct fiemap)
_SYNC = 0x1
_REQUEST = struct.Struct("=QQLLLL")  # start, length, flags, mapped extents, extent count, reserved.
_EXTENT = struct.Struct("=QQQ16xL12x")  # logical, physical, length, flags.
EXTENTS_PER_CALL = 512

_LAST = 0x1
_UNWRITTEN = 0x800
# Why a physical offset means nothing, or not what a reader of the device would take it for.
_REASONS = (
    (0x2, "its place is not known"),
    (0x4, "not yet allocated"),
    (0x8, "stored encoded"),
    (0x80, "stored encrypted"),
    (0x200, "stored inside the file system's metadata"),
    (0x400, "shares a block with other files"),
    (0x100, "not aligned to blocks"),
)
_NO_FIEMAP = (errno.EOPNOTSUPP, errno.ENOTTY, errno.ENOSYS, errno.EBADR, errno.EINVAL)


@dataclass(frozen=True, slots=True)
class DeviceRun(Extent):
    """A run of a host file's bytes and where they are on the device.

    As in a map of a disk, with the host file in the place of the guest: `guest_offset` is the
    offset in the host file, and `host_offset` the one on the device, None where there is none;
    `reason` then says why.  ZERO is a hole, or space that was allocated and never written.
    """

    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Placed:
    """An extent of a disk and the place of its bytes on `device`, None where it has none.

    `reason` says why `device_offset` (bytes) is None, or what else is to be known about it.
    """

    extent: Extent
    device: str | None
    device_offset: int | None
    reason: str | None


Ask = Callable[[bytearray], None]
"""Fills in the answer to the request that a buffer begins with."""


def device_runs(ask: Ask, offset: int, length: int) -> Iterator[DeviceRun]:
    """A contiguous map of bytes [offset, offset + length) of a file.

    `ask` is called with a request and room for `EXTENTS_PER_CALL` extents.  The file system's
    extents need not fit the range, and are trusted in nothing but to go forward: the rest of an
    answer that does not is dropped.
    """
    at, end = offset, offset + length
    while at < end:
        extents = _answer(ask, at, end - at)
        if not extents:
            break
        before = at
        for logical, physical, size, flags in extents:
            start, stop = max(logical, at), min(logical + size, end)
            if start >= stop:
                continue
            if start > at:
                yield _hole(at, start)
            yield _run(start, stop, physical + start - logical, flags)
            at = stop
        if extents[-1][3] & _LAST or at == before:
            break
    if at < end:
        yield _hole(at, end)


def _answer(ask: Ask, offset: int, length: int) -> list[tuple[int, int, int, int]]:
    """(logical, physical, length, flags) of the extents in the range, as many as fit one call."""
    buffer = bytearray(_REQUEST.size + EXTENTS_PER_CALL * _EXTENT.size)
    _REQUEST.pack_into(buffer, 0, offset, length, _SYNC, 0, EXTENTS_PER_CALL, 0)
    ask(buffer)
    count = min(_REQUEST.unpack_from(buffer)[3], EXTENTS_PER_CALL)
    body = memoryview(buffer)[_REQUEST.size : _REQUEST.size + count * _EXTENT.size]
    return list(_EXTENT.iter_unpack(body))


def _hole(start: int, end: int) -> DeviceRun:
    return DeviceRun(start, end - start, Kind.ZERO, reason="hole")


def _run(start: int, end: int, device_offset: int, flags: int) -> DeviceRun:
    reason = next((text for flag, text in _REASONS if flags & flag), None)
    if reason is not None:
        return DeviceRun(start, end - start, Kind.DATA, reason=reason)
    if flags & _UNWRITTEN:
        return DeviceRun(
            start, end - start, Kind.ZERO, None, device_offset, reason="allocated, not written"
        )
    return DeviceRun(start, end - start, Kind.DATA, None, device_offset)


def placed(extent: Extent) -> Iterator[Placed]:
    """`extent` of a disk, cut where its host bytes are in different places of the device.

    What is written but not yet allocated is written out first.  Raises Unsupported where the file
    system does not tell, and HostError.
    """
    if extent.file is None or extent.host_offset is None:
        yield Placed(extent, None, None, str(extent.kind))
        return
    host, offset = extent.file, extent.host_offset
    device = device_of(host)
    if host.is_block:
        yield Placed(extent, device, offset, None)
        return
    runs = device_runs(_asking(host), offset, extent.length)
    for run, part in pieces(runs, offset, extent.length):
        assert isinstance(run, DeviceRun)
        cut = extent.cut(extent.guest_offset + part.start, extent.guest_offset + part.stop)
        yield _on_one_device(Placed(cut, device, run.host_offset, run.reason))


def _on_one_device(place: Placed) -> Placed:
    """Btrfs, overlayfs and others have no single device, and their offsets count in none."""
    if place.device_offset is None or place.device is None or place.device.startswith("/dev/"):
        return place
    return replace(
        place, device_offset=None, reason="the file system is not on one device of the system"
    )


def _asking(host: HostFile) -> Ask:
    def ask(buffer: bytearray) -> None:
        try:
            fcntl.ioctl(host.fd, FS_IOC_FIEMAP, buffer)
        except OSError as error:
            if error.errno in _NO_FIEMAP:
                raise Unsupported(
                    "this file system does not tell where a file is on its device",
                    path=host.path, hint="without --physical, the map ends at the host file",
                ) from error
            raise HostError.of(error, "find on the device", host.path) from error

    return ask


def device_of(host: HostFile) -> str:
    """The block device that holds the host file: "/dev/vda", or "major:minor" without a name."""
    status = host.stat()
    number = status.st_rdev if host.is_block else status.st_dev
    numbers = f"{os.major(number)}:{os.minor(number)}"
    try:
        name = Path("/sys/dev/block", numbers).readlink().name
    except OSError:
        return numbers
    return "/dev/" + name.replace("!", "/")  # cciss!c0d0, as sysfs has to write it.
