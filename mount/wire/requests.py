"""What the kernel asks: bytes to typed messages.

`parse` gives the header and a message.  A message has the fields of the structure it came from
that mean something here, under the names of the kernel's header.  Names are bytes without their
NUL.  Offsets, sizes and lengths are bytes; times are nanoseconds since 1970.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import NamedTuple

from mount.wire.constants import GETATTR_FH, Opcode, SetattrFlag

HEADER = struct.Struct("=IIQQIIIHH")
"""struct fuse_in_header: len, opcode, unique, nodeid, uid, gid, pid, total_extlen, padding."""
READ = struct.Struct("=QQIIQII")
"""struct fuse_read_in: fh, offset, size, read_flags, lock_owner, flags, padding."""
WRITE = struct.Struct("=QQIIQII")
"""struct fuse_write_in, of the same form; the data follows it."""
DATA_START = HEADER.size + WRITE.size
"""Where the data of a WRITE begins."""

_U32 = struct.Struct("=I")
_U32_U32 = struct.Struct("=II")
_U64 = struct.Struct("=Q")
_HANDLE = struct.Struct("=Q8x")  # What begins with a handle: fsync, flush, releasedir …
_GETATTR = struct.Struct("=IIQ")
_SETATTR = struct.Struct("=I4xQQQQQQIIIIIIII")
_RELEASE = struct.Struct("=QIIQ")
_CREATE = struct.Struct("=IIII")
_RENAME2 = struct.Struct("=QII")
_FALLOCATE = struct.Struct("=QQQII")
_LSEEK = struct.Struct("=QQII")
_COPY = struct.Struct("=QQQQQQQ")
_STATX = struct.Struct("=IIQII")
_INIT = struct.Struct("=IIII")
_FORGET_ONE = struct.Struct("=QQ")


class ProtocolError(Exception):
    """What was read is no request: too short, or its length is not the number of bytes read."""


class Header(NamedTuple):
    """What every request begins with.  `pid` is 0 where the kernel itself asks."""

    length: int
    opcode: int
    unique: int
    node: int
    uid: int
    gid: int
    pid: int


class Init(NamedTuple):
    """INIT: the kernel's version, read-ahead and abilities (`flags`, all 64 bits)."""

    major: int
    minor: int
    max_readahead: int
    flags: int


class Lookup(NamedTuple):
    """LOOKUP, UNLINK, RMDIR: a name in the folder that the header's `node` is."""

    name: bytes


class Getattr(NamedTuple):
    """GETATTR and STATX; `fh` None where it did not come through an open file."""

    fh: int | None


class Setattr(NamedTuple):
    """SETATTR: `valid` says which of the others count, and which time is to be now."""

    valid: SetattrFlag
    fh: int | None
    size: int
    atime_ns: int
    mtime_ns: int
    mode: int
    uid: int
    gid: int


class Open(NamedTuple):
    """OPEN and OPENDIR: the flags of open(2)."""

    flags: int


class Create(NamedTuple):
    """CREATE: make a file in the folder `node` and open it; `mode` has the umask taken off."""

    flags: int
    mode: int
    name: bytes


class Read(NamedTuple):
    """READ, READDIR and READDIRPLUS; of a folder, `offset` is a position in its list."""

    fh: int
    offset: int
    size: int


class Write(NamedTuple):
    """WRITE.  `data` is a view of what was parsed: it is good for as long as that is."""

    fh: int
    offset: int
    data: memoryview


class Handle(NamedTuple):
    """RELEASE, RELEASEDIR, FSYNC, FSYNCDIR and FLUSH: an open file."""

    fh: int


class Rename(NamedTuple):
    """RENAME and RENAME2: from the folder `node` to `new_folder`; the flags of renameat2(2)."""

    new_folder: int
    flags: int
    old_name: bytes
    new_name: bytes


class Fallocate(NamedTuple):
    """FALLOCATE: the mode of fallocate(2)."""

    fh: int
    offset: int
    length: int
    mode: int


class Lseek(NamedTuple):
    """LSEEK: SEEK_DATA or SEEK_HOLE from `offset`."""

    fh: int
    offset: int
    whence: int


class CopyFileRange(NamedTuple):
    """COPY_FILE_RANGE and its 64-bit form, which differ in the answer."""

    fh_in: int
    offset_in: int
    node_out: int
    fh_out: int
    offset_out: int
    length: int


