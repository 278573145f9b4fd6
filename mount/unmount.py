"""The end of a mount: find it, take it away, wait for its process, and tell what went wrong.

Nothing here asks anything of the mount itself before it is known to be alive: its process may be
gone, and any call on a mount whose process hangs would hang as well.
"""

from __future__ import annotations

import ctypes
import errno
import os
import select
import shutil
import subprocess
import threading
from collections.abc import Callable
from contextlib import suppress

from mount import live
from mount.users import users_of
from vdisk.errors import Busy, DiskError, HostError, NotFound, NotPermitted

_MNT_FORCE = 1  # umount2(2).
_MNT_DETACH = 2
_UMOUNT_NOFOLLOW = 8
_SLOW_SECONDS = 2.0
_PROBE_SECONDS = 1.0

_libc = ctypes.CDLL(None, use_errno=True)


def find(text: str) -> live.Mount:
    """The mount on the folder `text`, else the one of the image or folder `text`.

    Of mounts on top of each other, the topmost.  Raises NotFound where there is none, and Busy
    where a source is mounted more than once.
    """
    mounts = live.mounts()
    for place in _places(text):
        on_it = [mount for mount in mounts if mount.mountpoint == place]
        if on_it:
            return on_it[-1]
    found = [mount for mount in mounts if _has_source(mount, os.path.realpath(text))]
    if len(found) > 1:
        where = ", ".join(mount.mountpoint for mount in found)
        raise Busy("is mounted more than once", path=text, hint=f"name a mountpoint: {where}")
    if not found:
        raise NotFound("no vdisk mount is there, or of it", path=text, hint="see vdisk list")
    return found[0]


def _places(text: str) -> tuple[str, str]:
    """The mountpoint `text` may mean: itself, then what it is a link to.

    The first is found without a look at the last component, which may be a dead mount.
    """
    folder, name = os.path.split(os.path.abspath(text))
    return os.path.join(os.path.realpath(folder), name), os.path.realpath(text)


def _has_source(mount: live.Mount, path: str) -> bool:
    sources = [mount.source, *mount.source.split(":")]
    sources += [str(disk.get("host_file")) for disk in mount.disks]
    return path in (os.path.realpath(source) for source in sources)


def unmount(
    mount: live.Mount, *, lazy: bool = False, tell: Callable[[str], None] = lambda text: None
) -> None:
    """Take `mount` away and wait until its process has flushed and closed everything.

    A dead mount is cleaned up in any case.  With `lazy` a mount that is in use disappears at once
    and ends with its last user, which is not waited for; `tell` then says so, as it does when the
    wait is long.  Raises Busy (naming the users where the system tells), NotPermitted or HostError,
    and what the process itself left to say.
    """
    process = _process(mount.pid)
    try:
        if process is not None and mount.killed:
            _let_go(process, mount.mountpoint)
        detached = not _take_away(mount, lazy=lazy or mount.killed)
        if process is not None and detached and not mount.killed:
            tell(f"{mount.mountpoint}: still in use; the disk is closed when its last user ends")
            return
        if process is not None:
            _wait(process, mount, tell)
    finally:
        if process is not None:
            os.close(process)
    if mount.pid is not None:
        live.forget(mount.pid)
        failure = live.take_failure(mount.pid)
        if failure is not None:
            raise DiskError(failure)


def is_dead(mount: live.Mount) -> bool:
    """Whether the process that served `mount` is gone ("Transport endpoint is not connected")."""
    if mount.killed:
        return True
    if mount.pid is not None and live.is_running(mount.pid):
        return False
    answers: list[int] = []

    def probe() -> None:
        try:
            os.statvfs(mount.mountpoint)  # Unlike stat, never answered from what the kernel keeps.
        except OSError as error:
            answers.append(error.errno or 0)

    # Whose process we do not know may hang; then it is at least not dead.
    thread = threading.Thread(target=probe, daemon=True)
    thread.start()
    thread.join(_PROBE_SECONDS)
    return answers == [errno.ENOTCONN]


