"""The descriptor of /dev/fuse: requests are read from it, replies and notifications written."""

from __future__ import annotations

import errno
import fcntl
import os
import struct

from mount.views import Backing
from mount.wire import replies
from vdisk.errors import HostError
from vdisk.host import HostFile

_BACKING_OPEN = 0x4010E501  # FUSE_DEV_IOC_BACKING_OPEN: _IOW(229, 1, struct fuse_backing_map).
_BACKING_CLOSE = 0x4004E502  # FUSE_DEV_IOC_BACKING_CLOSE: _IOW(229, 2, uint32_t).
_BACKING_MAP = struct.Struct("=iIQ")  # fd, flags, padding.
_NUMBER = struct.Struct("=I")


class Gone(Exception):
    """The mount is gone, or its connection was aborted."""


class Device:
    """An open, non-blocking descriptor of /dev/fuse.  It is not ours to close."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def read(self, buffer: bytearray) -> int:
        """Read one request; its bytes, 0 where none waits.  Raises Gone."""
        while True:
            try:
                return os.readv(self.fd, [buffer])
            except BlockingIOError:
                return 0
            except OSError as error:
                if error.errno in (errno.ENODEV, errno.ECONNABORTED, errno.ENOTCONN):
                    raise Gone from error
                if error.errno != errno.ENOENT:  # Whoever asked was killed meanwhile.
                    raise

    def reply(self, unique: int, body: bytes | memoryview = b"", error: int = 0) -> bool:
        """Answer a request; whether the answer was taken.

        It is not where whoever asked is gone, or the mount.
        """
        head = replies.reply(unique, len(body), error)
        try:
            os.writev(self.fd, [head, body] if body else [head])
        except OSError as failure:
            if failure.errno in (errno.ENOENT, errno.ENODEV, errno.ENOTCONN, errno.ECONNABORTED):
                return False
            raise
        return True

    def invalidate(self, inode: int, offset: int, length: int) -> None:
        """Have the kernel drop pages.  Waits for those that are in use; any thread."""
        try:
            os.write(self.fd, replies.invalidate_inode(inode, offset, length))
        except OSError as error:
            # ENOENT: the kernel has nothing of that inode.  The others: the mount is gone.
            if error.errno not in (errno.ENOENT, errno.ENODEV, errno.ENOTCONN, errno.ECONNABORTED):
                raise HostError.of(error, "drop cached pages", "/dev/fuse") from error

    def back(self, host: HostFile) -> Backing:
        """Have the kernel know a host file, for passthrough; number 0 where it refuses.

        The kernel keeps the file open for as long as the mount is there.  It is given one that was
        opened anew: the image's lock belongs to ours, and is to go with this process.
        """
        try:
            fd = os.open(f"/proc/self/fd/{host.fd}", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return Backing()
        try:
            # Only of a buffer that could be changed does Python tell what the call returned.
            wanted = bytearray(_BACKING_MAP.pack(fd, 0, 0))
            number = fcntl.ioctl(self.fd, _BACKING_OPEN, wanted)
        except OSError:  # Not privileged, or the host's file system cannot be beneath another.
            return Backing()
        finally:
            os.close(fd)
        return Backing(number, lambda: self._forget(number))

    def _forget(self, number: int) -> None:
        try:
            fcntl.ioctl(self.fd, _BACKING_CLOSE, _NUMBER.pack(number))
        except OSError as error:
            if error.errno not in (errno.ENODEV, errno.ENOTCONN, errno.EPERM, errno.EBADF):
                raise HostError.of(error, "let go of a host file", "/dev/fuse") from error
