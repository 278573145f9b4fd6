"""How a mount ends: when told to, from outside, killed, or refused because it is in use."""

from __future__ import annotations

import ctypes
import errno
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from harness import (
    PATIENCE,
    Mounted,
    Person,
    listed,
    make_image,
    mount,
    refusal,
    sfdisk,
    wait_for_end,
)
from mount import live

MIB = 1 << 20
ROUNDS = 20
Mounts = Callable[..., Mounted]
_PR_SET_CHILD_SUBREAPER = 36  # prctl(2).

# Holds a file in one of several ways until its standard input ends.
_HOLDER = """
import mmap, os, sys
file = os.open(sys.argv[2], os.O_RDWR)
if sys.argv[1] == "mapped":
    memory = mmap.mmap(file, 4096)
    os.close(file)
print("ready", flush=True)
sys.stdin.read()
if sys.argv[1] == "mapped":
    memory[:5] = b"after"
    memory.close()
else:
    os.pwrite(file, b"after", 0)
"""


@pytest.fixture
def image(person: Person, place: Path) -> Path:
    return make_image(place / "d.img", MIB, person)


@pytest.fixture
def adopting() -> Iterator[None]:
    """Daemons become children of this process, which is then told their exit status."""
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    assert prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0
    yield
    prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


def exit_status(pid: int) -> int:
    """The status of an adopted daemon; below 0 it is the signal that ended it."""
    wait_for_end(pid)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def write(person: Person, path: Path, data: bytes, at: int = 0) -> None:
    """Write as `person`, as dd does."""
    person.run("dd", f"of={path}", "bs=512", f"seek={at // 512}", "conv=notrunc", "status=none",
               stdin=data)  # fmt: skip


def qemu_writes(person: Person, image: Path, pattern: int, at: int) -> None:
    """qemu-io takes the writer's lock and writes one sector; fails where anybody holds the lock."""
    person.run("qemu-io", "-f", "raw", "-c", f"write -P {pattern} {at} 512", image)


def traces(person: Person, pids: list[int]) -> list[str]:
    """What is left of daemons with these numbers: processes, and files in the run folder."""
    running = [f"process {pid}" for pid in pids if live.is_running(pid)]
    uid = int(person.run("id", "-u").stdout)
    names = person.run("sh", "-c", f"ls -A {live.run_folder(uid)} || true").stdout.decode().split()
    return running + [name for name in names if int(name.partition(".")[0]) in pids]


def mounts_below(place: Path) -> list[str]:
    """The mountpoints in `place` as findmnt tells them."""
    told = subprocess.run(["findmnt", "-rno", "TARGET"], capture_output=True, check=True).stdout
    return [line for line in told.decode().splitlines() if line.startswith(str(place))]


def locks_on(image: Path) -> list[str]:
    """The lines of /proc/locks that are of this file."""
    end = f":{image.stat().st_ino} "
    return [line for line in Path("/proc/locks").read_text().splitlines() if end in line]


# Told to end


@pytest.mark.usefixtures("adopting")
@pytest.mark.parametrize("how", ["TERM", "INT", "HUP", "umount", "fusermount3"])
def test_told_to_end_from_outside_it_flushes_unlocks_and_ends_with_0(
    how: str, mounts: Mounts, person: Person, place: Path, image: Path
) -> None:
    mounted = mounts(image)
    write(person, mounted / "d", b"written\n" * 1000, at=4096)
    assert locks_on(image)
    if how.isupper():
        person.run("kill", f"-{how}", str(mounted.pid))
    else:
        person.run(how, *(["-u"] if how == "fusermount3" else []), mounted.mountpoint)
    assert exit_status(mounted.pid) == 0
    assert mounts_below(place) == []
    assert traces(person, [mounted.pid]) == []
    assert not (place / "mnt0.pid").exists()
    assert os.listdir(mounted.mountpoint) == []
    qemu_writes(person, image, 0x5A, 0)
    content = image.read_bytes()
    assert content[:512] == b"\x5a" * 512
    assert content[4096:12096] == b"written\n" * 1000


