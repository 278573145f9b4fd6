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
            raise _busy(path, exclusive=exclusive, byte=None) from error
        if error.errno in (errno.EINVAL, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
            _log.warning("%s: this file system has no locks; nothing keeps others out", path)
            return
        raise HostError.of(error, "lock", path) from error
    if conflict is not None:
        _release(fd)
        raise _busy(path, exclusive=exclusive, byte=conflict)


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


def _busy(path: Path, *, exclusive: bool, byte: int | None) -> Busy:
    holder = lock_holder(path, byte)
    by = f"by {holder}" if holder else "by another process"
    if exclusive:
        return Busy(f"in use {by}", path=path, hint="close it there first, or open read-only: -r")
    return Busy(f"open for writing {by}", path=path, hint="close it there first")


def lock_holder(path: Path, byte: int | None = None) -> str | None:
    """"name (pid N)" of a process with an image lock on `path`, None where /proc shows none.

    With `byte`, only a lock on that byte of the file counts.  The lock itself names no process
    (F_OFD_GETLK answers pid -1), so this looks through the locks of the descriptors that this user
    may see, in /proc/PID/fdinfo.  No descriptor is followed to its file: that file may lie on a
    mount that waits for us.
    """
    try:
        file = os.stat(path)
    except OSError:
        return None
    inode = f"{os.major(file.st_dev):02x}:{os.minor(file.st_dev):02x}:{file.st_ino}"
    real = os.path.realpath(path)
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            for info in (process / "fdinfo").iterdir():
                with suppress(OSError):
                    found = _locked_inode(info, byte)
                    # Btrfs and overlayfs give stat another device number than they lock by.
                    if found is None:
                        continue
                    if found == inode or os.readlink(process / "fd" / info.name) == real:
                        return _named(process)
    return None


def _locked_inode(info: Path, byte: int | None) -> str | None:
    """The "major:minor:inode" of the file on which an fdinfo file shows an image lock, else None.

    Such a line is "lock: 1: OFDLCK ADVISORY READ -1 fe:00:1234 100 103": the last words are the
    file, its device in hexadecimal, and the first and last byte locked (proc(5), /proc/locks).
    """
    for line in info.read_text(errors="replace").splitlines():
        words = line.split()
        if len(words) != 9 or words[0] != "lock:" or words[2] != "OFDLCK":
            continue
        first, last = words[7:]
        if byte is None or (int(first) <= byte and (last == "EOF" or byte <= int(last))):
            return words[6]
    return None


def _named(process: Path) -> str:
    if process.name == str(os.getpid()):
        return f"this process (pid {process.name})"
    name = (process / "comm").read_text(errors="replace").strip()
    return f"{name} (pid {process.name})"
