"""One mount from start to end: background, readiness, signals, unmount.

The daemon is made by one fork, before trio and pyfuse3 are imported.  It tells its parent over a
pipe that the mount answers, or the one line that says why not.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import logging.handlers
import os
import resource
import signal
import stat
import sys
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from mount import live
from mount.ending import ENDING_SIGNALS, Ending, signals_held
from mount.options import MountOptions
from vdisk.errors import Busy, DiskError, HostError, InvalidArgument, NotPermitted
from vdisk.stores import open_stores

if TYPE_CHECKING:
    from mount.filesystem import FileSystem
    from mount.server import Place, Server

READ_AHEAD_KIB = 4096
"""What a mount's read-ahead is raised to; the kernel's 128 KiB costs most of a sequential read."""

BACKGROUND_MAX = 512
"""Direct reads and read-ahead that the kernel may have under way.  With its 12, one disk whose host
is slow would hold up those of all."""

_PR_SET_IO_FLUSHER = 57  # prctl(2).
_READY = "ready\n"  # What a daemon says first when its mount answers; warnings follow, a line each.

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Request:
    """What to mount where.  `sources` are images and folders, `mountpoint` a folder."""

    sources: list[Path]
    mountpoint: Path
    options: MountOptions = field(default_factory=MountOptions)
    pid_file: Path | None = None
    debug: bool = False


def mount_in_background(request: Request) -> list[str]:
    """Mount, and return once the mount answers: what its user is to be warned of, a line each.

    Raises the DiskError that kept it from it; then nothing is mounted and nothing has changed.
    """
    _prepare(request)
    missing = not os.path.exists(request.mountpoint)
    reader, writer = os.pipe2(os.O_CLOEXEC)
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:  # The caller may have closed it.
            stream.flush()
    pid = None
    try:
        with signals_held():
            pid = os.fork()
            if pid == 0:
                os.close(reader)
                _daemon(request, writer)
        os.close(writer)
        with open(reader, "rb") as pipe:
            said = pipe.read().decode("utf-8", "surrogateescape")
    except BaseException:  # Ctrl-C while it starts: nothing is to stay behind.
        if pid is not None:
            os.kill(pid, signal.SIGTERM)
            os.waitpid(pid, 0)
            if missing:  # The daemon removes it too, unless it was just about to be ready.
                _unmake(request.mountpoint)
        raise
    if said.startswith(_READY):
        return said.removeprefix(_READY).splitlines()
    os.waitpid(pid, 0)
    raise _StartFailed(said or "the daemon ended before the mount answered")


def mount_in_foreground(request: Request, warn: Callable[[str], None]) -> None:
    """Mount and serve until the mount goes or a signal ends it.  Raises as above.

    `warn` is called for each warning once the mount answers.
    """

    def tell(warnings: list[str]) -> None:
        for text in warnings:
            warn(text)

    _prepare(request)
    _run(request, tell)


class _StartFailed(DiskError):
    """A daemon's own error line, told by its parent as it is."""


def _daemon(request: Request, writer: int) -> NoReturn:
    status = 1
    ready = False

    def tell_ready(warnings: list[str]) -> None:
        nonlocal ready
        os.write(writer, (_READY + "\n".join(warnings)).encode("utf-8", "surrogateescape"))
        os.close(writer)
        ready = True
        null = os.open(os.devnull, os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(null, fd)
        _log_to_syslog()

    try:
        os.setsid()
        os.chdir("/")
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING_SIGNALS)
        _run(request, tell_ready)
        status = 0
    except BaseException as error:
        text = str(error) if isinstance(error, DiskError) else f"{type(error).__name__}: {error}"
        if ready:
            _log.error("%s", text, exc_info=not isinstance(error, DiskError))
        else:
            os.write(writer, text.encode("utf-8", "surrogateescape"))
    finally:
        # The parent's atexit handlers and buffers are not ours to run.
        os._exit(status)