@pytest.mark.usefixtures("adopting")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_told_to_end_again_and_again_it_ends_as_well_as_told_once(
    number: signal.Signals, mounts: Mounts, person: Person, place: Path, image: Path
) -> None:
    """As by somebody who presses Ctrl-C until the prompt is back; none may cut the ending short."""
    mounted = mounts(image)
    write(person, mounted / "d", b"written\n" * 64)
    process = os.pidfd_open(mounted.pid)
    try:
        deadline = time.monotonic() + PATIENCE
        while not select.select([process], [], [], 0.0005)[0] and time.monotonic() < deadline:
            signal.pidfd_send_signal(process, number)
    finally:
        os.close(process)
    status = exit_status(mounted.pid)
    assert mounts_below(place) == []
    assert status == 0
    assert traces(person, [mounted.pid]) == []
    assert image.read_bytes()[:512] == b"written\n" * 64


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_told_to_end_when_the_kernel_has_just_made_the_mount_it_leaves_no_dead_mount(
    number: signal.Signals, person: Person, place: Path, image: Path
) -> None:
    """Between the mount and the first request there is no moment that a signal may not fall in."""
    for _ in range(4):
        line = person.vdisk_command("mount", "-f", image, place / "mnt")
        process = subprocess.Popen(person.command(*line), stderr=subprocess.PIPE)
        try:
            wait_for_mount(place / "mnt", process)
            process.send_signal(number)
            said = process.communicate(timeout=PATIENCE)[1]
            assert mounts_below(place) == []
            assert b"Traceback" not in said
        finally:
            subprocess.run(["umount", "-l", place / "mnt"], capture_output=True, check=False)
            process.kill()
            process.communicate()
    qemu_writes(person, image, 1, 0)


def wait_for_mount(where: Path, process: subprocess.Popen[bytes]) -> None:
    """Until the kernel has the mount; mountinfo tells its readers when it changes (proc(5))."""
    with Path("/proc/self/mountinfo").open() as table:
        poll = select.poll()
        poll.register(table, select.POLLPRI)
        deadline = time.monotonic() + PATIENCE
        while table.seek(0) or f" {where} " not in table.read():
            assert process.poll() is None, "it ended"
            assert time.monotonic() < deadline, "it does not mount"
            poll.poll(100)


def test_interrupted_while_it_starts_it_leaves_nothing(
    person: Person, place: Path, image: Path
) -> None:
    """Ctrl-C in the moment that it has made the mountpoint, a good while before it is mounted."""
    where = place / "mnt"
    for _ in range(4):
        line = person.vdisk_command("mount", image, where)
        process = subprocess.Popen(person.command(*line), stderr=subprocess.PIPE)
        try:
            deadline = time.monotonic() + PATIENCE
            while not where.exists() and time.monotonic() < deadline:
                assert process.poll() is None
                time.sleep(0.0005)
            process.send_signal(signal.SIGINT)
            said = process.communicate(timeout=PATIENCE)[1]
            assert (process.returncode, said.strip()) == (130, b"")
            # The daemon is told to end as well.  When nobody holds the image, it is gone.
            while locks_on(image) and time.monotonic() < deadline:
                time.sleep(0.005)
            assert mounts_below(place) == []
            assert sorted(path.name for path in place.iterdir()) == ["d.img"]
        finally:
            process.kill()
            process.communicate()
            subprocess.run(["umount", "-l", where], capture_output=True, check=False)
    qemu_writes(person, image, 1, 0)


def cpu_ticks(pid: int) -> int:
    """Time in user and kernel mode, in ticks of 10 ms: fields 14 and 15 of stat (proc(5))."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def wakings(pid: int) -> int:
    """How often the process's threads have given up the processor, to wait for something."""
    lines = [
        line
        for task in Path(f"/proc/{pid}/task").iterdir()
        for line in (task / "status").read_text().splitlines()
    ]
    return sum(int(line.split()[1]) for line in lines if line.startswith("voluntary_ctxt"))


def rests(pid: int) -> None:
    """The process does nothing for a second.  Here a length of time is what is measured."""
    ticks, woken = cpu_ticks(pid), wakings(pid)
    time.sleep(1.0)
    assert cpu_ticks(pid) - ticks <= 1
    assert wakings(pid) - woken <= 10


def test_an_idle_daemon_does_nothing(mounts: Mounts, person: Person, image: Path) -> None:
    """After work, and again when the mount is gone but for a file that is still open."""
    mounted = mounts(image)
    write(person, mounted / "d", bytes(MIB))
    person.run("cat", mounted / "d", mounted / ".vdisk/d/map", mounted / ".vdisk/d/chs/0/0/1")
    rests(mounted.pid)
    with held(person, "open", mounted / "d"):
        person.vdisk("umount", "--lazy", mounted.mountpoint)
        rests(mounted.pid)
    wait_for_end(mounted.pid)


# vdisk umount


