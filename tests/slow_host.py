"""A folder served through FUSE that keeps requests waiting on command: a host that has become slow.

Run as a program with a folder and a mountpoint, it shows the folder's files, as they are, on the
mountpoint.  Nothing is cached by the kernel, so every request on a host file comes here.  Words on
standard input are answered on standard output, a line each:

    hold KIND …    from now on, requests of these kinds wait
    release        all that wait are answered, and no others wait

and each request that begins to wait is told as a line with its kind: read, write, fsync, getattr,
open, lookup or statfs.  It ends, and gives the mountpoint back, when its standard input does.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pyfuse3
import trio
from pyfuse3 import (
    EntryAttributes,
    FileHandleT,
    FileInfo,
    FileNameT,
    FlagT,
    FUSEError,
    InodeT,
    ModeT,
    ReaddirToken,
    RequestContext,
    SetattrFields,
    StatvfsData,
)


class Gate:
    """What holds requests; they pass it one by one."""

    def __init__(self) -> None:
        self.held: set[str] = set()
        self._waiting = trio.lowlevel.ParkingLot()

    async def passed(self, kind: str) -> None:
        """Returns when requests of that kind need not wait."""
        if kind in self.held:
            say(kind)
            await self._waiting.park()

    def release(self) -> None:
        """Let everything through, now and from now on."""
        self.held.clear()
        self._waiting.unpark_all()


class Host(pyfuse3.Operations):
    """The files of one folder, which has no folders in it."""

    supports_dot_lookup = False
    enable_writeback_cache = False

    def __init__(self, folder: Path, gate: Gate) -> None:
        super().__init__()
        self._folder = folder
        self._gate = gate
        self._names = sorted(os.listdir(folder))

    def _path(self, inode: int) -> Path:
        if inode == pyfuse3.ROOT_INODE:
            return self._folder
        return self._folder / self._names[inode - 2]

    def _entry(self, inode: int) -> EntryAttributes:
        found = os.stat(self._path(inode))
        entry = EntryAttributes()
        entry.st_ino = InodeT(inode)
        entry.st_mode = ModeT(found.st_mode)
        entry.st_nlink = found.st_nlink
        entry.st_uid, entry.st_gid = found.st_uid, found.st_gid
        entry.st_size, entry.st_blocks = found.st_size, found.st_blocks
        entry.st_atime_ns, entry.st_mtime_ns = found.st_atime_ns, found.st_mtime_ns
        entry.st_ctime_ns = found.st_ctime_ns
        entry.entry_timeout = entry.attr_timeout = 0
        return entry

    async def lookup(
        self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext
    ) -> EntryAttributes:
        await self._gate.passed("lookup")
        try:
            return self._entry(self._names.index(os.fsdecode(name)) + 2)
        except ValueError:
            raise FUSEError(errno.ENOENT) from None

    async def getattr(self, inode: InodeT, ctx: RequestContext) -> EntryAttributes:
        await self._gate.passed("getattr")
        return self._entry(inode)

    async def setattr(
        self, inode: InodeT, attr: EntryAttributes, fields: SetattrFields,
        fh: FileHandleT | None, ctx: RequestContext,
    ) -> EntryAttributes:  # fmt: skip
        if fields.update_size:
            os.truncate(self._path(inode), attr.st_size)
        return self._entry(inode)

    async def open(self, inode: InodeT, flags: FlagT, ctx: RequestContext) -> FileInfo:
        await self._gate.passed("open")
        fd = os.open(self._path(inode), flags & os.O_ACCMODE)
        return FileInfo(fh=FileHandleT(fd), direct_io=True)

    async def read(self, fh: FileHandleT, off: int, size: int) -> bytes:
        await self._gate.passed("read")
        return os.pread(fh, size, off)

    async def write(self, fh: FileHandleT, off: int, buf: bytes) -> int:
        await self._gate.passed("write")
        return os.pwrite(fh, buf, off)

    async def flush(self, fh: FileHandleT) -> None:
        """Nothing waits here for a close."""

    async def fsync(self, fh: FileHandleT, datasync: bool) -> None:
        await self._gate.passed("fsync")

    async def release(self, fh: FileHandleT) -> None:
        os.close(fh)

    async def opendir(self, inode: InodeT, ctx: RequestContext) -> FileHandleT:
        return FileHandleT(inode)

    async def readdir(self, fh: FileHandleT, start_id: int, token: ReaddirToken) -> None:
        for at in range(start_id, len(self._names)):
            name = FileNameT(os.fsencode(self._names[at]))
            if not pyfuse3.readdir_reply(token, name, self._entry(at + 2), at + 1):
                return

    async def releasedir(self, fh: FileHandleT) -> None:
        """There is nothing to forget."""

    async def statfs(self, ctx: RequestContext) -> StatvfsData:
        await self._gate.passed("statfs")
        found = os.statvfs(self._folder)
        answer = StatvfsData()
        answer.f_bsize, answer.f_frsize = found.f_bsize, found.f_frsize
        answer.f_blocks, answer.f_bfree = found.f_blocks, found.f_bfree
        answer.f_bavail, answer.f_namemax = found.f_bavail, found.f_namemax
        return answer


def say(text: str) -> None:
    """One line for whoever gave the command."""
    os.write(1, f"{text}\n".encode())


async def obey(gate: Gate) -> None:
    """Do what standard input says, until it ends."""
    said = b""
    async with trio.lowlevel.FdStream(os.dup(0)) as commands:
        async for more in commands:
            *lines, said = (said + more).split(b"\n")
            for word, *kinds in (line.decode().split() for line in lines):
                if word == "hold":
                    gate.held.update(kinds)
                else:
                    gate.release()
                say(word)


async def serve(folder: Path, mountpoint: Path) -> None:
    """Show `folder` on `mountpoint` until standard input ends."""
    gate = Gate()
    pyfuse3.init(Host(folder, gate), str(mountpoint), {"fsname=slow", "default_permissions"})
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_run, pyfuse3.main(max_tasks=10_000), nursery)
            say("mounted")
            await obey(gate)
            gate.release()
            nursery.cancel_scope.cancel()
    finally:
        pyfuse3.close(unmount=True)


async def _run(work: Coroutine[Any, Any, None], nursery: trio.Nursery) -> None:
    await work
    nursery.cancel_scope.cancel()


if __name__ == "__main__":
    assert stat.S_ISDIR(os.stat(sys.argv[2]).st_mode)
    trio.run(serve, Path(sys.argv[1]), Path(sys.argv[2]))
