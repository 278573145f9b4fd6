"""Clients that are killed, stopped or interrupted, and a connection that is cut: no harm comes."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

import pytest

from harness import PATIENCE, Mounted, Person, make_image, sfdisk

ONE_SERVER = "kernel"
MIB = 1 << 20
SIZE = 64 * MIB
TABLE = "label: dos\nstart=2048,size=65536\nstart=67584\n"
Make = Callable[..., Mounted]

# Reads and writes anywhere in the upper half of a file, in many threads, until it is killed.
CLIENT = """
import os, sys, threading
from random import Random
def work(seed):
    random = Random(seed)
    fd = os.open(sys.argv[1], os.O_RDWR)
    size = os.fstat(fd).st_size
    said = False
    while True:
        at = random.randrange(size // 2, size - 70000)
        if random.random() < 0.5:
            os.pread(fd, 65536, at)
        else:
            os.pwrite(fd, random.randbytes(random.choice([512, 4096, 65536])), at)
        if not said:
            os.write(1, b".")
            said = True
for seed in range(int(sys.argv[2])):
    threading.Thread(target=work, args=(seed,)).start()
"""
# Reads and writes with a signal every millisecond, each of which may break a call off.
INTERRUPTED = """
import os, signal, sys
from random import Random
signal.signal(signal.SIGALRM, lambda *_: None)
signal.siginterrupt(signal.SIGALRM, True)
signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
random, model = Random(1), bytearray(8 << 20)
fd = os.open(sys.argv[1], os.O_RDWR)
assert os.pwrite(fd, model, 0) == len(model)
for _ in range(3000):
    at = random.randrange(len(model) - 65536)
    data = random.randbytes(random.choice([100, 4096, 65536]))
    done = os.pwrite(fd, data, at)
    model[at : at + done] = data[:done]
    at = random.randrange(len(model) - 65536)
    found = os.pread(fd, 65536, at)
    assert found == model[at : at + len(found)], at
os.fsync(fd)
signal.setitimer(signal.ITIMER_REAL, 0)
assert os.pread(fd, len(model), 0) == model
"""


@pytest.fixture
def disk(mounts: Make, person: Person, place: Path) -> Mounted:
    image = make_image(place / "disk.img", SIZE, person)
    sfdisk(image, TABLE)
    return mounts(image, options=("-o", "nopassthrough"))


@contextmanager
def client(disk: Mounted, name: str, threads: int) -> Iterator[subprocess.Popen[bytes]]:
    """The client at work in all its threads, killed with the `with` block."""
    python = sys.executable if disk.person.name is None else "python3"
    words = [python, "-c", CLIENT, str(disk / name), str(threads)]
    process = subprocess.Popen(disk.person.command(*words), stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        said = b""
        while len(said) < threads:
            assert select.select([process.stdout], [], [], PATIENCE)[0]
            said += os.read(process.stdout.fileno(), threads)
        yield process
    finally:
        process.kill()
        process.wait(timeout=PATIENCE)
        process.stdout.close()


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def test_clients_killed_with_hundreds_of_requests_leave_nothing_behind(disk: Mounted) -> None:
    """Each time the same descriptors are open, nobody has the disk open, and it works."""
    lower = Random(2).randbytes(MIB)
    disk.person.run("dd", f"of={disk / 'disk'}", "bs=1M", "seek=4", "conv=notrunc", stdin=lower)
    counts = []
    for _ in range(3):
        with client(disk, "disk", 200), client(disk, "disk.p2", 100):
            pass
        # Refused while it is open: that also waits for the handles of the dead.
        disk.person.run("truncate", "-s", str(SIZE + MIB), disk / "disk")
        disk.person.run("truncate", "-s", str(SIZE), disk / "disk")
        counts.append(descriptors(disk.pid))
        read = ["dd", f"if={disk / 'disk'}", "bs=1M", "skip=4", "count=1"]
        assert disk.person.run(*read).stdout == lower
    assert counts[0] == counts[1] == counts[2]
    rss = Path(f"/proc/{disk.pid}/status").read_text().partition("VmRSS:")[2].split()[0]
    assert int(rss) < 200 << 10
    disk.unmount()


def test_a_stopped_process_goes_on_where_it_was(disk: Mounted) -> None:
    """Requests made meanwhile wait, and all are done."""
    with client(disk, "disk", 50):
        for _ in range(5):
            os.kill(disk.pid, signal.SIGSTOP)
            done = threading.Event()
            data = os.urandom(8192)

            def write(data: bytes = data, done: threading.Event = done) -> None:
                disk.person.run(
                    "dd", f"of={disk / 'disk'}", "bs=8k", "seek=256", "conv=notrunc", stdin=data
                )
                done.set()

            writer = threading.Thread(target=write)
            writer.start()
            assert not done.wait(0.1)
            os.kill(disk.pid, signal.SIGCONT)
            writer.join(PATIENCE)
            assert done.is_set()
            read = ["dd", f"if={disk / 'disk'}", "bs=8k", "skip=256", "count=1"]
            assert disk.person.run(*read).stdout == data
    disk.unmount()


@pytest.mark.parametrize("name", ["disk", "disk.p2"])
def test_calls_that_signals_break_off_change_what_they_say(disk: Mounted, name: str) -> None:
    python = sys.executable if disk.person.name is None else "python3"
    disk.person.run(python, "-c", INTERRUPTED, disk / name)


@pytest.mark.skipif(os.geteuid() != 0, reason="takes root to see every connection")
def test_an_aborted_connection_ends_the_mount(disk: Mounted, place: Path) -> None:
    """Its users are told, the process ends well, and the disk is free."""
    control = place / "connections"
    control.mkdir()
    Person().run("mount", "-t", "fusectl", "none", control)
    try:
        minor = _device_minor(disk.mountpoint)
        process = os.pidfd_open(disk.pid)
        with client(disk, "disk", 50) as user:
            (control / str(minor) / "abort").write_text("1")
            # Every thread of it meets an error, which ends them all.
            assert user.wait(timeout=PATIENCE) == 0
        assert select.select([process], [], [], PATIENCE)[0]
        os.close(process)
    finally:
        Person().run("umount", control)
    assert not disk.is_mounted()
    Person().run("qemu-io", "-f", "raw", "-c", "write 0 512", place / "disk.img")
    rows = json.loads(disk.person.vdisk("list", "--json").stdout)
    assert disk.pid not in [row["pid"] for row in rows]


def _device_minor(mountpoint: Path) -> int:
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        words = line.split()
        if words[4] == str(mountpoint):
            return int(words[2].partition(":")[2])
    raise AssertionError("not mounted")


@pytest.mark.parametrize(
    "times", [20, pytest.param(500, marks=pytest.mark.slow)], ids=["20", "500"]
)
def test_mounting_many_times_leaves_nothing(person: Person, place: Path, times: int) -> None:
    """No process, mount, record or lock, and the image as it was written last."""
    image = make_image(place / "disk.img", MIB, person)
    words = [*map(str, person.vdisk_command("mount", image, place / "mnt"))]
    end = [*map(str, person.vdisk_command("umount", place / "mnt"))]
    script = f"""
        set -e
        for turn in $(seq {times}); do
            {_quoted(words)}
            printf %08d $turn | dd of={place}/mnt/disk bs=8 seek=$turn conv=notrunc status=none
            {_quoted(end)}
        done
    """
    before = _traces(place)
    process = subprocess.run(
        person.command("sh", "-c", script), capture_output=True, timeout=times * 5, check=False
    )
    assert (process.returncode, process.stderr) == (0, b"")
    assert _traces(place) == before
    expected = bytes(8) + b"".join(b"%08d" % turn for turn in range(1, times + 1))
    assert image.read_bytes()[: len(expected)] == expected
    person.run("qemu-io", "-f", "raw", "-c", "write 0 512", image)
    assert json.loads(person.vdisk("list", "--json").stdout) == [] or str(place) not in (
        person.vdisk("list", "--json").stdout.decode()
    )


def _quoted(words: list[str]) -> str:
    import shlex

    return shlex.join(words)


def _traces(place: Path) -> tuple[list[str], list[str]]:
    """Mounts below `place`, and processes that have something of it open."""
    mounts = [line for line in Path("/proc/self/mountinfo").read_text().splitlines()
              if f" {place}/" in line]  # fmt: skip
    users = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            links = [os.readlink(fd) for fd in (process / "fd").iterdir()]
        except OSError:
            continue
        users += [process.name for link in links if link.startswith(f"{place}/")]
    return mounts, users
