"""QEMU's image locks, so that a running VM and vdisk refuse each other.

Protocol (QEMU, block/file-posix.c, `RAW_LOCK_PERM_BASE` and `RAW_LOCK_SHARED_BASE`): open file
description locks on single bytes of the image.  A permission that is *used* is a read lock on byte
100 + its number; a permission that is *not shared with others* is a read lock on byte 200 + its
number.  After taking its own locks, an opener tests that nobody holds the opposite ones.  Read
locks never collide with each other, so taking them cannot fail for being second: the test decides,
and of two openers at the same moment both may be refused, never both let in.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import struct
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from vdisk.errors import Busy, HostError

_USED_BASE = 100
_UNSHARED_BASE = 200

# Numbers of QEMU's permissions (include/block/block-common.h, BLK_PERM_*).
_CONSISTENT_READ = 0
_WRITE = 1
_WRITE_UNCHANGED = 2
_RESIZE = 3

_READER_USES = (_CONSISTENT_READ,)
_READER_UNSHARES = (_WRITE, _RESIZE)
_WRITER_USES = (_CONSISTENT_READ, _WRITE, _WRITE_UNCHANGED, _RESIZE)
_WRITER_UNSHARES = (_WRITE, _RESIZE)  # As a VM does: `qemu-img info -U` may still look.

_FLOCK = struct.Struct("hhqqi4x")  # struct flock on 64-bit Linux: type, whence, start, length, pid.

_log = logging.getLogger(__name__)


def lock_image(fd: int, path: Path, *, exclusive: bool) -> None:
    """Take the writer's (`exclusive`) or a reader's lock on the open image `fd`.

    The lock belongs to the open file description and goes when the last copy of `fd` is closed,
    however the process ends.  Raises Busy, naming the holder where the system tells it, and then
    holds nothing.  A file system that has no such locks is used without, with a warning.
    """
    uses, unshares = (
        (_WRITER_USES, _WRITER_UNSHARES) if exclusive else (_READER_USES, _READER_UNSHARES)
    )
    try:
        for number in uses:
            _set(fd, fcntl.F_RDLCK, _USED_BASE + number)
        for number in unshares:
            _set(fd, fcntl.F_RDLCK, _UNSHARED_BASE + number)
        conflict = next(_conflicts(fd, uses, unshares), None)
    except OSError as error:
        _release(fd)
        if error.errno in (errno.EAGAIN, errno.EACCES):  # Somebody write-locks these very bytes.
            raise _busy(path, exclusive=exclusive) from error
        if error.errno in (errno.EINVAL, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
            _log.warning("%s: this file system has no locks; nothing keeps others out", path)
            return
        raise HostError.of(error, "lock", path) from error
    if conflict is not None:
        _release(fd)
        raise _busy(path, exclusive=exclusive)


def _conflicts(fd: int, uses: tuple[int, ...], unshares: tuple[int, ...]) -> Iterator[int]:
    """The bytes others hold that exclude us: what we use and they do not share, and the reverse."""
    opposite = [_UNSHARED_BASE + number for number in uses]
    opposite += [_USED_BASE + number for number in unshares]
    return (byte for byte in opposite if _held_by_another(fd, byte))


def _set(fd: int, kind: int, byte: int, length: int = 1) -> None:
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(kind, os.SEEK_SET, byte, length, 0))


def _release(fd: int) -> None:
    with suppress(OSError):
        _set(fd, fcntl.F_UNLCK, _USED_BASE, _UNSHARED_BASE - _USED_BASE + 64)


def _held_by_another(fd: int, byte: int) -> bool:
    asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0)
    return bool(_FLOCK.unpack(fcntl.fcntl(fd, fcntl.F_OFD_GETLK, asked))[0] != fcntl.F_UNLCK)


def _busy(path: Path, *, exclusive: bool) -> Busy:
    holder = _holder(path)
    by = f"by {holder}" if holder else "by another process"
    if exclusive:
        return Busy(f"in use {by}", path=path, hint="close it there first, or open read-only: -r")
    return Busy(f"open for writing {by}", path=path, hint="close it there first")


def _holder(path: Path) -> str | None:
    """"name (pid N)" of a process with a lock on `path`; None where /proc does not show one.

    The lock itself names no process (F_OFD_GETLK answers pid -1), so this looks through the
    descriptors this user may see, and their locks, in /proc/PID/fdinfo.
    """
    try:
        target = os.stat(path)
    except OSError:
        return None
    for process in Path("/proc").glob("[0-9]*"):
        if process.name == str(os.getpid()):
            continue
        with suppress(OSError):
            for link in (process / "fd").iterdir():
                with suppress(OSError):
                    if os.path.samestat(link.stat(), target) and _has_lock(process, link.name):
                        name = (process / "comm").read_text().strip()
                        return f"{name} (pid {process.name})"
    return None


def _has_lock(process: Path, fd: str) -> bool:
    return "lock:" in (process / "fdinfo" / fd).read_text()
