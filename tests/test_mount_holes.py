"""Holes, space and copies through a mount: fallocate, SEEK_DATA and SEEK_HOLE, copy_file_range.

What the host file has, by its own SEEK_DATA and st_blocks, is the witness.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import pytest

from devices import loop_mounted
from fsx import Exerciser
from harness import Mounted, Person, make_image, mount
from stores import MIB, Store

ONE_SERVER = "kernel"
KEEP_SIZE, PUNCH_HOLE, COLLAPSE, ZERO_RANGE = 1, 2, 8, 16
Make = Callable[..., Mounted]
AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="loop devices take root")

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


def fallocate(path: Path, mode: int, offset: int, length: int) -> None:
    fd = os.open(path, os.O_RDWR)
    try:
        if _libc.fallocate(fd, mode, offset, length) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    finally:
        os.close(fd)


def data_ranges(path: Path) -> list[tuple[int, int]]:
    """(start, end) of each run of data, as SEEK_DATA and SEEK_HOLE tell."""
    fd = os.open(path, os.O_RDONLY)
    found, at = [], 0
    try:
        with contextlib.suppress(OSError):  # ENXIO: no more data.
            while True:
                start = os.lseek(fd, at, os.SEEK_DATA)
                at = os.lseek(fd, start, os.SEEK_HOLE)
                found.append((start, at))
        return found
    finally:
        os.close(fd)


def test_a_punched_hole_is_one_in_the_host_file(store: Store) -> None:
    content = Random(1).randbytes(4 * MIB)
    disk, host = store.image("disk", content), store.host / "disk.img"
    before = host.stat().st_blocks
    store.person.does(lambda: fallocate(disk, PUNCH_HOLE | KEEP_SIZE, MIB, 2 * MIB))
    assert before - host.stat().st_blocks == 2 * MIB // 512
    assert host.read_bytes() == content[:MIB] + bytes(2 * MIB) + content[3 * MIB :]
    assert store.person.run("cat", disk).stdout == host.read_bytes()
    store.person.does(lambda: fallocate(disk, PUNCH_HOLE | KEEP_SIZE, 100, 50))
    assert host.read_bytes()[:200] == content[:100] + bytes(50) + content[150:200]


def test_a_zeroed_range_keeps_its_space(store: Store) -> None:
    content = Random(2).randbytes(2 * MIB)
    disk, host = store.image("disk", content), store.host / "disk.img"
    store.person.does(lambda: fallocate(disk, ZERO_RANGE, 5000, MIB))
    assert host.read_bytes() == content[:5000] + bytes(MIB) + content[5000 + MIB :]
    assert host.stat().st_blocks >= 2 * MIB // 512


def test_space_that_is_set_aside_is_taken_from_the_host(store: Store) -> None:
    disk, host = store.image("disk", b""), store.host / "disk.img"
    os.truncate(host, 4 * MIB)
    store.person.does(lambda: fallocate(disk, 0, MIB, MIB))
    assert MIB <= host.stat().st_blocks * 512 < 2 * MIB
    assert host.read_bytes() == bytes(4 * MIB)


def test_a_range_past_the_end_is_refused_or_cut_off(store: Store) -> None:
    """As fallocate(2) has it: KEEP_SIZE may go past the end; without it, the disk would grow."""
    disk, host = store.image("disk", b"d" * MIB), store.host / "disk.img"

    def met(mode: int, offset: int, length: int) -> str | None:
        return store.errno_of(lambda: fallocate(disk, mode, offset, length))

    assert met(0, MIB - 4096, 8192) == "ENOSPC"
    assert met(ZERO_RANGE, MIB - 4096, 8192) == "ENOSPC"
    assert met(COLLAPSE, 0, 4096) == errno.errorcode[errno.EOPNOTSUPP]
    assert host.read_bytes() == b"d" * MIB
    assert met(PUNCH_HOLE | KEEP_SIZE, MIB - 4096, 8192) is None
    assert met(KEEP_SIZE, 2 * MIB, 8192) is None
    assert host.read_bytes() == b"d" * (MIB - 4096) + bytes(4096)


def test_a_new_disk_grows_by_fallocate_and_by_copies(store: Store) -> None:
    content = Random(3).randbytes(MIB + 777)
    source, new = store.image("source", content), store.mnt / "new"

    def work() -> None:
        fd, old = os.open(new, os.O_RDWR | os.O_CREAT), os.open(source, os.O_RDONLY)
        os.posix_fallocate(fd, 0, 3 * MIB)
        assert os.fstat(fd).st_size == 3 * MIB
        assert os.copy_file_range(old, fd, len(content), 0, 3 * MIB) > 0
        os.close(fd)
        os.close(old)

    store.person.does(work)
    found = (store.host / "new.img").read_bytes()
    assert found[: 3 * MIB] == bytes(3 * MIB)
    assert content.startswith(found[3 * MIB :])


def test_pages_of_other_views_follow_a_hole(store: Store) -> None:
    """The partition is cached; the hole is made through the disk, and the other way round."""
    disk = store.partitioned("disk")
    part = store.mnt / "disk.p1"

    def work() -> None:
        with part.open("r+b", buffering=0) as inner, disk.open("r+b", buffering=0) as outer:
            for view, base, other in ((outer, MIB, inner), (inner, 0, outer)):
                os.pwrite(inner.fileno(), b"i" * 16384, 0)
                assert os.pread(other.fileno(), 8192, MIB - base) == b"i" * 8192
                assert _libc.fallocate(view.fileno(), PUNCH_HOLE | KEEP_SIZE, base, 4096) == 0
                found = os.pread(other.fileno(), 8192, MIB - base)
                assert found == bytes(4096) + b"i" * 4096

    store.person.does(work)


def test_a_hole_over_the_table_takes_the_partitions_away(store: Store) -> None:
    disk = store.partitioned("disk")
    assert len(store.names()) == 3
    store.person.does(lambda: fallocate(disk, PUNCH_HOLE | KEEP_SIZE, 0, 4096))
    assert store.names() == ["disk"]


def test_data_and_holes_are_those_of_the_host_file(store: Store) -> None:
    """Of the disk, and of a partition in its own offsets."""
    disk, host = store.partitioned("disk"), store.host / "disk.img"
    store.person.run("fallocate", "--dig-holes", host)
    with host.open("r+b") as file:
        for at in (MIB + 65536, 2 * MIB - 4096, 3 * MIB):
            os.pwrite(file.fileno(), b"d" * 20000, at)
        os.fsync(file.fileno())
    ranges = data_ranges(host)
    assert len(ranges) >= 3
    assert store.person.does(lambda: data_ranges(disk)) == ranges
    inside = [
        (max(start, MIB) - MIB, min(end, 2 * MIB) - MIB)
        for start, end in ranges if start < 2 * MIB and end > MIB
    ]  # fmt: skip
    assert store.person.does(lambda: data_ranges(store.mnt / "disk.p1")) == inside
    met = store.errno_of(lambda: _seek(disk, 4 * MIB, os.SEEK_DATA))
    assert met == "ENXIO"


def _seek(path: Path, offset: int, whence: int) -> int:
    with path.open("rb") as file:
        return os.lseek(file.fileno(), offset, whence)


def test_tools_see_holes_and_copies_keep_them(store: Store, tmp_path: Path) -> None:
    disk, host = store.image("disk", b""), store.host / "disk.img"
    with host.open("r+b") as file:
        file.truncate(64 * MIB)
        os.pwrite(file.fileno(), b"x" * MIB, 40 * MIB)
    told = store.person.run("qemu-img", "map", "-f", "raw", "--output=json", disk).stdout
    assert told == store.person.run(
        "qemu-img", "map", "-f", "raw", "-U", "--output=json", host
    ).stdout.replace(bytes(host), bytes(disk))
    store.person.run("cp", "--sparse=auto", disk, store.mnt / "copy")
    copy = store.host / "copy.img"
    assert copy.stat().st_blocks * 512 < 2 * MIB
    store.person.run("cmp", disk, store.mnt / "copy")
    store.person.run("cmp", host, copy)


# Copies


def test_a_copy_inside_the_kernel_is_exact(store: Store) -> None:
    """Between disks and parts of them, unaligned, with holes in the source over old data."""
    content = bytearray(Random(4).randbytes(2 * MIB))
    content[MIB : MIB + 65536] = bytes(65536)
    source = store.image("source", bytes(content))
    store.person.run("fallocate", "--dig-holes", store.host / "source.img")
    target = store.image("target", b"t" * (3 * MIB))
    track = store.mnt / ".vdisk/target/chs/1/1/track"
    model = bytearray(b"t" * (3 * MIB))

    def copy(to: Path, source_offset: int, target_offset: int, length: int) -> int:
        with source.open("rb") as one, to.open("r+b") as two:
            return os.copy_file_range(
                one.fileno(), two.fileno(), length, source_offset, target_offset
            )

    start = (16 + 1) * 63 * 512
    for to, base, at, put, length in (
        (target, 0, 123, 4567, 100_000),
        (target, 0, MIB - 50, 2 * MIB - 3, 65536 + 100),
        (target, 0, 0, 2 * MIB, MIB),
        (track, start, MIB - 100, 7, 20_000),
    ):
        done = store.person.does(lambda call=(to, at, put, length): copy(*call))
        assert 0 < done <= length
        model[base + put : base + put + done] = content[at : at + done]
        assert (store.host / "target.img").read_bytes() == model
    assert store.person.run("cat", target).stdout == model
    assert store.person.does(lambda: copy(target, 2 * MIB, 0, 100)) == 0
    assert store.errno_of(lambda: copy(target, 0, 3 * MIB, 100)) == "ENOSPC"
    assert store.person.does(lambda: copy(target, 0, 3 * MIB - 10, 100)) == 10


def test_a_copy_onto_itself_is_refused(store: Store) -> None:
    """As the kernel does within one file; here the same bytes have two names."""
    disk = store.partitioned("disk")

    def work() -> int:
        with disk.open("rb") as one, (store.mnt / "disk.p1").open("r+b") as two:
            os.copy_file_range(one.fileno(), two.fileno(), 8192, 0, 8192)
            return os.copy_file_range(one.fileno(), two.fileno(), 8192, MIB, 4096)

    assert store.errno_of(work) == "EINVAL"


@pytest.fixture
def sharing_folder(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A folder on a file system that shares blocks."""
    image, folder = make_image(tmp_path / "host", 512 * MIB), tmp_path / "host.mnt"
    folder.mkdir()
    Person().run(*request.param, image)
    with loop_mounted(image, folder):
        yield folder