class Getxattr(NamedTuple):
    """GETXATTR, and LISTXATTR with no name.  `size` 0 asks how long the answer would be."""

    size: int
    name: bytes


class Setxattr(NamedTuple):
    """SETXATTR: the flags of setxattr(2)."""

    flags: int
    name: bytes
    value: bytes


class Interrupt(NamedTuple):
    """INTERRUPT: whoever waits for the request of that number has got a signal."""

    unique: int


class Forget(NamedTuple):
    """FORGET and BATCH_FORGET: nodes the kernel drops, each with the look-ups it drops."""

    nodes: tuple[tuple[int, int], ...]


class Empty(NamedTuple):
    """STATFS, DESTROY, READLINK, and whatever is not served: nothing to be read here."""


Message = (
    Init | Lookup | Getattr | Setattr | Open | Create | Read | Write | Handle | Rename | Fallocate
    | Lseek | CopyFileRange | Getxattr | Setxattr | Interrupt | Forget | Empty
)  # fmt: skip


def parse(request: memoryview) -> tuple[Header, Message]:
    """A request's header and message.  ProtocolError for what cannot be one.

    A structure may be longer than it is known here, as later versions make it; what is beyond is
    passed over.
    """
    header = parse_header(request)
    body = request[HEADER.size : header.length]
    try:
        return header, _PARSERS.get(header.opcode, _empty)(header, body)
    except (struct.error, ValueError) as error:
        raise ProtocolError(f"operation {header.opcode}: {error}") from error


def parse_header(request: memoryview) -> Header:
    """A request's header.  ProtocolError where it is cut off, or says another length."""
    if len(request) < HEADER.size:
        raise ProtocolError(f"{len(request)} bytes are too few for a request")
    header = Header(*HEADER.unpack_from(request)[:7])
    if header.length != len(request):
        raise ProtocolError(f"{len(request)} bytes say that they are {header.length}")
    return header


def _strings(data: memoryview, count: int) -> list[bytes]:
    """`count` strings, each ended by a NUL, with which `data` begins.  ValueError."""
    found = bytes(data).split(b"\0", count)
    if len(found) <= count:
        raise ValueError("a string has no end")
    return found[:count]


def _init(header: Header, body: memoryview) -> Init:
    major, minor, readahead, flags = _INIT.unpack_from(body)
    if len(body) >= _INIT.size + 4:
        flags |= _U32.unpack_from(body, _INIT.size)[0] << 32
    return Init(major, minor, readahead, flags)


def _lookup(header: Header, body: memoryview) -> Lookup:
    return Lookup(_strings(body, 1)[0])


def _getattr(header: Header, body: memoryview) -> Getattr:
    flags, _, fh = _GETATTR.unpack_from(body)
    return Getattr(fh if flags & GETATTR_FH else None)


def _statx(header: Header, body: memoryview) -> Getattr:
    flags, _, fh, _, _ = _STATX.unpack_from(body)
    return Getattr(fh if flags & GETATTR_FH else None)


def _setattr(header: Header, body: memoryview) -> Setattr:
    (
        valid, fh, size, _, atime, mtime, _, atime_ns, mtime_ns, _, mode, _, uid, gid, _,
    ) = _SETATTR.unpack_from(body)  # fmt: skip
    flags = SetattrFlag(valid)
    return Setattr(
        flags, fh if flags & SetattrFlag.FH else None, size,
        _nanoseconds(atime, atime_ns), _nanoseconds(mtime, mtime_ns), mode, uid, gid,
    )


def _nanoseconds(seconds: int, nanoseconds: int) -> int:
    """A time; the seconds travel as unsigned and are signed."""
    if seconds >= 1 << 63:
        seconds -= 1 << 64
    return seconds * 1_000_000_000 + nanoseconds


def _open(header: Header, body: memoryview) -> Open:
    return Open(_U32_U32.unpack_from(body)[0])


def _create(header: Header, body: memoryview) -> Create:
    flags, mode, umask, _ = _CREATE.unpack_from(body)
    return Create(flags, mode & ~umask, _strings(body[_CREATE.size :], 1)[0])


def _read(header: Header, body: memoryview) -> Read:
    return Read(*READ.unpack_from(body)[:3])


