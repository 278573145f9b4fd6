"""DiskError -> errno.  The only place an errno is chosen."""

from __future__ import annotations

import errno

from vdisk.errors import (
    Busy,
    Corrupt,
    DiskError,
    Exists,
    HostError,
    InvalidArgument,
    InvalidFormat,
    NoSpace,
    NotFound,
    NotPermitted,
    OutOfRange,
    ReadOnly,
    Unsupported,
)


class Gone(NotFound):
    """A node that the kernel still knows is gone: it is to look the name up again."""


class NoData(OutOfRange):
    """There is no data, or no hole, from there on."""


class NoAttribute(NotFound):
    """No extended attribute of that name."""


_ERRNO: tuple[tuple[type[DiskError], int], ...] = (
    (Gone, errno.ESTALE),
    (NoAttribute, errno.ENODATA),
    (NoData, errno.ENXIO),
    (NotFound, errno.ENOENT),
    (Exists, errno.EEXIST),
    (Busy, errno.EBUSY),
    (ReadOnly, errno.EROFS),
    (NotPermitted, errno.EPERM),
    (NoSpace, errno.ENOSPC),
    (OutOfRange, errno.ENOSPC),  # A block device answers a write past its end with this.
    (InvalidArgument, errno.EINVAL),
    (Unsupported, errno.EOPNOTSUPP),
    (InvalidFormat, errno.EIO),
    (Corrupt, errno.EIO),
)


def errno_of(error: DiskError) -> int:
    """The errno a client of the mount is given for `error`."""
    if isinstance(error, HostError):
        return error.errno or errno.EIO
    return next((number for kind, number in _ERRNO if isinstance(error, kind)), errno.EIO)
