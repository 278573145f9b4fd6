"""The host file: whole reads and writes, zeros and holes, and refusals that name the file."""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from model import PLACES, host_folder
from vdisk.errors import DiskError, Exists, HostError, InvalidArgument, InvalidFormat, NotFound
from vdisk.host import HostFile, Promptness

MIB = 1 << 20
FULL = bytes(index % 255 + 1 for index in range(MIB))


@pytest.fixture(params=sorted(PLACES))
def folder(request: pytest.FixtureRequest) -> Iterator[Path]:
    with host_folder(request.param) as made:
        yield made


@pytest.fixture
def host(folder: Path) -> Iterator[HostFile]:
    """A writable host file of one MiB without a zero byte, all of it on the device."""
    path = folder / "disk.img"
    path.write_bytes(FULL)
    opened = HostFile.open(path, writable=True)
    opened.flush()
    yield opened
    opened.close()


def content(host: HostFile) -> bytes:
    return host.path.read_bytes()


def read(host: HostFile, offset: int, length: int) -> bytes:
    buffer = bytearray(length)
    host.read_into(offset, memoryview(buffer))
    return bytes(buffer)


def test_what_the_kernel_does_in_parts_is_completed(
    host: HostFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """read(2) and write(2) may stop early (a signal, 2 GiB at once); nobody above must notice."""
    pwrite, preadv = os.pwrite, os.preadv
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: pwrite(fd, bytes(data)[:1000], at))
    monkeypatch.setattr(os, "preadv", lambda fd, to, at, *f: preadv(fd, [to[0][:777]], at, *f))
    host.write(100, memoryview(b"y" * 12345))
    monkeypatch.undo()
    assert content(host) == FULL[:100] + b"y" * 12345 + FULL[12445:]
    monkeypatch.setattr(os, "preadv", lambda fd, to, at, *f: preadv(fd, [to[0][:777]], at, *f))
    assert read(host, 50, 20000) == FULL[50:100] + b"y" * 12345 + FULL[12445:20050]


def test_a_file_that_was_shortened_is_an_error_and_never_a_loop(host: HostFile) -> None:
    os.truncate(host.path, 1000)
    with pytest.raises(HostError, match="ends at byte 1000") as refusal:
        read(host, 900, 200)
    assert refusal.value.errno == errno.EIO
    assert str(host.path) in str(refusal.value)


@pytest.mark.parametrize("offset", [0, 1, 4096, 5000])
@pytest.mark.parametrize("length", [1, 4096, 10000, MIB - 5000])
@pytest.mark.parametrize("how", ["zero", "discard", "zero without fallocate"])
def test_a_range_becomes_zeros_and_the_size_stays(
    host: HostFile, offset: int, length: int, how: str
) -> None:
    if how == "zero without fallocate":
        host._refused_modes.update({0x02, 0x10})
    (host.discard if how == "discard" else host.zero)(offset, length)
    assert content(host) == FULL[:offset] + bytes(length) + FULL[offset + length :]


