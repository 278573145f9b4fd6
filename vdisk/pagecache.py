"""What the kernel has of a file in its page cache: cachestat(2), Linux 6.5."""

from __future__ import annotations

import ctypes
import mmap
import struct

# The number is the same on every architecture since the common table (Linux, syscall 451).
_CACHESTAT = 451
_PAGE = mmap.PAGESIZE
_RANGE = struct.Struct("=QQ")  # struct cachestat_range: offset, length.
_FOUND = struct.Struct("=QQQQQ")  # struct cachestat: cached, dirty, writeback, evicted, recently.

_syscall = ctypes.CDLL(None, use_errno=True).syscall


class PageCache:
    """Asks about ranges of an open file.  One instance a file: it keeps the call's buffers.

    Not for several threads at once.
    """

    def __init__(self) -> None:
        self._range = ctypes.create_string_buffer(_RANGE.size)
        self._found = ctypes.create_string_buffer(_FOUND.size)
        self._range_pointer = ctypes.c_void_p(ctypes.addressof(self._range))
        self._found_pointer = ctypes.c_void_p(ctypes.addressof(self._found))

    def works(self, fd: int) -> bool:
        """Whether the kernel answers for this file at all."""
        return self._ask(fd, 0, 1)

    def holds(self, fd: int, offset: int, length: int) -> bool:
        """Whether every page of [offset, offset + length) is in memory and not being written out.

        False as well where the kernel does not say.
        """
        if not self._ask(fd, offset, length):
            return False
        cached, _, writeback, _, _ = _FOUND.unpack(self._found)
        pages = (offset + length - 1) // _PAGE - offset // _PAGE + 1
        return bool(cached >= pages and not writeback)

    def _ask(self, fd: int, offset: int, length: int) -> bool:
        _RANGE.pack_into(self._range, 0, offset, length)
        return bool(_syscall(_CACHESTAT, fd, self._range_pointer, self._found_pointer, 0) == 0)
