"""A handler for each request: messages of `mount.wire` to calls of `FileSystem`, and back.

A handler returns the body of the reply.  What it raises is turned into an errno by the server.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Awaitable, Callable
from typing import Any

from mount import ranges, xattrs
from mount.filesystem import Attributes, Change, FileSystem, Opened
from mount.wire import replies
from mount.wire.constants import Opcode, OpenFlag, SetattrFlag
from mount.wire.requests import (
    CopyFileRange,
    Create,
    Empty,
    Fallocate,
    Getattr,
    Getxattr,
    Handle,
    Header,
    Lookup,
    Lseek,
    Open,
    Read,
    Rename,
    Setattr,
    Setxattr,
    Write,
)

_RENAME_NOREPLACE = 1  # renameat2(2).
_DOTS = (b".", b"..")

Handler = Callable[[Header, Any], Awaitable[bytes | memoryview]]


class Refused(Exception):
    """An answer that is an errno and has no error of vdisk behind it."""

    def __init__(self, number: int) -> None:
        super().__init__(os.strerror(number))
        self.errno = number


class Operations:
    """The handlers.  One whose reply opened something that nobody took is undone by `undo`.

    There is none for FLUSH: nothing waits in the daemon for a close.  Told so, the kernel does not
    ask again, and goes on writing dirty pages at each close.
    """

    def __init__(self, filesystem: FileSystem) -> None:
        self._fs = filesystem
        self._folders: dict[int, int] = {}  # Open folders by handle: their inode.
        self._handlers: dict[int, Handler] = {
            Opcode.LOOKUP: self._lookup,
            Opcode.GETATTR: self._getattr,
            Opcode.STATX: self._statx,
            Opcode.SETATTR: self._setattr,
            Opcode.OPEN: self._open,
            Opcode.CREATE: self._create,
            Opcode.READ: self._read,
            Opcode.WRITE: self._write,
            Opcode.FSYNC: self._fsync,
            Opcode.RELEASE: self._release,
            Opcode.OPENDIR: self._opendir,
            Opcode.READDIR: self._readdir,
            Opcode.READDIRPLUS: self._readdirplus,
            Opcode.RELEASEDIR: self._releasedir,
            Opcode.FSYNCDIR: self._nothing,
            Opcode.DESTROY: self._nothing,
            Opcode.STATFS: self._statfs,
            Opcode.UNLINK: self._unlink,
            Opcode.RENAME: self._rename,
            Opcode.RENAME2: self._rename,
            Opcode.FALLOCATE: self._fallocate,
            Opcode.LSEEK: self._lseek,
            Opcode.COPY_FILE_RANGE: self._copy,
            Opcode.COPY_FILE_RANGE_64: self._copy_64,
            Opcode.GETXATTR: self._getxattr,
            Opcode.LISTXATTR: self._listxattr,
            Opcode.SETXATTR: self._setxattr,
            Opcode.REMOVEXATTR: self._removexattr,
            # There are no folders, links or devices to be made: a store holds disks.
            **dict.fromkeys(
                (Opcode.MKDIR, Opcode.RMDIR, Opcode.MKNOD, Opcode.SYMLINK, Opcode.LINK),
                self._not_permitted,
            ),
        }

    async def answer(self, header: Header, message: Any) -> bytes | memoryview:
        """The body of the reply.  Raises Refused, or what `FileSystem` raises.

        A memoryview is good until the next await.
        """
        try:
            handler = self._handlers[header.opcode]
        except KeyError:
            raise Refused(errno.ENOSYS) from None
        return await handler(header, message)

    async def undo(self, header: Header, body: bytes | memoryview) -> None:
        """Nobody took the reply: end what it opened."""
        if header.opcode == Opcode.OPENDIR:
            await self._releasedir(header, Handle(replies.opened_handle(body)))
        elif header.opcode in (Opcode.OPEN, Opcode.CREATE):
            await self._fs.release(replies.opened_handle(body))

    # Names and attributes

    async def _lookup(self, header: Header, message: Lookup) -> bytes:
        return _entry(await self._fs.lookup(header.node, os.fsdecode(message.name)))

    async def _getattr(self, header: Header, message: Getattr) -> bytes:
        found = await self._fs.attributes(header.node)
        return replies.attributes(_attr(found), found.attribute_seconds)

    async def _statx(self, header: Header, message: Getattr) -> bytes:
        found = await self._fs.attributes(header.node)
        found.birth_ns = await self._fs.birth_ns(header.node)
        return replies.statx(_attr(found), found.attribute_seconds)

    async def _setattr(self, header: Header, message: Setattr) -> bytes:
        found = await self._fs.change(header.node, _change(message), message.fh)
        return replies.attributes(_attr(found), found.attribute_seconds)

    async def _unlink(self, header: Header, message: Lookup) -> bytes:
        await self._fs.remove(header.node, os.fsdecode(message.name))
        return b""

    async def _rename(self, header: Header, message: Rename) -> bytes:
        if message.flags & ~_RENAME_NOREPLACE:
            raise Refused(errno.EINVAL)
        await self._fs.rename(
            header.node, os.fsdecode(message.old_name),
            message.new_folder, os.fsdecode(message.new_name),
            replace=not message.flags & _RENAME_NOREPLACE,
        )  # fmt: skip
        return b""

    async def _not_permitted(self, header: Header, message: Any) -> bytes:
        raise Refused(errno.EPERM)

    # Open files

    async def _open(self, header: Header, message: Open) -> bytes:
        return _opened(await self._fs.open(header.node, message.flags))

    async def _create(self, header: Header, message: Create) -> bytes:
        attributes, opened = await self._fs.create(
            header.node, os.fsdecode(message.name), message.mode, message.flags
        )
        return _entry(attributes) + _opened(opened)

    async def _read(self, header: Header, message: Read) -> bytes | memoryview:
        return await self._fs.read(message.fh, message.offset, message.size)

    async def _write(self, header: Header, message: Write) -> bytes:
        return replies.written(
            await self._fs.write(message.fh, message.offset, message.data)
        )

    async def _fsync(self, header: Header, message: Handle) -> bytes:
        await self._fs.flush(message.fh)
        return b""

    async def _release(self, header: Header, message: Handle) -> bytes:
        await self._fs.release(message.fh)
        return b""

    async def _nothing(self, header: Header, message: Any) -> bytes:
        """Names are changed in the host at once; and nothing is kept for the kernel's last word."""
        return b""

    async def _fallocate(self, header: Header, message: Fallocate) -> bytes:
        await ranges.allocate(
            self._fs, message.fh, message.mode, message.offset, message.length
        )
        return b""

    async def _lseek(self, header: Header, message: Lseek) -> bytes:
        return replies.number(
            await ranges.seek(self._fs, message.fh, message.offset, message.whence)
        )

    async def _copied(self, message: CopyFileRange) -> int:
        return await ranges.copy(
            self._fs, message.fh_in, message.offset_in, message.fh_out, message.offset_out,
            message.length,
        )  # fmt: skip

    async def _copy(self, header: Header, message: CopyFileRange) -> bytes:
        return replies.written(await self._copied(message))

    async def _copy_64(self, header: Header, message: CopyFileRange) -> bytes:
        return replies.number(await self._copied(message))

    # Folders

    async def _opendir(self, header: Header, message: Open) -> bytes:
        handle = self._fs.open_folder(header.node)
        self._folders[handle] = header.node
        return replies.opened(handle, OpenFlag(0))

    async def _releasedir(self, header: Header, message: Handle) -> bytes:
        self._folders.pop(message.fh, None)
        self._fs.release_folder(message.fh)
        return b""

    async def _readdir(self, header: Header, message: Read) -> bytes:
        def listed(name: bytes, found: Attributes, position: int) -> bytes:
            return replies.dirent(found.inode, found.mode, name, position)

        return await self._listing(message, listed)

    async def _readdirplus(self, header: Header, message: Read) -> bytes:
        def listed(name: bytes, found: Attributes, position: int) -> bytes:
            # Node 0: the kernel is to learn nothing of "." and "..", which are no look-ups.
            entry = _entry(found, node=0 if name in _DOTS else found.inode)
            return replies.direntplus(entry, found.inode, found.mode, name, position)

        return await self._listing(message, listed)

    async def _listing(
        self, message: Read, listed: Callable[[bytes, Attributes, int], bytes]
    ) -> bytes:
        """As many names from position `message.offset` on as fit into `message.size` bytes.

        Positions 0 and 1 are "." and ".."; those of `FileSystem.entries` come after them.
        """
        inode = self._folders.get(message.fh)
        if inode is None:
            raise Refused(errno.EBADF)
        body, at = bytearray(), message.offset
        while True:
            if at < len(_DOTS):
                page = [(_DOTS[at], await self._fs.attributes(inode), at + 1)]
            else:
                found = await self._fs.entries(message.fh, inode, at - len(_DOTS))
                page = [(os.fsencode(n), a, after + len(_DOTS)) for n, a, after in found]
            if not page:
                return bytes(body)
            for name, attributes, after in page:
                part = listed(name, attributes, after)
                if len(body) + len(part) > message.size:
                    return bytes(body)
                body += part
                at = after

    async def _statfs(self, header: Header, message: Empty) -> bytes:
        space = await self._fs.space()
        unit = 4096
        return replies.statfs(
            replies.Space(space.total // unit, space.free // unit, space.available // unit, unit)
        )

    # Extended attributes

    async def _getxattr(self, header: Header, message: Getxattr) -> bytes:
        name = os.fsdecode(message.name)
        if not name.startswith("user."):
            raise Refused(errno.EOPNOTSUPP if name.startswith("system.") else errno.ENODATA)
        disk = xattrs.disk_of(self._fs, header.node)
        return _sized(xattrs.get(disk, name).encode(), message.size)

    async def _listxattr(self, header: Header, message: Getxattr) -> bytes:
        found = xattrs.names_of(self._fs, header.node)
        return _sized(b"".join(os.fsencode(name) + b"\0" for name in found), message.size)

    async def _setxattr(self, header: Header, message: Setxattr) -> bytes:
        value = message.value.decode("ascii", "replace")
        await self._change_xattr(header, os.fsdecode(message.name), value)
        return b""

    async def _removexattr(self, header: Header, message: Lookup) -> bytes:
        await self._change_xattr(header, os.fsdecode(message.name), None)
        return b""

    async def _change_xattr(self, header: Header, name: str, value: str | None) -> None:
        disk = xattrs.disk_of(self._fs, header.node)
        await self._fs.in_thread(disk, xattrs.change, disk, name, value)


def _sized(value: bytes, size: int) -> bytes:
    """An attribute's value for a buffer of `size` bytes; of size 0, how long it is."""
    if size == 0:
        return replies.value_size(len(value))
    if len(value) > size:
        raise Refused(errno.ERANGE)
    return value


def _change(message: Setattr) -> Change:
    valid, now = message.valid, time.time_ns()
    atime = now if valid & SetattrFlag.ATIME_NOW else message.atime_ns
    mtime = now if valid & SetattrFlag.MTIME_NOW else message.mtime_ns
    return Change(
        size=message.size if valid & SetattrFlag.SIZE else None,
        mode=message.mode if valid & SetattrFlag.MODE else None,
        uid=message.uid if valid & SetattrFlag.UID else None,
        gid=message.gid if valid & SetattrFlag.GID else None,
        atime_ns=atime if valid & SetattrFlag.ATIME else None,
        mtime_ns=mtime if valid & SetattrFlag.MTIME else None,
    )


def _attr(found: Attributes) -> replies.Attr:
    return replies.Attr(
        found.inode, found.mode, found.size, found.blocks, found.links, found.uid, found.gid,
        found.atime_ns, found.mtime_ns, found.ctime_ns, found.birth_ns,
    )  # fmt: skip


def _entry(found: Attributes, node: int | None = None) -> bytes:
    return replies.entry(
        found.inode if node is None else node, _attr(found), found.entry_seconds,
        found.attribute_seconds,
    )  # fmt: skip


def _opened(opened: Opened) -> bytes:
    flags = OpenFlag(0)
    if opened.direct:
        flags |= OpenFlag.DIRECT_IO | OpenFlag.PARALLEL_DIRECT_WRITES
    if opened.keep:
        flags |= OpenFlag.KEEP_CACHE
    if opened.backing:
        flags |= OpenFlag.PASSTHROUGH
    return replies.opened(opened.handle, flags, opened.backing)