def _log_to_syslog() -> None:
    root = logging.getLogger()
    for handler in list(root.handlers):
        root.removeHandler(handler)
    if Path("/dev/log").exists():
        handler = logging.handlers.SysLogHandler("/dev/log")
        handler.setFormatter(logging.Formatter(f"vdisk[{os.getpid()}]: %(message)s"))
        root.addHandler(handler)
    else:
        root.addHandler(logging.NullHandler())


def _prepare(request: Request) -> None:
    """Check all that can be told of before there is a mount; nothing is changed yet.

    Paths become absolute here: the daemon's own folder is "/".
    """
    request.sources = [Path(os.path.abspath(source)) for source in request.sources]
    request.mountpoint = where = Path(os.path.realpath(request.mountpoint))
    image = request.options.image
    folders = tuple(Path(os.path.abspath(folder)) for folder in image.allow_parent)
    request.options.image = replace(image, allow_parent=folders)
    if request.pid_file is not None:
        request.pid_file = Path(os.path.abspath(request.pid_file))
    for source in request.sources:
        real = Path(os.path.realpath(source))
        if real == where or where in real.parents:
            raise InvalidArgument(
                "the mounted folder would hide it", path=source, hint="mount elsewhere"
            )
    if not os.path.exists("/dev/fuse"):
        raise HostError(
            "is missing: this kernel or container has no FUSE", errno=errno.ENODEV,
            path="/dev/fuse", hint="load the module `fuse`, or start the container with --device",
        )
    _check_folder(where, nonempty=request.options.nonempty)


def _check_folder(where: Path, *, nonempty: bool) -> None:
    try:
        status = os.stat(where)
    except FileNotFoundError:
        return
    except OSError as error:
        if error.errno == errno.ENOTCONN:
            raise Busy("a dead mount is there", path=where, hint=f"vdisk umount {where}") from error
        raise HostError.of(error, "use as a mountpoint", where) from error
    if not stat.S_ISDIR(status.st_mode):
        raise InvalidArgument("the mountpoint is not a folder", path=where)
    if live.device_of(str(where)) is not None:
        raise Busy("something is mounted there already", path=where, hint="choose another folder")
    if os.geteuid() != 0 and not os.access(where, os.W_OK):
        raise NotPermitted("the mountpoint is not yours to write", path=where)
    if not nonempty and any(os.scandir(where)):
        raise Busy(
            "the mountpoint is not empty", path=where, hint="mounting would hide it: -o nonempty"
        )


def _make_folder(where: Path) -> bool:
    """Make the mountpoint where it is missing; whether it was."""
    if os.path.exists(where):
        return False
    try:
        where.mkdir(parents=False)
    except OSError as error:
        raise HostError.of(error, "make the mountpoint", where) from error
    return True


def _unmake(where: Path) -> None:
    with suppress(OSError):
        where.rmdir()


def _run(request: Request, ready: Callable[[list[str]], None]) -> None:
    import trio

    from mount.filesystem import FileSystem, Settings
    from mount.server import start_server
    from mount.tree import Tree

    _raise_limits()
    os.umask(0)  # A client's own umask is in the mode that it asks for.
    options = request.options
    stores = open_stores(
        request.sources, options.image, writable=not options.read_only, snapshot=options.snapshot
    )
    tree = Tree(stores)
    settings = Settings(options.read_only, options.uid, options.gid, options.umask)
    filesystem = FileSystem(tree, settings)
    with ExitStack() as stack:
        stack.callback(filesystem.close)
        tree.show(tree.look(tree.known(), strict=True, keep=False))
        ending = Ending()  # Until here a signal just ends the process, which has begun nothing.
        undo = stack.enter_context(ExitStack())  # What is taken back where the mount fails.
        if _make_folder(request.mountpoint):
            undo.callback(_unmake, request.mountpoint)
        server = start_server(options.server, filesystem, _place(request))
        stack.callback(server.stop)
        # Before that, so that whoever sees the mount gone finds the image closed and unlocked.
        stack.callback(filesystem.close)

        def tell(warnings: list[str]) -> None:
            undo.pop_all()
            ready(warnings)

        try:
            trio.run(_serve, request, filesystem, server, ending, tell)
        except BaseExceptionGroup as group:
            raise _cause(group) from group