def _write(header: Header, body: memoryview) -> Write:
    fh, offset, size, *_ = WRITE.unpack_from(body)
    data = body[WRITE.size : WRITE.size + size]
    if len(data) != size:
        raise ValueError(f"{len(data)} of {size} bytes to write")
    return Write(fh, offset, data)


def _handle(header: Header, body: memoryview) -> Handle:
    return Handle(_HANDLE.unpack_from(body)[0])


def _rename(header: Header, body: memoryview) -> Rename:
    return Rename(_U64.unpack_from(body)[0], 0, *_strings(body[_U64.size :], 2))


def _rename2(header: Header, body: memoryview) -> Rename:
    folder, flags, _ = _RENAME2.unpack_from(body)
    return Rename(folder, flags, *_strings(body[_RENAME2.size :], 2))


def _fallocate(header: Header, body: memoryview) -> Fallocate:
    return Fallocate(*_FALLOCATE.unpack_from(body)[:4])


def _lseek(header: Header, body: memoryview) -> Lseek:
    return Lseek(*_LSEEK.unpack_from(body)[:3])


def _copy(header: Header, body: memoryview) -> CopyFileRange:
    return CopyFileRange(*_COPY.unpack_from(body)[:6])


def _getxattr(header: Header, body: memoryview) -> Getxattr:
    name = b"" if header.opcode == Opcode.LISTXATTR else _strings(body[_U32_U32.size :], 1)[0]
    return Getxattr(_U32_U32.unpack_from(body)[0], name)


def _setxattr(header: Header, body: memoryview) -> Setxattr:
    size, flags = _U32_U32.unpack_from(body)
    rest = body[_U32_U32.size :]
    name = _strings(rest, 1)[0]
    value = bytes(rest[len(name) + 1 : len(name) + 1 + size])
    if len(value) != size:
        raise ValueError(f"{len(value)} of {size} bytes of a value")
    return Setxattr(flags, name, value)


def _interrupt(header: Header, body: memoryview) -> Interrupt:
    return Interrupt(_U64.unpack_from(body)[0])


def _forget(header: Header, body: memoryview) -> Forget:
    return Forget(((header.node, _U64.unpack_from(body)[0]),))


def _batch_forget(header: Header, body: memoryview) -> Forget:
    count = _U32_U32.unpack_from(body)[0]
    entries = body[_U32_U32.size : _U32_U32.size + count * _FORGET_ONE.size]
    if len(entries) != count * _FORGET_ONE.size:
        raise ValueError(f"{len(entries)} bytes for {count} nodes")
    return Forget(tuple(_FORGET_ONE.iter_unpack(entries)))


def _empty(header: Header, body: memoryview) -> Empty:
    return Empty()


_PARSERS: dict[int, Callable[[Header, memoryview], Message]] = {
    Opcode.INIT: _init,
    Opcode.LOOKUP: _lookup,
    Opcode.UNLINK: _lookup,
    Opcode.RMDIR: _lookup,
    Opcode.REMOVEXATTR: _lookup,
    Opcode.GETATTR: _getattr,
    Opcode.STATX: _statx,
    Opcode.SETATTR: _setattr,
    Opcode.OPEN: _open,
    Opcode.OPENDIR: _open,
    Opcode.CREATE: _create,
    Opcode.READ: _read,
    Opcode.READDIR: _read,
    Opcode.READDIRPLUS: _read,
    Opcode.WRITE: _write,
    Opcode.RELEASE: _handle,
    Opcode.RELEASEDIR: _handle,
    Opcode.FSYNC: _handle,
    Opcode.FSYNCDIR: _handle,
    Opcode.FLUSH: _handle,
    Opcode.RENAME: _rename,
    Opcode.RENAME2: _rename2,
    Opcode.FALLOCATE: _fallocate,
    Opcode.LSEEK: _lseek,
    Opcode.COPY_FILE_RANGE: _copy,
    Opcode.COPY_FILE_RANGE_64: _copy,
    Opcode.GETXATTR: _getxattr,
    Opcode.LISTXATTR: _getxattr,
    Opcode.SETXATTR: _setxattr,
    Opcode.INTERRUPT: _interrupt,
    Opcode.FORGET: _forget,
    Opcode.BATCH_FORGET: _batch_forget,
}
