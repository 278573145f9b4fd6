"""How a mount begins and what it shows of itself: refusals, options, names, the list, mount(8)."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from harness import (
    PATIENCE,
    Mounted,
    Person,
    listed,
    make_image,
    refusal,
    wait_for_end,
)
from holders import qemu_io

MIB = 1 << 20
Mounts = Callable[..., Mounted]
TAKES_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="takes root, and a user beside it")


@pytest.fixture
def image(person: Person, place: Path) -> Path:
    return make_image(place / "d.img", MIB, person)


@pytest.fixture
def tidy(place: Path) -> Iterator[None]:
    """Whatever is still mounted in `place` goes, also what vdisk was to refuse."""
    yield
    for target in reversed(targets_below(place)):
        subprocess.run(["umount", "-l", target], check=False, capture_output=True)


def targets_below(place: Path) -> list[str]:
    """The mountpoints in `place`, as findmnt tells them."""
    told = subprocess.run(["findmnt", "-J", "-l", "-o", "TARGET"], capture_output=True, check=True)
    targets = [row["target"] for row in json.loads(told.stdout)["filesystems"]]
    return [target for target in targets if target.startswith(f"{place}/")]


def shown(person: Person, where: Path, columns: str) -> dict[str, str]:
    """What findmnt says of the mount on `where`."""
    told = person.run("findmnt", "-J", "-o", columns, where).stdout
    (row,) = json.loads(told)["filesystems"]
    return dict(row)


def state_of(place: Path) -> dict[str, object]:
    """All that a refused command could change of what is in `place`, by name."""
    found: dict[str, object] = {}
    for path in sorted(place.rglob("*")):
        status = path.lstat()
        content = path.read_bytes() if stat.S_ISREG(status.st_mode) else b""
        attributes = {name: os.getxattr(path, name) for name in os.listxattr(path)}
        found[str(path)] = (
            status.st_mode, status.st_uid, status.st_mtime_ns, content, attributes
        )  # fmt: skip
    return found


# It begins


@pytest.mark.usefixtures("tidy")
def test_when_mount_returns_the_disk_is_there(person: Person, place: Path, image: Path) -> None:
    """The very next words of a shell use it; time after time."""
    vdisk = person.vdisk_command
    script = 'set -e; "$@"; stat -c %s mnt/d; head -c 4 mnt/d; printf new- | dd of=mnt/d '
    script += "conv=notrunc status=none; dd if=mnt/d bs=5 count=1 status=none"
    image.write_bytes(b"first".ljust(MIB, b"\0"))
    for said in (b"firsnew-t", b"new-new-t", b"new-new-t"):
        done = person.run("sh", "-c", script, "sh", *vdisk("mount", "d.img", "mnt"), cwd=place)
        assert done.stdout == b"%d\n%s" % (MIB, said)
        assert done.stderr == b""
        person.vdisk("umount", "mnt", cwd=place)


@TAKES_ROOT
@pytest.mark.parametrize("without", ["/dev/fuse", "fusermount3"])
def test_a_mount_that_the_system_does_not_give_is_one_line(
    without: str, person: Person, place: Path, image: Path
) -> None:
    """In a namespace of mounts in which the file is another one, which does not work."""
    missing = without if without.startswith("/") else shutil.which(without)
    if person.is_root and without == "fusermount3":
        missing = "/dev/fuse"  # Root mounts without it.
    script = f"mount --bind /dev/null '{missing}' && exec \"$@\""
    words = person.command(*person.vdisk_command("mount", "--chs", "2/2/2", image, place / "mnt"))
    before = state_of(place)
    ended = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh", *words],
        capture_output=True, text=True, timeout=PATIENCE, check=False,
    )  # fmt: skip
    assert ended.returncode == 1
    assert ended.stdout == ""
    assert ended.stderr.count("\n") == 1, ended.stderr
    assert ended.stderr.startswith("vdisk: ")
    assert str(place / "mnt") in ended.stderr
    assert "Error:" not in ended.stderr
    assert state_of(place) == before


@pytest.mark.usefixtures("tidy")
def test_debug_stays_and_prints_what_the_kernel_asks(
    person: Person, place: Path, image: Path
) -> None:
    where = place / "mnt"
    ready = place / "ready"
    person.run("mkfifo", ready)
    # By passthrough, root's reads would be none of the daemon's business.
    asked = ("mount", "-d", "-o", "nopassthrough", "--pid-file", ready)
    words = person.vdisk_command(*asked, image, where)
    process = subprocess.Popen(
        person.command(*words), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        with ready.open() as pipe:
            assert int(pipe.read()) == process.pid
        person.run("cat", where / "d")
        person.run("stat", where / "missing", check=False)
        assert process.poll() is None
        person.vdisk("umount", where)
        said = process.communicate(timeout=PATIENCE)[1].decode()
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 0
    for request in ("INIT", "LOOKUP", "missing", "OPEN", "READ", "GETATTR"):
        assert request in said


def test_reading_only_shares_with_readers_keeps_writers_out_and_changes_nothing(
    mounts: Mounts, person: Person, place: Path, image: Path
) -> None:
    """Of an image that may not even be written, and with a geometry that is not to be kept."""
    image.write_bytes(b"only".ljust(MIB, b"\0"))
    image.chmod(0o444)
    before = state_of(place)[str(image)]
    with qemu_io(image, "-r"):
        mounted = mounts(image, options=("-r", "--chs", "4/4/8"))
        again = mounts(image, options=("-o", "ro"))
    script = f"exec 3<> {mounted / 'd'}", f": > {mounted / 'new'}", f"rm {mounted / 'd'}"
    for attempt in (*script, f"truncate -s 1 {mounted / 'd'}"):
        refused = person.run("sh", "-c", attempt, check=False)
        assert refused.returncode != 0
        said = refused.stderr
        assert b"Read-only file system" in said or b"Permission denied" in said, said
    assert person.run("head", "-c", "4", again / "d").stdout == b"only"
    assert "ro" in shown(person, mounted.mountpoint, "OPTIONS")["options"].split(",")
    # Readers beside it are let in, writers are not.
    told = person.run("qemu-io", "-r", "-f", "raw", "-c", "read 0 512", image).stdout
    assert b"read 512/512" in told
    person.run("qemu-img", "convert", "-f", "raw", "-O", "raw", image, place / "copy")
    writer = Person().run("qemu-io", "-f", "raw", "-c", "write 0 512", image, check=False)
    assert writer.returncode != 0 or b"lock" in writer.stderr
    mounted.unmount()
    again.unmount()
    assert state_of(place)[str(image)] == before


# Its process's number


def test_the_pid_file_holds_the_daemons_number_until_it_ends(
    mounts: Mounts, person: Person, place: Path, image: Path
) -> None:
    mounted = mounts(image)  # The fixture names a pid file.
    pid_file = place / "mnt0.pid"
    assert pid_file.read_text() == f"{mounted.pid}\n"
    row = listed(person, mounted.mountpoint)
    assert row is not None
    assert row["pid"] == mounted.pid
    told = person.run("ps", "-o", "user:32=,ppid=,tty=", "-p", str(mounted.pid)).stdout.split()
    assert told[0].decode() == person.run("id", "-un").stdout.decode().strip()
    assert told[2] == b"?"  # No terminal can end it.
    os.kill(mounted.pid, signal.SIGTERM)
    wait_for_end(mounted.pid)
    assert not pid_file.exists()


@pytest.mark.usefixtures("tidy")
@pytest.mark.parametrize("kind", ["folder", "read-only"])
def test_a_pid_file_that_cannot_be_written_is_left_as_it_is(
    kind: str, person: Person, place: Path, image: Path
) -> None:
    if person.is_root and kind == "read-only":
        os.mknod(place / "pid")
        subprocess.run(["chattr", "+i", place / "pid"], check=True)
    elif kind == "read-only":
        (place / "pid").write_text("of another kind")
        (place / "pid").chmod(0o444)
    else:
        (place / "pid").mkdir()
    before = state_of(place)
    try:
        said = refusal(person, "mount", "--pid-file", place / "pid", image, place / "mnt")
    finally:
        if (place / "pid").exists():
            subprocess.run(["chattr", "-i", place / "pid"], capture_output=True, check=False)
    assert f"{place / 'pid'}: cannot write the pid file" in said
    assert state_of(place) == before
