"""Persistent bitmaps: which clusters they use.  What they say is none of our business.

Whoever writes to the disk without keeping them up to date clears the feature's bit, and then they
are nothing any more.  Source: QEMU, `docs/interop/qcow2.rst`, "Bitmaps".
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from vdisk.errors import Corrupt
from vdisk.formats.qcow2.entry import OFFSET
from vdisk.formats.qcow2.header import Autoclear, Header
from vdisk.formats.table import Table
from vdisk.host import HostFile

_COUNT_MAX = 65535
_DIRECTORY_BYTES_MAX = 64 << 20
_TABLE_ENTRIES_MAX = 8 << 20 >> 3
_ENTRY = struct.Struct(">QIIBBHI")


def bitmap_runs(host: HostFile, header: Header) -> Iterator[tuple[int, int]]:
    """(offset, length) of what the bitmaps use of the file.  Raises Corrupt and HostError."""
    if header.bitmaps is None or not header.autoclear & Autoclear.BITMAPS:
        return
    at, length = header.bitmaps.offset, header.bitmaps.length
    if header.bitmaps.count > _COUNT_MAX or length > _DIRECTORY_BYTES_MAX:
        raise _wrong(host, "there are too many")
    _check(host, header, at, length)
    yield at, length
    end = at + length
    for _ in range(header.bitmaps.count):
        if at + _ENTRY.size > end:
            raise _wrong(host, "their directory ends too early")
        offset, entries, _, _, _, name, extra = _ENTRY.unpack(host.read(at, _ENTRY.size))
        at += -(-(_ENTRY.size + name + extra) // 8) * 8
        if entries > _TABLE_ENTRIES_MAX:
            raise _wrong(host, "one of them is too large")
        _check(host, header, offset, 8 * entries)
        yield offset, 8 * entries
        for _, page in Table(host, offset, entries, width=8, byteorder="big").runs():
            for word in page:
                if word & OFFSET:
                    _check(host, header, word & OFFSET, header.cluster_size)
                    yield word & OFFSET, header.cluster_size


def _check(host: HostFile, header: Header, offset: int, length: int) -> None:
    size = header.cluster_size
    if offset < size or offset % size or offset + length > header.clusters(host.size()) * size:
        raise _wrong(host, f"{length} bytes of them are said to be at {offset}")


def _wrong(host: HostFile, what: str) -> Corrupt:
    return Corrupt(f"its persistent bitmaps are damaged: {what}", path=host.path)
