"""The kernel's own server, with the test in the kernel's place: a socket that keeps messages whole.

Nothing is mounted; what a kernel would do rarely, or never, is done here at will.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from mount.filesystem import FileSystem, Settings
from mount.inodes import ROOT
from mount.kernel.buffers import COPIED_BYTES_MAX, HELD_BYTES_MAX
from mount.kernel.server import KernelServer
from mount.server import Place
from mount.tree import DiskNode, Tree
from mount.wire.constants import NO_REPLY, Opcode
from mount.wire.requests import HEADER
from vdisk.errors import HostError
from vdisk.host import Promptness
from vdisk.options import OpenOptions
from vdisk.store import ImageList

MIB = 1 << 20
SIZE = 4 * MIB
WORKERS = 64
LARGE = 100 * 1024  # As much as a socket takes at once, and too much to be copied.
PLACE = Place("/nowhere", "source", "vdisk")
OUT = struct.Struct("=IiQ")
INIT = struct.pack("=IIIII", 7, 40, 131072, 0xFFFFFFFF, 0xFFFFFFFF) + bytes(44)


class Wire:
    """The kernel's end."""

    def __init__(self) -> None:
        self.server_end, self.ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.fd = self.server_end.fileno()
        self.server_end.setblocking(False)
        self.ours.settimeout(30)
        self.unique = 0

    def connect(self, place: Place) -> Wire:
        return self

    def end(self) -> None:
        self.server_end.close()

    def ask(self, opcode: int, body: bytes = b"", node: int = ROOT, uid: int = 0) -> int:
        """Send a request; its number."""
        self.unique += 2
        head = HEADER.pack(HEADER.size + len(body), opcode, self.unique, node, uid, 0, 1, 0, 0)
        self.ours.sendall(head + body)
        return self.unique

    def answer(self) -> tuple[int, int, bytes]:
        """(number, errno, body) of the next reply."""
        reply = self.ours.recv(2 * MIB)
        length, error, unique = OUT.unpack_from(reply)
        assert length == len(reply)
        return unique, -error, reply[OUT.size :]

    def is_silent(self) -> bool:
        """Whether no reply waits."""
        return not select.select([self.ours], [], [], 0)[0]


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(range(256)) * (SIZE // 256))
    return path


class Served:
    """A running server, its kernel's end, and the one disk."""

    def __init__(self, wire: Wire, server: KernelServer, filesystem: FileSystem) -> None:
        self.wire = wire
        self.server = server
        self.filesystem = filesystem
        self.node: DiskNode = filesystem.tree.nodes["disk"]

    async def call(self, opcode: int, body: bytes = b"", node: int = ROOT) -> tuple[int, bytes]:
        """Ask and wait for the answer: (errno, body)."""
        wanted = self.wire.ask(opcode, body, node)
        unique, error, answer = await trio.to_thread.run_sync(self.wire.answer)
        assert unique == wanted
        return error, answer

    async def ask_all(self, opcode: int, bodies: list[bytes]) -> list[int]:
        """Send requests, of which a socket takes some and then waits; their numbers."""
        return await trio.to_thread.run_sync(
            lambda: [self.wire.ask(opcode, body) for body in bodies]
        )

    async def open(self) -> int:
        """A handle of the whole disk, open for writing."""
        flags = struct.pack("=II", os.O_RDWR, 0)
        error, body = await self.call(Opcode.OPEN, flags, self.node.whole.inode)
        assert error == 0
        return int(struct.unpack_from("=Q", body)[0])

    def slow_host(self) -> threading.Event:
        """From now on the host waits for the event with each read and write."""
        go, disk = threading.Event(), self.node.disk
        read_into, write = disk.read_into, disk.write
        host = disk.image.hosts()[0]
        host.read_promptness = host.write_promptness = Promptness.BLOCKING

        def slow_read(offset: int, buffer: memoryview) -> None:
            assert go.wait(30)
            read_into(offset, buffer)

        def slow_write(offset: int, data: bytes | memoryview) -> None:
            assert go.wait(30)
            write(offset, data)

        disk.read_into, disk.write = slow_read, slow_write  # type: ignore[method-assign]
        return go


@asynccontextmanager
async def served(image: Path) -> AsyncIterator[Served]:
    wire = Wire()
    tree = Tree([ImageList([image], OpenOptions(), writable=True)])
    tree.show(tree.look(tree.known()))
    filesystem = FileSystem(tree, Settings())
    server = KernelServer(wire.connect)
    first = wire.ask(Opcode.INIT, INIT)
    server.start(filesystem, PLACE)
    assert wire.answer()[:2] == (first, 0)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.serve)
            yield Served(wire, server, filesystem)
            nursery.cancel_scope.cancel()
    finally:
        filesystem.close()
        server.stop()
        wire.ours.close()


