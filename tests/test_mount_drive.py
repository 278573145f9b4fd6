"""A mounted drive: the shell makes, grows, copies, renames and removes its volumes.

Each test ends with `vgck` and `pvck`, where root runs it.
"""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from random import Random

import pytest

from conformance import some_bytes
from harness import Mounted, Person, make_image, mount, refusal, sfdisk
from lvm2 import attached
from lvm2_images import MIB, read_group
from vdisk.find_drives import drive_at
from vdisk.open import open_disk, open_drive

Make = Callable[..., Mounted]
EXTENT = 64 * 1024
AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="loop devices take root")


@pytest.fixture
def drive(person: Person, place: Path) -> Iterator[Path]:
    """A drive of 128 MiB with extents of 64 KiB, which is sound in the end.

    A test names it before `mounts`, so that the mounts end first.
    """
    path = place / "drive.img"
    person.vdisk("drive", "init", path, "--size", "128M", "--extent-size", "64K")
    yield path
    if os.geteuid() == 0:
        with attached(path) as tools:
            tools.check("drive")
    open_drive(path).close()


def lvs(drive: Path) -> dict[str, int]:
    """The volumes as they are on disk, by name, in extents."""
    return {lv.name: lv.extents for lv in read_group(drive).vg.lvs}


def errno_of(person: Person, work: Callable[[], object]) -> str | None:
    def met() -> str | None:
        try:
            work()
        except OSError as error:
            return errno.errorcode[error.errno or 0]
        return None

    return person.does(met)


def test_the_shell_makes_and_changes_volumes(
    drive: Path, mounts: Make, person: Person
) -> None:
    mounted = mounts(drive)
    mnt = mounted.mountpoint
    person.run("truncate", "-s", "5M", mnt / "gamma")
    assert lvs(drive) == {"gamma": 80}
    person.run("sh", "-c", f"printf 'some bytes' | dd of={mnt}/small status=none")
    assert lvs(drive)["small"] == 1  # Whole extents, and no more.
    assert person.run("stat", "-c", "%s", mnt / "small").stdout == b"%d\n" % EXTENT
    told = person.run("head", "-c", "12", mnt / "small").stdout
    assert told == b"some bytes\0\0"
    person.run("touch", mnt / "touched")
    assert lvs(drive)["touched"] == 1
    person.run("mv", mnt / "small", mnt / "large")
    person.run("truncate", "-s", "+10M", mnt / "large")
    assert person.run("head", "-c", "10", mnt / "large").stdout == b"some bytes"
    person.run("cp", mnt / "large", mnt / "copy")
    person.run("cmp", mnt / "large", mnt / "copy")
    person.run("mv", mnt / "copy", mnt / "gamma")  # In its place.
    person.run("cmp", mnt / "large", mnt / "gamma")
    person.run("truncate", "-s", "1M", mnt / "large")
    person.run("rm", mnt / "touched")
    assert lvs(drive) == {"gamma": 161, "large": 16}
    assert person.run("ls", mnt).stdout.split() == [b"gamma", b"large"]
    mounted.unmount()
    assert lvs(drive) == {"gamma": 161, "large": 16}


