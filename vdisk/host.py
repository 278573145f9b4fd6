"""The host file: a regular file or block device that holds a disk's bytes.

All I/O is positional, so any number of threads may use one `HostFile` at once.  Short reads and
writes are completed here, and an `OSError` becomes a `HostError` that names the file.  What the
file system beneath can do (punch holes, zero ranges, answer without blocking) is found out by
trying, once, and remembered.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import stat
import time
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Self

from vdisk.errors import (
    Busy,
    Exists,
    HostError,
    InvalidArgument,
    InvalidFormat,
    NotFound,
    Unsupported,
)
from vdisk.locks import lock_holder, lock_image
from vdisk.pagecache import PageCache

FALLOC_FL_KEEP_SIZE = 0x01
FALLOC_FL_PUNCH_HOLE = 0x02
FALLOC_FL_ZERO_RANGE = 0x10
_TMPFS_MAGIC = 0x01021994
_RAMFS_MAGIC = 0x858458F6
_EXT_MAGIC = 0xEF53
_LOCAL_MAGICS = frozenset(
    {_TMPFS_MAGIC, _RAMFS_MAGIC, _EXT_MAGIC, 0x58465342, 0x9123683E, 0xF2F52010, 0xCA451A4E,
     0x2FC12FC1, 0x2011BAB0, 0x4D44, 0x794C7630}
)  # fmt: skip
"""tmpfs, ramfs, ext2 to 4, XFS, Btrfs, F2FS, bcachefs, ZFS, exFAT, FAT, overlayfs (linux/magic.h).
"""
_SLOW_WRITE_SECONDS = 0.005
_PATIENCE_SECONDS = 1.0

_UNSUPPORTED = frozenset({errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOTTY, errno.EINVAL, errno.ENODEV})
_ZEROS = bytes(1 << 20)
_BLKROGET = 0x125E  # linux/fs.h: whether the device is read-only, as an int.
_BLKRRPART = 0x125F  # linux/fs.h: read the partition table again.
_DEVICE_BLOCK = 4096  # No logical block of a device in use is larger.

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


class Promptness(Enum):
    """How a read or write can be tried without waiting for a device."""

    MEMORY = "memory"
    """The file lives in memory (tmpfs): an ordinary call never waits."""
    NOWAIT = "nowait"
    """`RWF_NOWAIT` works: the kernel says EAGAIN instead of waiting."""
    CACHED = "cached"
    """A write to pages in memory does not wait (ext4, which has no RWF_NOWAIT for writes)."""
    BLOCKING = "blocking"
    """Any call may wait; use a worker thread."""


class HostFile:
    """An open host file.  Make one with `HostFile.open`; `close()` gives the lock back.

    `writable` says how it was opened.  `path` is the path as the caller gave it.  `is_local`: its
    file system has the inode of an open file in memory, so `stat` never waits for another machine
    or process.  `status_seen` is what `stat` answered last.
    `zeros_past_end` is for the format of an image whose last block the file need not hold in whole.
    """

    zeros_past_end = False

    def __init__(self, fd: int, path: Path, *, writable: bool) -> None:
        self.fd = fd
        self.path = path
        self.writable = writable
        self.status_seen = status = os.fstat(fd)
        self.is_block = stat.S_ISBLK(status.st_mode)
        self.identity = (status.st_dev, status.st_ino)
        self._refused_modes: set[int] = set()
        self._cache = PageCache()
        self._patient_until = 0.0
        # Asked once: of a file system that has stopped answering, this would wait as well.
        self._file_system = _file_system_type(fd)
        self.is_local = self._file_system in _LOCAL_MAGICS
        in_memory = not self.is_block and self._file_system in (_TMPFS_MAGIC, _RAMFS_MAGIC)
        first_guess = Promptness.MEMORY if in_memory else Promptness.NOWAIT
        self.read_promptness = first_guess
        self.write_promptness = first_guess

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, writable: bool, lock: bool = True) -> Self:
        """Open `path`, a regular file or block device, and take QEMU's image lock on it.

        `writable` asks for the exclusive lock, otherwise for the shared one; `lock=False` takes
        none (for looking only).  A block device is opened for writing with O_EXCL, so that one
        the kernel has mounted is refused.  Raises NotFound, Busy, InvalidFormat (a folder, a
        pipe …) or HostError.
        """
        where = Path(path)
        fd = _open(where, writable=writable)
        try:
            _check_kind(os.fstat(fd).st_mode, where)  # It may have been replaced meanwhile.
            if writable:
                _check_device_writable(fd, where)
            host = cls(fd, where, writable=writable)
            if lock:
                lock_image(fd, where, exclusive=writable)
        except BaseException:
            os.close(fd)
            raise
        return host

    @classmethod
    def create(cls, path: str | os.PathLike[str], mode: int = 0o666) -> Self:
        """Create `path` as an empty regular file, locked for writing.

        Raises Exists where there is one already, or HostError.
        """
        where = Path(path)
        try:
            fd = os.open(where, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        except FileExistsError as error:
            raise Exists("already exists", path=where, hint="choose another name") from error
        except OSError as error:
            raise HostError.of(error, "create", where) from error
        try:
            host = cls(fd, where, writable=True)
            lock_image(fd, where, exclusive=True)
        except BaseException:
            os.close(fd)
            raise
        return host

    def close(self) -> None:
        """Close the descriptor, which gives the lock back.  Closing twice is harmless."""
        if self.fd >= 0:
            fd, self.fd = self.fd, -1
            os.close(fd)

    def size(self) -> int:
        """Bytes in the file, or on the device."""
        try:
            if self.is_block:
                return os.lseek(self.fd, 0, os.SEEK_END)
            return os.fstat(self.fd).st_size
        except OSError as error:
            raise HostError.of(error, "measure", self.path) from error

    def allocated_bytes(self) -> int:
        """Bytes the file takes up on its file system; for a device, its size."""
        return self.size() if self.is_block else self.stat().st_blocks * 512

    def stat(self) -> os.stat_result:
        """`fstat` of the host file."""
        self.status_seen = os.fstat(self.fd)
        return self.status_seen

    # Moving bytes

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` from `offset`.

        A file that ends first is a HostError (EIO), or goes on as zeros where `zeros_past_end`.
        """
        while buffer:
            try:
                count = os.preadv(self.fd, [buffer], offset)
            except OSError as error:
                raise HostError.of(error, f"read at byte {offset}", self.path) from error
            if count == 0:
                if self.zeros_past_end:
                    buffer[:] = bytes(len(buffer))
                    return
                raise HostError(
                    f"ends at byte {offset}, inside the disk", errno=errno.EIO, path=self.path,
                    hint="was it shortened by another program?",
                )
            buffer, offset = buffer[count:], offset + count

    def read(self, offset: int, length: int) -> bytes:
        """The `length` bytes from `offset`: a table, whose length the caller has limited."""
        buffer = bytearray(length)
        self.read_into(offset, memoryview(buffer))
        return bytes(buffer)

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Write all of `data` at `offset`.  What was written before an error stays written."""
        self._write(offset, data, 0)

    def write_through(self, offset: int, data: bytes | memoryview) -> None:
        """Write all of `data` at `offset`; it, and no other write, is durable on return."""
        self._write(offset, data, os.RWF_DSYNC)

    def _write(self, offset: int, data: bytes | memoryview, flags: int) -> None:
        while data:
            try:
                count = os.pwritev(self.fd, [data], offset, flags)
            except OSError as error:
                raise HostError.of(error, f"write at byte {offset}", self.path) from error
            data, offset = data[count:], offset + count

    def try_read_into(self, offset: int, buffer: memoryview) -> bool:
        """Fill `buffer` from `offset` if that needs no waiting; say whether it was done."""
        mode = self.read_promptness
        if mode is Promptness.BLOCKING:
            return False
        try:
            flags = os.RWF_NOWAIT if mode is Promptness.NOWAIT else 0
            return os.preadv(self.fd, [buffer], offset, flags) == len(buffer)
        except BlockingIOError:
            return False
        except OSError as error:
            if mode is Promptness.NOWAIT and error.errno in _UNSUPPORTED:
                self.read_promptness = Promptness.BLOCKING
            return False  # An error is met again, and told, on the blocking path.

    def try_write(self, offset: int, data: bytes | memoryview) -> bool:
        """Write `data` at `offset` if that needs no waiting; say whether all of it was done."""
        mode = self.write_promptness
        if mode is Promptness.BLOCKING:
            return False
        if mode is Promptness.CACHED:
            return self._cache.holds(self.fd, offset, len(data)) and self._timed(offset, data)
        try:
            flags = os.RWF_NOWAIT if mode is Promptness.NOWAIT else 0
            return os.pwritev(self.fd, [data], offset, flags) == len(data)
        except BlockingIOError:
            return False
        except OSError as error:
            if mode is Promptness.NOWAIT and error.errno in _UNSUPPORTED:
                cached = self._file_system == _EXT_MAGIC and self._cache.works(self.fd)
                self.write_promptness = Promptness.CACHED if cached else Promptness.BLOCKING
            return False

    def _timed(self, offset: int, data: bytes | memoryview) -> bool:
        """A plain write that should not wait; one that did keeps the next ones off this path.

        Memory full of dirty pages, or a journal that waits for its device, holds up even a write
        to a cached page.  That is found out once and then left to the worker threads for a while.
        """
        start = time.monotonic()
        if start < self._patient_until:
            return False
        try:
            done = os.pwrite(self.fd, data, offset) == len(data)
        except OSError:
            return False
        end = time.monotonic()
        if end - start > _SLOW_WRITE_SECONDS:
            self._patient_until = end + _PATIENCE_SECONDS
        return done

    def zero(self, offset: int, length: int) -> None:
        """Make `length` bytes from `offset` read as zeros; the space stays allocated."""
        if self._fallocate(FALLOC_FL_ZERO_RANGE, offset, length):
            return
        end = offset + length
        while offset < end:
            chunk = memoryview(_ZEROS)[: min(len(_ZEROS), end - offset)]
            self.write(offset, chunk)
            offset += len(chunk)

    def discard(self, offset: int, length: int) -> None:
        """Make the bytes read as zeros and give their space back where the host can."""
        first, last = self._punchable(offset, offset + length)
        if first >= last or not self._fallocate(FALLOC_FL_PUNCH_HOLE, first, last - first):
            self.zero(offset, length)
            return
        for start, end in ((offset, first), (last, offset + length)):
            if start < end:
                self.zero(start, end - start)

    def allocate(self, offset: int, length: int) -> bool:
        """Set space aside for the range, inside the file, so that a write to it is never ENOSPC.

        What the range holds stays.  False where the file system has no way to do it.
        """
        return self._fallocate(0, offset, length)

    def _punchable(self, offset: int, end: int) -> tuple[int, int]:
        """The part of [offset, end) that can be given back: of a device, whole blocks only."""
        if not self.is_block:
            return offset, end
        return -(-offset // _DEVICE_BLOCK) * _DEVICE_BLOCK, end // _DEVICE_BLOCK * _DEVICE_BLOCK

    def _fallocate(self, mode: int, offset: int, length: int) -> bool:
        """Whether fallocate(2) did it.  False: not possible here, for this file or this range."""
        if mode in self._refused_modes:
            return False
        while _libc.fallocate(self.fd, mode | FALLOC_FL_KEEP_SIZE, offset, length) != 0:
            number = ctypes.get_errno()
            if number == errno.EINTR:
                continue
            if number in _UNSUPPORTED:
                if number != errno.EINVAL:  # EINVAL is about this range (a device's alignment).
                    self._refused_modes.add(mode)
                return False
            error = OSError(number, os.strerror(number))
            raise HostError.of(error, f"zero at byte {offset}", self.path)
        return True

    def flush(self) -> None:
        """Make what was written durable (fdatasync: data, and the size needed to read it)."""
        try:
            os.fdatasync(self.fd)
        except OSError as error:
            raise HostError.of(error, "flush", self.path) from error

    def reread_partitions(self) -> bool:
        """Let the kernel read a device's partition table anew; False if it cannot now.

        It cannot while one of the partitions it knows is in use.  For a regular file, and for a
        device that the kernel shows no partitions of, there is nothing to do.
        """
        if not self.is_block:
            return True
        try:
            fcntl.ioctl(self.fd, _BLKRRPART)
        except OSError as error:
            return error.errno in _UNSUPPORTED
        return True

    def truncate(self, size: int) -> None:
        """Set the file's size in bytes.  A block device cannot be resized: Unsupported."""
        if self.is_block:
            raise Unsupported("a block device cannot be resized", path=self.path)
        try:
            os.ftruncate(self.fd, size)
        except OSError as error:
            raise HostError.of(error, f"resize to {size} bytes", self.path) from error

    def grow(self, size: int) -> None:
        """Make the file at least `size` bytes large.

        What is new reads as zeros.  On a block device that is smaller: HostError (ENOSPC).
        """
        if self.size() >= size:
            return
        if self.is_block:
            raise HostError(
                f"has no room for {size} bytes", errno=errno.ENOSPC, path=self.path,
                hint="the device is full",
            )
        self.truncate(size)

    def ranges(self, offset: int, length: int) -> Iterator[tuple[int, int, bool]]:
        """(start, end, is_data) runs that cover [offset, offset + length), as SEEK_DATA tells.

        Where the file system cannot tell, everything is data.  Bytes past the end are a hole.
        """
        at, end = offset, offset + length
        while at < end:
            data = self._seek(at, os.SEEK_DATA, end)
            if data > at:
                yield at, min(data, end), False
                at = min(data, end)
                continue
            hole = min(max(self._seek(at, os.SEEK_HOLE, end), at + 1), end)
            yield at, hole, True
            at = hole

    def _seek(self, offset: int, whence: int, end: int) -> int:
        # The descriptor's position is nobody's: all other calls here are positional.
        try:
            return os.lseek(self.fd, offset, whence)
        except OSError as error:
            if error.errno == errno.ENXIO:  # No data at or after `offset`.
                return end
            if error.errno in _UNSUPPORTED:
                return offset if whence == os.SEEK_DATA else end
            raise HostError.of(error, "find holes", self.path) from error


