"""What is recorded beside a raw image: its geometry, its sector size, its format.

They are kept in extended attributes of the host file:

* `user.vdisk.geometry`: "C/H/S N", N the bytes per sector, as in "1024/16/63 512";
* `user.vdisk.format`: the format's name, once given or chosen, so that bytes which a guest wrote
  can never change how its image is opened.

A file system without user attributes cannot hold a record; `store_*` then answers False and the
caller tells the person what to do about it.
"""

from __future__ import annotations

import errno
import os

from vdisk.errors import Corrupt, DiskError, HostError
from vdisk.geometry import Geometry
from vdisk.host import HostFile

GEOMETRY_ATTRIBUTE = "user.vdisk.geometry"
FORMAT_ATTRIBUTE = "user.vdisk.format"

DRIVE_FORMAT = "lvm2"
"""What is recorded as the format of a drive.  Its bytes are raw; `vdisk.stores` looks for it."""

_VALUE_BYTES_MAX = 256
_ABSENT = (errno.ENODATA, errno.EOPNOTSUPP, errno.ENOSYS, errno.EPERM, errno.EACCES)
_REFUSED = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EPERM, errno.EACCES, errno.EROFS, errno.ENOSPC,
            errno.EDQUOT)


def stored_geometry(host: HostFile) -> Geometry | None:
    """The geometry recorded for `host`, None where there is none.

    Raises Corrupt, naming the attribute, where the record cannot be read as "C/H/S N".
    """
    text = _get(host, GEOMETRY_ATTRIBUTE)
    if text is None:
        return None
    try:
        return parse_record(text)
    except (DiskError, ValueError) as error:
        raise Corrupt(
            f"the recorded geometry {text!r} cannot be read",
            path=host.path,
            hint=f"give --chs, or remove it: setfattr -x {GEOMETRY_ATTRIBUTE} FILE",
        ) from error


def parse_record(text: str) -> Geometry:
    """The geometry that "C/H/S N" means.  Raises InvalidArgument or ValueError."""
    chs, _, sector_size = text.strip().partition(" ")
    return Geometry.parse(chs, sector_size=int(sector_size or "512"))


def format_record(geometry: Geometry) -> str:
    """The inverse of `parse_record`."""
    return f"{geometry} {geometry.sector_size}"


def store_geometry(host: HostFile, geometry: Geometry) -> bool:
    """Record `geometry` for `host`; False where this file system cannot hold it."""
    return _set(host, GEOMETRY_ATTRIBUTE, format_record(geometry))


def forget_geometry(host: HostFile) -> None:
    """Remove the geometry recorded for `host`, if there is one."""
    try:
        os.removexattr(host.fd, GEOMETRY_ATTRIBUTE)
    except OSError as error:
        if error.errno not in (*_ABSENT, *_REFUSED):
            raise HostError.of(error, f"remove {GEOMETRY_ATTRIBUTE}", host.path) from error


def stored_format(host: HostFile) -> str | None:
    """The format's name recorded for `host`, None where there is none."""
    text = _get(host, FORMAT_ATTRIBUTE)
    return None if text is None else text.strip()


def store_format(host: HostFile, name: str) -> bool:
    """Record the format of `host`; False where this file system cannot hold it."""
    return _set(host, FORMAT_ATTRIBUTE, name)


def _get(host: HostFile, attribute: str) -> str | None:
    try:
        value = os.getxattr(host.fd, attribute)
    except OSError as error:
        if error.errno in _ABSENT:
            return None
        raise HostError.of(error, f"read {attribute}", host.path) from error
    return value[:_VALUE_BYTES_MAX].decode("ascii", "replace")


def _set(host: HostFile, attribute: str, value: str) -> bool:
    try:
        os.setxattr(host.fd, attribute, value.encode("ascii"))
    except OSError as error:
        if error.errno in _REFUSED:
            return False
        raise HostError.of(error, f"record {attribute}", host.path) from error
    return True
