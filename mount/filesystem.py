"""The operations on the mounted folder, once, for every server.

A server turns requests into calls of `FileSystem` and its answers into replies; it knows nothing
of disks.  Everything raised on purpose is a `DiskError`.

All methods run in one trio thread.  What may wait for a host file is done in a worker thread
(`in_thread`); reads and writes of bytes that the host has at hand are answered in line.  Shared
state changes only between awaits; ARCHITECTURE.md says which invariants hold there.
"""

from __future__ import annotations

import json
import logging
import math
import os
import stat
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import trio

from mount.errors import Gone
from mount.inodes import FOLDERS, META, REPORTS, ROOT, NodeKind, unpack
from mount.tree import META_NAME, DiskNode, Found, Tree
from mount.views import Backing, View
from vdisk.birth import birth_ns
from vdisk.describe import allocated_bytes, describe, geometry_text, map_lines
from vdisk.disk import SIZE_MAX
from vdisk.errors import (
    Busy,
    DiskError,
    Exists,
    HostError,
    InvalidArgument,
    NotFound,
    NotPermitted,
    OutOfRange,
    ReadOnly,
)
from vdisk.host import HostFile
from vdisk.image_disk import ImageDisk
from vdisk.open import refit, resize_disk
from vdisk.store import Space, Store

REQUEST_BYTES_MAX = 1 << 20
"""The largest read or write a server asks for."""

_WORKERS_A_DISK = 64  # Threads one slow disk can hold; another disk has its own.
_CLOSE_SECONDS = 0.5  # How long a close that is still on its way may hold up rm, mv or truncate.
_DISK_ENTRY_SECONDS = 1.0
_FOLDER_SECONDS = 0.25  # How long an answer about a store's own folder is waited for.
_BLOCK_BYTES = 4096

_log = logging.getLogger(__name__)
T = TypeVar("T")

Invalidate = Callable[[int, int, int], None]
"""`invalidate(inode, offset, length)`: have the kernel drop those pages.  Blocks; any thread."""
Back = Callable[[HostFile], Backing]
"""`back(host)`: have the kernel reach a host file by itself.  Any thread."""

on_begin: ContextVar[Callable[[], None]] = ContextVar("on_begin", default=lambda: None)
"""Called in a request's task when its work on the host begins: from then on it is not given up."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How the folder is shown.  `uid` and `gid` None: the host file's.  `umask` takes bits off."""

    read_only: bool = False
    uid: int | None = None
    gid: int | None = None
    umask: int = 0


@dataclass(slots=True)
class Attributes:
    """What stat(2) shows.  `entry_seconds` and `attribute_seconds` say how long it may be kept."""

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
    entry_seconds: float = _DISK_ENTRY_SECONDS
    attribute_seconds: float = _DISK_ENTRY_SECONDS


@dataclass(frozen=True, slots=True)
class Change:
    """What a setattr asks for; None: not asked."""

    size: int | None = None
    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    atime_ns: int | None = None
    mtime_ns: int | None = None


@dataclass(frozen=True, slots=True)
class Opened:
    """An open file.  `direct`: the kernel keeps no pages.  `keep`: pages it has are still right.

    `backing`: the number of the host file whose pages it has, 0 for none.
    """

    handle: int
    direct: bool
    keep: bool
    backing: int = 0


@dataclass(slots=True)
class OpenFile:
    """An open view of a disk."""

    node: DiskNode
    view: View
    writable: bool

    @property
    def can_grow(self) -> bool:
        """Whether it is a whole disk that was created through the mount and not closed since."""
        return self.node.growing and self.view is self.node.whole


