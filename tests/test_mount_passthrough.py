"""Who reads a raw disk as root is given the host file by the kernel, and sees what anybody writes.

That reads do not reach the process is shown by what it has read itself, and by stopping it.
"""

from __future__ import annotations

import errno
import json
import mmap
import os
import select
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from harness import PATIENCE, Mounted, Person, make_image, sfdisk

ONE_SERVER = "kernel"
MIB = 1 << 20
SIZE = 8 * MIB
TABLE = "label: dos\nstart=2048,size=4096\nstart=6144,size=6144\n"
Make = Callable[..., Mounted]

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="passthrough takes root")


@pytest.fixture
def place() -> Iterator[Path]:
    """Always on disk: what can be passed through depends on the file system, not on who asks."""
    folder = Person().folder()
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def image(place: Path) -> Path:
    made = make_image(place / "disk.img", SIZE)
    sfdisk(made, TABLE)
    return made


@pytest.fixture
def disk(mounts: Make, image: Path) -> Mounted:
    return mounts(image, options=("--chs", "16/16/63"))


@pytest.fixture(params=["root"])
def person() -> Person:
    return Person()


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """The process does nothing meanwhile."""
    os.kill(pid, signal.SIGSTOP)
    try:
        while "\nState:\tT" not in Path(f"/proc/{pid}/status").read_text():
            pass
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@contextmanager
def opened(path: Path, flags: int = os.O_RDONLY) -> Iterator[int]:
    fd = os.open(path, flags)
    try:
        yield fd
    finally:
        os.close(fd)


def is_passthrough(disk: Mounted, fd: int) -> bool:
    """Whether the process reads less of the disk than we do, of pages that the kernel has not."""
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    before = bytes_read(disk.pid)
    assert len(os.pread(fd, MIB, 0)) == MIB
    return bytes_read(disk.pid) - before < MIB


def bytes_read(pid: int) -> int:
    """What read(2) and its like have given a process so far (proc(5), /proc/PID/io)."""
    fields = dict(line.split(": ") for line in Path(f"/proc/{pid}/io").read_text().splitlines())
    return int(fields["rchar"])


def listed(mounted: Mounted) -> bool:
    rows = json.loads(mounted.person.vdisk("list", "--json").stdout)
    (row,) = (row for row in rows if row["mountpoint"] == str(mounted.mountpoint))
    assert row["server"] == "kernel"
    return bool(row["disks"][0]["passthrough"])


def test_a_reader_is_given_the_host_file(disk: Mounted, image: Path) -> None:
    image.read_bytes()
    with opened(disk / "disk") as fd:
        assert is_passthrough(disk, fd)
        with stopped(disk.pid):
            assert os.pread(fd, SIZE, 0) == image.read_bytes()
    assert listed(disk)


def test_it_can_be_left_out(mounts: Make, image: Path) -> None:
    mounted = mounts(image, options=("-o", "nopassthrough"))
    image.read_bytes()
    with opened(mounted / "disk") as fd:
        assert not is_passthrough(mounted, fd)
        assert os.pread(fd, SIZE, 0) == image.read_bytes()
    assert not listed(mounted)


@pytest.mark.parametrize(
    ("view", "start"),
    [("disk", 0), ("disk.p1", MIB), (".vdisk/disk/chs/3/2/track", (3 * 16 + 2) * 63 * 512),
     (".vdisk/disk/chs/5/3/7", ((5 * 16 + 3) * 63 + 6) * 512)],
)  # fmt: skip
def test_a_reader_sees_what_any_view_writes_at_once(
    disk: Mounted, view: str, start: int
) -> None:
    with opened(disk / "disk") as reader, opened(disk / view, os.O_RDWR) as writer:
        for turn in range(4):
            os.pread(reader, SIZE, 0)
            os.pwrite(writer, bytes([turn + 1]) * 100, 12)
            assert os.pread(reader, 100, start + 12) == bytes([turn + 1]) * 100


def test_a_writer_beside_a_reader_meets_the_end_and_the_host_file_stays_as_long(
    disk: Mounted, image: Path
) -> None:
    with opened(disk / "disk") as reader, opened(disk / "disk", os.O_RDWR) as writer:
        assert is_passthrough(disk, reader)
        assert os.pwrite(writer, b"x" * 1000, SIZE - 10) == 10
        with pytest.raises(OSError, match="No space left"):
            os.pwrite(writer, b"x", SIZE)
        with pytest.raises(OSError, match="No space left"):
            os.posix_fallocate(writer, SIZE, 4096)
        assert os.pread(reader, 100, SIZE - 10) == b"x" * 10
        assert os.fstat(writer).st_size == SIZE
    assert image.stat().st_size == SIZE


def test_a_partition_that_was_open_first_keeps_its_pages_right(disk: Mounted) -> None:
    """The disk, opened later for reading and then for writing, is no way past them."""
    with (
        opened(disk / "disk.p1", os.O_RDWR) as part,
        opened(disk / "disk") as reader,
        opened(disk / "disk", os.O_RDWR) as writer,
    ):
        assert not is_passthrough(disk, reader)
        for turn in range(4):
            assert len(os.pread(part, 8192, 0)) == 8192
            os.pwrite(writer, bytes([turn + 1]) * 100, MIB + 5)
            assert os.pread(part, 100, 5) == bytes([turn + 1]) * 100