def test_twenty_mounts_and_unmounts_leave_nothing_and_lose_nothing(
    person: Person, place: Path, image: Path
) -> None:
    """Each `vdisk umount` returns with the image written, closed and unlocked: qemu-io has it at
    once, and finds and keeps what was written through the mount."""
    expected = bytearray(MIB)
    pids = []
    for number in range(ROUNDS):
        mounted = mount(person, [image], place / "mnt")
        pids.append(mounted.pid)
        try:
            data = f"round {number:9}\n".encode() * 320
            write(person, mounted / "d", data, at=number * 8192)
            person.vdisk("umount", mounted.mountpoint)
            qemu_writes(person, image, number + 1, number * 8192 + 7680)
        finally:
            mounted.end()
        expected[number * 8192 :][: len(data)] = b""
        expected[number * 8192 : number * 8192 + len(data)] = data
        expected[number * 8192 + 7680 : number * 8192 + 8192] = bytes([number + 1]) * 512
    assert image.read_bytes() == expected
    assert traces(person, pids) == []
    assert locks_on(image) == []
    assert mounts_below(place) == []
    assert sorted(path.name for path in place.iterdir()) == ["d.img", "mnt"]


def test_a_daemon_keeps_no_descriptor_of_what_was_closed(
    mounts: Mounts, person: Person, place: Path
) -> None:
    image = make_image(place / "d.img", 8 * MIB, person)
    sfdisk(image, "label: dos\nstart=2048,size=2048\nstart=4096\n", person=person)
    mounted = mounts(image)
    names = ["d", "d.p1", "d.p2", *(f".vdisk/d/{name}" for name in ("info", "map", "chs/0/0/1"))]

    def use_everything() -> int:
        for name in names:
            with (mounted / name).open("rb") as file:
                assert file.read(64)
            os.listdir((mounted / name).parent)
        with (mounted / "d.p2").open("r+b") as file:
            file.write(b"x" * 70_000)
            os.fsync(file.fileno())
        return 0

    person.does(use_everything)
    kept = sorted(os.listdir(f"/proc/{mounted.pid}/fd"))
    person.does(lambda: sum(use_everything() for _ in range(30)))
    # What a file's last close sets off (release) is not waited for by whoever closes it.
    deadline = time.monotonic() + PATIENCE
    while sorted(os.listdir(f"/proc/{mounted.pid}/fd")) != kept:
        assert time.monotonic() < deadline, os.listdir(f"/proc/{mounted.pid}/fd")
        time.sleep(0.01)


def test_several_mounts_come_go_and_are_listed_at_once(person: Person, place: Path) -> None:
    """Each has its own image, process and folder, and none is in another's way."""
    count = 5
    images = [make_image(place / f"d{i}.img", (i + 1) * MIB, person) for i in range(count)]
    at = [place / f"mnt{i}" for i in range(count)]
    try:
        together(person, [["mount", images[i], at[i]] for i in range(count)])
        rows = [listed(person, where) for where in at]
        for i, row in enumerate(rows):
            assert row is not None
            (disk,) = row["disks"]
            assert (row["source"], disk["name"], disk["size_bytes"]) == (
                str(images[i]), f"d{i}", (i + 1) * MIB
            )  # fmt: skip
            write(person, at[i] / f"d{i}", b"%d" % i * 512)
        pids = [row["pid"] for row in rows if row is not None]
        assert len(set(pids)) == count
        assert all(live.is_running(pid) for pid in pids)
        together(person, [["umount", where] for where in at])
        assert mounts_below(place) == []
        assert traces(person, pids) == []
        for i in range(count):
            qemu_writes(person, images[i], 9, 512)
            assert images[i].read_bytes() == (b"%d" % i * 512 + b"\x09" * 512).ljust(
                (i + 1) * MIB, b"\0"
            )
    finally:
        for where in at:
            subprocess.run(["umount", "-l", where], capture_output=True, check=False)


def together(person: Person, commands: list[list[str | Path]]) -> None:
    """Run several `vdisk` at the same time, each to its end."""
    running = [
        subprocess.Popen(
            person.command(*person.vdisk_command(*words)), stderr=subprocess.PIPE
        )
        for words in commands
    ]
    ended = [(process.communicate(timeout=PATIENCE)[1], process.returncode) for process in running]
    assert ended == [(b"", 0)] * len(commands)


# In use


