"""The FUSE server on pyfuse3: requests in, `FileSystem` calls, replies out."""

from __future__ import annotations

import errno
import logging
import os
import sys
from collections.abc import Callable, Coroutine
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import pyfuse3
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

from mount.errors import errno_of
from mount.filesystem import Attributes, Change, FileSystem, Opened
from mount.kernel.device import Device
from mount.pyfuse3_loop import adapt_loop
from mount.server import Ability, Place, Server
from vdisk.errors import DiskError, HostError

# The kernel has as many requests under way as its clients make, and each holds a task.  A limit
# here could fill up with writes that wait for a page which only a further request can unlock.
_TASKS_MAX = 1_000_000
_TASKS_KEPT = 20

_DOTS = (FileNameT(b"."), FileNameT(b".."))

_log = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")


def _answered(
    handler: Callable[P, Coroutine[Any, Any, R]],
) -> Callable[P, Coroutine[Any, Any, R]]:
    """Turn what a handler raises into an errno; a mistake of ours is EIO, told in the log."""

    @wraps(handler)
    async def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        if _log.isEnabledFor(logging.DEBUG):
            _log.debug("%s%r", handler.__name__, args[1:])
        try:
            return await handler(*args, **kwargs)
        except DiskError as error:
            number = errno_of(error)
            if number == errno.EIO:
                _log.error("%s", error)
            raise FUSEError(number) from error
        except FUSEError:
            raise
        except Exception as error:
            _log.exception("a request failed for a reason of our own: please report it")
            raise FUSEError(errno.EIO) from error

    return wrapper