def _process(pid: int | None) -> int | None:
    """A descriptor that tells when the process ends; None where there is no such process."""
    if pid is None:
        return None
    try:
        return os.pidfd_open(pid)
    except OSError:
        return None


def _let_go(process: int, mountpoint: str) -> None:
    """Make the kernel give up a killed process that it still has.

    A thread that was in the kernel, dropping cached pages, may wait there for a page that is locked
    by a request on this very mount, which nobody answers any more; and as long as there is that
    thread, the image stays open and locked.  Raises HostError where it takes more rights.
    """
    if _has_ended(process, _SLOW_SECONDS):
        return
    device = live.device_of(mountpoint)
    with suppress(OSError):  # The owner may write to it, where fusectl is mounted.
        (live.connection_folder(device) / "abort").write_text("1")
    if os.geteuid() == 0:
        _libc.umount2(os.fsencode(mountpoint), _UMOUNT_NOFOLLOW | _MNT_FORCE)
    if not _has_ended(process, _SLOW_SECONDS):
        raise HostError(
            "its process was killed and cannot end", errno=errno.EBUSY, path=mountpoint,
            hint=f"as root: umount -f {mountpoint}",
        )


def _has_ended(process: int, seconds: float | None) -> bool:
    """Whether all of a process is gone within so many seconds (None: however long it takes)."""
    poll = select.poll()
    poll.register(process, select.POLLIN)
    return bool(poll.poll(None if seconds is None else seconds * 1000))


def _wait(process: int, mount: live.Mount, tell: Callable[[str], None]) -> None:
    if not _has_ended(process, _SLOW_SECONDS):
        tell(f"{mount.mountpoint}: waiting for everything to be written to {mount.source} …")
        _has_ended(process, None)


def _take_away(mount: live.Mount, *, lazy: bool) -> bool:
    """Unmount; False where it was in use and could only be detached."""
    take = _as_root if os.geteuid() == 0 else _as_user
    number = take(mount.mountpoint, lazy=False)
    if number == errno.EBUSY and (lazy or is_dead(mount)):
        number, detached = take(mount.mountpoint, lazy=True), True
    else:
        detached = False
    if number == errno.EBUSY:
        users = users_of(mount.mountpoint)
        by = f" by {', '.join(users)}" if users else ""
        raise Busy(
            f"in use{by}", path=mount.mountpoint,
            hint="end that first, or use --lazy: it then ends with its last user",
        )
    if number == errno.EPERM:
        raise NotPermitted("is another user's mount", path=mount.mountpoint)
    if number not in (0, errno.EINVAL):  # EINVAL: somebody else was faster.
        raise HostError.of(OSError(number, ""), "unmount", mount.mountpoint)
    return not detached


def _as_root(mountpoint: str, *, lazy: bool) -> int:
    """umount2(2); an errno, 0 when done."""
    flags = _UMOUNT_NOFOLLOW | (_MNT_DETACH if lazy else 0)
    if _libc.umount2(os.fsencode(mountpoint), flags) == 0:
        return 0
    return ctypes.get_errno()


def _as_user(mountpoint: str, *, lazy: bool) -> int:
    """fusermount3, which may unmount what its caller has mounted; an errno, 0 when done."""
    program = shutil.which("fusermount3") or shutil.which("fusermount")
    if program is None:
        raise HostError(
            "cannot unmount: fusermount3 is missing", errno=errno.ENOENT, path=mountpoint,
            hint="install fuse3",
        )
    command = [program, "-u", *(["-z"] if lazy else []), "--", mountpoint]
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, check=False,
        env={**os.environ, "LC_ALL": "C"},
    )
    if done.returncode == 0:
        return 0
    said = done.stderr.decode(errors="replace").strip()
    if mountpoint not in (where for where, _, _ in live.mounted()):
        return 0  # Somebody else was faster.
    if os.strerror(errno.EBUSY) in said:
        return errno.EBUSY
    if os.strerror(errno.EPERM) in said or "not found in /etc/mtab" in said:
        return errno.EPERM  # It looks for the caller's own mounts only.
    raise HostError(f"cannot unmount: {said}", errno=errno.EIO, path=mountpoint)