@AS_ROOT
@pytest.mark.parametrize(
    "sharing_folder", [["mkfs.xfs", "-q"], ["mkfs.btrfs", "-q"]], indirect=True,
    ids=["xfs", "btrfs"],
)  # fmt: skip
def test_a_copy_shares_its_blocks_where_the_host_can(
    sharing_folder: Path, tmp_path: Path, server: str
) -> None:
    """Whatever its size, the process moves no data and the host needs no more room."""
    (sharing_folder / "a.img").write_bytes(Random(5).randbytes(MIB) * 200)
    os.sync()
    mounted = mount(Person(), [sharing_folder], tmp_path / "mnt")
    try:
        space = os.statvfs(sharing_folder)
        before = _bytes_written(mounted.pid)
        Person().run("cp", "--reflink=auto", mounted / "a", mounted / "b")
        os.sync()
        assert _bytes_written(mounted.pid) - before < MIB
        room = (space.f_bfree - os.statvfs(sharing_folder).f_bfree) * space.f_frsize
        assert room < 20 * MIB
        assert b"shared" in Person().run("filefrag", "-v", sharing_folder / "b.img").stdout
        Person().run("cmp", mounted / "a", mounted / "b")
        Person().run("cmp", sharing_folder / "a.img", sharing_folder / "b.img")
        with (mounted / "b").open("r+b") as file:
            file.write(b"own" * 5000)
        assert (mounted / "a").read_bytes()[:15000] != b"own" * 5000
    finally:
        mounted.unmount()


