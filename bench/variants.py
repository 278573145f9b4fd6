"""Our own server, done otherwise: what docs/performance.md weighs its decisions with.

    python -m bench.variants NAME mount ...     # `vdisk mount ...`, by that variant

Only for measuring.  Some of these break what the server promises: pages that are out of date stay,
and other clients have to wait.
"""

from __future__ import annotations

import copy
import fcntl
import os
import select
import socket
import struct
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

_CLONE = 0x8004E500  # FUSE_DEV_IOC_CLONE: _IOR(229, 0, uint32_t).
_REQUEST_BYTES_MAX = (1 << 20) + 4096


def _always_workers() -> None:
    """Nothing is answered in line."""
    from mount.filesystem import FileSystem

    FileSystem.read_now = lambda *_: None  # type: ignore[method-assign]
    FileSystem.write_now = lambda *_: False  # type: ignore[method-assign]


def _always_inline() -> None:
    """Everything is answered in line, although that may wait for the host."""
    from vdisk.host import HostFile

    def read(self: HostFile, offset: int, buffer: memoryview) -> bool:
        return os.preadv(self.fd, [buffer], offset) == len(buffer)

    def write(self: HostFile, offset: int, data: bytes | memoryview) -> bool:
        return os.pwrite(self.fd, data, offset) == len(data)

    HostFile.try_read_into = read  # type: ignore[method-assign]
    HostFile.try_write = write  # type: ignore[method-assign]


def _small_requests(pages: int) -> Callable[[], None]:
    """Requests of so many pages at most, where the server takes 256."""

    def patch() -> None:
        import mount.filesystem
        import mount.wire.negotiation

        mount.wire.negotiation.PAGES_MAX = pages
        mount.filesystem.REQUEST_BYTES_MAX = pages << 12

    return patch


def _two_readers() -> None:
    """Two tasks read requests, each with a buffer of its own."""
    import trio

    from mount.kernel.buffers import Buffers
    from mount.kernel.device import Device
    from mount.kernel.server import KernelServer

    read_all = KernelServer._read_all

    async def both(self: KernelServer, nursery: trio.Nursery) -> None:
        other = copy.copy(self)
        # Of one descriptor, only one task can wait.
        other._device = Device(os.dup(self._mount.fd))
        other._buffers = Buffers(_REQUEST_BYTES_MAX)
        async with trio.open_nursery() as readers:
            readers.start_soon(read_all, self, nursery)
            readers.start_soon(read_all, other, nursery)

    KernelServer._read_all = both  # type: ignore[method-assign]


def _no_looking() -> None:
    """The server sleeps whenever there is no request."""
    import mount.busy_poll

    mount.busy_poll.usable_processors = lambda *_: 1


def _write_back() -> None:
    """The kernel keeps writes, and hands them over later."""
    import mount.wire.negotiation
    from mount.wire.constants import InitFlag

    mount.wire.negotiation.WANTED |= InitFlag.WRITEBACK_CACHE


def _processes() -> None:
    """A second process with a descriptor of its own reads and writes the disk itself.

    It takes whatever the kernel hands it, answers reads and writes of the (only, raw) disk, and
    passes everything else on to the server, which answers by the clone.
    """
    import trio

    from mount.kernel.server import KernelServer

    serve = KernelServer.serve

    async def with_clone(self: KernelServer) -> None:
        clone = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        fcntl.ioctl(clone, _CLONE, struct.pack("=I", self._mount.fd))
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        host = self._fs.tree.disks()[0].disk.hosts()[0].fd
        if os.fork() == 0:
            try:
                _close_all_but({clone, host, theirs.fileno()})
                _serve_clone(clone, host, theirs)
            finally:
                os._exit(0)
        theirs.close()
        _reply_by(self, clone)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_take_passed, self, trio.socket.from_stdlib_socket(ours), nursery)
            await serve(self)
            nursery.cancel_scope.cancel()

    KernelServer.serve = with_clone  # type: ignore[method-assign]


def _close_all_but(kept: set[int]) -> None:
    """Whoever waits for the end of what the server prints must not wait for this process too."""
    for name in os.listdir("/proc/self/fd"):
        if int(name) not in kept:
            with suppress(OSError):
                os.close(int(name))


_passed: set[int] = set()
"""Requests that came by the clone, and have to be answered there."""


def _reply_by(server: Any, clone: int) -> None:
    from mount.kernel.device import Device

    device, other = server._device, Device(clone)
    reply = device.reply

    def routed(unique: int, body: bytes | memoryview = b"", error: int = 0) -> bool:
        if unique in _passed:
            _passed.discard(unique)
            return other.reply(unique, body, error)
        answered: bool = reply(unique, body, error)
        return answered

    device.reply = routed


async def _take_passed(server: Any, passed: Any, nursery: Any) -> None:
    from mount.wire.requests import HEADER

    while request := await passed.recv(_REQUEST_BYTES_MAX):
        _passed.add(HEADER.unpack_from(request)[2])
        server._take(memoryview(bytearray(request)), nursery)


def _serve_clone(clone: int, host: int, main: socket.socket) -> None:
    from mount.busy_poll import BusyPoll
    from mount.inodes import NodeKind, unpack
    from mount.kernel.device import Device, Gone
    from mount.wire import replies
    from mount.wire.constants import Opcode
    from mount.wire.requests import DATA_START, HEADER, READ, WRITE

    os.set_blocking(clone, False)
    device, poll, buffer = Device(clone), BusyPoll(clone), bytearray(_REQUEST_BYTES_MAX)
    view, data = memoryview(buffer), memoryview(bytearray(_REQUEST_BYTES_MAX))
    sleep = select.poll()
    sleep.register(clone, select.POLLIN)
    while True:
        try:
            count = device.read(buffer)
        except Gone:
            return
        if not count:
            if not poll.finds_one():
                sleep.poll()
                poll.slept()
            continue
        _, opcode, unique, node, *_ = HEADER.unpack_from(buffer)
        is_disk = node > 1 and unpack(node).kind is NodeKind.DISK
        if is_disk and opcode == Opcode.READ:
            _, offset, size, *_ = READ.unpack_from(buffer, HEADER.size)
            device.reply(unique, data[: os.preadv(host, [data[:size]], offset)])
        elif is_disk and opcode == Opcode.WRITE:
            _, offset, size, *_ = WRITE.unpack_from(buffer, HEADER.size)
            written = os.pwrite(host, view[DATA_START : DATA_START + size], offset)
            device.reply(unique, replies.written(written))
        else:
            main.send(view[:count])


VARIANTS: dict[str, tuple[str, Callable[[], None]]] = {
    "workers": ("all by workers", _always_workers),
    "inline": ("all in line", _always_inline),
    "requests-128k": ("requests up to 128 KiB", _small_requests(32)),
    "requests-256k": ("requests up to 256 KiB", _small_requests(64)),
    "readers": ("two reader tasks", _two_readers),
    "processes": ("a second process", _processes),
    "write-back": ("write-back cache", _write_back),
    "sleep": ("without busy polling", _no_looking),
}
"""By name: what a table calls it, and how the server is changed to be it."""


def main() -> None:
    """Do as `vdisk` does, by the variant that the first argument names."""
    name = sys.argv.pop(1)
    VARIANTS[name][1]()
    from mount.cli import main as vdisk

    vdisk()


if __name__ == "__main__":
    main()
