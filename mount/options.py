"""Mount options: `-o` as mount(8) and fstab give it, taken apart."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from vdisk.errors import InvalidArgument
from vdisk.options import OpenOptions

SERVERS = ("auto", "kernel", "pyfuse3")
"""The FUSE servers by name; `auto` is the first of the others that can start."""

# What mount(8), systemd and fstab keep for themselves; a helper is handed it all the same.
_DROPPED = frozenset(
    {
        *("defaults", "auto", "noauto", "user", "nouser", "users", "owner", "group", "nofail"),
        *("_netdev", "rw", "suid", "dev", "exec", "async", "silent", "loud", "mand", "nomand"),
        *("atime", "diratime", "nodiratime", "relatime", "norelatime", "strictatime"),
        *("nostrictatime", "lazytime", "nolazytime", "iversion", "noiversion"),
    }
)
_DROPPED_PREFIXES = ("x-", "X-", "comment=", "helper=", "uhelper=")
_PASSED = frozenset({"nosuid", "nodev", "noexec", "sync", "dirsync", "noatime", "allow_root"})


@dataclass(slots=True)
class MountOptions:
    """What a mount was asked for.  `kernel` are options of mount(8) as they are.

    `server` is one of `SERVERS`; `passthrough` is wanted where it can be had.  With `snapshot` the
    images stay as they are, and what is written is forgotten at the end.
    """

    read_only: bool = False
    allow_other: bool = False
    nonempty: bool = False
    uid: int | None = None
    gid: int | None = None
    umask: int = 0
    server: str = SERVERS[0]
    passthrough: bool = True
    snapshot: bool = False
    kernel: set[str] = field(default_factory=set)
    image: OpenOptions = field(default_factory=OpenOptions)


def parse_options(texts: Iterable[str], *, sloppy: bool = False) -> MountOptions:
    """`-o` options, each text a comma-separated list.

    An unknown one is InvalidArgument, or passed over where `sloppy`, as mount(8)'s -s asks.
    """
    found = MountOptions()
    image: dict[str, str] = {}
    folders: list[Path] = []
    for option in (part for text in texts for part in text.split(",") if part):
        name, _, value = option.partition("=")
        if name in _DROPPED or option.startswith(_DROPPED_PREFIXES):
            continue
        if name in _PASSED:
            found.kernel.add(name)
        elif name == "ro":
            found.read_only = True
        elif name == "allow_other":
            found.allow_other = True
        elif name == "nopassthrough":
            found.passthrough = False
        elif name == "nonempty":
            found.nonempty = True
        elif name == "snapshot":
            found.snapshot = True
        elif name in ("uid", "gid"):
            setattr(found, name, _number(option, value, 10))
        elif name == "server":
            found.server = _server(option, value)
        elif name == "umask":
            found.umask = _number(option, value, 8)
        elif name == "mode":
            found.umask = 0o777 & ~_number(option, value, 8)
        elif name in ("format", "chs", "sector-size", "sector_size", "profile"):
            image[name.replace("-", "_")] = _given(option, value)
        elif name in ("allow-parent", "allow_parent"):
            folders.append(Path(_given(option, value)))
        elif not sloppy:
            raise InvalidArgument(f"mount option {option!r} is not known")
    size = image.get("sector_size")
    found.image = OpenOptions(
        format=image.get("format"),
        chs=image.get("chs"),
        sector_size=None if size is None else _number(f"sector-size={size}", size, 10),
        profile=image.get("profile"),
        allow_parent=tuple(folders),
    )
    return found


def _server(option: str, value: str) -> str:
    if value not in SERVERS:
        known = ", ".join(SERVERS)
        raise InvalidArgument(f"mount option {option!r}: known servers are {known}")
    return value


def _given(option: str, value: str) -> str:
    if not value:
        raise InvalidArgument(f"mount option {option!r} needs a value")
    return value


def _number(option: str, value: str, base: int) -> int:
    try:
        number = int(value, base)
    except ValueError:
        number = -1
    if not 0 <= number < 2**32 - 1:
        kind = "an octal number" if base == 8 else "a number"
        raise InvalidArgument(f"mount option {option!r}: {value!r} is not {kind}")
    return number