def _bytes_written(pid: int) -> int:
    fields = dict(line.split(": ") for line in Path(f"/proc/{pid}/io").read_text().splitlines())
    return int(fields["wchar"])


# A file system on the disk


@AS_ROOT
def test_fstrim_gives_a_file_systems_free_space_back_to_the_host(tmp_path: Path) -> None:
    image, where = make_image(tmp_path / "disk.img", 128 * MIB), tmp_path / "ext4"
    mounted = mount(Person(), [image], tmp_path / "mnt")
    where.mkdir()
    try:
        Person().run("mkfs.ext4", "-q", "-E", "nodiscard", mounted / "disk")
        with loop_mounted(mounted / "disk", where):
            (where / "big").write_bytes(Random(6).randbytes(MIB) * 60)
            (where / "kept").write_bytes(Random(7).randbytes(MIB))
            os.sync()
            full = image.stat().st_blocks * 512
            (where / "big").unlink()
            os.sync()
            Person().run("fstrim", where)
            assert full - image.stat().st_blocks * 512 > 55 * MIB
            assert (where / "kept").read_bytes() == Random(7).randbytes(MIB)
    finally:
        mounted.unmount()
    Person().run("e2fsck", "-fn", image)


# All together


@pytest.mark.parametrize(
    "steps", [2_000, pytest.param(100_000, marks=pytest.mark.slow)], ids=["short", "long"]
)
def test_random_operations_in_any_order_change_what_they_should(
    store: Store, steps: int
) -> None:
    """Writes, reads, memory, truncation, holes, zeros and copies, against a plain byte array."""
    store.image("disk", bytes(MIB))
    disk, host = store.mnt / "disk", store.host / "disk.img"
    seed = int.from_bytes(os.urandom(4), "little")

    def work() -> bytes:
        exerciser = Exerciser(disk, Random(seed))
        for _ in range(steps):
            exerciser.step()
        exerciser.close()
        return bytes(exerciser.model)

    try:
        assert store.person.does(work) == host.read_bytes()
    except AssertionError as error:
        error.add_note(f"seed {seed}")
        raise


# What the other server lacks


@pytest.fixture
def other_server(server: str) -> Iterator[None]:
    import harness

    harness.chosen.server = "pyfuse3"
    yield
    harness.chosen.server = server


@pytest.mark.usefixtures("other_server")
def test_pyfuse3_says_that_it_has_none_of_this(tmp_path: Path) -> None:
    """Clearly, and with no harm: what it cannot do, a program does by reading and writing."""
    person = Person()
    mounted = mount(person, [make_image(tmp_path / "disk.img", MIB)], tmp_path / "mnt")
    try:
        disk = mounted / "disk"
        with pytest.raises(OSError, match="not supported") as refused:
            fallocate(disk, PUNCH_HOLE | KEEP_SIZE, 0, 4096)
        assert refused.value.errno == errno.EOPNOTSUPP
        assert data_ranges(disk) == [(0, MIB)]
        with pytest.raises(OSError, match="not supported"):
            os.listxattr(disk)
    finally:
        mounted.unmount()
