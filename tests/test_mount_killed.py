"""A daemon that is killed, or told to end, in the middle of writes loses none it acknowledged."""

from __future__ import annotations

import errno
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import load
from harness import PATIENCE, Mounted, Person, make_image, mount, sfdisk
from load import SLOT, Writer

MIB = 1 << 20
SIZE = 24 * MIB
TABLE = "label: dos\nstart=2048,size=16384\nstart=18432\n"  # From 1 MiB, and from 9 MiB on.
CYLINDER = 16 * 63 * 512
# The first two write slots that lie between each other, through two views that overlap.
WRITERS = [
    Writer(0, "disk", 4 * MIB, 2 * SLOT, 200),
    Writer(1, "disk.p1", 3 * MIB + SLOT, 2 * SLOT, 200),
    Writer(2, "disk.p2", 0, SLOT + 100, 300),
    Writer(3, "disk.p2", 4 * MIB, SLOT, 50, syncs=True),
    Writer(4, ".vdisk/disk/chs/40/cylinder", 0, SLOT, CYLINDER // SLOT),
    Writer(5, "disk", 21 * MIB, SLOT, 100, syncs=True),
]
BASES = {"disk": 0, "disk.p1": MIB, "disk.p2": 9 * MIB, WRITERS[4].file: 40 * CYLINDER}


@pytest.fixture
def image(person: Person, place: Path) -> Path:
    made = make_image(place / "disk.img", SIZE, person)
    sfdisk(made, TABLE, person=person)
    return made


@pytest.fixture
def journal(person: Person, place: Path) -> Path:
    person.run("mkdir", place / "journal")
    return place / "journal"


def test_every_write_acknowledged_before_a_kill_is_there(
    person: Person, place: Path, image: Path, journal: Path
) -> None:
    mounted = mount(person, [image], place / "mnt", "--chs", "48/16/63")
    try:
        with _load(person, mounted.mountpoint, journal) as writers:
            os.kill(mounted.pid, signal.SIGKILL)
            _refused_for_good(writers)
            # The files are still open, and the mount is dead.
            person.vdisk("umount", mounted.mountpoint)
            assert not mounted.is_mounted()
        _judge_host(image, journal)
        mounted = mount(person, [image], place / "mnt")
        person.does(lambda: _judge_mount(mounted.mountpoint, journal))
        assert _pids(person, place) == [mounted.pid]
        mounted.unmount()
        _judge_host(image, journal)
    finally:
        mounted.end()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_under_load_ends_the_daemon_well_and_loses_nothing(
    person: Person, place: Path, image: Path, journal: Path, number: signal.Signals
) -> None:
    with _foreground(person, image, place / "mnt") as (daemon, mounted):
        with _load(person, mounted.mountpoint, journal) as writers:
            daemon.send_signal(number)
            _ends_well(daemon)
            _refused_for_good(writers)
        assert not mounted.is_mounted()
    person.run("qemu-io", "-f", "raw", "-c", "read 0 512", image)  # Needs the lock to be free.
    _judge_host(image, journal)


def test_an_outside_unmount_under_load_ends_the_daemon_well_and_loses_nothing(
    person: Person, place: Path, image: Path, journal: Path
) -> None:
    """Lazily, for the writers have files open: they go on, and the daemon ends with the last."""
    with _foreground(person, image, place / "mnt") as (daemon, mounted):
        with _load(person, mounted.mountpoint, journal):
            take = ["umount", "-l"] if person.is_root else ["fusermount3", "-u", "-z"]
            person.run(*take, mounted.mountpoint)
            assert daemon.poll() is None
        _ends_well(daemon)
    _judge_host(image, journal)


def _ends_well(daemon: subprocess.Popen[bytes]) -> None:
    assert daemon.stderr is not None
    status = daemon.wait(timeout=PATIENCE)
    assert (status, daemon.stderr.read()) == (0, b"")


@contextmanager
def _foreground(
    person: Person, image: Path, mountpoint: Path
) -> Iterator[tuple[subprocess.Popen[bytes], Mounted]]:
    """`vdisk mount -f`, whose exit status a parent sees; ready when it has written its number."""
    ready = mountpoint.with_name("ready")
    person.run("mkfifo", ready)
    words = person.vdisk_command(
        "mount", "-f", "--pid-file", ready, "--chs", "48/16/63", image, mountpoint
    )
    daemon = subprocess.Popen(person.command(*words), stderr=subprocess.PIPE)
    mounted = Mounted(person, mountpoint, daemon.pid)
    try:
        with ready.open() as pipe:
            assert int(pipe.read()) > 0
        yield daemon, mounted
    finally:
        mounted.end()
        daemon.wait(timeout=PATIENCE)
        assert daemon.stderr is not None
        daemon.stderr.close()


@contextmanager
def _load(person: Person, mountpoint: Path, journal: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The write load as `person`, well under way; killed with the `with` block if it still runs."""
    source = Path(load.__file__).read_text()
    python = sys.executable if person.name is None else "python3"
    words = [python, "-c", source, str(mountpoint), str(journal), "disk", str(SIZE)]
    words += [writer.words() for writer in WRITERS]
    writers = subprocess.Popen(
        person.command(*words), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert _line(writers) == b"under way"
        yield writers
    finally:
        writers.kill()
        writers.communicate(timeout=PATIENCE)


def _line(process: subprocess.Popen[bytes]) -> bytes:
    """The next line a process prints; a process that hangs fails here."""
    assert process.stdout is not None
    said = b""
    while not said.endswith(b"\n"):
        ready, _, _ = select.select([process.stdout], [], [], PATIENCE)
        assert ready, "it hangs"
        more = os.read(process.stdout.fileno(), 1)
        assert more, "it ended"
        said += more
    return said.rstrip(b"\n")


def _refused_for_good(writers: subprocess.Popen[bytes]) -> None:
    """Every writer was refused, and refused again, because nobody serves the mount any more."""
    gone = {errno.ENOTCONN, errno.ECONNABORTED}
    for _ in WRITERS:
        first, again = json.loads(_line(writers))
        assert first in gone
        assert again == errno.ENOTCONN
    assert _line(writers) == b"ended"


def _judge_host(image: Path, journal: Path) -> None:
    found = image.read_bytes()
    for writer in WRITERS:
        start = BASES[writer.file] + writer.start

        def slot(number: int, start: int = start, stride: int = writer.stride) -> bytes:
            return found[start + number * stride :][:SLOT]

        assert load.judge(writer, journal, slot) > load.ENOUGH


def _judge_mount(mountpoint: Path, journal: Path) -> None:
    for writer in WRITERS:
        with (mountpoint / writer.file).open("rb") as file:

            def slot(number: int, writer: Writer = writer, fd: int = file.fileno()) -> bytes:
                return os.pread(fd, SLOT, writer.start + number * writer.stride)

            assert load.judge(writer, journal, slot) > load.ENOUGH


def _pids(person: Person, place: Path) -> list[int]:
    """Of the mounts in `place`; there may be others on this machine."""
    rows = json.loads(person.vdisk("list", "--json").stdout)
    return [row["pid"] for row in rows if row["mountpoint"].startswith(f"{place}/")]