def _open(path: Path, *, writable: bool) -> int:
    # O_NONBLOCK keeps a FIFO or a sleepy device from holding the open; it does not change I/O on
    # regular files and block devices.
    flags = (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        mode = os.stat(path).st_mode
        _check_kind(mode, path)  # Before the open, which a tape or a terminal would notice.
        if stat.S_ISBLK(mode):
            flags |= os.O_EXCL if writable else 0
        return os.open(path, flags)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NotFound("no such file", path=path) from error
    except OSError as error:
        if error.errno == errno.EBUSY:
            by = lock_holder(path)
            raise Busy(
                f"in use by {by}" if by else "the device is in use",
                path=path, hint="unmount or close it first, or open read-only: -r",
            ) from error
        hint = None
        if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM) and writable:
            hint = "read-only may work: -r" if os.access(path, os.R_OK) else None
        raise HostError.of(error, "open for writing" if writable else "open", path,
                           hint=hint) from error
    except ValueError as error:  # A NUL byte in the name.
        raise InvalidArgument(f"not a file name: {error}", path=repr(str(path))) from error


def _check_kind(mode: int, path: Path) -> None:
    """Raise InvalidFormat for a file that cannot hold an image; `mode` is its st_mode."""
    if stat.S_ISDIR(mode):
        raise InvalidFormat("is a folder, not an image", path=path)
    if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
        raise InvalidFormat("is neither a regular file nor a block device", path=path)


def _check_device_writable(fd: int, path: Path) -> None:
    """Raise HostError (EROFS) for a read-only device, which open(2) may give for writing."""
    if not stat.S_ISBLK(os.fstat(fd).st_mode):
        return
    answer = fcntl.ioctl(fd, _BLKROGET, bytes(4))
    if any(answer):
        error = OSError(errno.EROFS, os.strerror(errno.EROFS))
        raise HostError.of(error, "open for writing", path, hint="read-only may work: -r")


def _file_system_type(fd: int) -> int:
    """f_type of fstatfs(2); 0 where it cannot be had."""
    buffer = (ctypes.c_long * 32)()
    return int(buffer[0]) if _libc.fstatfs(fd, ctypes.byref(buffer)) == 0 else 0
