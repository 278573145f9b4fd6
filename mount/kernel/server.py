"""The server's loop.

One task reads requests until none waits.  Reads and writes of bytes that the host has at hand are
answered in line: from and into one buffer, with no copy in Python.  Everything else is a task of
its own, so that the loop never waits for the host, nor for the kernel to drop a page.

However many requests are under way, the loop goes on reading: a limit could fill up with writes
that wait for a page which only a further request can unlock.  What bounds the memory instead is
`Buffers`: when the writes that wait hold too much, further ones are done in line although that
waits for the host, and those that cannot be are answered in part, as any write may be.
"""

from __future__ import annotations

import errno
import logging
import os
import select
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import trio

from mount.busy_poll import BusyPoll
from mount.errors import errno_of
from mount.filesystem import REQUEST_BYTES_MAX, FileSystem, on_begin
from mount.kernel.buffers import COPIED_BYTES_MAX, Buffers
from mount.kernel.device import Device, Gone
from mount.kernel.mounting import FuseMount
from mount.kernel.operations import Operations, Refused
from mount.server import Ability, Place, Server
from mount.wire import replies
from mount.wire.constants import NO_REPLY, InitFlag, Opcode
from mount.wire.negotiation import Agreed, Limits, VersionRefused, negotiate
from mount.wire.requests import (
    DATA_START,
    HEADER,
    READ,
    WRITE,
    Header,
    Init,
    Interrupt,
    ProtocolError,
    Write,
    parse,
    parse_header,
)
from vdisk.errors import DiskError, HostError

_BUFFER_BYTES = REQUEST_BYTES_MAX + 4096
_IN_A_ROW_MAX = 64  # Requests read before other tasks get their turn.
_START_SECONDS = 30  # How long the kernel may take to send INIT.
_STACK_DEPTH = 2  # The most the kernel knows (FILESYSTEM_MAX_STACK_DEPTH): an image may lie on
# overlayfs.
_INTERRUPTIBLE = frozenset({Opcode.READ, Opcode.WRITE, Opcode.FSYNC, Opcode.LSEEK, Opcode.STATFS})
_FREE_TO_ALL = frozenset(
    {
        Opcode.READ, Opcode.WRITE, Opcode.FSYNC, Opcode.RELEASE, Opcode.READDIR, Opcode.FSYNCDIR,
        Opcode.RELEASEDIR, Opcode.READDIRPLUS, Opcode.FLUSH,
    }
)  # fmt: skip
"""Requests that pages of memory and open files make, in nobody's name or in another's."""

_log = logging.getLogger(__name__)


class Connection(Protocol):
    """A mount's open descriptor, non-blocking, and how to end both."""

    fd: int

    def end(self) -> None:
        """Close the descriptor, and take the mount away."""


