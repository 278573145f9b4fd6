"""Who is measured: each makes a file or device out of the same image, and takes it away again."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bench.interrupt import held
from bench.process import ServerFailed, is_mounted, kill, run, running, unmount_if_left
from bench.variants import VARIANTS

VDISK = (sys.executable, "-c", "from mount.cli import main; main()")
"""This checkout's vdisk command, run by the Python that runs us."""


@dataclass(frozen=True, slots=True)
class Served:
    """What a contender offers: the path to measure, and whose work is behind it.

    `pid` is the process that reads and writes the image, None where that is the kernel.
    `own_pages`: the kernel caches pages of the path apart from the image's own, so they must be
    dropped before a run, or no request would reach the server.
    """

    path: Path
    pid: int | None
    own_pages: bool


@dataclass(frozen=True, slots=True)
class Contender:
    """One column of the table.

    `serve(image, folder)` serves the image for as long as its block lasts; the folder is empty
    and its own.  It raises ServerFailed.  `version_command` prints what the report calls it.
    """

    name: str
    label: str
    serve: Callable[[Path, Path], AbstractContextManager[Served]]
    commands: Sequence[str] = ()
    version_command: Sequence[str] = ()
    needs_root: bool = False
    needs_fuse: bool = True

    def missing(self) -> str | None:
        """Why it cannot be measured here; None where it can."""
        absent = [command for command in self.commands if shutil.which(command) is None]
        if absent:
            return f"not installed: {', '.join(absent)}"
        if self.needs_root and os.geteuid() != 0:
            return "only root can attach a loop device"
        if self.needs_fuse and not os.access("/dev/fuse", os.R_OK | os.W_OK):
            return "/dev/fuse is missing or not ours to open"
        return None


@contextmanager
def _host_file(image: Path, folder: Path) -> Iterator[Served]:
    yield Served(image, pid=None, own_pages=False)


@contextmanager
def _vdisk(
    image: Path, folder: Path, command: Sequence[str] = VDISK, options: Sequence[str] = (),
    alone: bool = True,
) -> Iterator[Served]:
    """Mounted as it comes, or with `options`: then every request has to reach the process, unless
    it is not `alone` in its work.
    """
    mountpoint, pid_file = folder / "mnt", folder / "pid"
    mountpoint.mkdir()
    with ExitStack() as stack:
        with held():
            stack.callback(unmount_if_left, mountpoint)
            run([*command, "mount", *options, "--pid-file", pid_file, image, mountpoint])
            pid = int(pid_file.read_text())
            stack.callback(_end_vdisk, command, mountpoint, pid)
        # As it comes, reads may be by passthrough, which is the kernel's work.
        yield Served(mountpoint / image.stem, pid if options and alone else None, own_pages=True)


def _end_vdisk(command: Sequence[str], mountpoint: Path, pid: int) -> None:
    with held():
        try:
            run([*command, "umount", mountpoint])
        except ServerFailed:
            kill(pid)
            raise


@contextmanager
def _qemu_storage_daemon(
    image: Path, folder: Path, program: Sequence[str] = ("qemu-storage-daemon",), threads: int = 0
) -> Iterator[Served]:
    """`threads`: how many take requests beside each other; 0 as it comes.  Newer versions only."""
    path = folder / "disk"
    path.touch()
    command = list(program)
    for number in range(threads):
        command += ["--object", f"iothread,id=thread{number}"]
    command += [
        *("--blockdev", f"driver=file,node-name=file,filename={image}"),
        *("--blockdev", "driver=raw,node-name=disk,file=file", "--export"),
        f"type=fuse,id=export,node-name=disk,mountpoint={path},writable=on"
        + "".join(f",iothread.{number}=thread{number}" for number in range(threads)),
    ]
    try:
        with running(command, folder / "log", partial(is_mounted, path)) as process:
            yield Served(path, process.pid, own_pages=True)
    finally:
        unmount_if_left(path)


@contextmanager
def _nbdfuse(image: Path, folder: Path) -> Iterator[Served]:
    path, socket = folder / "disk", folder / "socket"
    path.touch()
    server: list[str | Path] = [
        *("nbdkit", "--foreground", "--exit-with-parent", "--unix"), socket, "file", image,
    ]
    client: list[str | Path] = ["nbdfuse", path, "--unix", socket]
    try:
        with (
            running(server, folder / "server.log", socket.exists) as process,
            running(client, folder / "log", partial(is_mounted, path)),
        ):
            yield Served(path, process.pid, own_pages=True)
    finally:
        unmount_if_left(path)


@contextmanager
def _loop_device(image: Path, folder: Path) -> Iterator[Served]:
    with ExitStack() as stack:
        with held():
            device = run(["losetup", "--find", "--show", image]).strip()
            stack.callback(run, ["losetup", "--detach", device])
        yield Served(Path(device), pid=None, own_pages=True)


def contenders(vdisk: Sequence[str] = VDISK) -> list[Contender]:
    """All of them, in the table's order.  `vdisk` is the command to measure as vdisk."""
    return [
        Contender("host", "host file", _host_file, needs_fuse=False),
        Contender(
            "loop", "loop device", _loop_device, ("losetup",), ("losetup", "--version"),
            needs_root=True, needs_fuse=False,
        ),
        Contender(
            "vdisk", "vdisk", partial(_vdisk, command=vdisk), ("fusermount3",),
            (*vdisk, "--version"),
        ),
        Contender(
            "vdisk-kernel", "vdisk, own server, no passthrough",
            partial(_vdisk, command=vdisk, options=["--server=kernel", "-o", "nopassthrough"]),
            ("fusermount3",), (*vdisk, "--version"),
        ),
        Contender(
            "vdisk-pyfuse3", "vdisk, pyfuse3",
            partial(_vdisk, command=vdisk, options=["--server=pyfuse3"]),
            ("fusermount3",), (*vdisk, "--version"),
        ),
        Contender(
            "qsd", "qemu-storage-daemon", _qemu_storage_daemon, ("qemu-storage-daemon",),
            ("qemu-storage-daemon", "--version"),
        ),
        Contender(
            "nbdfuse", "nbdfuse + nbdkit", _nbdfuse, ("nbdfuse", "nbdkit"),
            ("nbdkit", "--version"),
        ),
    ]


def other_qsd(program: Sequence[str]) -> list[Contender]:
    """Another qemu-storage-daemon than the one on the path, with one thread and with two."""
    return [
        Contender(
            name, label,
            partial(_qemu_storage_daemon, program=program, threads=threads),
            program[:1], (*program, "--version"),
        )
        for name, label, threads in (
            ("qsd-other", "other qemu-storage-daemon", 0),
            ("qsd-other-2", "other qemu-storage-daemon, 2 threads", 2),
        )
    ]


def variants() -> list[Contender]:
    """Our own server, done otherwise, for whoever asks for one of them by name."""
    return [
        Contender(
            name, label,
            partial(
                _vdisk, command=(sys.executable, "-m", "bench.variants", name),
                options=["--server=kernel", "-o", "nopassthrough"],
                alone=name not in ("processes", "write-back"),
            ),
            ("fusermount3",),
        )
        for name, (label, _) in VARIANTS.items()
    ]