def read_body(handle: int, offset: int, size: int) -> bytes:
    return struct.pack("=QQIIQII", handle, offset, size, 0, 0, 0, 0)


def write_body(handle: int, offset: int, data: bytes) -> bytes:
    return struct.pack("=QQIIQII", handle, offset, len(data), 0, 0, 0, 0) + data


async def until(condition: Callable[[], bool]) -> None:
    """Returns once it holds; the server goes on meanwhile."""
    with trio.fail_after(30):
        while not condition():
            await trio.sleep(0.001)


# The beginning


def start_with(message: bytes, opcode: int = Opcode.INIT) -> tuple[HostError, Wire]:
    wire = Wire()
    wire.ask(opcode, message)
    with pytest.raises(HostError) as refused:
        KernelServer(wire.connect).start(FileSystem(Tree([]), Settings()), PLACE)
    return refused.value, wire


def test_a_kernel_that_is_too_old_is_refused_and_told() -> None:
    error, wire = start_with(struct.pack("=IIII", 7, 30, 0, 0))
    assert "7.30" in str(error)
    assert wire.answer()[1] == errno.EPROTO
    assert wire.server_end.fileno() == -1
    wire.ours.close()


@pytest.mark.parametrize(
    ("message", "opcode"), [(b"", Opcode.INIT), (b"name\0", Opcode.LOOKUP), (bytes(16), 4000)]
)
def test_what_is_not_a_beginning_is_refused(message: bytes, opcode: int) -> None:
    _, wire = start_with(message, opcode)
    assert wire.server_end.fileno() == -1
    wire.ours.close()


async def test_a_newer_major_version_is_asked_again(image: Path) -> None:
    wire = Wire()
    first = wire.ask(Opcode.INIT, struct.pack("=IIIII", 8, 0, 0, 0, 0))
    second = wire.ask(Opcode.INIT, INIT)
    server = KernelServer(wire.connect)
    server.start(FileSystem(Tree([]), Settings()), PLACE)
    unique, error, body = wire.answer()
    assert (unique, error, struct.unpack_from("=I", body)[0]) == (first, 0, 7)
    assert wire.answer()[:2] == (second, 0)
    server.stop()
    wire.ours.close()


# Answers


