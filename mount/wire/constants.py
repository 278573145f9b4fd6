"""The protocol's numbers: operations, flags and limits (include/uapi/linux/fuse.h)."""

from __future__ import annotations

from enum import IntEnum, IntFlag

MAJOR = 7
MINOR = 45
"""The newest protocol that is spoken here."""
MINOR_MIN = 31
"""The oldest, of Linux 5.4: below it, a reply to INIT was of another form."""

ROOT_NODE = 1
"""The node number of the mounted folder."""
PAGES_MAX = 256
"""Pages in one request: what the kernel allows without a change of fs.fuse.max_pages_limit."""


class Opcode(IntEnum):
    """What a request asks for (enum fuse_opcode)."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    READLINK = 5
    SYMLINK = 6
    MKNOD = 8
    MKDIR = 9
    UNLINK = 10
    RMDIR = 11
    RENAME = 12
    LINK = 13
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    SETXATTR = 21
    GETXATTR = 22
    LISTXATTR = 23
    REMOVEXATTR = 24
    FLUSH = 25
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    FSYNCDIR = 30
    GETLK = 31
    SETLK = 32
    SETLKW = 33
    ACCESS = 34
    CREATE = 35
    INTERRUPT = 36
    BMAP = 37
    DESTROY = 38
    IOCTL = 39
    POLL = 40
    NOTIFY_REPLY = 41
    BATCH_FORGET = 42
    FALLOCATE = 43
    READDIRPLUS = 44
    RENAME2 = 45
    LSEEK = 46
    COPY_FILE_RANGE = 47
    SETUPMAPPING = 48
    REMOVEMAPPING = 49
    SYNCFS = 50
    TMPFILE = 51
    STATX = 52
    COPY_FILE_RANGE_64 = 53


NO_REPLY = frozenset(
    {Opcode.FORGET, Opcode.BATCH_FORGET, Opcode.INTERRUPT, Opcode.NOTIFY_REPLY}
)
"""Requests that the kernel does not want answered."""


class InitFlag(IntFlag):
    """What the kernel offers and the server takes; those above bit 31 travel as `flags2`."""

    ASYNC_READ = 1 << 0
    ATOMIC_O_TRUNC = 1 << 3
    BIG_WRITES = 1 << 5
    AUTO_INVAL_DATA = 1 << 12
    DO_READDIRPLUS = 1 << 13
    READDIRPLUS_AUTO = 1 << 14
    ASYNC_DIO = 1 << 15
    WRITEBACK_CACHE = 1 << 16
    PARALLEL_DIROPS = 1 << 18
    MAX_PAGES = 1 << 22
    EXPLICIT_INVAL_DATA = 1 << 25
    HANDLE_KILLPRIV_V2 = 1 << 28
    INIT_EXT = 1 << 30
    PASSTHROUGH = 1 << 37


class OpenFlag(IntFlag):
    """How the kernel is to treat an open file (FOPEN_…)."""

    DIRECT_IO = 1 << 0
    KEEP_CACHE = 1 << 1
    PARALLEL_DIRECT_WRITES = 1 << 6
    PASSTHROUGH = 1 << 7


class SetattrFlag(IntFlag):
    """Which fields of a SETATTR count (FATTR_…)."""

    MODE = 1 << 0
    UID = 1 << 1
    GID = 1 << 2
    SIZE = 1 << 3
    ATIME = 1 << 4
    MTIME = 1 << 5
    FH = 1 << 6
    ATIME_NOW = 1 << 7
    MTIME_NOW = 1 << 8


class Notification(IntEnum):
    """What a server may tell the kernel unasked (enum fuse_notify_code)."""

    INVAL_INODE = 2


GETATTR_FH = 1
"""`flags` of a GETATTR: the file handle is set."""
