"""A disk made by the README's first command, partitioned, formatted, filled, checked, taken apart.

The file systems are judged by their own checkers, through the mount and again on the bare host
file at the offset that sfdisk reads from it.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from devices import loop_device, loop_mounted
from harness import PATIENCE, Mounted, Person, sfdisk
from trees import hashes, make_tree

TABLE = "label: gpt\nsize=128MiB\nsize=+\n"


@pytest.fixture
def disk(person: Person, place: Path) -> Iterator[Mounted]:
    """The README's first command, typed in `place`."""
    person.vdisk("mount", "--create", "1G", "disk.img", "mnt", cwd=place)
    listed = json.loads(person.vdisk("list", "--json").stdout)
    pid = next(one["pid"] for one in listed if one["mountpoint"] == str(place / "mnt"))
    mounted = Mounted(person, place / "mnt", pid)
    yield mounted
    mounted.end()


def test_partitions_of_a_new_disk_hold_file_systems_with_thousands_of_files(
    person: Person, place: Path, disk: Mounted
) -> None:
    tree = make_tree(place / "tree", person)
    image = place / "disk.img"
    sfdisk(disk / "disk", TABLE, person=person)
    _make_ext4(person, disk / "disk.p1")
    expected = hashes(tree, person)

    with _mounted(person, disk / "disk.p1", place / "ext4"):
        _copy(person, tree, place / "ext4")
        assert hashes(place / "ext4", person) == expected
    if person.is_root:
        person.run("mkfs.xfs", "-q", disk / "disk.p2")
        with _mounted(person, disk / "disk.p2", place / "xfs"):
            _copy(person, tree, place / "xfs")
    else:
        # No program but the kernel writes to XFS: mkfs.xfs itself puts the files in.
        (place / "prototype").write_text(_prototype(tree / "folder 1"))
        person.run("mkfs.xfs", "-q", "-p", place / "prototype", disk / "disk.p2")
    person.run("e2fsck", "-fn", disk / "disk.p1")
    person.run("xfs_repair", "-n", disk / "disk.p2")
    with _mounted(person, disk / "disk.p1", place / "ext4", "ro"):
        assert hashes(place / "ext4", person) == expected

    first, second = _partitions(image)
    for name, (start, length) in {"disk.p1": first, "disk.p2": second}.items():
        person.run("cmp", "-n", str(length), "-i", f"0:{start}", disk / name, image)
    disk.unmount()

    with _bare(person, image, first) as part:
        person.run("e2fsck", "-fn", part)
        with _mounted(person, part, place / "ext4", "ro"):
            assert hashes(place / "ext4", person) == expected
    with _bare(person, image, second) as part:
        person.run("xfs_repair", "-n", part)
        if person.is_root:
            with _mounted(person, part, place / "xfs", "ro"):
                assert hashes(place / "xfs", person) == expected


def test_a_file_system_in_use_keeps_its_disk_mounted_and_says_by_whom(
    person: Person, place: Path, disk: Mounted
) -> None:
    """`vdisk umount` refuses in one line while a file system lives on the disk; nothing breaks."""
    _make_ext4(person, disk / "disk")
    with _mounted(person, disk / "disk", place / "ext4"):
        person.run("sh", "-c", f"echo before > '{place}/ext4/file'")
        refused = person.vdisk("umount", disk.mountpoint, check=False)
        said = refused.stderr.decode()
        assert refused.returncode != 0
        assert said.count("\n") == 1
        assert "in use by " + ("/dev/loop" if person.is_root else "fuse2fs") in said
        person.run("sh", "-c", f"echo after >> '{place}/ext4/file'")
    disk.unmount()
    told = person.run("debugfs", "-R", "cat file", place / "disk.img").stdout
    assert told == b"before\nafter\n"


def _make_ext4(person: Person, where: Path) -> None:
    """With a user's files in mind: its root folder is theirs, and it has only what fuse2fs needs.

    fuse2fs writes the whole of a file system's tables again for each file that is made.
    """
    lean = ["-b", "4096", "-O", "^has_journal,^metadata_csum,^resize_inode"]
    own = [] if person.is_root else ["-E", f"root_owner={_ids(person)}", *lean]
    person.run("mkfs.ext4", "-q", *own, where)


def _ids(person: Person) -> str:
    told = person.run("sh", "-c", "echo $(id -u):$(id -g)")
    return told.stdout.decode().strip()


def _copy(person: Person, tree: Path, to: Path) -> None:
    person.run("cp", "-a", f"{tree}/.", to)
    person.run("sync", "-f", to)


def _partitions(image: Path) -> list[tuple[int, int]]:
    """(start, length) in bytes of each partition, as sfdisk reads them from the host file."""
    told = subprocess.run(["sfdisk", "-J", image], capture_output=True, check=True)
    table = json.loads(told.stdout)["partitiontable"]
    unit = table["sectorsize"]
    return [(part["start"] * unit, part["size"] * unit) for part in table["partitions"]]


def _prototype(folder: Path) -> str:
    """mkfs.xfs's description of a root folder that holds `folder`'s files (mkfs.xfs(8))."""
    files = [f"{path.name} ---644 0 0 {path}" for path in sorted(folder.iterdir())]
    # Its words end at a space, whatever quotes are around them.
    files = [line for line in files if line.count(" ") == 4]
    return "\n".join(["/boot", "0 0", "d--755 0 0", *files, "$", ""])


@contextmanager
def _mounted(person: Person, source: Path, where: Path, *options: str) -> Iterator[None]:
    """`source` mounted on the folder `where`: by a loop device, or for a user by fuse2fs."""
    if not where.exists():
        person.run("mkdir", where)
    if person.is_root:
        with loop_mounted(source, where, *options):
            yield
        return
    words = ["fuse2fs", "-f", source, where, "-o", ",".join(["no_default_opts", *options])]
    server = subprocess.Popen(person.command(*words), stdin=subprocess.DEVNULL)
    try:
        _wait_for_mount(where, server)
        yield
    finally:
        with suppress(AssertionError):
            person.run("fusermount3", "-u", where)
        assert server.wait(timeout=PATIENCE) == 0


def _wait_for_mount(where: Path, server: subprocess.Popen[bytes]) -> None:
    """Until the kernel has the mount; mountinfo tells its readers when it changes (proc(5))."""
    ended = os.pidfd_open(server.pid)
    with Path("/proc/self/mountinfo").open() as table:
        poll = select.poll()
        poll.register(table, select.POLLPRI)
        poll.register(ended, select.POLLIN)
        while table.seek(0) or f" {where} " not in table.read():
            assert server.poll() is None, "fuse2fs ended"
            assert poll.poll(PATIENCE * 1000), "fuse2fs does not mount"
    os.close(ended)


@contextmanager
def _bare(person: Person, image: Path, part: tuple[int, int]) -> Iterator[Path]:
    """A partition of the host file without vdisk: a loop device, or for a user a copy."""
    start, length = part
    if person.is_root:
        limits = ["--offset", str(start), "--sizelimit", str(length)]
        with loop_device(image, 512, "--read-only", *limits) as device:
            yield device
        return
    copy = image.with_name(f"from-{start}")
    flags = ["iflag=skip_bytes,count_bytes", f"skip={start}", f"count={length}", "conv=sparse"]
    person.run("dd", f"if={image}", f"of={copy}", "bs=1M", *flags)
    person.run("truncate", "-s", str(length), copy)
    yield copy
    copy.unlink()
