"""Copying a range from one disk to another, by extents: what is a hole stays one.

Where both are in host files as they are, the file system is asked to let them share the blocks
(ioctl_ficlonerange(2)), which takes no time in the size of the range.  Otherwise data is copied
inside the kernel (copy_file_range(2)) where that can be, and through memory where not.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Callable

from vdisk.disk import Disk
from vdisk.errors import HostError, InvalidArgument
from vdisk.extent import Kind
from vdisk.host import HostFile

STEP_BYTES = 64 << 20
"""The most data that one `copy_range` moves where blocks cannot be shared."""

Run = tuple[HostFile, int, int]
"""What `Disk.run` gives."""

_FICLONERANGE = 0x4020940D  # linux/fs.h, _IOW(0x94, 13, struct file_clone_range).
_CLONE_RANGE = struct.Struct("=qQQQ")  # src_fd, src_offset, src_length, dest_offset.
_CHUNK_BYTES = 1 << 20
_NOT_HERE = frozenset(
    {
        errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOTTY, errno.EXDEV, errno.EINVAL, errno.EBADF,
        errno.EPERM, errno.EISDIR, errno.ETXTBSY,
    }
)  # fmt: skip


def copy_range(
    source: Disk, source_offset: int, target: Disk, target_offset: int, length: int
) -> int:
    """Copy up to `length` bytes; how many were copied, from the start of the range.

    They are fewer where a part could be shared and the rest could not, or after `STEP_BYTES` of
    data; the caller goes on from there.  Raises OutOfRange, ReadOnly, HostError, and
    InvalidArgument for ranges of one host file that overlap.
    """
    source.check_range(source_offset, length)
    target.check_range(target_offset, length)
    target.check_writable()
    done = 0
    while done < length:
        here = source.run(source_offset + done, length - done)
        there = target.run(target_offset + done, length - done)
        shared = _shared(here, there, target) if here is not None and there is not None else 0
        if shared == 0:
            break
        done += shared
    if done or length == 0:
        return done
    return _copied(source, source_offset, target, target_offset, length)


def copy_disk(source: Disk, target: Disk, advance: Callable[[int], None]) -> None:
    """Copy all of `source` to the start of `target`, which is at least as large.

    `advance` is called with the bytes done since it was called last.  Raises as `copy_range`.
    """
    done = 0
    while done < source.size:
        count = copy_range(source, done, target, done, source.size - done)
        advance(count)
        done += count


def _shared(here: Run, there: Run, target: Disk) -> int:
    """Bytes that now share their blocks; 0 where this file system or range cannot.

    Two views of one image can have the same bytes under other offsets: InvalidArgument.
    """
    (source_host, start, _), (target_host, end, _) = here, there
    length = min(here[2], there[2])
    if source_host.identity == target_host.identity and abs(start - end) < length:
        raise InvalidArgument("the ranges overlap", path=target.address)
    unit = os.fstatvfs(target_host.fd).f_bsize
    whole = length // unit * unit
    if whole == 0 or start % unit or end % unit:
        return 0
    try:
        asked = _CLONE_RANGE.pack(source_host.fd, start, whole, end)
        fcntl.ioctl(target_host.fd, _FICLONERANGE, asked)
    except OSError as error:
        if error.errno in _NOT_HERE:
            return 0
        raise HostError.of(error, f"share blocks at byte {end}", target_host.path) from error
    return whole


def _copied(
    source: Disk, source_offset: int, target: Disk, target_offset: int, length: int
) -> int:
    done = moved = 0
    for extent in source.map(source_offset, length):
        at = target_offset + done
        if extent.kind is Kind.ZERO:
            target.discard(at, extent.length)
            done += extent.length
            continue
        count = min(extent.length, STEP_BYTES - moved)
        _copy_data(source, source_offset + done, target, at, count)
        done, moved = done + count, moved + count
        if moved == STEP_BYTES:
            break
    return done


def _copy_data(
    source: Disk, source_offset: int, target: Disk, target_offset: int, length: int
) -> None:
    done = 0
    while done < length:
        here = source.run(source_offset + done, length - done)
        there = target.run(target_offset + done, length - done)
        if here is None or there is None:
            break
        count = min(here[2], there[2])
        moved = _in_kernel(here[0], here[1], there[0], there[1], count)
        done += moved
        if moved < count:
            break
    buffer = memoryview(bytearray(min(_CHUNK_BYTES, length - done)))
    while done < length:
        part = buffer[: length - done]
        source.read_into(source_offset + done, part)
        target.write(target_offset + done, part)
        done += len(part)


def _in_kernel(
    source: HostFile, source_offset: int, target: HostFile, target_offset: int, length: int
) -> int:
    """Bytes copied by copy_file_range(2); fewer than `length` where it cannot."""
    done = 0
    while done < length:
        try:
            count = os.copy_file_range(
                source.fd, target.fd, length - done, source_offset + done, target_offset + done
            )
        except OSError as error:
            if error.errno in _NOT_HERE:
                return done
            raise HostError.of(
                error, f"copy to byte {target_offset + done}", target.path
            ) from error
        if count == 0:
            return done
        done += count
    return done