class _Report:
    """An open report: text made in parts, read forward; another look starts over."""

    def __init__(self, node: DiskNode, make: Callable[[], Iterator[str]]) -> None:
        self.node = node
        self._make = make
        self._parts = make()
        self._text = b""
        self._start = 0

    def read(self, offset: int, length: int) -> bytes:
        """`length` bytes from `offset`, fewer at the end."""
        if offset < self._start:
            self._parts, self._text, self._start = self._make(), b"", 0
        while self._start + len(self._text) < offset + length:
            part = "".join(islice(self._parts, 1024)).encode("utf-8", "surrogateescape")
            if not part:
                break
            keep = max(0, min(len(self._text), offset - self._start))
            self._text, self._start = self._text[keep:] + part, self._start + keep
        at = offset - self._start
        return self._text[at : at + length]


class FileSystem:
    """The mounted folder's operations.

    `invalidate`, and `back` where it can, are set by the server that carries them.
    """

    def __init__(self, tree: Tree, settings: Settings) -> None:
        self.tree = tree
        self.settings = settings
        self.invalidate: Invalidate = lambda inode, offset, length: None
        self.back: Back | None = None
        self._handles: dict[int, OpenFile] = {}
        self._reports: dict[int, _Report] = {}
        self._listings: dict[int, list[tuple[str, int]]] = {}
        self._next_handle = 0
        self._buffer = memoryview(bytearray(REQUEST_BYTES_MAX))
        self._limiters: dict[int, trio.CapacityLimiter] = {}
        self._threads = trio.CapacityLimiter(math.inf)  # Each disk has a limit of its own.
        self._invalidations = trio.CapacityLimiter(16)
        self._folder_limiter = trio.CapacityLimiter(1)
        self._folder_seen: os.stat_result | None = None
        self._folder_patience = 0.0  # Until when a folder that did not answer is not asked again.
        self._drops = 0  # Of pages, under way.
        self._ending = False
        self._store_lock = trio.Lock()  # Creation, removal, renaming and scanning, one at a time.
        self._growth_locks: defaultdict[int, trio.Lock] = defaultdict(trio.Lock)
        self._refresh_locks: WeakKeyDictionary[DiskNode, trio.Lock] = WeakKeyDictionary()
        self._idle = trio.lowlevel.ParkingLot()  # Woken when a handle, a use or a drop ends.

    # Names

    async def lookup(self, parent: int, name: str) -> Attributes:
        """The node of that name in a folder.  NotFound.

        The kernel may look up one name of a folder at a time, so a disk whose host does not answer
        must not hold up the names of others: of one that may have to wait, this tells what was
        seen last, and that it is not to be kept.
        """
        if parent == META:
            await self._disk_named(name)  # It may be new in the store.
        if parent != ROOT:
            return await self.attributes(self.tree.lookup_below(parent, name))
        if name == META_NAME:
            return await self.attributes(META)
        found = await self._partition_named(name)
        if found is None:
            node = await self._disk_named(name)
            # Else its disk may be new in the store, and only now be known.
            found = (node, node.whole) if node else await self._partition_named(name)
        if found is None:
            raise NotFound("no such disk", path=name)
        return await self._disk_attributes(*found, patient=False)

    async def _partition_named(self, name: str) -> tuple[DiskNode, View] | None:
        owner = self.tree.partition_owner(name)
        if owner is None or name in self.tree.nodes:
            return None
        node, part = owner
        await self._refresh(node)
        view = node.partitions.get(part)
        return None if view is None else (node, view)

    async def _disk_named(self, name: str) -> DiskNode | None:
        node = self.tree.nodes.get(name)
        if node is None or not await trio.to_thread.run_sync(self.tree.is_unchanged, node.store):
            await self._rescan()
        return self.tree.resolve(name)

    async def _rescan(self) -> None:
        if await trio.to_thread.run_sync(self.tree.is_current):
            return
        async with self._store_lock:
            if not await trio.to_thread.run_sync(self.tree.is_current):
                await self._scan()

    async def _scan(self) -> None:
        """Show what the stores hold now.  The caller has the store lock."""
        known = self.tree.known()
        self.tree.show(await trio.to_thread.run_sync(self.tree.look, known))

    async def _refresh(self, node: DiskNode) -> None:
        if node.views.bypassed:
            node.stale = True  # It may have been written where we do not see it.
        lock = self._refresh_locks.setdefault(node, trio.Lock())
        if node.stale or lock.locked():  # Who comes while the table is read needs it as well.
            async with lock:
                if node.stale and not node.removed:
                    await self.in_thread(node, node.refresh)

    def open_folder(self, inode: int) -> int:
        """A handle for `entries`; `release_folder` ends it."""
        return self._new_handle(inode)

    def release_folder(self, handle: int) -> None:
        """Forget a folder's handle."""
        self._listings.pop(handle, None)

    async def entries(
        self, handle: int, inode: int, start: int
    ) -> list[tuple[str, Attributes, int]]:
        """Some (name, attributes, next start) of a folder from `start` on; none at its end."""
        if inode == META and start == 0:
            await self._rescan()
        if inode != ROOT:
            page = list(islice(self.tree.entries_below(inode, start), 64))
            return [(name, await self.attributes(node), after) for name, node, after in page]
        if handle not in self._listings or start == 0:
            self._listings[handle] = await self._root_names()
        found = []
        listed = self._listings[handle]
        for at in range(start, min(start + 64, len(listed))):
            name, inode = listed[at]
            try:
                found.append((name, await self.attributes(inode), at + 1))
            except NotFound:
                continue
        if not found and start + 64 < len(listed):
            return await self.entries(handle, ROOT, start + 64)
        return found

    async def _root_names(self) -> list[tuple[str, int]]:
        await self._rescan()
        names: list[tuple[str, int]] = []
        for node in list(self.tree.nodes.values()):
            await self._refresh(node)
            names.append((node.name, node.whole.inode))
            parts = ((f"{node.name}.{part}", v.inode) for part, v in node.partitions.items())
            names += [(name, inode) for name, inode in parts if name not in self.tree.nodes]
        return names

    # Attributes

    async def attributes(self, inode: int) -> Attributes:
        """What stat shows of a node.  NotFound once it is gone."""
        kind = _kind(inode)
        if kind is NodeKind.FOLDER:
            return await self._folder(inode)
        node = self.tree.node_of(inode)
        if kind in FOLDERS:
            return await self._folder(inode)
        if kind in REPORTS:
            found = await self._disk_attributes(node, node.whole)
            found.inode, found.mode, found.blocks = inode, stat.S_IFREG | 0o444, 0
            found.size = len(geometry_text(node.disk)) if kind is NodeKind.GEOMETRY else 0
            return found
        return await self._disk_attributes(*self.tree.view(inode))

    async def birth_ns(self, inode: int) -> int | None:
        """When the host file of a disk, or of a part of one, was made; None where it is not known.

        The time is in nanoseconds since 1970.
        """
        if _kind(inode) in FOLDERS or _kind(inode) in REPORTS:
            return None
        node = self.tree.node_of(inode)
        return await self.in_thread(node, birth_ns, node.disk.image.hosts()[0].fd)

    async def _folder(self, inode: int) -> Attributes:
        """A folder: the store's own, without what cannot be done in it."""
        found = await self._folder_status()
        mode = 0o555
        if inode == ROOT and not self.settings.read_only:
            mode |= 0o200 | (found.st_mode & 0o022)
        return Attributes(
            inode, stat.S_IFDIR | (mode & ~self.settings.umask), links=2,
            uid=self._uid(found), gid=self._gid(found),
            atime_ns=found.st_atime_ns, mtime_ns=found.st_mtime_ns, ctime_ns=found.st_ctime_ns,
        )

    async def _folder_status(self) -> os.stat_result:
        """The store's folder as it is; as it was seen last where its host does not answer.

        Every path into the mount begins with its folder, so a host that is gone must not hold up
        the disks that lie elsewhere.
        """
        if self._folder_seen is None:
            self._folder_seen = await trio.to_thread.run_sync(self.tree.stores[0].stat)
        elif trio.current_time() >= self._folder_patience:
            with trio.move_on_after(_FOLDER_SECONDS) as scope:
                self._folder_seen = await trio.to_thread.run_sync(
                    self.tree.stores[0].stat, limiter=self._folder_limiter, abandon_on_cancel=True
                )
            if scope.cancelled_caught:
                self._folder_patience = trio.current_time() + _DISK_ENTRY_SECONDS
        return self._folder_seen

    async def _disk_attributes(
        self, node: DiskNode, view: View, *, patient: bool = True
    ) -> Attributes:
        hosts = node.disk.image.hosts()
        is_local = all(host.is_local for host in hosts)
        if is_local:
            seen = _status(hosts)
        elif patient:
            seen = await self.in_thread(node, _status, hosts)
        else:
            seen = [host.status_seen for host in hosts]
        certain = patient or is_local
        found = seen[0]
        blocks = sum(status.st_blocks for status in seen)
        mode = found.st_mode & 0o666 & ~self.settings.umask
        if self.settings.read_only or node.disk.read_only:
            mode &= 0o444
        return Attributes(
            view.inode, stat.S_IFREG | mode, size=view.size,
            blocks=await self._blocks(node, view, blocks) if certain else blocks,
            uid=self._uid(found), gid=self._gid(found), atime_ns=found.st_atime_ns,
            mtime_ns=max(status.st_mtime_ns for status in seen),
            ctime_ns=max(status.st_ctime_ns for status in seen),
            entry_seconds=_entry_seconds(view),
            attribute_seconds=_DISK_ENTRY_SECONDS if certain else 0.0,
        )

    async def _blocks(self, node: DiskNode, view: View, of_disk: int) -> int:
        """512-byte blocks the host allocates for the view, and `of_disk` for all of its disk."""
        if view is node.whole:
            return of_disk
        if not view.cacheable:
            return -(-view.size // 512)
        return -(-int(await self.in_thread(node, allocated_bytes, view.as_disk)) // 512)

    def _uid(self, found: os.stat_result) -> int:
        return found.st_uid if self.settings.uid is None else self.settings.uid

    def _gid(self, found: os.stat_result) -> int:
        return found.st_gid if self.settings.gid is None else self.settings.gid

    async def change(self, inode: int, change: Change, handle: int | None) -> Attributes:
        """Resize, chmod, chown or touch.  `handle` is set where it came through an open file."""
        if self.settings.read_only:
            raise ReadOnly("is mounted read-only")
        kind = _kind(inode)
        if kind in FOLDERS or kind in REPORTS:
            raise NotPermitted("cannot be changed")
        node, view = self.tree.view(inode)
        if change.size is not None:
            await self._resize(node, view, change.size, handle)
        await self.in_thread(node, _apply, node, change)
        return await self._disk_attributes(node, view)

    async def _resize(self, node: DiskNode, view: View, size: int, handle: int | None) -> None:
        if size == view.size:
            return
        if view is not node.whole:
            raise NotPermitted(
                "a part of a disk cannot be resized", path=node.name, hint="change its table"
            )
        if size > SIZE_MAX:
            raise InvalidArgument("too large", path=node.name)
        async with self._exclusively(node, but=1 if handle in self._handles else 0):
            await self.in_thread(node, resize_disk, node.disk, size)
            node.resized()

    @asynccontextmanager
    async def _exclusively(self, node: DiskNode, but: int = 0) -> AsyncIterator[None]:
        """Nobody opens the disk meanwhile.  Busy unless it has no open handles, `but` so many.

        close(2) returns before the kernel tells us of it, so a handle that is on its way out is
        waited for; one that is truly open is not waited for long.
        """
        with trio.move_on_after(_CLOSE_SECONDS):
            while node.views.handles > but or node.exclusive:
                await self._idle.park()
        if node.views.handles > but or node.exclusive:
            raise Busy("is open", path=node.name, hint="close it first")
        node.exclusive = True
        try:
            yield
        finally:
            node.exclusive = False
            self._idle.unpark_all()

    # Open files

    async def open(self, inode: int, flags: int) -> Opened:
        """Open a file of the tree.  O_TRUNC changes nothing: it is a disk."""
        kind = _kind(inode)
        writable = flags & os.O_ACCMODE != os.O_RDONLY
        if writable and self.settings.read_only:
            raise ReadOnly("is mounted read-only")
        if kind in REPORTS:
            if writable:
                raise NotPermitted("cannot be written")
            return await self._open_report(inode, kind)
        node, view = self.tree.view(inode)
        if view is node.whole:
            await self.backing(node)
        while node.exclusive:
            await self._idle.park()
            node, view = self.tree.view(inode)
        if node.nameless or node.removed:
            raise Gone("no such disk any more", path=node.name)
        number = node.backing.number if view is node.whole and node.backing else 0
        direct, keep = node.views.opened(view, writable=writable, backed=number != 0)
        handle = self._new_handle(inode)
        self._handles[handle] = OpenFile(node, view, writable)
        return Opened(handle, direct, keep, number if view.passthrough else 0)

    async def backing(self, node: DiskNode) -> Backing:
        """How the kernel reaches the disk's host file by itself; number 0 where it cannot."""
        if node.backing is None:
            node.keep_backing(await self.in_thread(node, self._back, node))
        return node.backing or Backing()

    def _back(self, node: DiskNode) -> Backing:
        host, base = node.disk.window() or (None, 0)
        if self.back is None or host is None or base != 0 or host.is_block or not host.is_local:
            return Backing()
        if host.size() != node.disk.size:  # The kernel would read on, into a footer.
            return Backing()
        return self.back(host)

    async def _open_report(self, inode: int, kind: NodeKind) -> Opened:
        node = self.tree.node_of(inode)
        await self._refresh(node)
        handle = self._new_handle(inode)
        make = {
            NodeKind.GEOMETRY: lambda: iter([geometry_text(node.disk)]),
            NodeKind.INFO: lambda: iter([_info(node)]),
            NodeKind.MAP: lambda: map_lines(node.disk),
        }[kind]
        self._reports[handle] = _Report(node, make)
        return Opened(handle, direct=True, keep=False)

    def _new_handle(self, inode: int) -> int:
        self._next_handle += 1
        return self._next_handle

    async def read(self, handle: int, offset: int, length: int) -> bytes | memoryview:
        """Up to `length` bytes; fewer at the end.

        A memoryview is of a buffer that the next call uses again: send it before any await.
        """
        found = self.read_now(handle, offset, length)
        if found is not None:
            return found
        opened = self._handles.get(handle)
        if opened is None:
            return await self._read_report(handle, offset, length)
        view = opened.view
        length = max(min(length, view.size - offset), 0)
        return await self.in_thread(opened.node, view.disk.read, view.start + offset, length)

    def read_now(self, handle: int, offset: int, length: int) -> bytes | memoryview | None:
        """As `read`, if that needs no waiting; else None, and nothing is done."""
        opened = self._handles.get(handle)
        if opened is None:
            return None
        view = opened.view
        length = min(length, view.size - offset)
        if length <= 0:
            return b""
        if length > REQUEST_BYTES_MAX:
            return None
        buffer = self._buffer[:length]
        return buffer if view.try_read_into(offset, buffer) else None

    async def _read_report(self, handle: int, offset: int, length: int) -> bytes:
        report = self._reports.get(handle)
        if report is None:
            raise InvalidArgument("is not open")
        return await self.in_thread(report.node, report.read, offset, length)

    async def write(self, handle: int, offset: int, data: bytes | memoryview) -> int:
        """Write what fits; the bytes written.  OutOfRange where none does."""
        if self.write_now(handle, offset, data):
            return len(data)
        opened = self.open_file(handle)
        view = opened.view
        room = view.size - offset
        if room < len(data):
            if opened.can_grow:
                return await self._grow(opened, offset, data)
            if room <= 0:
                raise OutOfRange("the disk ends here", path=opened.node.name)
            data = memoryview(data)[:room]
        async with self.changing(opened, offset, len(data)):
            await self.in_thread(opened.node, view.disk.write, view.start + offset, data)
        return len(data)

    def write_here(self, handle: int, offset: int, data: bytes | memoryview) -> int | None:
        """As `write`, and everybody waits; None where it would have to wait for the kernel.

        For when more and more data to be written must not fill the memory.
        """
        opened = self._handles.get(handle)
        if opened is None or opened.can_grow or self.drops_pages(handle, offset, len(data)):
            return None
        view = opened.view
        length = min(len(data), view.size - offset)
        if length <= 0:
            return None
        start = view.start + offset
        try:
            view.disk.write(start, memoryview(data)[:length])
        finally:
            opened.node.written(start, start + length)
        return length

    def write_now(self, handle: int, offset: int, data: bytes | memoryview) -> bool:
        """Write all of `data` if that needs no waiting; whether it was done."""
        opened = self._handles.get(handle)
        if opened is None:
            return False
        view, length = opened.view, len(data)
        if view.size - offset < length or self.drops_pages(handle, offset, length):
            return False
        if not view.try_write(offset, data):
            return False
        opened.node.written(view.start + offset, view.start + offset + length)
        return True

    def drops_pages(self, handle: int, offset: int, length: int) -> bool:
        """Whether a write to that range would have to wait until the kernel has dropped pages."""
        opened = self._handles.get(handle)
        if opened is None:
            return False
        start = opened.view.start + offset
        return bool(opened.node.views.overlapping_cached(opened.view, start, start + length))

    def open_file(self, handle: int) -> OpenFile:
        """The open view of a disk that `handle` stands for.  InvalidArgument for a report's."""
        try:
            return self._handles[handle]
        except KeyError:
            raise InvalidArgument("is not a disk") from None

    @asynccontextmanager
    async def changing(self, opened: OpenFile, offset: int, length: int) -> AsyncIterator[None]:
        """Around every change of bytes [offset, offset + length) of an open view.

        Pages that the kernel keeps of them under other views are dropped before, so that what mmap
        left dirty goes in first and not last, and after; and the partition table may be another.
        """
        node, start = opened.node, opened.view.start + offset
        stale = node.views.overlapping_cached(opened.view, start, start + length)
        await self._drop_pages(stale, start, start + length)
        try:
            yield
        except DiskError:  # A part of it may be done.
            await self._changed(node, stale, start, start + length)
            raise
        await self._changed(node, stale, start, start + length)

    async def _changed(self, node: DiskNode, stale: list[View], start: int, end: int) -> None:
        await self._drop_pages(stale, start, end)
        node.written(start, end)

    async def _grow(self, opened: OpenFile, offset: int, data: bytes | memoryview) -> int:
        """Write to a disk that was just created, making it larger first."""

        def write() -> int:
            opened.node.disk.write(offset, data)
            return len(data)

        return await self.growing(opened, offset, len(data), write)

    async def growing(
        self, opened: OpenFile, offset: int, length: int, work: Callable[[], int]
    ) -> int:
        """Do `work` in a thread, on a disk that was just created and now has room for the range.

        `work` says how much of the range it has filled: the disk becomes no larger than that.
        """
        node, end = opened.node, offset + length
        if end > SIZE_MAX:
            raise OutOfRange("too large", path=node.name)
        async with self._growth_locks[node.id], self.changing(opened, offset, length):
            done = await self.in_thread(node, _grown, node.disk, offset, end, work)
        node.stale = True
        return done

    async def _drop_pages(self, views: list[View], start: int, end: int) -> None:
        """Have the kernel forget what it caches of bytes [start, end) of the disk."""
        for view in views:
            if self._ending:
                await trio.sleep_forever()
            first = max(start - view.start, 0)
            self._drops += 1
            try:
                await trio.to_thread.run_sync(
                    self.invalidate, view.inode, first, end - view.start - first,
                    limiter=self._invalidations,
                )
            finally:
                self._drops -= 1
                self._idle.unpark_all()

    async def settle(self) -> None:
        """Begin to end: drop no more pages, and return when those under way are dropped.

        A server goes on answering until this returns.  A drop waits for pages that are locked by
        requests, some of which are still to come; left unanswered, they would hold it for ever,
        and with it the process.  A write that would have to drop pages is not answered any more:
        its writer is told that the mount is gone.
        """
        self._ending = True
        while self._drops:
            await self._idle.park()

    async def flush(self, handle: int) -> None:
        """Make a disk's writes durable (fsync)."""
        opened = self._handles.get(handle)
        if opened is not None and not opened.node.disk.read_only:
            await self.in_thread(opened.node, opened.view.disk.flush)

    async def release(self, handle: int) -> None:
        """The last use of an open file is over."""
        opened = self._handles.pop(handle, None)
        if opened is None:
            self._reports.pop(handle, None)
            return
        node = opened.node
        node.views.closed(opened.view)
        self._idle.unpark_all()
        if node.growing and not node.views.handles:
            node.growing = False
            self._growth_locks.pop(node.id, None)
            if not node.removed:
                await self.in_thread(node, refit, node.disk)
                node.resized()
        self.tree.drop_unused(node)

    # The store

    async def create(
        self, parent: int, name: str, mode: int, flags: int
    ) -> tuple[Attributes, Opened]:
        """Create a disk in the mounted folder, and open it; it grows until it is closed."""
        self._check_root(parent)
        async with self._store_lock:
            node = self.tree.resolve(name)
            if node is None:
                store = self._store_for_new(name)
                path, disk = await trio.to_thread.run_sync(store.create, name, mode & 0o777)
                found = Found(store, path, await trio.to_thread.run_sync(store.identity, path))
                node = self.tree.add(name, found, disk)
                node.growing = True
                await self._scan()
            elif flags & os.O_EXCL:
                raise Exists("already exists", path=name)
        opened = await self.open(node.whole.inode, flags)
        return await self._disk_attributes(node, node.whole), opened

    async def remove(self, parent: int, name: str) -> None:
        """Remove a disk.  Busy while it is open; NotPermitted for anything but a disk."""
        self._check_root(parent)
        node = await self._changeable(name)
        async with self._store_lock, self._exclusively(node):
            await trio.to_thread.run_sync(node.store.remove, node.name)
            self.tree.drop(node)
            await self._scan()

    async def rename(
        self, parent: int, name: str, new_parent: int, new_name: str, *, replace: bool
    ) -> None:
        """Rename a disk; with `replace`, in place of one that has the new name."""
        self._check_root(parent)
        self._check_root(new_parent)
        node = await self._changeable(name)
        target = self.tree.resolve(new_name)
        if target is node:
            return
        if target is not None and not replace:
            raise Exists("already exists", path=new_name)
        if target is not None and target.store is not node.store:
            raise NotPermitted("lies in another folder", path=new_name)
        async with AsyncExitStack() as held:
            await held.enter_async_context(self._store_lock)
            await held.enter_async_context(self._exclusively(node))
            if target is not None:
                await held.enter_async_context(self._exclusively(target))
            path = await trio.to_thread.run_sync(node.store.rename, node.name, new_name)
            if target is not None:
                self.tree.drop(target)
            node.path = path
            await self._scan()

    async def _changeable(self, name: str) -> DiskNode:
        if self.settings.read_only:
            raise ReadOnly("is mounted read-only")
        node = await self._disk_named(name)
        if node is not None:
            return node
        if self.tree.partition_owner(name) is not None or name == META_NAME:
            raise NotPermitted("is not a disk of its own", path=name)
        raise NotFound("no such disk", path=name)

    def _check_root(self, parent: int) -> None:
        if self.settings.read_only:
            raise ReadOnly("is mounted read-only")
        if parent != ROOT:
            raise NotPermitted("names here come from the disk's geometry")

    def _store_for_new(self, name: str) -> Store:
        if self.tree.partition_owner(name) is not None:
            raise NotPermitted("would be taken for a partition", path=name)
        for store in self.tree.stores:
            if store.source.is_dir():
                return store
        return self.tree.stores[0]  # It refuses, and says why.

    async def space(self) -> Space:
        """Room in the first store."""
        return await trio.to_thread.run_sync(self.tree.stores[0].space)

    def flush_all(self) -> None:
        """Flush every disk.  The first HostError is raised after all were tried."""
        first: HostError | None = None
        for node in self.tree.disks():
            try:
                if not node.disk.read_only:
                    node.disk.flush()
            except HostError as error:
                first = first or error
        if first is not None:
            raise first

    def close(self) -> None:
        """Close every disk, which gives its lock back."""
        for node in self.tree.disks():
            node.close()

    async def in_thread(self, node: DiskNode, work: Callable[..., T], *arguments: Any) -> T:
        """Do what may wait for the host in a worker thread of this disk's own share."""
        limiter = self._limiters.get(node.id)
        if limiter is None:
            limiter = self._limiters[node.id] = trio.CapacityLimiter(_WORKERS_A_DISK)
        borrower = object()
        await limiter.acquire_on_behalf_of(borrower)
        try:
            on_begin.get()()
            return await trio.to_thread.run_sync(work, *arguments, limiter=self._threads)
        finally:
            limiter.release_on_behalf_of(borrower)


def _kind(inode: int) -> NodeKind:
    try:
        return unpack(inode).kind
    except ValueError:
        raise NotFound("no such node") from None


def _entry_seconds(view: View) -> float:
    """A partition's name may vanish with the next write to the table, so it is never kept."""
    return 0.0 if unpack(view.inode).kind is NodeKind.PARTITION else _DISK_ENTRY_SECONDS


def _status(hosts: tuple[HostFile, ...]) -> list[os.stat_result]:
    """What `stat` says of each file of an image."""
    return [host.stat() for host in hosts]


def _info(node: DiskNode) -> str:
    report = describe(node.disk, node.scan.table, scan=False)
    return json.dumps(report, indent=2) + "\n"


def _grown(disk: ImageDisk, offset: int, end: int, work: Callable[[], int]) -> int:
    """Do `work` on a disk of at least `end` bytes; what it did not fill is cut off again."""
    before = disk.size
    if end > before:
        disk.resize(end)
    done = 0
    try:
        done = work()
    finally:
        needed = max(before, offset + done) if done else before
        if needed < disk.size:
            disk.resize(needed)
    return done


def _apply(node: DiskNode, change: Change) -> None:
    """chmod, chown and touch reach the host file."""
    host = node.disk.image.hosts()[0]
    try:
        if change.mode is not None:
            os.fchmod(host.fd, change.mode & 0o777)
        if change.uid is not None or change.gid is not None:
            os.fchown(host.fd, _or_keep(change.uid), _or_keep(change.gid))
        if change.atime_ns is not None or change.mtime_ns is not None:
            now = host.stat()
            atime = now.st_atime_ns if change.atime_ns is None else change.atime_ns
            mtime = now.st_mtime_ns if change.mtime_ns is None else change.mtime_ns
            os.utime(host.fd, ns=(atime, mtime))
    except OSError as error:
        raise HostError.of(error, "change the attributes of", host.path) from error


def _or_keep(number: int | None) -> int:
    return -1 if number is None else number