def test_punching_gives_space_back_and_zeroing_keeps_it(host: HostFile) -> None:
    before = host.allocated_bytes()
    assert before >= MIB
    host.zero(0, MIB // 2)
    assert host.allocated_bytes() == before
    host.discard(0, MIB // 2)
    host.flush()
    assert host.allocated_bytes() <= before - MIB // 2


def test_zeroing_a_hole_reserves_its_space(folder: Path) -> None:
    """A guest that zeroes means to have the space: it cannot be told later that there is none."""
    (folder / "hole.img").touch()
    host = HostFile.open(folder / "hole.img", writable=True)
    host.truncate(4 * MIB)
    assert host.allocated_bytes() == 0
    host.zero(0, 4 * MIB)
    host.flush()
    assert host.allocated_bytes() >= 4 * MIB
    host.close()


def test_where_fallocate_is_missing_it_is_asked_once(
    host: HostFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def refuse(fd: int, mode: int, offset: int, length: int) -> int:
        asked.append(mode)
        ctypes.set_errno(errno.EOPNOTSUPP)
        return -1

    monkeypatch.setattr("vdisk.host._libc.fallocate", refuse)
    for offset in (0, 4096):
        host.discard(offset, 4096)
    assert content(host) == bytes(8192) + FULL[8192:]
    assert len(asked) == len(set(asked))


def test_a_try_gives_the_bytes_or_says_no(host: HostFile) -> None:
    """Whatever the file system can do; bytes in memory are given unless it cannot do it at all."""
    read(host, 0, MIB)
    buffer = bytearray(8192)
    given = host.try_read_into(4000, memoryview(buffer))
    assert given == (host.read_promptness is not Promptness.BLOCKING)
    assert bytes(buffer) == (FULL[4000:12192] if given else bytes(8192))
    for attempt in range(3):  # The first one may find out how writes are best tried here.
        if not host.try_write(3000, b"z" * 5000):
            host.write(3000, memoryview(b"z" * 5000))
        assert content(host) == FULL[:3000] + b"z" * 5000 + FULL[8000:], attempt


def test_a_try_past_the_end_is_no(host: HostFile) -> None:
    assert not host.try_read_into(MIB - 5, memoryview(bytearray(10)))


def test_memory_is_known_as_memory() -> None:
    with host_folder("memory") as folder:
        host = HostFile.create(folder / "a")
        assert host.read_promptness is host.write_promptness is Promptness.MEMORY
        host.close()


def test_closing_twice_is_harmless_and_closes_nobody_else(host: HostFile) -> None:
    """The number of a closed descriptor is soon another file's."""
    host.close()
    other = os.open(host.path, os.O_RDONLY)
    host.close()
    assert os.fstat(other).st_size == MIB
    os.close(other)


def test_create_makes_an_empty_file_of_that_mode_and_never_takes_one_that_is_there(
    tmp_path: Path,
) -> None:
    host = HostFile.create(tmp_path / "new", 0o640)
    assert (host.size(), stat.S_IMODE(host.stat().st_mode) & ~0o640) == (0, 0)
    host.close()
    (tmp_path / "new").write_bytes(b"precious")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for name in ("new", "dangling"):
        with pytest.raises(Exists, match=name):
            HostFile.create(tmp_path / name)
    assert (tmp_path / "new").read_bytes() == b"precious"
    assert not (tmp_path / "nowhere").exists()


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(path))


REFUSED: dict[str, tuple[Callable[[Path], object], type[DiskError]]] = {
    "missing": (lambda path: None, NotFound),
    "folder": (Path.mkdir, InvalidFormat),
    "pipe": (_fifo, InvalidFormat),
    "socket": (_socket, InvalidFormat),
    "dangling link": (lambda path: path.symlink_to("nowhere"), NotFound),
    "link to itself": (lambda path: path.symlink_to(path.name), HostError),
    "link to a device": (lambda path: path.symlink_to("/dev/zero"), InvalidFormat),
}


@pytest.mark.parametrize("writable", [True, False])
@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_hold_an_image_is_refused_by_name_and_at_once(
    tmp_path: Path, what: str, writable: bool
) -> None:
    make, kind = REFUSED[what]
    path = tmp_path / "disk.img"
    make(path)
    with pytest.raises(kind, match=r"disk\.img"):
        HostFile.open(path, writable=writable)


@pytest.mark.parametrize("name", ["below/a/file", "x" * 300, "a\0b", "y/" * 3000])
def test_impossible_names_are_errors_of_vdisk(tmp_path: Path, name: str) -> None:
    (tmp_path / "below").write_bytes(b"")
    with pytest.raises((NotFound, InvalidArgument, HostError)) as refusal:
        HostFile.open(tmp_path / name, writable=False)
    assert str(refusal.value).isprintable()


def test_a_file_that_becomes_a_pipe_while_it_is_opened_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(512))
    as_it_was = os.stat(path)
    path.unlink()
    os.mkfifo(path)
    monkeypatch.setattr(os, "stat", lambda *_, **__: as_it_was)
    with pytest.raises(InvalidFormat):
        HostFile.open(path, writable=True)


def test_an_error_of_the_system_keeps_its_number_and_names_the_file(host: HostFile) -> None:
    reader = HostFile.open(host.path, writable=False, lock=False)
    for operation in (
        lambda: reader.write(0, memoryview(b"x")),
        lambda: reader.zero(0, 1),
        lambda: reader.discard(0, 4096),
        lambda: reader.truncate(5),
    ):
        with pytest.raises(HostError, match=r"disk\.img") as refusal:
            operation()
        assert refusal.value.errno in (errno.EBADF, errno.EINVAL)
    reader.close()
    assert content(host) == FULL
