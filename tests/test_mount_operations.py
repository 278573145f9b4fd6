"""What cp, dd, truncate, touch and the like do in a mounted folder of disks.

Everything is checked in the host folder as well, by path and not through vdisk.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from random import Random

import pytest

from stores import MIB, Store

# Creating and growing


def test_a_new_disk_grows_until_it_is_closed_and_then_has_an_end(store: Store) -> None:
    """Afterwards a write across the end gives what fits, and one past it ENOSPC."""
    path = store.mnt / "new"

    def work() -> None:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o640)
        assert os.fstat(fd).st_size == 0
        for i in range(5):
            assert os.pwrite(fd, bytes([i]) * 100_000, i * 100_000) == 100_000
        assert os.fstat(fd).st_size == 500_000
        os.close(fd)
        fd = os.open(path, os.O_RDWR)
        assert os.pwrite(fd, b"x" * 300, 500_000 - 100) == 100
        assert os.fstat(fd).st_size == 500_000
        os.close(fd)

    store.person.does(work)
    content = b"".join(bytes([i]) * 100_000 for i in range(5))[:-100] + b"x" * 100
    host = store.host / "new.img"
    assert host.read_bytes() == content
    assert host.stat().st_mode & 0o777 == 0o640

    def past_the_end() -> None:
        with path.open("r+b", buffering=0) as file:
            os.pwrite(file.fileno(), b"y", 500_000)

    assert store.errno_of(past_the_end) == "ENOSPC"
    done = store.person.run("dd", "if=/dev/zero", f"of={path}", "oflag=append", "conv=notrunc",
                            "count=1", check=False)  # fmt: skip
    assert b"No space left on device" in done.stderr
    assert host.read_bytes() == content


@pytest.mark.parametrize("view", ["disk.p1", ".vdisk/disk/chs/0/0/1", ".vdisk/disk/chs/0/0/track"])
@pytest.mark.parametrize("beside", [True, False], ids=["disk open too", "alone"])
def test_a_part_of_a_disk_has_an_end_as_well(store: Store, view: str, beside: bool) -> None:
    """And what lies behind it is not touched; whether the kernel caches this view or not."""
    store.partitioned("disk")
    before = (store.host / "disk.img").read_bytes()

    def work() -> tuple[int, int]:
        other = os.open(store.mnt / "disk", os.O_RDWR) if beside else -1
        with (store.mnt / view).open("r+b", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            written = os.pwrite(file.fileno(), b"z" * 1000, size - 10)
            with pytest.raises(OSError, match="No space left"):
                os.pwrite(file.fileno(), b"z", size)
        if beside:
            os.close(other)
        return size, written

    size, written = store.person.does(work)
    assert written == 10
    start = MIB if view == "disk.p1" else 0
    after = bytearray(before)
    after[start + size - 10 : start + size] = b"z" * 10
    assert (store.host / "disk.img").read_bytes() == after


def test_cp_makes_an_equal_disk_and_copies_disks(store: Store) -> None:
    content = Random(1).randbytes(3 * MIB + 512)
    source = store.image("source", content)
    store.person.run("cp", source, store.mnt / "copy")
    store.person.run("cp", "--sparse=always", store.mnt / "copy", store.mnt / "again.img")
    store.person.run("cmp", source, store.mnt / "again")
    assert store.names() == ["again", "copy", "source"]
    assert sorted(os.listdir(store.host)) == ["again.img", "copy.img", "source.img"]
    assert (store.host / "copy.img").read_bytes() == content
    assert (store.host / "again.img").read_bytes() == content


def test_cp_onto_a_disk_fills_it_and_says_when_it_is_full(store: Store) -> None:
    """As onto a block device: the size stays, a smaller source leaves the rest as it was."""
    target = store.image("target", b"t" * MIB)
    store.image("small", b"s" * 4096)
    store.image("large", b"l" * (2 * MIB))
    store.person.run("cp", store.mnt / "small", target)
    assert (store.host / "target.img").read_bytes() == b"s" * 4096 + b"t" * (MIB - 4096)
    done = store.person.run("cp", store.mnt / "large", target, check=False)
    assert done.returncode == 1
    assert b"No space left on device" in done.stderr
    assert (store.host / "target.img").read_bytes() == b"l" * MIB


@pytest.mark.parametrize(
    ("command", "size"),
    [
        (["truncate", "-s", "8M"], 8 * MIB),
        (["touch"], 0),
        (["qemu-img", "create", "-q", "-f", "raw"], 8 * MIB),
        (["mkfs.ext4", "-q", "-F"], 8 * MIB),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_tools_that_make_a_file_make_a_disk(store: Store, command: list[str], size: int) -> None:
    end = ["8M"] if command[0] in ("qemu-img", "mkfs.ext4") else []
    store.person.run(*command, store.mnt / "made", *end)
    assert store.names() == ["made"]
    assert (store.host / "made.img").stat().st_size == size
    if command[0] == "mkfs.ext4":
        store.person.run("e2fsck", "-fn", store.mnt / "made")
        store.person.run("e2fsck", "-fn", store.host / "made.img")


def test_dd_to_a_new_name_keeps_what_it_skipped_as_a_hole(store: Store) -> None:
    dd = ["dd", "if=/dev/zero", f"of={store.mnt / 'far'}", "bs=4k", "seek=4096", "count=1"]
    store.person.run(*dd)
    host = (store.host / "far.img").stat()
    assert (host.st_size, host.st_blocks * 512 < MIB) == (4097 * 4096, True)


# Resizing


def test_truncate_resizes_and_keeps_what_stays(store: Store) -> None:
    content = Random(2).randbytes(2 * MIB)
    disk = store.image("disk", content)
    store.person.run("truncate", "-s", "3M", disk)
    assert (store.host / "disk.img").read_bytes() == content + bytes(MIB)
    assert store.person.run("cat", disk).stdout == content + bytes(MIB)
    store.person.run("truncate", "-s", "1M", disk)
    assert (store.host / "disk.img").read_bytes() == content[:MIB]
    store.person.run("truncate", "-s", "2M", disk)
    assert store.person.run("cat", disk).stdout == content[:MIB] + bytes(MIB)


def test_opening_for_truncation_empties_nothing(store: Store) -> None:
    """`> disk`, cp /dev/null and dd without conv=notrunc: a disk keeps its size and its bytes."""
    content = Random(3).randbytes(MIB)
    disk = store.image("disk", content)
    store.person.run("sh", "-c", f": > {disk}")
    store.person.run("cp", "/dev/null", disk)
    assert (store.host / "disk.img").read_bytes() == content
    store.person.run("dd", "if=/dev/zero", f"of={disk}", "bs=512", "count=1")
    assert (store.host / "disk.img").read_bytes() == bytes(512) + content[512:]


def test_a_partition_is_not_resized(store: Store) -> None:
    store.partitioned("disk")
    part = store.mnt / "disk.p1"
    store.person.run("truncate", "-s", "1M", part)
    assert store.errno_of(lambda: os.truncate(part, MIB + 512)) == "EPERM"
    assert store.errno_of(lambda: os.truncate(part, 0)) == "EPERM"
    store.person.run("sh", "-c", f": > {part}")
    assert (store.host / "disk.img").stat().st_size == 4 * MIB


@pytest.mark.parametrize("view", ["disk", "disk.p2", ".vdisk/disk/chs/0/0/1"])
def test_a_disk_that_is_open_is_not_resized_removed_or_renamed(store: Store, view: str) -> None:
    """Whichever part of it is open, and for reading only.  Right after the close all three work."""
    disk = store.partitioned("disk")
    store.image("other", bytes(512))

    def work() -> list[str]:
        attempts: list[Callable[[], object]] = [
            lambda: os.truncate(disk, 8 * MIB),
            lambda: os.unlink(disk),
            lambda: os.rename(disk, store.mnt / "new"),
            lambda: os.rename(store.mnt / "other", disk),
        ]
        met = []
        with (store.mnt / view).open("rb"):
            for attempt in attempts:
                try:
                    attempt()
                except OSError as error:
                    met.append(errno.errorcode[error.errno or 0])
        os.truncate(disk, 8 * MIB)
        os.rename(disk, store.mnt / "new")
        os.unlink(store.mnt / "new")
        return met

    assert store.person.does(work) == ["EBUSY"] * 4
    assert os.listdir(store.host) == ["other.img"]


def test_who_has_the_disk_open_alone_may_resize_it(store: Store) -> None:
    disk = store.image("disk", b"d" * MIB)

    def work() -> None:
        with disk.open("r+b") as one, disk.open("rb"), pytest.raises(OSError, match="busy"):
            os.ftruncate(one.fileno(), 2 * MIB)
        with disk.open("r+b") as one:
            os.ftruncate(one.fileno(), 2 * MIB)
            assert os.pwrite(one.fileno(), b"end", 2 * MIB - 3) == 3

    store.person.does(work)
    assert (store.host / "disk.img").read_bytes() == b"d" * MIB + bytes(MIB - 3) + b"end"


def test_a_close_right_before_rm_is_no_reason_for_busy(store: Store) -> None:
    """close(2) returns before the daemon hears of it."""

    def work() -> None:
        for i in range(100):
            path = store.mnt / f"brief{i % 3}"
            path.write_bytes(b"gone" * 2000)
            path.unlink()

    store.person.does(work)
    assert os.listdir(store.host) == []