def _cause(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The error to tell of those that trio's nurseries gathered: a DiskError before any other."""
    told = group.subgroup(DiskError) or group
    error: BaseException = told
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


async def _serve(
    request: Request,
    filesystem: FileSystem,
    server: Server,
    ending: Ending,
    ready: Callable[[list[str]], None],
) -> None:
    """Answer requests until the mount goes or the process is told to end; then flush everything."""
    import trio

    async def until_unmounted() -> None:
        await server.serve()
        nursery.cancel_scope.cancel()

    async def until_told() -> None:
        await ending.wait()
        await filesystem.settle()
        nursery.cancel_scope.cancel()

    with ExitStack() as notices:
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(until_told)
                nursery.start_soon(until_unmounted)
                await trio.to_thread.run_sync(os.stat, request.mountpoint, abandon_on_cancel=True)
                _tune(str(request.mountpoint))
                await _announce(request, filesystem, server, notices)
                ready(await trio.to_thread.run_sync(filesystem.tree.keep))
        finally:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(_flush, filesystem)


async def _announce(
    request: Request, filesystem: FileSystem, server: Server, notices: ExitStack
) -> None:
    """Say to others that there is this mount; `notices` takes back what was said."""
    record = live.record(await _live_mount(request, filesystem, server))
    if record is not None:
        notices.callback(record.unlink, missing_ok=True)
    if request.pid_file is not None:
        _write_pid_file(request.pid_file)
        notices.callback(request.pid_file.unlink, missing_ok=True)


def _flush(filesystem: FileSystem) -> None:
    try:
        filesystem.flush_all()
    except DiskError as error:
        live.leave_failure(str(error))
        raise


async def _live_mount(
    request: Request, filesystem: FileSystem, server: Server
) -> live.Mount:
    disks = [
        {
            "name": node.name,
            "host_file": node.disk.address,
            "size_bytes": node.disk.size,
            "geometry": None if node.disk.choice is None else str(node.disk.choice.geometry),
            "sector_size": node.disk.sector_size,
            "passthrough": (await filesystem.backing(node)).number != 0,
        }
        for node in list(filesystem.tree.nodes.values())
    ]
    return live.Mount(
        str(request.mountpoint), _source_name(request), os.getpid(), request.options.read_only,
        disks, server=server.name,
    )


def _source_name(request: Request) -> str:
    return ":".join(str(source) for source in request.sources)


def _place(request: Request) -> Place:
    from mount.server import Place

    options = request.options
    return Place(
        str(request.mountpoint), _source_name(request), live.FUSE_SUBTYPE, options.read_only,
        options.allow_other, frozenset(options.kernel), options.passthrough, request.debug,
    )


def _raise_limits() -> None:
    """Room for one descriptor a disk; and never wait for our own mount to free memory."""
    with suppress(OSError, ValueError):
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    # Fails without CAP_SYS_RESOURCE.  Threads made later inherit it, so it is set before any.
    ctypes.CDLL(None).prctl(_PR_SET_IO_FLUSHER, 1, 0, 0, 0)


def _tune(mountpoint: str) -> None:
    """What the kernel lets nobody say when a mount is made, where this user may say it later."""
    device = live.device_of(mountpoint)
    connection = live.connection_folder(device)
    for place, value in (
        (Path(f"/sys/class/bdi/{device}/read_ahead_kb"), READ_AHEAD_KIB),  # Only root may.
        (connection / "max_background", BACKGROUND_MAX),  # Where fusectl is mounted.
        (connection / "congestion_threshold", BACKGROUND_MAX * 3 // 4),
    ):
        with suppress(OSError):
            place.write_text(str(value))


def _write_pid_file(path: Path) -> None:
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        with open(fd, "w") as file:
            file.write(f"{os.getpid()}\n")
    except OSError as error:
        raise HostError.of(error, "write the pid file", path) from error