def test_what_a_writer_maps_into_memory_is_seen_by_all(disk: Mounted, image: Path) -> None:
    """Even with no flush, since it is the host file's memory."""
    with (
        opened(disk / "disk"),
        opened(disk / "disk", os.O_RDWR) as writer,
        mmap.mmap(writer, SIZE) as memory,
        opened(disk / "disk.p1", os.O_RDWR) as part,
    ):
        for turn in range(4):
            os.pread(part, 8192, 0)
            memory[MIB + 7 : MIB + 11] = bytes([turn + 1]) * 4
            assert os.pread(part, 4, 7) == bytes([turn + 1]) * 4
            assert image.read_bytes()[MIB + 7 : MIB + 11] == bytes([turn + 1]) * 4
            os.pwrite(part, b"part", 7)
            assert memory[MIB + 7 : MIB + 11] == b"part"


def test_memory_that_outlives_its_file_is_still_seen(disk: Mounted, image: Path) -> None:
    """Stores after every close: views opened later read them, and the table follows them."""
    model = make_image(image.with_name("model"), SIZE)
    sfdisk(model, "label: dos\nstart=8192,size=2048\n")
    with opened(disk / "disk") as reader:
        writer = os.open(disk / "disk", os.O_RDWR)
        memory = mmap.mmap(writer, SIZE)
        os.close(writer)
        os.close(os.dup(reader))
    with memory:
        for turn in range(4):
            memory[MIB : MIB + 4] = bytes([turn + 1]) * 4
            assert (disk / "disk.p1").read_bytes()[:4] == bytes([turn + 1]) * 4
            assert (disk / "disk").read_bytes()[MIB : MIB + 4] == bytes([turn + 1]) * 4
        memory[:512] = model.read_bytes()[:512]
        assert sorted(os.listdir(disk.mountpoint)) == ["disk", "disk.p1"]
        assert (disk / "disk.p1").stat().st_size == 2048 * 512
        memory[:512] = bytes(512)
        assert os.listdir(disk.mountpoint) == ["disk"]


def test_a_disk_read_by_passthrough_counts_as_open(disk: Mounted) -> None:
    with opened(disk / "disk"):
        with pytest.raises(OSError, match="busy") as refused:
            os.truncate(disk / "disk", MIB)
        assert refused.value.errno == errno.EBUSY
    os.truncate(disk / "disk", 2 * SIZE)
    with opened(disk / "disk") as fd:
        assert len(os.pread(fd, 4 * SIZE, 0)) == 2 * SIZE


def test_a_killed_process_leaves_no_lock_although_the_kernel_has_the_file(
    disk: Mounted, image: Path
) -> None:
    """The dead mount is there, and so is the reader: another program may write to the image."""
    (disk / "disk").read_bytes()
    with opened(disk / "disk") as fd:
        process = os.pidfd_open(disk.pid)
        os.kill(disk.pid, signal.SIGKILL)
        assert select.select([process], [], [], PATIENCE)[0]
        os.close(process)
        disk.person.run("qemu-io", "-f", "raw", "-c", "write -P 7 4M 4k", image)
        assert os.pread(fd, 4096, 4 * MIB) == b"\x07" * 4096
    disk.person.vdisk("umount", disk.mountpoint)


def test_a_host_folders_new_disk_is_passed_through_once_it_is_whole(
    mounts: Make, place: Path
) -> None:
    (place / "disks").mkdir()
    mounted = mounts(place / "disks")
    path = mounted / "new"
    with opened(path, os.O_RDWR | os.O_CREAT) as writer, opened(path) as beside:
        os.pwrite(writer, b"n" * MIB, 0)
        os.pwrite(writer, b"n" * MIB, 5 * MIB)
        assert os.pread(beside, 2 * MIB, 0) == b"n" * MIB + bytes(MIB)
    # close(2) does not wait until the server is told of it; a renaming does.
    path = path.rename(mounted / "whole")
    with opened(path) as reader:
        assert is_passthrough(mounted, reader)
        assert os.pread(reader, 9 * MIB, 0)[5 * MIB :] == b"n" * MIB
    path.unlink()
    assert os.listdir(place / "disks") == []


def test_a_read_only_mount_reads_by_passthrough_and_writes_nothing(
    mounts: Make, image: Path
) -> None:
    mounted = mounts(image, options=("-r",))
    before = image.stat()
    image.read_bytes()
    with opened(mounted / "disk") as fd:
        assert is_passthrough(mounted, fd)
        with pytest.raises(OSError, match="Read-only"):
            os.open(mounted / "disk", os.O_RDWR)
        with pytest.raises(PermissionError):
            mmap.mmap(fd, SIZE, mmap.MAP_SHARED, mmap.PROT_WRITE | mmap.PROT_READ)
    assert (image.stat().st_mtime_ns, image.stat().st_ctime_ns) == (
        before.st_mtime_ns, before.st_ctime_ns,
    )  # fmt: skip