@pytest.mark.parametrize("length", [0, 8, 200])
async def test_every_operation_is_answered_once(
    image: Path, length: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Those of today and of tomorrow, with a body of zeros: in time, and the server lives on."""
    async with served(image) as found:
        for opcode in [*range(61), 4096, 2**32 - 1]:
            if opcode in NO_REPLY:
                found.wire.ask(opcode, bytes(length))
            else:
                error, _ = await found.call(opcode, bytes(length))
                assert 0 <= error < 200, opcode
            assert found.wire.is_silent()
        handle = await found.open()
        error, body = await found.call(Opcode.READ, read_body(handle, 0, 512))
        assert (error, body) == (0, image.read_bytes()[:512])
    assert "a reason of our own" not in caplog.text


async def test_what_is_not_served_is_enosys(image: Path) -> None:
    """The kernel then does it itself, or says that it cannot be done."""
    async with served(image) as found:
        for opcode in (Opcode.GETLK, Opcode.SETLK, Opcode.BMAP, Opcode.POLL, Opcode.IOCTL,
                       Opcode.ACCESS, Opcode.TMPFILE, Opcode.SYNCFS, 59):  # fmt: skip
            assert await found.call(opcode, bytes(64)) == (errno.ENOSYS, b"")


async def test_a_reply_that_nobody_takes_leaves_nothing_open(
    image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever opened the disk was killed meanwhile: no RELEASE will come."""
    async with served(image) as found:
        taken = found.server._device.reply
        monkeypatch.setattr(
            found.server._device, "reply",
            lambda unique, body=b"", error=0: taken(unique, body, error) and False,
        )  # fmt: skip
        await found.open()
        await found.call(Opcode.OPENDIR, bytes(8))
        await until(lambda: found.node.views.handles == 0)
        await until(lambda: not found.server._operations._folders)


# Interruption


async def test_a_read_that_has_not_begun_can_be_interrupted(image: Path) -> None:
    """All workers are busy.  One that has begun goes on, and has its answer in the end."""
    async with served(image) as found:
        handle = await found.open()
        go = found.slow_host()
        wire = found.wire
        begun = await found.ask_all(Opcode.READ, [read_body(handle, 0, 512)] * WORKERS)
        waiting = wire.ask(Opcode.READ, read_body(handle, 0, 512))
        await until(lambda: list(found.server._waiting) == [waiting])
        wire.ask(Opcode.INTERRUPT, struct.pack("=Q", begun[0]))
        wire.ask(Opcode.INTERRUPT, struct.pack("=Q", waiting))
        wire.ask(Opcode.INTERRUPT, struct.pack("=Q", 12345))
        assert await trio.to_thread.run_sync(wire.answer) == (waiting, errno.EINTR, b"")
        go.set()
        answers = [await trio.to_thread.run_sync(wire.answer) for _ in begun]
        assert sorted(unique for unique, _, _ in answers) == begun
        assert {(error, body) for _, error, body in answers} == {(0, image.read_bytes()[:512])}


async def test_an_interrupted_write_is_done_or_not_done(image: Path) -> None:
    async with served(image) as found:
        handle = await found.open()
        go = found.slow_host()
        wire = found.wire
        bodies = [write_body(handle, 512 * n, b"b" * 512) for n in range(WORKERS)]
        begun = await found.ask_all(Opcode.WRITE, bodies)
        waiting = wire.ask(Opcode.WRITE, write_body(handle, 512 * WORKERS, b"w" * 512))
        await until(lambda: list(found.server._waiting) == [waiting])
        wire.ask(Opcode.INTERRUPT, struct.pack("=Q", waiting))
        assert (await trio.to_thread.run_sync(wire.answer))[:2] == (waiting, errno.EINTR)
        wire.ask(Opcode.INTERRUPT, struct.pack("=Q", begun[5]))
        go.set()
        for _ in begun:
            assert (await trio.to_thread.run_sync(wire.answer))[1] == 0
    content = image.read_bytes()
    assert content[: 512 * WORKERS] == b"b" * 512 * WORKERS
    assert b"w" * 512 not in content


# Memory


async def test_writes_that_wait_hold_no_more_memory_than_they_may(image: Path) -> None:
    """Two hundred come while the host does nothing, each in a buffer of 1 MiB; all are done."""
    async with served(image) as found:
        handle = await found.open()
        go = found.slow_host()
        buffers = found.server._buffers
        peaks = []

        def send() -> list[int]:
            return [
                found.wire.ask(
                    Opcode.WRITE, write_body(handle, n % 4 * MIB, bytes([n]) * LARGE)
                )
                for n in range(200)
            ]

        def answers() -> list[tuple[int, int, bytes]]:
            return [found.wire.answer() for _ in range(200)]

        def release() -> None:
            """The loop itself waits by then, so this is done from a thread."""
            for _ in range(30_000):
                peaks.append(buffers.held_bytes)
                if buffers.is_full:
                    break
                threading.Event().wait(0.001)
            go.set()

        found.wire.ours.setblocking(True)
        thread = threading.Thread(target=release)
        thread.start()
        results: list[list[tuple[int, int, bytes]]] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, send)
            results.append(await trio.to_thread.run_sync(answers))
        thread.join()
        assert [error for _, error, _ in results[0]] == [0] * 200
        assert {struct.unpack_from("=I", body)[0] for _, _, body in results[0]} == {LARGE}
        assert HELD_BYTES_MAX <= max(peaks) <= HELD_BYTES_MAX + buffers.size
        assert buffers.held_bytes == 0


async def test_a_write_that_waits_for_the_kernel_while_memory_is_full_is_done_in_part(
    image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As any write may be; whoever wrote goes on from there."""
    async with served(image) as found:
        handle = await found.open()
        monkeypatch.setattr(found.filesystem, "drops_pages", lambda *_: True)
        monkeypatch.setattr(type(found.server._buffers), "is_full", True)
        error, body = await found.call(Opcode.WRITE, write_body(handle, 0, b"p" * LARGE))
        assert (error, struct.unpack_from("=I", body)[0]) == (0, COPIED_BYTES_MAX)
    content = image.read_bytes()
    assert content[:COPIED_BYTES_MAX] == b"p" * COPIED_BYTES_MAX
    assert content[COPIED_BYTES_MAX:][:256] == bytes(range(256))


# allow_root


async def test_with_allow_root_others_are_turned_away(image: Path) -> None:
    async with served(image) as found:
        found.server._only_uid = 1234
        for uid, wanted in ((0, 0), (1234, 0), (99, errno.EACCES)):
            found.wire.ask(Opcode.STATFS, uid=uid)
            assert (await trio.to_thread.run_sync(found.wire.answer))[1] == wanted
