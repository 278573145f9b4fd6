"""Names in a mounted folder: mv, rm and rename(2), and what others do in the host folder."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from pathlib import Path

from harness import make_image
from stores import Store

RENAME_NOREPLACE, RENAME_EXCHANGE = 1, 2  # renameat2(2).
AT_FDCWD = -100


def renameat2(old: Path, new: Path, flags: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(AT_FDCWD, os.fsencode(old), AT_FDCWD, os.fsencode(new), flags) != 0:
        raise OSError(ctypes.get_errno(), "renameat2")


def test_mv_renames_the_host_file_and_its_partitions(store: Store) -> None:
    store.partitioned("old")
    store.person.run("mv", store.mnt / "old", store.mnt / "new")
    assert os.listdir(store.host) == ["new.img"]
    assert store.names() == ["new", "new.p1", "new.p2"]


def test_mv_over_a_disk_replaces_it(store: Store) -> None:
    store.image("one", b"1" * 1024)
    store.image("two", b"2" * 2048)
    store.person.run("mv", store.mnt / "one", store.mnt / "two")
    assert store.names() == ["two"]
    assert (store.host / "two.img").read_bytes() == b"1" * 1024
    assert store.person.run("cat", store.mnt / "two").stdout == b"1" * 1024


def test_mv_brings_a_file_in_and_out(store: Store, tmp_path: Path) -> None:
    outside = make_image(store.host.parent / "outside", 2048, store.person)
    outside.write_bytes(b"moved" * 400)
    store.person.run("mv", outside, store.mnt / "inside")
    assert (store.host / "inside.img").read_bytes() == b"moved" * 400
    store.person.run("mv", store.mnt / "inside", outside)
    assert outside.read_bytes() == b"moved" * 400
    assert store.names() == []
    outside.unlink()


def test_rename_flags(store: Store) -> None:
    """RENAME_NOREPLACE replaces nothing; RENAME_EXCHANGE is not offered."""
    one, two = store.image("one", b"1" * 512), store.image("two", b"2" * 512)
    assert store.errno_of(lambda: renameat2(one, two, RENAME_NOREPLACE)) == "EEXIST"
    assert store.errno_of(lambda: renameat2(one, two, RENAME_EXCHANGE)) == "EINVAL"
    assert store.errno_of(lambda: renameat2(one, store.mnt / "three", RENAME_NOREPLACE)) is None
    assert sorted(os.listdir(store.host)) == ["three.img", "two.img"]


def test_nothing_but_disks_can_be_made_or_removed(store: Store) -> None:
    store.partitioned("disk")
    mnt, meta = store.mnt, store.mnt / ".vdisk"
    attempts: list[Callable[[], object]] = [
        lambda: os.mkdir(mnt / "folder"),
        lambda: os.link(mnt / "disk", mnt / "link"),
        lambda: os.symlink("disk", mnt / "link"),
        lambda: os.mkfifo(mnt / "pipe"),
        lambda: os.unlink(mnt / "disk.p1"),
        lambda: os.rename(mnt / "disk.p1", mnt / "part"),
        lambda: os.rename(mnt / "disk", mnt / "disk.p7"),
        lambda: os.unlink(meta / "disk/geometry"),
        lambda: os.unlink(meta / "disk/chs/0/0/1"),
        lambda: os.rmdir(meta / "disk"),
        lambda: os.rmdir(meta),
    ]
    for number, attempt in enumerate(attempts):
        assert store.errno_of(attempt) in ("EPERM", "EACCES"), number
    assert store.errno_of(lambda: (meta / "file").write_bytes(b"")) in ("EPERM", "EACCES")
    assert store.errno_of(lambda: (mnt / "disk.p9").write_bytes(b"")) == "EPERM"
    assert store.errno_of(lambda: (mnt / ".hidden").write_bytes(b"")) == "EINVAL"
    assert store.names() == ["disk", "disk.p1", "disk.p2"]
    assert os.listdir(store.host) == ["disk.img"]


# The host folder's own changes


def test_an_image_that_appears_in_the_host_folder_is_a_disk(store: Store) -> None:
    assert store.names() == []
    store.image("late", b"here" * 128)
    assert store.person.run("cat", store.mnt / "late").stdout == b"here" * 128
    (store.host / "late.img").unlink()
    assert store.names() == []
    store.image("first", bytes(512))
    store.image("second", bytes(512))
    assert store.names() == ["first", "second"]


def test_an_open_disk_outlives_its_name_in_the_host_folder(store: Store) -> None:
    disk = store.image("disk", b"kept" * 128)
    image = store.host / "disk.img"

    def work() -> bytes:
        with disk.open("rb") as file:
            image.unlink()
            os.listdir(store.mnt)
            return file.read()

    assert store.person.does(work) == b"kept" * 128
    assert store.names() == []


def test_a_host_file_that_was_replaced_is_shown_as_it_is_now(store: Store) -> None:
    """Not as the one that was there when the mount first looked and is no name's any more."""
    disk = store.image("disk", b"old." * 128)
    assert store.person.run("cat", disk).stdout == b"old." * 128
    new = make_image(store.host.parent / "new.img", 1024, store.person)
    new.write_bytes(b"new." * 256)
    new.rename(store.host / "disk.img")
    assert store.names() == ["disk"]
    assert store.person.run("cat", disk).stdout == b"new." * 256
    store.person.run("dd", "if=/dev/zero", f"of={disk}", "bs=1024", "count=1", "conv=notrunc")
    assert (store.host / "disk.img").read_bytes() == bytes(1024)


def test_a_host_file_that_was_renamed_is_the_same_disk(store: Store) -> None:
    """Open or not: the old name goes, the new one comes, and the open file goes on."""
    disk = store.image("old", b"same" * 128)
    assert store.names() == ["old"]

    def work() -> None:
        with disk.open("r+b", buffering=0) as file:
            (store.host / "old.img").rename(store.host / "new.img")
            assert os.listdir(store.mnt) == ["new"]
            assert (store.mnt / "new").read_bytes() == b"same" * 128
            os.pwrite(file.fileno(), b"here", 4)
        assert os.listdir(store.mnt) == ["new"]

    store.person.does(work)
    assert (store.host / "new.img").read_bytes() == b"samehere" + b"same" * 126


def test_an_image_is_seen_however_soon_it_comes_after_the_last_look(store: Store) -> None:
    """Even within a tick of the host's clock, and where the folder's time is set back after it."""
    for i in range(20):
        store.image(f"disk{i}", bytes(512))
        assert store.person.does(lambda: len(os.listdir(store.mnt))) == i + 1
    times = store.host.stat()
    store.image("last", bytes(512))
    os.utime(store.host, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert len(store.names()) == 21
