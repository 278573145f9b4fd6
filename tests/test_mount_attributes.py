"""What stat, df and ls -l tell of disks, who may use them, and read-only mounts."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from harness import Mounted, Person, make_image, ordinary_user, sfdisk
from stores import MIB, TABLE, Store

Make = Callable[..., Mounted]
AS_ROOT = pytest.mark.parametrize("person", ["root"], indirect=True)


def test_chmod_and_touch_reach_the_host_file(store: Store) -> None:
    disk = store.image("disk", bytes(512))
    store.person.run("chmod", "600", disk)
    store.person.run("touch", "-d", "2001-02-03 04:05:06.789 UTC", disk)
    host = (store.host / "disk.img").stat()
    assert host.st_mode & 0o777 == 0o600
    assert host.st_mtime_ns == 981173106_789000000
    shown = store.person.does(lambda: os.stat(disk))
    assert (shown.st_mode & 0o777, shown.st_mtime_ns) == (0o600, host.st_mtime_ns)
    store.person.run("dd", "if=/dev/zero", f"of={disk}", "bs=512", "count=1", "conv=notrunc")
    shown, host = store.person.does(lambda: os.stat(disk)), (store.host / "disk.img").stat()
    assert shown.st_mtime_ns == host.st_mtime_ns > 981173106_789000000


def test_blocks_are_those_that_the_host_has(store: Store) -> None:
    """Of the disk and of each partition; data written and holes punched are seen."""
    disk = store.partitioned("disk")
    image = store.host / "disk.img"
    store.person.run("fallocate", "--dig-holes", image)

    def blocks(name: str) -> int:
        return int(store.person.run("stat", "--cached=never", "-c", "%b", store.mnt / name).stdout)

    assert blocks("disk.p1") == blocks("disk.p2") == 0
    write = ["dd", "if=/dev/urandom", "bs=64k", "count=3", "seek=2", "conv=notrunc,fsync"]
    store.person.run(*write, f"of={store.mnt / 'disk.p2'}")
    assert (blocks("disk.p1"), blocks("disk.p2")) == (0, 3 * 128)
    assert blocks("disk") == image.stat().st_blocks >= 3 * 128
    hole = ["--punch-hole", "--offset", str(2 * MIB + 2 * 65536), "--length", "65536"]
    store.person.run("fallocate", *hole, image)
    assert (blocks("disk.p1"), blocks("disk.p2")) == (0, 2 * 128)
    assert blocks("disk") == image.stat().st_blocks
    du = store.person.run("du", "-B512", disk).stdout.split()
    assert int(du[0]) == image.stat().st_blocks


def test_df_shows_the_hosts_room(store: Store) -> None:
    """Others write to that file system meanwhile: asked until two answers of the host agree."""
    names = ("f_blocks", "f_bfree", "f_bavail")

    def space(path: Path) -> list[int]:
        found = os.statvfs(path)
        return [getattr(found, name) * found.f_frsize for name in names]

    for _ in range(100):
        before, shown, after = (
            space(store.host), store.person.does(lambda: space(store.mnt)), space(store.host),
        )  # fmt: skip
        if before == after:
            break
    assert shown == after


# Options


@pytest.fixture
def image(person: Person, place: Path) -> Path:
    made = make_image(place / "disk.img", 4 * MIB, person)
    sfdisk(made, TABLE)
    return made


@pytest.mark.parametrize("option", [("-r",), ("-o", "ro")], ids=["-r", "-o ro"])
def test_a_read_only_mount_changes_nothing(
    person: Person, place: Path, mounts: Make, image: Path, option: tuple[str, ...]
) -> None:
    """EROFS for everybody, and the host file keeps even its time."""
    image.parent.joinpath("disks").mkdir()
    image = image.rename(image.parent / "disks" / "disk.img")
    before = (image.read_bytes(), image.stat())
    mounted = mounts(image.parent, options=option)
    disk = mounted / "disk"
    attempts: list[Callable[[], object]] = [
        lambda: disk.open("r+b"),
        lambda: (mounted / "disk.p1").open("r+b"),
        lambda: (mounted / ".vdisk/disk/chs/0/0/1").open("r+b"),
        lambda: (mounted / "new").open("xb"),
        lambda: os.truncate(disk, MIB),
        lambda: disk.unlink(),
        lambda: disk.rename(mounted / "other"),
        lambda: os.utime(disk),
        lambda: disk.chmod(0o777),
        lambda: (mounted / "folder").mkdir(),
    ]

    def work() -> list[int | None]:
        met: list[int | None] = []
        for attempt in attempts:
            try:
                attempt()
            except OSError as error:
                met.append(error.errno)
            else:
                met.append(None)
        assert disk.stat().st_mode & 0o222 == 0
        assert disk.read_bytes() == before[0]
        return met

    assert set(person.does(work)) == {errno.EROFS}
    mounted.unmount()
    after = image.stat()
    assert image.read_bytes() == before[0]
    assert after.st_mtime_ns == before[1].st_mtime_ns
    assert after.st_ctime_ns == before[1].st_ctime_ns


def test_uid_gid_and_umask_options_are_what_stat_shows(
    person: Person, mounts: Make, image: Path
) -> None:
    """An ordinary user who gives the folder to somebody else could not look into it."""
    image.chmod(0o666)
    uid = b"12345" if person.is_root else b"%d" % image.stat().st_uid
    mounted = mounts(image, options=("-o", f"uid={uid.decode()},gid=23456,umask=027"))
    for name in ("disk", "disk.p1", ".vdisk/disk/chs/0/0/1"):
        told = person.run("stat", "-c", "%u %g %a", mounted / name).stdout.split()
        assert told == [uid, b"23456", b"640"]


def test_without_options_a_disk_is_its_host_files_owners(
    person: Person, mounts: Make, image: Path
) -> None:
    image.chmod(0o604)
    mounted = mounts(image)
    host = person.run("stat", "-c", "%u %g %a %Y %s", image).stdout
    assert person.run("stat", "-c", "%u %g %a %Y %s", mounted / "disk").stdout == host


@AS_ROOT
def test_allow_other_lets_another_user_in_as_far_as_the_mode_does(
    person: Person, mounts: Make, image: Path
) -> None:
    """Without the option, an ordinary user is kept out of root's mount altogether."""
    image.chmod(0o604)
    other = ordinary_user()

    def read(mounted: Mounted) -> bytes:
        return other.run("head", "-c", "1M", mounted / "disk", check=False).stdout

    assert read(mounts(image.parent, options=("-r",))) == b""
    person.vdisk("umount", image.parent / "mnt0")
    mounted = mounts(image, options=("-o", "allow_other"))
    assert read(mounted) == image.read_bytes()[:MIB]
    write = ["dd", "if=/dev/zero", f"of={mounted / 'disk.p1'}", "count=1", "conv=notrunc"]
    assert b"Permission denied" in other.run(*write, check=False).stderr
    image.chmod(0o606)
    other.run("ls", "-l", "--", mounted.mountpoint)
    other.run(*write)
