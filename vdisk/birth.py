"""When a file was made: statx(2), which Python's os.stat does not ask."""

from __future__ import annotations

import ctypes
import struct

_AT_EMPTY_PATH = 0x1000
_STATX_BTIME = 0x800
_STATX_BYTES = 256
_MASK = struct.Struct("=I")
_BTIME = struct.Struct("=qI")
_BTIME_OFFSET = 80  # struct statx (linux/stat.h): stx_btime comes after stx_atime.

_libc = ctypes.CDLL(None, use_errno=True)


def birth_ns(fd: int) -> int | None:
    """The time an open file was made, in nanoseconds since 1970; None where it is not known."""
    found = ctypes.create_string_buffer(_STATX_BYTES)
    if _libc.statx(fd, b"", _AT_EMPTY_PATH, _STATX_BTIME, found) != 0:
        return None
    if not _MASK.unpack_from(found)[0] & _STATX_BTIME:
        return None
    seconds, nanoseconds = _BTIME.unpack_from(found, _BTIME_OFFSET)
    return int(seconds * 1_000_000_000 + nanoseconds)