class Operations(pyfuse3.Operations):
    """`FileSystem` as pyfuse3 asks for it.

    Extended attributes are left to pyfuse3's default, ENOSYS: once told so, the kernel stops
    asking for security.capability before every write.
    """

    supports_dot_lookup = False
    enable_writeback_cache = False

    def __init__(self, filesystem: FileSystem) -> None:
        super().__init__()
        self._fs = filesystem
        self._folders: dict[int, InodeT] = {}  # Open folders by handle.

    @_answered
    async def lookup(
        self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext
    ) -> EntryAttributes:
        return _entry(await self._fs.lookup(parent_inode, os.fsdecode(name)))

    @_answered
    async def getattr(self, inode: InodeT, ctx: RequestContext) -> EntryAttributes:
        return _entry(await self._fs.attributes(inode))

    @_answered
    async def setattr(
        self,
        inode: InodeT,
        attr: EntryAttributes,
        fields: SetattrFields,
        fh: FileHandleT | None,
        ctx: RequestContext,
    ) -> EntryAttributes:
        change = Change(
            size=attr.st_size if fields.update_size else None,
            mode=attr.st_mode if fields.update_mode else None,
            uid=attr.st_uid if fields.update_uid else None,
            gid=attr.st_gid if fields.update_gid else None,
            atime_ns=attr.st_atime_ns if fields.update_atime else None,
            mtime_ns=attr.st_mtime_ns if fields.update_mtime else None,
        )
        return _entry(await self._fs.change(inode, change, fh))

    @_answered
    async def open(self, inode: InodeT, flags: FlagT, ctx: RequestContext) -> FileInfo:
        return _file(await self._fs.open(inode, flags))

    @_answered
    async def create(
        self,
        parent_inode: InodeT,
        name: FileNameT,
        mode: ModeT,
        flags: FlagT,
        ctx: RequestContext,
    ) -> tuple[FileInfo, EntryAttributes]:
        attributes, opened = await self._fs.create(
            parent_inode, os.fsdecode(name), mode & ~ctx.umask, flags
        )
        return _file(opened), _entry(attributes)

    async def read(self, fh: FileHandleT, off: int, size: int) -> bytes:
        try:
            return await self._fs.read(fh, off, size)  # type: ignore[return-value]  # Any buffer will do.
        except DiskError as error:
            _log.error("%s", error)
            raise FUSEError(errno_of(error)) from error

    async def write(self, fh: FileHandleT, off: int, buf: bytes) -> int:
        try:
            return await self._fs.write(fh, off, buf)
        except DiskError as error:
            raise FUSEError(errno_of(error)) from error

    @_answered
    async def flush(self, fh: FileHandleT) -> None:
        """Nothing waits in the daemon for a close."""

    @_answered
    async def fsync(self, fh: FileHandleT, datasync: bool) -> None:
        await self._fs.flush(fh)

    @_answered
    async def release(self, fh: FileHandleT) -> None:
        await self._fs.release(fh)

    @_answered
    async def opendir(self, inode: InodeT, ctx: RequestContext) -> FileHandleT:
        handle = self._fs.open_folder(inode)
        self._folders[handle] = inode
        return FileHandleT(handle)

    @_answered
    async def readdir(self, fh: FileHandleT, start_id: int, token: ReaddirToken) -> None:
        at = start_id
        while at < len(_DOTS):
            folder = _entry(await self._fs.attributes(self._folders[fh]))
            at += 1
            if not pyfuse3.readdir_reply(token, _DOTS[at - 1], folder, at):
                return
        while page := await self._fs.entries(fh, self._folders[fh], at - len(_DOTS)):
            for name, attributes, after in page:
                at = after + len(_DOTS)
                if not pyfuse3.readdir_reply(
                    token, FileNameT(os.fsencode(name)), _entry(attributes), at
                ):
                    return

    @_answered
    async def releasedir(self, fh: FileHandleT) -> None:
        self._folders.pop(fh, None)
        self._fs.release_folder(fh)

    @_answered
    async def fsyncdir(self, fh: FileHandleT, datasync: bool) -> None:
        """Names are changed in the host at once."""

    @_answered
    async def statfs(self, ctx: RequestContext) -> StatvfsData:
        space = await self._fs.space()
        answer = StatvfsData()
        answer.f_bsize = answer.f_frsize = 4096
        answer.f_blocks = space.total // 4096
        answer.f_bfree = space.free // 4096
        answer.f_bavail = space.available // 4096
        answer.f_files = answer.f_ffree = answer.f_favail = 0
        answer.f_namemax = 255
        return answer

    @_answered
    async def unlink(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> None:
        await self._fs.remove(parent_inode, os.fsdecode(name))

    @_answered
    async def rename(
        self,
        parent_inode_old: InodeT,
        name_old: FileNameT,
        parent_inode_new: InodeT,
        name_new: FileNameT,
        flags: FlagT,
        ctx: RequestContext,
    ) -> None:
        if flags & ~pyfuse3.RENAME_NOREPLACE:
            raise FUSEError(errno.EINVAL)
        await self._fs.rename(
            parent_inode_old, os.fsdecode(name_old), parent_inode_new, os.fsdecode(name_new),
            replace=not flags & pyfuse3.RENAME_NOREPLACE,
        )

    # There are no folders, links or devices to be made: a store holds disks.

    async def mkdir(
        self, parent_inode: InodeT, name: FileNameT, mode: ModeT, ctx: RequestContext
    ) -> EntryAttributes:
        raise FUSEError(errno.EPERM)

    async def rmdir(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> None:
        raise FUSEError(errno.EPERM)

    async def mknod(
        self, parent_inode: InodeT, name: FileNameT, mode: ModeT, rdev: int, ctx: RequestContext
    ) -> EntryAttributes:
        raise FUSEError(errno.EPERM)

    async def symlink(
        self, parent_inode: InodeT, name: FileNameT, target: FileNameT, ctx: RequestContext
    ) -> EntryAttributes:
        raise FUSEError(errno.EPERM)

    async def link(
        self, inode: InodeT, new_parent_inode: InodeT, new_name: FileNameT, ctx: RequestContext
    ) -> EntryAttributes:
        raise FUSEError(errno.EPERM)

    async def forget(self, inode_list: Any) -> None:
        """Nodes are computed from their numbers; there is nothing to forget."""


def _is_worth_telling(record: logging.LogRecord) -> bool:
    """Not so a reply that nobody waits for any more: ENOENT, of a client that was killed."""
    return not ("fuse_reply_" in record.msg and record.args == (os.strerror(errno.ENOENT),))


class Pyfuse3Server(Server):
    """The server on pyfuse3 and libfuse.  There can be one in a process."""

    name = "pyfuse3"

    @property
    def abilities(self) -> frozenset[Ability]:
        """None of them: pyfuse3 does not carry these requests."""
        return frozenset()

    def start(self, filesystem: FileSystem, place: Place) -> None:
        logging.getLogger(pyfuse3.__name__).addFilter(_is_worth_telling)
        try:
            with _StandardErrorKept() as said:
                pyfuse3.init(Operations(filesystem), place.mountpoint, _options(place))
        except RuntimeError as error:
            reason = said() or str(error)
            raise HostError(
                f"cannot mount: {reason}", errno=errno.EIO, path=place.mountpoint
            ) from error
        device = _fuse_device()
        adapt_loop(device)
        filesystem.invalidate = Device(device).invalidate

    async def serve(self) -> None:
        await pyfuse3.main(min_tasks=_TASKS_KEPT, max_tasks=_TASKS_MAX)

    def stop(self) -> None:
        pyfuse3.close(unmount=True)


def _options(place: Place) -> set[str]:
    # libfuse takes a comma as the end of an option unless a backslash stands before it.
    source = place.source.replace("\\", "\\\\").replace(",", "\\,")
    chosen = {f"fsname={source}", f"subtype={place.subtype}", "default_permissions"}
    chosen |= place.flags
    if place.allow_other:
        chosen.add("allow_other")
    if place.read_only:
        chosen.add("ro")
    if place.debug:
        chosen.add("debug")
    return chosen


def _fuse_device() -> int:
    """The descriptor of /dev/fuse that libfuse opened; notifications are written to it.

    pyfuse3 can only invalidate a whole inode, which would empty the cache of a disk for each
    sector written to one of its partitions.
    """
    for link in Path("/proc/self/fd").iterdir():
        try:
            if os.readlink(link) == "/dev/fuse":
                return int(link.name)
        except OSError:
            continue
    raise HostError("the FUSE device is not open", errno=errno.ENODEV, path="/dev/fuse")


class _StandardErrorKept:
    """Catch what libfuse and fusermount3 print, which is the only reason they give."""

    def __enter__(self) -> Callable[[], str]:
        sys.stderr.flush()
        self._saved = os.dup(2)
        self._file = os.memfd_create("stderr", os.MFD_CLOEXEC)
        os.dup2(self._file, 2)
        return self._said

    def __exit__(self, *exception: object) -> None:
        os.dup2(self._saved, 2)
        os.close(self._saved)

    def _said(self) -> str:
        text = os.pread(self._file, 4096, 0).decode("utf-8", "replace")
        lines = [line.removeprefix("fusermount3: ").removeprefix("fuse: ")
                 for line in text.splitlines() if line.strip()]
        return "; ".join(lines)


def _entry(attributes: Attributes) -> EntryAttributes:
    entry = EntryAttributes()
    entry.st_ino = InodeT(attributes.inode)
    entry.st_mode = ModeT(attributes.mode)
    entry.st_nlink = attributes.links
    entry.st_uid = attributes.uid
    entry.st_gid = attributes.gid
    entry.st_size = attributes.size
    entry.st_blocks = attributes.blocks
    entry.st_blksize = 4096
    entry.st_atime_ns = attributes.atime_ns
    entry.st_mtime_ns = attributes.mtime_ns
    entry.st_ctime_ns = attributes.ctime_ns
    entry.entry_timeout = attributes.entry_seconds
    entry.attr_timeout = attributes.attribute_seconds
    return entry


def _file(opened: Opened) -> FileInfo:
    return FileInfo(
        fh=FileHandleT(opened.handle), direct_io=opened.direct, keep_cache=opened.keep
    )