def test_what_is_written_grows_the_volume_and_is_trimmed(
    drive: Path, mounts: Make, person: Person, place: Path
) -> None:
    content = Random(1).randbytes(9 * MIB + 12345)
    (place / "content").write_bytes(content)
    mounted = mounts(drive)
    person.run("cp", place / "content", mounted / "new")
    person.run("stat", mounted / "new")  # Which waits until it is trimmed.
    assert lvs(drive)["new"] == -(-len(content) // EXTENT)
    whole = person.run("cat", mounted / "new").stdout
    assert whole.rstrip(b"\0") == content.rstrip(b"\0")
    size = person.does(lambda: _grown(mounted / "other", content))
    assert size == len(content)
    told = person.run("cat", mounted / "other").stdout
    assert told == content + bytes(-len(content) % EXTENT)
    commits = read_group(drive).vg.seqno
    assert commits < 40


def _grown(path: Path, content: bytes) -> int:
    """Write a new disk in small pieces; its size just before it is closed."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
    for at in range(0, len(content), 100_000):
        os.pwrite(fd, content[at : at + 100_000], at)
    size = os.fstat(fd).st_size
    os.close(fd)
    return size


def _write(person: Person, path: Path, data: bytes) -> None:
    """Write `data` at the start of a disk, durably."""
    words = ("dd", f"of={path}", "bs=1M", "conv=notrunc,fsync", "status=none")
    person.run(*words, stdin=data)


def test_a_full_drive_is_told_and_loses_nothing(
    drive: Path, mounts: Make, person: Person
) -> None:
    mounted = mounts(drive)
    person.run("truncate", "-s", "100M", mounted / "large")
    done = person.run(
        "dd", "if=/dev/zero", f"of={mounted.mountpoint}/new", "bs=1M", "count=60", check=False
    )
    assert b"No space left" in done.stderr
    free = read_group(drive).vg.pvs[0].pe_count - sum(lvs(drive).values())
    assert free < 16
    assert errno_of(person, lambda: os.truncate(mounted / "large", 200 * MIB)) == "ENOSPC"
    assert lvs(drive)["large"] == 1600
    person.run("rm", mounted / "new")
    person.run("truncate", "-s", "110M", mounted / "large")


def test_what_is_open_stays_and_what_was_cut_off_is_nobodys(
    drive: Path, mounts: Make, person: Person
) -> None:
    mounted = mounts(drive)
    mnt = mounted.mountpoint
    person.run("truncate", "-s", "60M", mnt / "a")

    def work() -> None:
        fd = os.open(mnt / "a", os.O_RDWR)
        os.ftruncate(fd, 20 * MIB)
        os.close(os.open(mnt / "b", os.O_RDWR | os.O_CREAT))
        with pytest.raises(OSError, match="No space"):  # 66 MiB are free, and 40 are held.
            os.truncate(mnt / "b", 99 * MIB)
        os.close(fd)
        os.statvfs(mnt)  # Which waits until they are let go of.
        os.truncate(mnt / "b", 99 * MIB)

    person.does(work)
    for command in (f"rm {mnt}/a", f"mv {mnt}/a {mnt}/c", f"truncate -s 1M {mnt}/a"):
        refused = person.run("bash", "-c", f"exec 3<{mnt}/a; {command}", check=False)
        assert b"busy" in refused.stderr, command
    assert set(lvs(drive)) == {"a", "b"}


REFUSED = {
    "-x": "EINVAL", "a b": "EINVAL", "x" * 150: "EINVAL", "a.p1": "EPERM", ".hidden": "EINVAL",
    "snapshot": "EINVAL",
}  # fmt: skip


def test_names_that_cannot_be_are_refused(
    drive: Path, mounts: Make, person: Person
) -> None:
    mounted = mounts(drive)
    person.run("truncate", "-s", "1M", mounted / "a")
    for name, expected in REFUSED.items():
        there = mounted / name
        made = errno_of(person, lambda n=there: os.close(os.open(n, os.O_CREAT | os.O_RDWR)))
        renamed = errno_of(person, lambda n=there: os.rename(mounted / "a", n))
        assert made == renamed == expected, name
    assert lvs(drive) == {"a": 16}


def test_a_volume_has_partitions_sectors_and_a_geometry(
    drive: Path, mounts: Make, person: Person
) -> None:
    person.vdisk("create", f"{drive}/old", "--chs", "32/16/32")
    mounted = mounts(drive)
    shown = mounted / ".vdisk/old"
    lines = person.run("cat", shown / "geometry").stdout.split(b"\n")
    assert (lines[0], lines[2]) == (b"32/16/32", b"source: stored")
    sfdisk(mounted / "old", "label: dos\nstart=2048,size=4096\n", person=person)
    assert b"old.p1" in person.run("ls", mounted.mountpoint).stdout.split()
    person.run("mkfs.ext2", "-q", mounted / "old.p1")
    person.run("e2fsck", "-fn", mounted / "old.p1")
    sector = person.run("cat", shown / "chs/0/0/1").stdout
    assert sector == person.run("head", "-c", "512", mounted / "old").stdout
    assert sector[510:] == b"\x55\xaa"
    person.run("cp", "-a", mounted / "old", mounted / "copy")
    told = person.run("cat", mounted / ".vdisk/copy/geometry").stdout.split(b"\n")[0]
    assert (told == b"32/16/32") == (_takes_attributes(person, mounted / "copy"))
    assert _status(person, lambda: os.chmod(mounted / "old", 0o600)) == "EPERM"


def _takes_attributes(person: Person, path: Path) -> bool:
    return errno_of(person, lambda: os.listxattr(path)) is None


def _status(person: Person, work: Callable[[], object]) -> str | None:
    return errno_of(person, work)


def test_space_is_the_drives_and_goes_back_to_the_host(
    drive: Path, mounts: Make, person: Person
) -> None:
    mounted = mounts(drive)

    def free() -> int:
        found = person.does(lambda: os.statvfs(mounted.mountpoint))
        return found.f_bavail * found.f_frsize

    before, empty = free(), drive.stat().st_blocks
    mnt = mounted.mountpoint
    person.run("dd", "if=/dev/urandom", f"of={mnt}/a", "bs=1M", "count=20", "status=none")
    assert before - free() == 20 * MIB
    person.run("sync", "-f", mounted / "a")
    assert drive.stat().st_blocks - empty >= 20 * MIB // 512
    assert int(person.run("stat", "-c", "%b", mounted / "a").stdout) >= 20 * MIB // 512
    person.run("rm", mounted / "a")
    assert free() == before
    assert drive.stat().st_blocks - empty < 2 * MIB // 512


def test_a_drive_has_one_writer_and_many_readers(
    drive: Path, mounts: Make, person: Person
) -> None:
    person.vdisk("create", f"{drive}/a", "--size", "1M")
    mounted = mounts(drive)
    for words in (
        ("create", f"{drive}/b", "--size", "1M"), ("remove", f"{drive}/a"), ("read", f"{drive}/a"),
        ("drive", "init", "--force", str(drive)), ("mount", str(drive), f"{drive}.mnt"),
    ):  # fmt: skip
        said = refusal(person, *words)
        assert "in use by" in said or "open for writing by" in said, words
    assert b"1 MiB" in person.vdisk("drive", "info", drive).stdout
    mounted.unmount()
    first, second = mounts(drive, options=("-r",)), mounts(drive, options=("-r",))
    for each in (first, second):
        assert person.run("ls", each.mountpoint).stdout == b"a\n"
        assert errno_of(person, lambda m=each: os.truncate(m / "a", 2 * MIB)) == "EROFS"
        assert errno_of(person, lambda m=each: os.unlink(m / "a")) == "EROFS"


def test_a_folder_and_a_drive_are_one_mount(
    drive: Path, mounts: Make, person: Person, place: Path
) -> None:
    person.run("mkdir", place / "disks")
    make_image(place / "disks/in-folder.img", MIB, person)
    person.vdisk("create", f"{drive}/on-drive", "--size", "1M")
    mounted = mounts(drive, place / "disks")
    assert person.run("ls", mounted.mountpoint).stdout.split() == [b"in-folder", b"on-drive"]
    assert errno_of(
        person, lambda: os.rename(mounted / "in-folder", mounted / "on-drive")
    ) == "EPERM"
    person.run("cp", mounted / "in-folder", mounted / "new")  # On the first of them.
    assert set(lvs(drive)) == {"on-drive", "new"}


def test_a_killed_daemon_leaves_a_sound_drive(
    drive: Path, mounts: Make, person: Person
) -> None:
    """In the middle of a growth: what was acknowledged is there, and the rest is zeros."""
    mounted = mounts(drive)
    content = some_bytes(3 * MIB)

    def half() -> None:
        fd = os.open(mounted / "new", os.O_RDWR | os.O_CREAT)
        os.pwrite(fd, content, 0)
        os.kill(mounted.pid, 9)

    person.does(half)
    mounted.end()
    with open_disk(f"{drive}/new") as disk:
        found = disk.read(0, disk.size)
    assert found == content + bytes(len(found) - len(content))


# Many


def test_twenty_volumes_are_written_in_parallel_and_none_reaches_another(
    mounts: Make, person: Person, place: Path
) -> None:
    """Each has its own table and file systems; between them one whose every byte is known."""
    drive = place / "many.img"
    person.vdisk("drive", "init", drive, "--size", "1G")
    person.vdisk("create", *(f"{drive}/guard{n}" for n in range(4)), "--size", "4M")
    mounted = mounts(drive)
    guards = {}
    for number in range(4):
        data = Random(number).randbytes(4 * MIB)
        guards[number] = sha256(data).hexdigest()
        _write(person, mounted / f"guard{number}", data)
    with ThreadPoolExecutor(20) as pool:
        trees = list(pool.map(lambda n: _filled(person, mounted, place, n), range(20)))
    for number, files in enumerate(trees):
        person.run("e2fsck", "-fn", mounted / f"v{number}.p1")
        for name, digest in files.items():
            dumped = person.run("debugfs", "-R", f"cat {name}", mounted / f"v{number}.p1").stdout
            assert sha256(dumped).hexdigest() == digest
        if number % 4 == 0:
            person.run("fsck.fat", "-n", mounted / f"v{number}.p2")
    for number, digest in guards.items():
        found = person.run("sha256sum", mounted / f"guard{number}").stdout.split()[0]
        assert found.decode() == digest
    mounted.unmount()
    with open_disk(drive) as whole:
        drive_at(whole, "").close()
    if os.geteuid() == 0:
        with attached(drive) as tools:
            tools.check("many")


def _filled(person: Person, mounted: Mounted, place: Path, number: int) -> dict[str, str]:
    """A new volume with a table of two partitions, ext4 with files in one, FAT in the other."""
    volume = mounted / f"v{number}"
    person.run("truncate", "-s", "32M", volume)
    sfdisk(volume, "label: gpt\nsize=16M\nsize=8M\n", person=person)
    person.run("mkfs.ext4", "-q", mounted / f"v{number}.p1")
    person.run("mkfs.fat", mounted / f"v{number}.p2")
    files = {}
    commands = []
    for at in range(3):
        data = Random(number * 100 + at).randbytes(200_000 + number * 1000)
        path = place / f"file-{number}-{at}"
        path.write_bytes(data)
        path.chmod(0o644)
        files[f"f{at}"] = sha256(data).hexdigest()
        commands.append(f"write {path} f{at}")
    script = place / f"script-{number}"
    script.write_text("\n".join(commands) + "\n")
    script.chmod(0o644)
    person.run("debugfs", "-w", "-f", script, mounted / f"v{number}.p1")
    return files


def test_a_thousand_volumes_are_as_quick_as_a_few(tmp_path: Path) -> None:
    """Ready, listed, and one more made, each in less than a second of work; in little memory.

    What is measured is the daemon's time on the processor: the machine may have other things to do.
    """
    person, drive = Person(), tmp_path / "drive.img"
    person.vdisk("drive", "init", drive, "--size", "2T")
    names = [f"{drive}/d{number:04}" for number in range(1000)]
    person.vdisk("create", *names, "--size", "1G")
    assert read_group(drive).vg.seqno == 2
    mounted = mount(person, [drive], tmp_path / "mnt")
    try:
        ready = _work_seconds(mounted.pid)
        assert ready < 1
        assert len(person.run("ls", "-l", mounted.mountpoint).stdout.splitlines()) == 1001
        listed = _work_seconds(mounted.pid) - ready
        assert listed < 1
        person.run("truncate", "-s", "1G", mounted / "one-more")
        assert _work_seconds(mounted.pid) - ready - listed < 1
        status = Path(f"/proc/{mounted.pid}/status").read_text()
        (peak,) = (line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))
        assert int(peak) < 150_000
    finally:
        mounted.unmount()
    assert len(read_group(drive).vg.lvs) == 1001


def _work_seconds(pid: int) -> float:
    """Seconds on the processor of a process and all its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


# Sharing blocks


@AS_ROOT
def test_a_copy_inside_a_drive_shares_its_blocks_where_the_host_can(
    tmp_path: Path, server: str
) -> None:
    """Whatever its size: no data is moved, and the host needs no more room."""
    host, folder, person = make_image(tmp_path / "host", 512 * MIB), tmp_path / "xfs", Person()
    folder.mkdir()
    subprocess.run(["mkfs.xfs", "-q", host], check=True)
    subprocess.run(["mount", "-o", "loop", host, folder], check=True)
    try:
        drive = folder / "drive.img"
        person.vdisk("drive", "init", drive, "--size", "2G")
        person.vdisk("create", f"{drive}/a", "--size", "152M")
        mounted = mount(person, [drive], tmp_path / "mnt")
        try:
            content = Random(5).randbytes(MIB) * 152
            _write(person, mounted / "a", content)
            before = os.statvfs(folder)
            # It is full: of a disk with holes, cp itself copies the data by reading and writing.
            person.run("cp", mounted / "a", mounted / "b")
            os.sync()
            room = (before.f_bfree - os.statvfs(folder).f_bfree) * before.f_frsize
            if server == "kernel":  # The other one has no copy_file_range.
                assert room < 20 * MIB
            person.run("cmp", mounted / "a", mounted / "b")
            _write(person, mounted / "b", b"own")
            assert person.run("head", "-c", "4", mounted / "a").stdout == content[:4]
        finally:
            mounted.unmount()
        before = os.statvfs(folder)
        person.vdisk("copy", f"{drive}/a", f"{drive}/c")
        os.sync()
        room = (before.f_bfree - os.statvfs(folder).f_bfree) * before.f_frsize
        assert room < 20 * MIB
        with attached(drive) as tools:
            tools.check("drive")
    finally:
        subprocess.run(["umount", folder], check=True)
        shutil.rmtree(folder)