class KernelServer(Server):
    """The server on /dev/fuse."""

    name = "kernel"

    def __init__(self, connect: Callable[[Place], Connection] = FuseMount) -> None:
        """`connect` mounts, and gives the open descriptor."""
        self._connect = connect
        self._mount: Connection
        self._device: Device
        self._fs: FileSystem
        self._operations: Operations
        self._agreed = Agreed(0, InitFlag(0))
        self._buffers = Buffers(_BUFFER_BYTES)
        self._waiting: dict[int, trio.CancelScope] = {}  # Requests that have not begun.
        self._told = False  # Whether each request is told in the log.
        self._only_uid: int | None = None  # Beside root; None: everybody the kernel lets in.

    @property
    def abilities(self) -> frozenset[Ability]:
        able = {Ability.HOLES, Ability.COPIES, Ability.ATTRIBUTES, Ability.BIRTH}
        if self._agreed.flags & InitFlag.PASSTHROUGH:
            able.add(Ability.PASSTHROUGH)
        return frozenset(able)

    def start(self, filesystem: FileSystem, place: Place) -> None:
        self._told = place.debug
        self._fs = filesystem
        self._operations = Operations(filesystem)
        if "allow_root" in place.flags and not place.allow_other:
            self._only_uid = os.geteuid()
        self._mount = self._connect(place)
        self._device = Device(self._mount.fd)
        try:
            self._shake_hands(place)
        except BaseException:
            self._mount.end()
            raise
        filesystem.invalidate = self._device.invalidate
        if Ability.PASSTHROUGH in self.abilities:
            filesystem.back = self._device.back

    def _shake_hands(self, place: Place) -> None:
        """Answer INIT, which is the first that the kernel sends.  HostError where we cannot."""
        mountpoint = place.mountpoint
        # Passthrough takes CAP_SYS_ADMIN.
        wanted = place.passthrough and os.geteuid() == 0
        limits = Limits(REQUEST_BYTES_MAX, stack_depth=_STACK_DEPTH if wanted else 0)
        again = True
        while again:
            header, message = self._first_request(mountpoint)
            if not isinstance(message, Init):
                raise _cannot_start(mountpoint, f"the kernel began with operation {header.opcode}")
            try:
                self._agreed, body = negotiate(message, limits)
            except VersionRefused as error:
                self._device.reply(header.unique, error=errno.EPROTO)
                raise _cannot_start(mountpoint, str(error)) from error
            self._device.reply(header.unique, body)
            again = self._agreed.again
        _log.debug("INIT: FUSE 7.%d, %s", self._agreed.minor, self._agreed.flags.name)

    def _first_request(self, mountpoint: str) -> tuple[Header, Any]:
        poll = select.poll()
        poll.register(self._device.fd, select.POLLIN)
        try:
            count = self._device.read(self._buffers.current)
            if count == 0 and poll.poll(_START_SECONDS * 1000):
                count = self._device.read(self._buffers.current)
            return parse(memoryview(self._buffers.current)[:count])
        except Gone as error:
            raise _cannot_start(mountpoint, "it was unmounted at once") from error
        except ProtocolError as error:
            raise _cannot_start(mountpoint, str(error)) from error

    async def serve(self) -> None:
        try:
            async with trio.open_nursery() as nursery:
                await self._read_all(nursery)
        except* Gone:
            pass

    def stop(self) -> None:
        self._mount.end()

    # The loop

    async def _read_all(self, nursery: trio.Nursery) -> None:
        """Take requests until the mount is gone (Gone), which also ends those under way."""
        poll = BusyPoll(self._device.fd)
        while True:
            for _ in range(_IN_A_ROW_MAX):
                count = self._device.read(self._buffers.current)
                if count == 0:
                    # Tasks are to go on, not to wait until we have looked long enough.
                    if not nursery.child_tasks and poll.finds_one():
                        continue
                    await trio.lowlevel.wait_readable(self._device.fd)
                    poll.slept()
                    break
                self._take(memoryview(self._buffers.current)[:count], nursery)
            else:
                await trio.lowlevel.checkpoint()

    def _take(self, request: memoryview, nursery: trio.Nursery) -> None:
        """Answer a request in line, or have a task do it."""
        if len(request) >= DATA_START and not self._told:
            _, opcode, unique, *_ = HEADER.unpack_from(request)
            if opcode == Opcode.READ:
                fh, offset, size, *_ = READ.unpack_from(request, HEADER.size)
                found = self._fs.read_now(fh, offset, size)
                if found is not None:
                    self._device.reply(unique, found)
                    return
            elif opcode == Opcode.WRITE:
                fh, offset, size, *_ = WRITE.unpack_from(request, HEADER.size)
                data = request[DATA_START:]
                if len(data) == size and self._fs.write_now(fh, offset, data):
                    self._device.reply(unique, replies.written(size))
                    return
        self._take_slowly(request, nursery)

    def _take_slowly(self, request: memoryview, nursery: trio.Nursery) -> None:
        try:
            header, message = parse(request)
        except ProtocolError as error:
            _log.error("%s", error)
            self._refuse(request)
            return
        _log.debug("%d: %s %s", header.unique, _named(header.opcode), message)
        if isinstance(message, Interrupt):
            scope = self._waiting.pop(message.unique, None)
            if scope is not None:
                scope.cancel()
        elif header.opcode in NO_REPLY:
            pass  # Nodes are computed from their numbers; there is nothing to forget.
        elif self._is_foreign(header):
            self._device.reply(header.unique, error=errno.EACCES)
        elif isinstance(message, Write):
            self._take_write(header, message, nursery)
        else:
            nursery.start_soon(self._answer, header, message)

    def _refuse(self, request: memoryview) -> None:
        """Answer what could not be parsed, if it has a number and wants an answer."""
        try:
            header = parse_header(request)
        except ProtocolError:
            return
        if header.opcode not in NO_REPLY:
            self._device.reply(header.unique, error=errno.EIO)

    def _is_foreign(self, header: Header) -> bool:
        return (
            self._only_uid is not None
            and header.uid not in (0, self._only_uid)
            and header.opcode not in _FREE_TO_ALL
        )

    def _take_write(self, header: Header, message: Write, nursery: trio.Nursery) -> None:
        """A write that has to wait needs its data until it is done."""
        data = message.data
        if self._buffers.is_full:
            try:
                done = self._fs.write_here(message.fh, message.offset, data)
            except DiskError as error:
                self._device.reply(header.unique, error=errno_of(error))
                return
            if done is not None:
                self._device.reply(header.unique, replies.written(done))
                return
            data = data[:COPIED_BYTES_MAX]
        held = self._buffers.keep(data)
        kept = message._replace(data=held.data)
        nursery.start_soon(partial(self._answer, header, kept, release=held.release))

    async def _answer(
        self, header: Header, message: Any, release: Callable[[], None] | None = None
    ) -> None:
        """Answer a request, in a task of its own."""
        body: bytes | memoryview = b""
        number = 0
        try:
            body = await self._body(header, message)
        except DiskError as error:
            number = errno_of(error)
            if number == errno.EIO:
                _log.error("%s", error)
        except Refused as error:
            number = error.errno
        except Exception:
            number = errno.EIO
            _log.exception("a request failed for a reason of our own: please report it")
        finally:
            if release is not None:
                release()
        _log.debug("%d: errno %d, %d bytes", header.unique, number, len(body))
        if not self._device.reply(header.unique, body, number) and number == 0:
            await self._operations.undo(header, body)

    async def _body(self, header: Header, message: Any) -> bytes | memoryview:
        if header.opcode not in _INTERRUPTIBLE:
            return await self._operations.answer(header, message)
        with trio.CancelScope() as scope:
            self._waiting[header.unique] = scope
            on_begin.set(lambda: self._begin(header.unique))
            try:
                return await self._operations.answer(header, message)
            finally:
                self._begin(header.unique)
        raise Refused(errno.EINTR)

    def _begin(self, unique: int) -> None:
        """From now on, an interruption of this request comes too late."""
        self._waiting.pop(unique, None)


def _named(opcode: int) -> str:
    try:
        return Opcode(opcode).name
    except ValueError:
        return f"operation {opcode}"


def _cannot_start(mountpoint: str, reason: str) -> HostError:
    return HostError(f"cannot mount: {reason}", errno=errno.EPROTO, path=mountpoint)
