"""Who uses a mount, as far as /proc and /sys tell this user.

Only links are read, never followed: what they lead to is the mount, which may not answer.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from mount import live

USERS_SHOWN_MAX = 4


def users_of(mountpoint: str) -> list[str]:
    """"name (pid N)", "/dev/loop0" or "the mount on …", the first few of those that use it."""
    found: list[str] = []
    for user in _users(mountpoint):
        if len(found) == USERS_SHOWN_MAX:
            return [*found, "…"]
        found.append(user)
    return found


def _users(mountpoint: str) -> Iterator[str]:
    for device in _loop_devices(mountpoint):
        where = _mounted_from(f"/dev/{device}")
        yield f"/dev/{device}" + (f" (mounted on {where})" if where else "")
    yield from (f"the mount on {where}" for where in _mounts_below(mountpoint))
    for process in Path("/proc").glob("[0-9]*"):
        if any(_is_below(path, mountpoint) for path in _paths(process)):
            yield _named(process)


def _is_below(path: str, mountpoint: str) -> bool:
    return path == mountpoint or path.startswith(mountpoint.rstrip("/") + "/")


def _loop_devices(mountpoint: str) -> Iterator[str]:
    for file in sorted(Path("/sys/block").glob("loop*/loop/backing_file")):
        with suppress(OSError):
            if _is_below(file.read_text(errors="surrogateescape").rstrip("\n"), mountpoint):
                yield file.parts[3]


def _mounted_from(device: str) -> str | None:
    """The first mountpoint of a device (or of a partition of it)."""
    for entry in live.mountinfo():
        if entry.source == device or entry.source.startswith(f"{device}p"):
            return entry.mountpoint
    return None


def _mounts_below(mountpoint: str) -> Iterator[str]:
    for entry in live.mountinfo():
        if entry.mountpoint != mountpoint and _is_below(entry.mountpoint, mountpoint):
            yield entry.mountpoint


def _paths(process: Path) -> Iterator[str]:
    """What a process has open, mapped, or stands in."""
    for name in ("cwd", "root", "exe"):
        with suppress(OSError):
            yield os.readlink(process / name)
    for folder in ("fd", "map_files"):
        with suppress(OSError):
            for link in (process / folder).iterdir():
                with suppress(OSError):
                    yield os.readlink(link)


def _named(process: Path) -> str:
    try:
        name = (process / "comm").read_text(errors="replace").strip()
    except OSError:
        name = "a process"
    return f"{name} (pid {process.name})"
