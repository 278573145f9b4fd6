"""Live mounts: what `vdisk list` shows and `vdisk umount` waits for.

Each daemon keeps a record, a small JSON file named by its pid, in the run folder: /run/vdisk for
root, /run/user/UID/vdisk or /tmp/vdisk-UID for others.  XDG_RUNTIME_DIR is not asked: it is another
one, or not set, in cron, su or a second login, where the same mounts are to be found.  Which mounts
exist is what the kernel says (/proc/self/mountinfo); the record only adds what the kernel does not
know.  A record whose process is gone is removed by whoever meets it.
"""

from __future__ import annotations

import json
import os
import stat
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

FUSE_SUBTYPE = "vdisk"
_RECORD_BYTES_MAX = 8 << 20  # Of a mount of some ten thousand disks.


@dataclass(frozen=True, slots=True)
class Mount:
    """A live (or dead) vdisk mount.  `pid` None: its record is not ours to read, or gone.

    `killed`: process `pid` was killed, and the system may not have got rid of all of it.
    `server`: the name of the FUSE server, None where it is not known.
    """

    mountpoint: str
    source: str
    pid: int | None = None
    read_only: bool = False
    disks: list[dict[str, Any]] = field(default_factory=list)
    killed: bool = False
    server: str | None = None


def run_folder(uid: int | None = None) -> Path:
    """The run folder of a user (the current one by default), where records are written."""
    return _folders_of(os.geteuid() if uid is None else uid)[0]


def _folders_of(uid: int) -> list[Path]:
    """Where records of a user may be: in a session of theirs, and, after that, outside of one."""
    if uid == 0:
        return [Path("/run/vdisk")]
    outside = Path(f"/tmp/vdisk-{uid}")
    session = Path(f"/run/user/{uid}")
    try:
        in_session = os.stat(session).st_uid == uid
    except OSError:
        in_session = False
    return [session / "vdisk", outside] if in_session else [outside]


def record(mount: Mount) -> Path | None:
    """Write this process's record; None where the run folder cannot be had (it is only a help)."""
    folder = run_folder()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        owner = folder.lstat()
        if owner.st_uid != os.geteuid() or not stat.S_ISDIR(owner.st_mode):
            return None  # Somebody else made it, in a folder open to all.
        path = folder / f"{os.getpid()}.json"
        text = json.dumps({**asdict(mount), "started": _state(os.getpid())[1]})
        path.with_suffix(".new").write_text(text)
        path.with_suffix(".new").chmod(0o600)
        path.with_suffix(".new").replace(path)
    except OSError:
        return None
    return path


def failure_file(pid: int, uid: int | None = None) -> Path:
    """Where a daemon that could not write everything leaves its one line for `vdisk umount`."""
    return run_folder(uid) / f"{pid}.failed"


def leave_failure(text: str) -> None:
    """Say why this process ends badly, to whoever unmounts it."""
    with suppress(OSError):
        failure_file(os.getpid()).write_text(text + "\n")


def take_failure(pid: int) -> str | None:
    """The line that process `pid` left with `leave_failure`, None where it left none.

    The file is removed: the line is told once.
    """
    for folder in _run_folders():
        path = folder / f"{pid}.failed"
        with suppress(OSError, ValueError):
            text = _read_small(path).decode(errors="replace")
            path.unlink()
            return text.strip()
    return None


def forget(pid: int) -> None:
    """Remove the record of a process that has ended, though the system may still have it (a
    zombie, until its parent asks for its status)."""
    if is_running(pid):
        return
    for folder in _run_folders():
        with suppress(OSError):
            (folder / f"{pid}.json").unlink()


def mounts() -> list[Mount]:
    """Every vdisk mount this user can see, in the order they were mounted."""
    # Of a process that was killed and of one that took its place, the latter counts.
    by_age = sorted(_records(), key=lambda found: not found.killed)
    records = {found.mountpoint: found for found in by_age}
    listed = []
    for mountpoint, source, read_only in mounted():
        known = records.get(mountpoint)
        listed.append(known or Mount(mountpoint, source, read_only=read_only))
    return listed


def mounted() -> list[tuple[str, str, bool]]:
    """(mountpoint, source, read-only) of the vdisk mounts the kernel has, oldest first."""
    return [
        (entry.mountpoint, entry.source, entry.read_only)
        for entry in mountinfo()
        if entry.type == f"fuse.{FUSE_SUBTYPE}"
    ]


class MountEntry(NamedTuple):
    """A line of /proc/self/mountinfo (proc(5)).  `device` is "major:minor"."""

    device: str
    mountpoint: str
    read_only: bool
    type: str
    source: str


def mountinfo() -> list[MountEntry]:
    """Every mount of this process's namespace, oldest first; asks the kernel, no mount."""
    found = []
    # Names may hold any byte but NUL; only space, tab, newline, backslash and # are escaped.
    text = os.fsdecode(Path("/proc/self/mountinfo").read_bytes())
    for line in text.removesuffix("\n").split("\n"):
        fields = line.split(" ")
        at = fields.index("-")
        found.append(
            MountEntry(
                fields[2], _unescape(fields[4]), "ro" in fields[5].split(","), fields[at + 1],
                _unescape(fields[at + 2]),
            )
        )
    return found


def device_of(mountpoint: str) -> str | None:
    """"major:minor" of the topmost mount on `mountpoint`."""
    found = [entry.device for entry in mountinfo() if entry.mountpoint == mountpoint]
    return found[-1] if found else None


def connection_folder(device: str | None) -> Path:
    """Where fusectl, if mounted, shows the connection of the mount with that device number."""
    return Path("/sys/fs/fuse/connections", str(device).partition(":")[2])


def is_running(pid: int, started: str | None = None) -> bool:
    """Whether the process lives (and, where `started` is given, is the same one)."""
    state, now = _state(pid)
    return now is not None and state != "Z" and (started is None or now == started)


def _run_folders() -> list[Path]:
    """The run folders this user may look into: root, those of everybody."""
    folders = _folders_of(os.geteuid())
    if os.geteuid() == 0:
        folders += [Path(p) / "vdisk" for p in Path("/run/user").glob("*")]
        folders += list(Path("/tmp").glob("vdisk-*"))
    return folders


def _records() -> list[Mount]:
    found = []
    for folder in _run_folders():
        with suppress(OSError):
            for path in sorted(folder.glob("*.json")):
                found += _read_record(path)
    return found


def _read_record(path: Path) -> list[Mount]:
    try:
        values = json.loads(_read_small(path))
        started = values.pop("started")
        mount = Mount(**values)
        if mount.pid is not None:
            state, now = _state(mount.pid)
            if now == started:
                return [replace(mount, killed=state == "Z")]
        path.unlink()
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return []
    return []


def _read_small(path: Path) -> bytes:
    """A file's first bytes.  Root reads folders that others can write: no link, FIFO, no end."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise ValueError("not a regular file")
        return file.read(_RECORD_BYTES_MAX)


def _state(pid: int) -> tuple[str, str | None]:
    """Fields 3 and 22 of /proc/PID/stat: the state letter, and the start time, None for no process.

    The start time tells a process from a later one with the same pid.
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return "", None
    fields = text.rpartition(")")[2].split()
    return fields[0], fields[19]


def _unescape(text: str) -> str:
    """mountinfo writes space, tab, newline and backslash as octal escapes."""
    for char in " \t\n#\\":
        text = text.replace(f"\\{ord(char):03o}", char)
    return text
