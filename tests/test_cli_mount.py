"""`vdisk mount`, `umount`, `list` and `mount -t vdisk`, on real mounts, as root and as a user."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from devices import loop_device
from harness import (
    PATIENCE,
    ROOT,
    Mounted,
    Person,
    listed,
    make_image,
    mount,
    ordinary_user,
    refusal,
    wait_for_end,
)
from mount import live

MIB = 1 << 20
Mounts = Callable[..., Mounted]
# Where root and a user are not told different things, once is enough.
AS_ONE = pytest.mark.parametrize("person", [Person()], ids=["self"])
TAKES_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="takes root, and a user beside it")


def is_gone(pid: int) -> bool:
    """Whether no such process runs; one that only waits to be reaped does not."""
    try:
        return "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return True


def content(person: Person, path: Path) -> bytes:
    """A file's bytes as `person` reads them: root itself may not look into a user's mount."""
    return person.run("cat", path).stdout


@contextmanager
def using(person: Person, script: str) -> Iterator[subprocess.Popen[bytes]]:
    """A shell of `person` that has come to `read`; it goes on when its input has a line."""
    process = subprocess.Popen(
        person.command("sh", "-c", script), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.fixture
def taken_down(place: Path) -> Iterator[None]:
    """For tests that mount by other means: whatever is still mounted below `place` goes."""
    yield
    for line in reversed(Path("/proc/self/mountinfo").read_text().splitlines()):
        where = line.split()[4]
        if where.startswith(f"{place}/"):
            subprocess.run(["umount", "-l", where], check=False, capture_output=True)


# mount


@pytest.mark.usefixtures("taken_down")
def test_create_makes_the_disk_the_folder_and_the_mount(person: Person, place: Path) -> None:
    ended = person.vdisk("mount", "--create", "16M", "disk.img", "mnt", cwd=place)
    assert ended.stdout == b""
    assert ended.stderr.startswith(b"vdisk: disk.img: 16 MiB, geometry 32/16/63")
    assert (place / "disk.img").stat().st_size == 16 * MIB
    person.run("cmp", "-n", str(16 * MIB), "/dev/zero", place / "mnt" / "disk")
    # The same command once more says what is the matter, and does no harm.
    again = person.vdisk("mount", "--create", "16M", "disk.img", "mnt", cwd=place, check=False)
    assert again.returncode == 1
    assert b"mounted there already" in again.stderr
    person.vdisk("umount", "mnt", cwd=place)
    third = person.vdisk("mount", "--create", "16M", "disk.img", "mnt", cwd=place)
    assert b"is there already" in third.stderr
    person.vdisk("umount", "mnt", cwd=place)


@AS_ONE
def test_create_leaves_a_disk_of_another_size_alone(person: Person, place: Path) -> None:
    image = make_image(place / "d.img", MIB, person)
    assert "1 MiB" in refusal(person, "mount", "--create", "2M", image, place / "mnt")
    assert "folder" in refusal(person, "mount", "--create", "2M", place, place / "mnt")
    assert image.stat().st_size == MIB
    assert not (place / "mnt").exists()


def test_a_mount_that_fails_leaves_nothing(person: Person, place: Path) -> None:
    (place / "file").touch()
    text = refusal(person, "mount", "--create", "1M", place / "d.img", place / "file")
    assert "not a folder" in text
    refusal(person, "mount", "--create", "1M", place / "d.img", place / "no" / "mnt")
    refusal(person, "mount", place / "missing.img", place / "mnt")
    (place / "short.img").write_bytes(b"x")
    refusal(person, "mount", place / "short.img", place / "mnt", "--chs", "1/2/3")
    assert sorted(path.name for path in place.iterdir()) == ["file", "short.img"]


@AS_ONE
@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["missing.img", "mnt"], "--create"),
        (["d.img/p1", "mnt"], "partitions appear"),
        (["d.img", "full"], "nonempty"),
        (["d.img", ".", "-o", "nonempty"], "elsewhere"),
        (["d.img", "mnt", "-o", "frobnicate"], "frobnicate"),
        (["d.img", "mnt", "-o", "uid=x"], "uid"),
        (["d.img", "mnt", "-o", "chs=1/2/3,profile=ata"], "exclude"),
        (["d.img", "mnt", "--chs", "1024/16/63"], "would fit"),
        (["d.img", "mnt", "--pid-file", "no/pid"], "pid file"),
        (["empty.img", "mnt"], "empty"),
    ],
)
def test_what_cannot_be_mounted_is_one_line(
    words: list[str], hint: str, person: Person, place: Path
) -> None:
    make_image(place / "d.img", MIB, person)
    (place / "empty.img").touch(mode=0o666)
    (place / "full").mkdir()
    (place / "full" / "file").touch()
    if person.name is not None:
        for path in ("full", "empty.img"):
            shutil.chown(place / path, person.name)
    ended = person.vdisk("mount", *words, cwd=place, check=False)
    text = ended.stderr.decode()
    assert ended.returncode == 1, text
    assert text.count("\n") == 1
    assert hint in text
    assert not (place / "mnt").exists()
    assert str(place) not in Path("/proc/self/mountinfo").read_text()
    assert (place / "d.img").read_bytes() == bytes(MIB)


def test_read_only_refuses_writes(mounts: Mounts, person: Person, place: Path) -> None:
    image = make_image(place / "d.img", MIB, person)
    mounted = mounts(image, options=("-r",))
    refused = person.run("sh", "-c", f"echo >> {mounted / 'd'}", check=False)
    assert b"Read-only file system" in refused.stderr
    row = listed(person, mounted.mountpoint)
    assert row is not None
    assert (row["read_only"], row["state"]) == (True, "ro")
    # Readers share: another one may have it at the same time.
    person.vdisk("read", image)


@AS_ONE
def test_a_geometry_that_was_given_once_is_kept(
    mounts: Mounts, person: Person, place: Path
) -> None:
    image = make_image(place / "d.img", MIB, person)
    mounts(image, options=("--chs", "10/4/17")).unmount()
    assert person.vdisk("chs", image).stdout == b"10/4/17\n"
    mounted = mounts(image)
    assert content(person, mounted / ".vdisk/d/geometry").splitlines()[0] == b"10/4/17"


def test_findmnt_shows_source_and_type(mounts: Mounts, person: Person, place: Path) -> None:
    image = make_image(place / "a b,c.img", MIB, person)
    mounted = mounts(image)
    shown = person.run("findmnt", "-J", "-o", "SOURCE,FSTYPE", mounted.mountpoint).stdout
    (row,) = json.loads(shown)["filesystems"]
    assert row == {"source": str(image), "fstype": "fuse.vdisk"}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_foreground_ends_with_0_on_a_signal(
    number: signal.Signals, person: Person, place: Path
) -> None:
    image = make_image(place / "d.img", MIB, person)
    mnt, pid_file = place / "mnt", place / "pid"
    line = person.vdisk_command("mount", "-f", "--pid-file", pid_file, image, mnt)
    process = subprocess.Popen(person.command(*line), stderr=subprocess.PIPE)
    try:
        deadline = time.monotonic() + PATIENCE
        while not (pid_file.exists() and pid_file.read_text()) and time.monotonic() < deadline:
            assert process.poll() is None
            time.sleep(0.02)
        assert content(person, mnt / "d") == bytes(MIB)
        person.run("kill", f"-{number.name[3:]}", pid_file.read_text().strip())
        assert process.communicate(timeout=PATIENCE)[1] == b""
    finally:
        process.terminate()
        process.wait(timeout=PATIENCE)
    assert process.returncode == 0
    assert not pid_file.exists()
    assert str(mnt) not in Path("/proc/self/mountinfo").read_text()


# umount


def test_umount_waits_for_the_flush_and_the_lock(
    mounts: Mounts, person: Person, place: Path
) -> None:
    image = make_image(place / "d.img", 8 * MIB, person)
    mounted = mounts(image)
    person.run("dd", "if=/dev/urandom", f"of={mounted / 'd'}", "bs=1M", "count=8", "conv=notrunc",
               "status=none")  # fmt: skip
    written = content(person, mounted / "d")
    mounted.unmount()
    assert is_gone(mounted.pid)
    assert not mounted.is_mounted()
    assert written != bytes(8 * MIB)
    assert image.read_bytes() == written
    # qemu-io takes the writer's lock at once.
    person.run("qemu-io", "-f", "raw", "-c", "write 0 512", image)
    assert listed(person, mounted.mountpoint) is None


@AS_ONE
@pytest.mark.parametrize("by", ["relative", "link", "slash", "image", "image link"])
def test_umount_finds_the_mount_however_it_is_named(
    by: str, mounts: Mounts, person: Person, place: Path
) -> None:
    image = make_image(place / "d.img", MIB, person)
    mounted = mounts(image)
    (place / "link").symlink_to(mounted.mountpoint.name)
    (place / "link.img").symlink_to("d.img")
    words: dict[str, str] = {
        "relative": mounted.mountpoint.name, "link": "link", "slash": f"{mounted.mountpoint}/",
        "image": "d.img", "image link": "link.img",
    }  # fmt: skip
    person.vdisk("umount", words[by], cwd=place)
    assert not mounted.is_mounted()


@AS_ONE
def test_umount_of_what_is_no_vdisk_mount_is_refused(person: Person, place: Path) -> None:
    for what in (place, place / "missing", Path("/"), Path("/proc")):
        assert "no vdisk mount" in refusal(person, "umount", what)
    assert Path("/proc/self").exists()


@AS_ONE
def test_umount_asks_which_where_a_source_is_mounted_twice(
    mounts: Mounts, person: Person, place: Path
) -> None:
    image = make_image(place / "d.img", MIB, person)
    first, second = mounts(image, options=("-r",)), mounts(image, options=("-r",))
    text = refusal(person, "umount", image)
    assert str(first.mountpoint) in text
    assert str(second.mountpoint) in text
    assert first.is_mounted()
    assert second.is_mounted()


def test_a_mount_in_use_is_busy_and_names_its_user(
    mounts: Mounts, person: Person, place: Path
) -> None:
    mounted = mounts(make_image(place / "d.img", MIB, person))
    with using(person, f"cd {mounted.mountpoint} && echo ready && read x") as user:
        text = refusal(person, "umount", mounted.mountpoint)
        assert f"sh (pid {user.pid})" in text
        assert "--lazy" in text
        assert mounted.is_mounted()
    mounted.unmount()


def test_lazy_ends_with_the_last_user(mounts: Mounts, person: Person, place: Path) -> None:
    mounted = mounts(make_image(place / "d.img", MIB, person))
    script = f"exec 3<> {mounted / 'd'} && echo ready && read x && printf 'still here' >&3"
    with using(person, script) as user:
        person.vdisk("umount", "--lazy", mounted.mountpoint)
        assert not mounted.is_mounted()
        assert not is_gone(mounted.pid)
        user.communicate(b"go on\n", timeout=PATIENCE)
        assert user.returncode == 0
    wait_for_end(mounted.pid)
    assert (place / "d.img").read_bytes()[:10] == b"still here"


@AS_ONE
def test_lazy_waits_like_any_other_where_nobody_uses_it(
    mounts: Mounts, person: Person, place: Path
) -> None:
    mounted = mounts(make_image(place / "d.img", MIB, person))
    person.vdisk("umount", "--lazy", mounted.mountpoint)
    assert is_gone(mounted.pid)


@pytest.mark.parametrize("in_use", [False, True])
def test_a_killed_daemon_is_cleaned_up(
    in_use: bool, mounts: Mounts, person: Person, place: Path
) -> None:
    image = make_image(place / "d.img", MIB, person)
    mounted = mounts(image)
    person.run(
        "dd", f"of={mounted / 'd'}", "bs=4k", "seek=1", "conv=notrunc,fsync", stdin=b"kept" * 1024
    )
    with using(person, f"{f'cd {mounted.mountpoint} &&' if in_use else ''} echo ready; read x"):
        os.kill(mounted.pid, signal.SIGKILL)
        wait_for_end(mounted.pid)
        gone = person.run("ls", mounted.mountpoint, check=False)
        assert b"not connected" in gone.stderr
        row = listed(person, mounted.mountpoint)
        assert row is not None
        assert row["state"] == "dead"
        assert "vdisk umount" in refusal(person, "mount", image, mounted.mountpoint)
        person.vdisk("umount", mounted.mountpoint)
    assert not mounted.is_mounted()
    assert listed(person, mounted.mountpoint) is None
    fresh = mounts(image)
    assert content(person, fresh / "d")[4096:8192] == b"kept" * 1024


@TAKES_ROOT
def test_a_user_cannot_end_roots_mount_and_root_can_end_a_users() -> None:
    root, user = Person(), ordinary_user()
    theirs, ours = user.folder(), root.folder()
    made = [
        mount(root, [make_image(ours / "r.img", MIB)], ours / "mnt", "-o", "allow_other"),
        mount(user, [make_image(theirs / "u.img", MIB, user)], theirs / "mnt"),
    ]
    try:
        text = refusal(user, "umount", made[0].mountpoint)
        assert "another user's" in text
        assert made[0].is_mounted()
        row = listed(root, made[1].mountpoint)
        assert row is not None
        assert row["pid"] == made[1].pid
        root.vdisk("umount", made[1].mountpoint)
        assert is_gone(made[1].pid)
    finally:
        for mounted in made:
            mounted.end()
        shutil.rmtree(theirs)
        shutil.rmtree(ours)


# list


def test_list_says_source_disk_geometry_mountpoint_and_pid(
    mounts: Mounts, person: Person, place: Path
) -> None:
    a = make_image(place / "a.img", 1_474_560, person)
    b = make_image(place / "b.img", 2 * MIB, person)
    mounted = mounts(a, b)
    row = listed(person, mounted.mountpoint)
    assert row is not None
    assert row["pid"] == mounted.pid
    assert row["source"] == f"{a}:{b}"
    assert [
        (disk["name"], disk["host_file"], disk["size_bytes"], disk["geometry"])
        for disk in row["disks"]
    ] == [("a", str(a), 1_474_560, "80/2/18"), ("b", str(b), 2 * MIB, "4/16/63")]
    lines = person.vdisk("list").stdout.decode().splitlines()
    assert lines[0].split() == [
        "SOURCE", "DISK", "SIZE", "GEOMETRY", "MOUNTPOINT", "PID", "STATE", "SERVER"
    ]  # fmt: skip
    (shown,) = (line.split() for line in lines if line.startswith(f"{b} "))
    assert shown == [
        str(b), "b", "2MiB", "4/16/63", str(mounted.mountpoint), str(mounted.pid), "rw",
        "kernel+passthrough" if person.is_root else "kernel",
    ]  # fmt: skip


def test_records_that_make_no_sense_are_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # In a folder of root's or a user's own; a broken one must not keep anybody from the list.
    for name, text in {
        "1.json": "not json", "2.json": "[]", "3.json": '{"started": 1}', "4.json": "{}",
        "5.json": '{"mountpoint": 5, "source": [], "pid": "x", "started": null}',
    }.items():  # fmt: skip
        (tmp_path / name).write_text(text)
    os.mkfifo(tmp_path / "6.json")
    monkeypatch.setattr(live, "_run_folders", lambda: [tmp_path])
    assert {mount.mountpoint for mount in live.mounts()} == {place for place, *_ in live.mounted()}


# mount -t vdisk


@pytest.fixture
def helper(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[bytes]]:
    """Runs `mount.vdisk` as mount(8) does."""

    def run(person: Person, *words: str | Path) -> subprocess.CompletedProcess[bytes]:
        command = person.vdisk_command()
        command[-1] = "from mount.cli.mount_helper import main; main()"
        return person.run(*command, *words, check=False)

    return run


@pytest.mark.usefixtures("taken_down")
def test_the_helper_takes_what_mount_8_gives_it(
    helper: Callable[..., subprocess.CompletedProcess[bytes]], person: Person, place: Path
) -> None:
    image = make_image(place / "d.img", MIB, person)
    (place / "mnt").mkdir()
    if person.name is not None:
        shutil.chown(place / "mnt", person.name)
    options = "rw,noauto,user=somebody,_netdev,nofail,x-systemd.automount,chs=10/4/17,nosuid"
    ended = helper(person, image, place / "mnt", "-v", "-o", options, "-t", "vdisk")
    assert (ended.returncode, ended.stderr) == (0, b"")
    assert str(place / "mnt").encode() in ended.stdout
    geometry = content(person, place / "mnt/.vdisk/d/geometry")
    assert geometry.splitlines()[0] == b"10/4/17"
    person.vdisk("umount", place / "mnt")


@AS_ONE
@pytest.mark.parametrize(
    ("words", "status", "text"),
    [
        (["d.img"], 1, "usage"),
        (["d.img", "mnt", "-x"], 1, "usage"),
        (["d.img", "mnt", "-o", "frobnicate"], 1, "frobnicate"),
        (["d.img", "mnt", "-N", "/proc/1/ns/mnt"], 1, "nsenter"),
        (["missing.img", "mnt"], 32, "no such file"),
        (["missing.img", "mnt", "-f"], 32, "no such file"),
        (["bad.img", "mnt"], 32, "qcow2"),
    ],
)
def test_the_helpers_statuses_are_those_of_mount_8(
    words: list[str],
    status: int,
    text: str,
    helper: Callable[..., subprocess.CompletedProcess[bytes]],
    person: Person,
    place: Path,
) -> None:
    make_image(place / "d.img", MIB, person)
    (place / "bad.img").write_bytes(b"QFI\xfb" + bytes(1020))
    (place / "mnt").mkdir()
    (place / "bad.img").chmod(0o666)
    if person.name is not None:
        shutil.chown(place / "mnt", person.name)
    words = [str(place / word) if word.endswith(("img", "mnt")) else word for word in words]
    ended = helper(person, *words)
    assert ended.returncode == status, ended.stderr
    assert ended.stderr.startswith(b"mount.vdisk: ")
    assert ended.stderr.count(b"\n") == 1
    assert text in ended.stderr.decode()
    assert str(place) not in Path("/proc/self/mountinfo").read_text()


@AS_ONE
def test_the_helper_fakes_and_is_sloppy(
    helper: Callable[..., subprocess.CompletedProcess[bytes]], person: Person, place: Path
) -> None:
    image = make_image(place / "d.img", MIB, person)
    (place / "mnt").mkdir()
    ended = helper(person, image, place / "mnt", "-sf", "-n", "-o", "frobnicate,ro")
    assert (ended.returncode, ended.stderr) == (0, b"")
    assert str(place) not in Path("/proc/self/mountinfo").read_text()


@AS_ONE
@pytest.mark.usefixtures("taken_down")
@pytest.mark.parametrize("given", ["by mount(8)", "-o allow-parent=bases",
                                   "--allow-parent bases"])  # fmt: skip
def test_a_parent_elsewhere_is_followed_into_the_folder_that_is_allowed(
    given: str,
    helper: Callable[..., subprocess.CompletedProcess[bytes]],
    person: Person,
    place: Path,
) -> None:
    """Also one that is named from here: the process that serves the mount is elsewhere."""
    bases, overlays = place / "bases", place / "overlays"
    bases.mkdir()
    overlays.mkdir()
    base, overlay = bases / "base.qcow2", overlays / "d.qcow2"
    person.run("qemu-img", "create", "-q", "-f", "qcow2", base, "1M")
    person.run("qemu-io", "-f", "qcow2", "-c", "write -P 65 0 512", base)
    words = ["-q", "-f", "qcow2", "-F", "qcow2", "-b", "../bases/base.qcow2"]
    person.run("qemu-img", "create", *words, overlay)
    assert "--allow-parent" in refusal(person, "mount", overlay, place / "mnt")
    assert not (place / "mnt").exists()
    if given.startswith("-"):
        person.vdisk("mount", *given.split(), overlays, place / "mnt", cwd=place)
    else:
        (place / "mnt").mkdir()
        allowed = f"ro,allow_parent={place}/none,allow_parent={bases}"
        ended = helper(person, overlay, place / "mnt", "-o", allowed)
        assert (ended.returncode, ended.stderr) == (0, b"")
    assert content(person, place / "mnt/d")[:513] == b"A" * 512 + b"\0"
    person.vdisk("umount", place / "mnt")


@TAKES_ROOT
def test_mount_8_and_fstab(tmp_path: Path) -> None:
    # mount(8) looks for helpers in /sbin only, so a private /sbin is made: in a namespace of its
    # own, in which nothing that happens touches the machine.
    place = tmp_path
    image = make_image(place / "d.img", MIB)
    helper = place / "mount.vdisk"
    code = "from mount.cli.mount_helper import main; main()"
    python = sys.executable
    helper.write_text(
        f"#!/bin/sh\nPYTHONPATH={ROOT} exec {python} -c '{code}' \"$@\"\n"
    )
    helper.chmod(0o755)
    (place / "fstab").write_text(f"{image} {place}/two vdisk noauto,ro,x-test,chs=2/2/2 0 0\n")
    script = f"""
        set -e
        mkdir {place}/sbin {place}/one {place}/two
        mount -t tmpfs none {place}/sbin
        cp -a /usr/sbin/. {place}/sbin/
        cp {helper} {place}/sbin/mount.vdisk
        mount --bind {place}/sbin /usr/sbin
        export PATH=$PATH:/usr/sbin
        run() {{ env PYTHONPATH={ROOT} {python} -c 'from mount.cli import main; main()' "$@"; }}
        mount -t vdisk {image} {place}/one -o uid=1234,chs=10/4/17
        stat -c '%u %s' {place}/one/d
        run umount {place}/one
        mount -T {place}/fstab {place}/two
        head -n 1 {place}/two/.vdisk/d/geometry
        umount {place}/two
    """
    ended = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", script],
        capture_output=True, text=True, timeout=PATIENCE, check=False,
    )  # fmt: skip
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.splitlines() == [f"1234 {MIB}", "2/2/2"]


def test_what_the_process_could_not_write_is_told_at_umount(
    mounts: Mounts, person: Person, place: Path
) -> None:
    # The process leaves its last words in a file; here the test writes them for it.
    mounted = mounts(make_image(place / "d.img", MIB, person))
    words = b"d.img: cannot flush: Input/output error\x1b[2J\n"
    uid = os.geteuid() if person.name is None else mounted.mountpoint.parent.stat().st_uid
    left = live.failure_file(mounted.pid, uid)
    person.run("tee", left, stdin=words)
    text = refusal(person, "umount", mounted.mountpoint)
    assert text == "vdisk: d.img: cannot flush: Input/output error\\x1b[2J\n"
    assert not mounted.is_mounted()
    assert not left.exists()


@TAKES_ROOT
@AS_ONE
def test_a_loop_device_on_a_mounted_disk_is_named(
    mounts: Mounts, person: Person, place: Path
) -> None:
    # The kernel itself holds the file open: no process in /proc shows it.
    mounted = mounts(make_image(place / "d.img", MIB))
    with loop_device(mounted / "d") as device:
        assert str(device) in refusal(person, "umount", mounted.mountpoint)
    mounted.unmount()


@AS_ONE
def test_closed_standard_files_never_become_the_image_of_a_mount(
    person: Person, place: Path, mounts: Mounts
) -> None:
    # A descriptor 0 that was closed is the next one opened; the daemon lets go of 0, 1 and 2.
    image = make_image(place / "d.img", MIB)
    pid_file, mnt = place / "pid", place / "mnt"
    command = person.vdisk_command("mount", "--pid-file", pid_file, image, mnt)
    subprocess.run(["sh", "-c", '"$@" <&- >&- 2>&-', "sh", *command], check=True)
    mounted = Mounted(person, mnt, int(pid_file.read_text()))
    try:
        with (mounted / "d").open("r+b") as file:
            file.write(b"through")
        mounted.unmount()
    finally:
        mounted.end()
    assert image.read_bytes()[:7] == b"through"