@contextmanager
def held(person: Person, how: str, path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that holds `path` "open" or "mapped"; at the end it writes "after" and ends."""
    python = "python3" if person.name else sys.executable
    words = [python, "-c", _HOLDER, how, os.fspath(path)]
    process = subprocess.Popen(
        person.command(*words), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        yield process
    finally:
        process.communicate(timeout=PATIENCE)
    assert process.returncode == 0


@pytest.mark.parametrize("how", ["open", "mapped"])
def test_umount_refuses_while_a_file_is_in_use_and_works_when_it_is_closed(
    how: str, mounts: Mounts, person: Person, image: Path
) -> None:
    mounted = mounts(image)
    with held(person, how, mounted / "d") as holder:
        for words in (["umount", mounted.mountpoint], ["umount", image]):
            said = refusal(person, *words)
            assert str(mounted.mountpoint) in said
            assert f"(pid {holder.pid})" in said
            assert "--lazy" in said
        # It is a mount as before: in the list, for the holder and for others.
        row = listed(person, mounted.mountpoint)
        assert row is not None
        assert (row["state"], row["pid"]) == ("rw", mounted.pid)
        write(person, mounted / "d", b"others", at=512)
    mounted.unmount()
    assert image.read_bytes()[:518] == b"after".ljust(512, b"\0") + b"others"


def test_umount_refuses_while_another_vdisk_mount_stands_on_a_disk_of_it(
    mounts: Mounts, person: Person, image: Path
) -> None:
    lower = mounts(image)
    upper = mounts(lower / "d")
    assert f"(pid {upper.pid})" in refusal(person, "umount", lower.mountpoint)
    write(person, upper / "d", b"through both")
    upper.unmount()
    lower.unmount()
    assert image.read_bytes()[:12] == b"through both"


def test_umount_in_another_session_waits_and_refuses_as_in_the_same_one(
    person: Person, place: Path, image: Path
) -> None:
    """XDG_RUNTIME_DIR is another, or not set, in cron, su or a second login."""
    run = place / "run"
    person.run("mkdir", "-m", "700", run)
    where, pid_file = place / "mnt", place / "pid"
    words = person.vdisk_command("mount", "--pid-file", pid_file, image, where)
    person.run("env", f"XDG_RUNTIME_DIR={run}", *words)
    mounted = Mounted(person, where, int(pid_file.read_text()))
    try:
        with held(person, "open", where / "d"):
            assert "in use" in refusal(person, "umount", where)
            assert mounted.is_mounted()
        mounted.unmount()
        assert not live.is_running(mounted.pid)
    finally:
        mounted.end()


# Killed


def test_the_image_of_a_dead_mount_is_free_and_the_dead_one_is_told_from_the_new(
    mounts: Mounts, person: Person, image: Path
) -> None:
    dead = mounts(image)
    write(person, dead / "d", b"kept")
    os.kill(dead.pid, signal.SIGKILL)
    wait_for_end(dead.pid)
    assert met(person, dead.mountpoint) == errno.ENOTCONN
    fresh = mounts(image)
    rows = {row.split()[4]: row.split()[5:] for row in lines_of_list(person, image)}
    assert rows[str(dead.mountpoint)][1] == "dead"
    assert rows[str(fresh.mountpoint)][:2] == [str(fresh.pid), "rw"]
    # The image's name means both, so it is asked which.
    said = refusal(person, "umount", image)
    assert str(dead.mountpoint) in said
    assert str(fresh.mountpoint) in said
    dead.unmount()
    assert not dead.is_mounted()
    assert person.run("head", "-c", "4", fresh / "d").stdout == b"kept"
    person.vdisk("umount", image)
    assert not fresh.is_mounted()


def lines_of_list(person: Person, image: Path) -> list[str]:
    """The lines of `vdisk list` for the disks of one image."""
    lines = person.vdisk("list").stdout.decode().splitlines()
    return [line for line in lines if line.startswith(f"{image} ")]


def met(person: Person, path: Path) -> int | None:
    """The errno that listing a folder meets; None if it goes well."""

    def look() -> int | None:
        try:
            os.listdir(path)
        except OSError as error:
            return error.errno
        return None

    return person.does(look)


def test_a_dead_mount_refuses_a_new_one_in_its_place_and_says_what_to_do(
    mounts: Mounts, person: Person, place: Path, image: Path
) -> None:
    """The hint is a command that works as it stands, also from within the dead folder."""
    dead = mounts(image)
    other = make_image(place / "other.img", MIB, person)
    script = f"cd {dead.mountpoint} && echo ready && read x && exec \"$@\""
    # As an installed program does, this Python must not look for modules in the current folder.
    words = ["env", "PYTHONSAFEPATH=1", *person.vdisk_command("umount", ".")]
    process = subprocess.Popen(
        person.command("sh", "-c", script, "sh", *words), stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        os.kill(dead.pid, signal.SIGKILL)
        wait_for_end(dead.pid)
        said = refusal(person, "mount", "--chs", "10/4/17", other, dead.mountpoint)
        assert f"vdisk umount {dead.mountpoint}" in said
        assert dead.is_mounted()
        _, stderr = process.communicate(b"\n", timeout=PATIENCE)
        assert (process.returncode, stderr) == (0, b"")
    finally:
        process.kill()
        process.communicate()
    assert not dead.is_mounted()
    assert traces(person, [dead.pid]) == []
    again = mount(person, [other], dead.mountpoint)
    again.unmount()
