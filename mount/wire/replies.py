"""What is answered: values to bytes.

Each function gives the body of a reply; `reply` gives the header that goes before it.  Times are
nanoseconds since 1970, spans how many seconds the kernel may keep what it is told.
"""

from __future__ import annotations

import struct
import sys
from dataclasses import dataclass
from typing import NamedTuple

from mount.wire.constants import Notification, OpenFlag

HEADER = struct.Struct("=IiQ")
"""struct fuse_out_header: len, error, unique."""

_ATTR = struct.Struct("=QQQQQQIIIIIIIIII")
_ATTR_VALID = struct.Struct("=QI4x")
_ENTRY = struct.Struct("=QQQQII")
_OPEN = struct.Struct("=QIi")
_U32 = struct.Struct("=I4x")
_U64 = struct.Struct("=Q")
_STATFS = struct.Struct("=QQQQQIIII24x")
_STATX_HEAD = struct.Struct("=QI4x16x")
_STATX = struct.Struct("=IIQIIIHHQQQQ")
_STATX_TIME = struct.Struct("=qI4x")
_STATX_TAIL = struct.Struct("=IIII112x")
_DIRENT = struct.Struct("=QQII")
_INVAL_INODE = struct.Struct("=Qqq")

_STATX_BASIC = 0x7FF
_STATX_BTIME = 0x800


@dataclass(frozen=True, slots=True)
class Attr:
    """What stat(2) shows of a node.  `blocks` are of 512 bytes."""

    inode: int
    mode: int
    size: int = 0
    blocks: int = 0
    links: int = 1
    uid: int = 0
    gid: int = 0
    atime_ns: int = 0
    mtime_ns: int = 0
    ctime_ns: int = 0
    birth_ns: int | None = None
    block_size: int = 4096


class Space(NamedTuple):
    """What statfs(2) shows, in blocks of `block_size` bytes."""

    blocks: int
    free: int
    available: int
    block_size: int = 4096
    name_max: int = 255


def reply(unique: int, body_length: int = 0, error: int = 0) -> bytes:
    """The header of a reply whose body has that many bytes; `error` is an errno, 0 for none."""
    return HEADER.pack(HEADER.size + body_length, -error, unique)


def entry(node: int, attr: Attr, entry_seconds: float, attribute_seconds: float) -> bytes:
    """A name's node: LOOKUP, and the first part of the answer to CREATE.  Node 0: no such name."""
    entry_s, entry_ns = _span(entry_seconds)
    attr_s, attr_ns = _span(attribute_seconds)
    return _ENTRY.pack(node, 0, entry_s, attr_s, entry_ns, attr_ns) + _attr(attr)


def attributes(attr: Attr, seconds: float) -> bytes:
    """GETATTR and SETATTR."""
    return _ATTR_VALID.pack(*_span(seconds)) + _attr(attr)


def statx(attr: Attr, seconds: float) -> bytes:
    """STATX: the fields of stat(2), and the time of birth where it is known."""
    mask = _STATX_BASIC | (0 if attr.birth_ns is None else _STATX_BTIME)
    times = (attr.atime_ns, attr.birth_ns or 0, attr.ctime_ns, attr.mtime_ns)
    return b"".join(
        (
            _STATX_HEAD.pack(*_span(seconds)),
            _STATX.pack(
                mask, attr.block_size, 0, attr.links, attr.uid, attr.gid, attr.mode, 0,
                attr.inode, attr.size, attr.blocks, 0,
            ),
            *(_STATX_TIME.pack(*divmod(time, 1_000_000_000)) for time in times),
            _STATX_TAIL.pack(0, 0, 0, 0),
        )
    )


def opened(handle: int, flags: OpenFlag, backing: int = 0) -> bytes:
    """OPEN, OPENDIR, and the second part of the answer to CREATE.

    `backing` is the number of a registered host file, for OpenFlag.PASSTHROUGH.
    """
    return _OPEN.pack(handle, flags, backing)


def opened_handle(body: bytes | memoryview) -> int:
    """The handle in the body of an answer to OPEN, OPENDIR or CREATE."""
    return int(_OPEN.unpack_from(body, len(body) - _OPEN.size)[0])


def written(count: int) -> bytes:
    """WRITE and COPY_FILE_RANGE: so many bytes."""
    return _U32.pack(count)


def number(value: int) -> bytes:
    """LSEEK: an offset; COPY_FILE_RANGE_64: so many bytes."""
    return _U64.pack(value)


def value_size(size: int) -> bytes:
    """GETXATTR and LISTXATTR of size 0: how long the value is."""
    return _U32.pack(size)


def statfs(space: Space) -> bytes:
    """STATFS.  Files are not counted."""
    return _STATFS.pack(
        space.blocks, space.free, space.available, 0, 0, space.block_size, space.name_max,
        space.block_size, 0,
    )


def dirent(inode: int, mode: int, name: bytes, position: int) -> bytes:
    """One name of READDIR; `position` is where the next one is asked for."""
    head = _DIRENT.pack(inode, position, len(name), (mode & 0o170000) >> 12)
    return head + name + bytes(-len(name) % 8)


def direntplus(found: bytes, inode: int, mode: int, name: bytes, position: int) -> bytes:
    """One name of READDIRPLUS: what LOOKUP would say (`entry`), and the name."""
    return found + dirent(inode, mode, name, position)


def invalidate_inode(node: int, offset: int, length: int) -> bytes:
    """A notification: drop the pages of [offset, offset + length) of the node's file."""
    body = _INVAL_INODE.pack(node, offset, length)
    return HEADER.pack(HEADER.size + len(body), Notification.INVAL_INODE, 0) + body


def _span(seconds: float) -> tuple[int, int]:
    whole = int(seconds)
    return whole, int((seconds - whole) * 1_000_000_000)


def _attr(attr: Attr) -> bytes:
    atime, atime_ns = divmod(attr.atime_ns, 1_000_000_000)
    mtime, mtime_ns = divmod(attr.mtime_ns, 1_000_000_000)
    ctime, ctime_ns = divmod(attr.ctime_ns, 1_000_000_000)
    return _ATTR.pack(
        attr.inode, attr.size, attr.blocks, _unsigned(atime), _unsigned(mtime), _unsigned(ctime),
        atime_ns, mtime_ns, ctime_ns, attr.mode, attr.links, attr.uid, attr.gid, 0,
        attr.block_size, 0,
    )


def _unsigned(seconds: int) -> int:
    """Times before 1970 travel in unsigned fields."""
    return seconds & sys.maxsize * 2 + 1
