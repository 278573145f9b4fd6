"""Getting a FUSE mount and its descriptor: mount(2) as root, fusermount3 as an ordinary user."""

from __future__ import annotations

import ctypes
import errno
import os
import select
import shutil
import socket
import subprocess

from mount import live
from mount.server import Place
from vdisk.errors import HostError

_DEVICE = "/dev/fuse"
_MS_RDONLY, _MS_NOSUID, _MS_NODEV = 1, 2, 4
_FLAGS = {"nosuid": 2, "nodev": 4, "noexec": 8, "sync": 16, "dirsync": 128, "noatime": 1024}
"""mount(2)'s number for each option that it has one for."""
_MNT_DETACH, _UMOUNT_NOFOLLOW = 2, 8

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = [
    ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p
]  # fmt: skip


class FuseMount:
    """A FUSE mount of ours.  `fd` is its open descriptor of /dev/fuse."""

    def __init__(self, place: Place) -> None:
        """Mount.  HostError with the reason where that fails."""
        self._mountpoint = place.mountpoint
        self._by_root = os.geteuid() == 0
        self.fd = self._open(place)
        self._number = live.device_of(place.mountpoint)

    def _open(self, place: Place) -> int:
        if not self._by_root:
            return _by_fusermount(place)
        try:
            return _by_mount(place)
        except PermissionError:  # Root of a container; fusermount3 may have more rights.
            self._by_root = False
            return _by_fusermount(place)
        except OSError as error:
            raise HostError.of(error, "mount", place.mountpoint) from error

    def end(self) -> None:
        """Close the descriptor, which answers whatever still waits, and take the mount away.

        A mount that is in use disappears, and is gone with its last user.
        """
        over = _is_over(self.fd)
        os.close(self.fd)  # First: unmounting asks the file system for things.
        if over and not self._is_there():
            return
        if self._by_root:
            _libc.umount2(os.fsencode(self._mountpoint), _MNT_DETACH | _UMOUNT_NOFOLLOW)
        else:
            command = [_fusermount(self._mountpoint), "-u", "-q", "-z", "--", self._mountpoint]
            subprocess.run(command, capture_output=True, check=False)

    def _is_there(self) -> bool:
        """Whether our mount, whose connection is over, still is: it was aborted, not unmounted.

        Nothing is asked of another mount that may be there now.
        """
        if self._number is None or live.device_of(self._mountpoint) != self._number:
            return False
        try:
            os.statvfs(self._mountpoint)
        except OSError as error:
            return error.errno in (errno.ENOTCONN, errno.ECONNABORTED)
        return False


def _is_over(fd: int) -> bool:
    """Whether the mount is gone, or its connection was aborted."""
    poll = select.poll()
    poll.register(fd, 0)
    return bool(poll.poll(0))


def _by_mount(place: Place) -> int:
    """mount(2).  Raises OSError."""
    flags = _MS_NOSUID | _MS_NODEV | (_MS_RDONLY if place.read_only else 0)
    for name in place.flags:
        flags |= _FLAGS.get(name, 0)
    fd = os.open(_DEVICE, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    options = [
        f"fd={fd}", "rootmode=40000", f"user_id={os.getuid()}", f"group_id={os.getgid()}",
        "default_permissions", *(["allow_other"] if _for_others(place) else []),
    ]  # fmt: skip
    done = _libc.mount(
        os.fsencode(place.source), os.fsencode(place.mountpoint),
        f"fuse.{place.subtype}".encode(), flags, ",".join(options).encode(),
    )  # fmt: skip
    if done != 0:
        number = ctypes.get_errno()
        os.close(fd)
        raise OSError(number, os.strerror(number))
    return fd


def _by_fusermount(place: Place) -> int:
    """fusermount3, which is set-uid root, mounts and sends the descriptor.  Raises HostError."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours, theirs:
        program = _fusermount(place.mountpoint)
        process = subprocess.Popen(
            [program, "-o", _options(place), "--", place.mountpoint],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            pass_fds=[theirs.fileno()],
            env={**os.environ, "LC_ALL": "C", "_FUSE_COMMFD": str(theirs.fileno())},
        )  # fmt: skip
        theirs.close()
        _, fds, _, _ = socket.recv_fds(ours, 1, 1)
        said = process.communicate()[1].decode(errors="replace")
    if not fds:
        lines = [line.removeprefix("fusermount3: ") for line in said.splitlines() if line.strip()]
        reason = "; ".join(lines) or f"fusermount3 ended with status {process.returncode}"
        raise HostError(f"cannot mount: {reason}", errno=errno.EIO, path=place.mountpoint)
    os.set_inheritable(fds[0], False)
    os.set_blocking(fds[0], False)
    return fds[0]


def _fusermount(mountpoint: str) -> str:
    program = shutil.which("fusermount3")
    if program is None:
        raise HostError(
            "cannot mount: fusermount3 is missing", errno=errno.ENOENT, path=mountpoint,
            hint="install fuse3",
        )
    return program


def _options(place: Place) -> str:
    """fusermount3 takes a comma as the end of an option unless a backslash stands before it."""
    source = place.source.replace("\\", "\\\\").replace(",", "\\,")
    chosen = [f"fsname={source}", f"subtype={place.subtype}", "default_permissions"]
    chosen += sorted(name for name in place.flags if name in _FLAGS)
    if _for_others(place):
        chosen.append("allow_other")
    if place.read_only:
        chosen.append("ro")
    return ",".join(chosen)


def _for_others(place: Place) -> bool:
    """allow_root is for the kernel like allow_other; the server turns the others away."""
    return place.allow_other or "allow_root" in place.flags
